"""The faults a scenario can name: each strikes a cluster, lasts, and is undone.

`strike` returns when the fault is over and its target serves again as far as the fault's own work goes: a server that
was down has been started.  What recovery takes from there is measured, not waited for here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random
from typing import NamedTuple

import trio

from trio_rmq.testing.chaos.cluster import Cluster, Node
from trio_rmq.testing.chaos.orders import Action
from trio_rmq.testing.chaos.proxy import Edge
from trio_rmq.testing.chaos.scenario import Strike
from trio_rmq.testing.chaos.systems import OurSystem

RECOVERY_CALLS = ("pread", "pwrite", "truncate", "fdatasync", "rename", "open")
"""Disk calls of a start, in one of which a kill in recovery strikes."""


class FaultKind(NamedTuple):
    """What a fault does, whether its target is an edge, and whether it is done to a process's life."""

    strike: Callable[[Cluster, Strike], Awaitable[None]]
    on_edge: bool = False
    on_process: bool = False


def _node(cluster: Cluster, strike: Strike) -> Node:
    return cluster.nodes[strike.target]


def _edge(cluster: Cluster, strike: Strike) -> Edge:
    source, _, target = strike.target.partition("->")
    return cluster.edge(source, target)


async def _kill(cluster: Cluster, strike: Strike) -> None:
    node = _node(cluster, strike)
    await node.kill()
    await trio.sleep(strike.seconds)
    await node.start()


async def _stop(cluster: Cluster, strike: Strike) -> None:
    node = _node(cluster, strike)
    await node.stop()
    await trio.sleep(strike.seconds)
    await node.start()


async def _wipe(cluster: Cluster, strike: Strike) -> None:
    node = _node(cluster, strike)
    await node.kill()
    node.wipe()
    cluster.note(node.name, "wiped")
    await trio.sleep(strike.seconds)
    await node.start()


async def _upgrade(cluster: Cluster, strike: Strike) -> None:
    node = _node(cluster, strike)
    await node.stop()
    if strike.fault.python:
        node.upgrade(OurSystem(strike.fault.python))
    await trio.sleep(strike.seconds)
    await node.start()


async def _rolling_restart(cluster: Cluster, strike: Strike) -> None:
    for node in cluster.nodes.values():
        await node.stop()
        await node.start()
        await trio.sleep(strike.seconds)


async def _kill_in_recovery(cluster: Cluster, strike: Strike) -> None:
    """Kill; then start and kill again in the middle of the start, several times; then let it come up."""
    node, rng = _node(cluster, strike), Random(strike.seed)
    await node.kill()
    for _ in range(strike.fault.kills):
        if isinstance(node.system, OurSystem):
            rule = node.order(RECOVERY_CALLS, "kill", first=rng.randint(1, 60), times=1)
            await node.start(wait=False)
            with trio.move_on_after(node.system.start_seconds):
                await node.wait_down()
            node.withdraw(rule)
        else:
            await node.start(wait=False)
            await trio.sleep(rng.uniform(0.5, 3.0))
        await node.kill()
    await node.start()


async def _pause(cluster: Cluster, strike: Strike) -> None:
    node = _node(cluster, strike)
    node.pause()
    try:
        await trio.sleep(strike.seconds)
    finally:
        node.go_on()


async def _power(cluster: Cluster, strike: Strike) -> None:
    node = _node(cluster, strike)
    lost = await node.lose_power(Random(strike.seed))
    cluster.note(node.name, "power", crashed=True, unsynced=lost)
    await trio.sleep(strike.seconds)
    await node.start()


def _condition(**fields: str | bool) -> Callable[[Cluster, Strike], Awaitable[None]]:
    """A fault of an edge: conditions with a fixed value, or with that of the scenario's field of this name."""

    async def strike_edge(cluster: Cluster, strike: Strike) -> None:
        edge = _edge(cluster, strike)
        edge.change(**{
            name: getattr(strike.fault, value) if isinstance(value, str) else value for name, value in fields.items()
        })  # fmt: skip
        try:
            await trio.sleep(strike.seconds)
        finally:
            edge.heal()

    return strike_edge


async def _half_open(cluster: Cluster, strike: Strike) -> None:
    count = _edge(cluster, strike).half_open()
    cluster.note(strike.target, "half open", connections=count)


async def _reset(cluster: Cluster, strike: Strike) -> None:
    count = _edge(cluster, strike).reset()
    cluster.note(strike.target, "reset", connections=count)


async def _fill_disk(cluster: Cluster, strike: Strike) -> None:
    node = _node(cluster, strike)
    assert node.disk is not None  # noqa: S101 - the scenario was checked
    taken = node.disk.fill(strike.fault.leave_bytes)
    cluster.note(node.name, "filled", taken_bytes=taken)
    try:
        await trio.sleep(strike.seconds)
    finally:
        node.disk.free()


async def _disk(cluster: Cluster, strike: Strike, action: Action) -> None:
    """A rule of the node's disk, for a time, or until it has struck as often as it says."""
    node, fault = _node(cluster, strike), strike.fault
    rule = node.order(
        fault.calls, action, path=fault.path, error=fault.error, seconds=fault.delay_seconds,
        first=fault.first, times=fault.times,
    )  # fmt: skip
    try:
        await trio.sleep(strike.seconds)
    finally:
        node.withdraw(rule)


async def _disk_error(cluster: Cluster, strike: Strike) -> None:
    await _disk(cluster, strike, "error")


async def _slow_disk(cluster: Cluster, strike: Strike) -> None:
    await _disk(cluster, strike, "delay")


async def _short_write(cluster: Cluster, strike: Strike) -> None:
    await _disk(cluster, strike, "short")


async def _step_clock(cluster: Cluster, strike: Strike) -> None:
    """Step the wall clock; with a duration, step it back afterwards."""
    node = _node(cluster, strike)
    node.step_clock(node.orders.wall_offset_ms + strike.step_ms)
    if strike.seconds:
        await trio.sleep(strike.seconds)
        node.step_clock(node.orders.wall_offset_ms - strike.step_ms)


FAULTS: dict[str, FaultKind] = {
    "kill": FaultKind(_kill, on_process=True),
    "kill_in_recovery": FaultKind(_kill_in_recovery, on_process=True),
    "stop": FaultKind(_stop, on_process=True),
    "pause": FaultKind(_pause, on_process=True),
    "wipe": FaultKind(_wipe, on_process=True),
    "upgrade": FaultKind(_upgrade, on_process=True),
    "rolling_restart": FaultKind(_rolling_restart, on_process=True),
    "power": FaultKind(_power, on_process=True),
    "fill_disk": FaultKind(_fill_disk),
    "disk_error": FaultKind(_disk_error),
    "slow_disk": FaultKind(_slow_disk),
    "short_write": FaultKind(_short_write),
    "step_clock": FaultKind(_step_clock),
    "cut": FaultKind(_condition(cut=True), on_edge=True),
    "silent": FaultKind(_condition(silent=True), on_edge=True),
    "slow": FaultKind(
        _condition(delay_seconds="delay_seconds", bytes_per_second="bytes_per_second"), on_edge=True
    ),
    "fragment": FaultKind(_condition(fragment_bytes="fragment_bytes"), on_edge=True),
    "corrupt": FaultKind(_condition(corrupt_chance="corrupt_chance"), on_edge=True),
    "half_open": FaultKind(_half_open, on_edge=True),
    "reset": FaultKind(_reset, on_edge=True),
}  # fmt: skip
"""By the names scenarios use."""
