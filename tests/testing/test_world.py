"""A world repeats from its seed, in this process and in another, and gives each node its own clock and randomness."""

from __future__ import annotations

import subprocess
import sys
from hashlib import sha256
from typing import Any

import pytest
import trio

from trio_rmq.clock import wall_ms
from trio_rmq.errors import RemotingError
from trio_rmq.randomness import rng
from trio_rmq.remoting.client import open_connection
from trio_rmq.remoting.handlers import HandlerTable
from trio_rmq.remoting.listener import serve_remoting
from trio_rmq.testing.virtual_network import Link
from trio_rmq.testing.world import START_WALL_MS, World, deterministic_scheduling, simulate
from trio_rmq.wire.command import Command

SERVER = "10.0.0.1"


def trace_of(seed: int) -> str:
    """A hash of all that happens in a small cluster: clients of both transports, jitter, a cut and a reset."""
    events: list[str] = []

    async def main(world: World) -> None:
        world.network.on_packet = lambda *packet: events.append(repr(packet))
        handlers = HandlerTable()
        handlers.register(5, lambda session, command: command.reply(body=bytes(command.body)))

        async def client(number: int) -> None:
            for attempt in range(8):
                try:
                    async with open_connection(f"{('', 'ws://')[number % 2]}{SERVER}:9000") as connection:
                        for _ in range(5):
                            body = f"{number}/{attempt}/{rng().random()}".encode()
                            reply = await connection.request(Command(5, body=body), 2.0)
                            events.append(f"{trio.current_time()} {wall_ms()} {bytes(reply.body)!r}")
                except RemotingError as error:
                    events.append(f"{trio.current_time()} {number} {type(error).__name__}")
                await trio.sleep(rng().random() / 10)

        async with trio.open_nursery() as nursery:
            with world.node(SERVER):
                await nursery.start(
                    lambda task_status: serve_remoting([f"{SERVER}:9000"], handlers, task_status=task_status)
                )
            async with trio.open_nursery() as clients:
                for number in range(6):
                    with world.node(f"10.0.1.{number}"):
                        clients.start_soon(client, number)
                await trio.sleep(0.05)
                world.network.cut("10.0.1.0", SERVER, one_way=True)
                await trio.sleep(0.05)
                world.network.reset("10.0.1.2", SERVER)
                await trio.sleep(3)
                world.network.heal("10.0.1.0", SERVER, one_way=True)
            nursery.cancel_scope.cancel()

    simulate(main, seed=seed, link=Link(latency_seconds=0.001, jitter_seconds=0.01, split_chance=0.3))
    assert len(events) > 500
    return sha256("\n".join(events).encode()).hexdigest()


def test_one_seed_is_one_history() -> None:
    first = trace_of(7)
    assert trace_of(7) == first
    assert trace_of(8) != first


def test_another_process_with_another_hash_seed_sees_the_same() -> None:
    program = f"import runpy; print(runpy.run_path({__file__!r})['trace_of'](7))"
    for hash_seed in ("0", "12345"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(path for path in sys.path if path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == trace_of(7)


def test_each_node_has_its_clock_and_randomness() -> None:
    async def main(world: World) -> list[tuple[int, float]]:
        seen: list[tuple[int, float]] = []
        offset = -5000

        async def look() -> None:
            await trio.sleep(1)
            seen.append((wall_ms() - START_WALL_MS, rng().random()))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            with world.node("10.0.0.1"):
                nursery.start_soon(look)
            with world.node("10.0.0.2", wall_offset_ms=lambda: offset):
                nursery.start_soon(look)
        return sorted(seen)

    seen = simulate(main, seed=3)
    assert [time for time, _ in seen] == [-4000, 1000, 1000]
    assert len({number for _, number in seen}) == 3
    assert simulate(main, seed=3) == seen


def test_the_switches_are_set_back() -> None:
    runner: Any = trio._core._run
    allowed, state = runner._ALLOW_DETERMINISTIC_SCHEDULING, runner._r.getstate()
    with deterministic_scheduling(1):
        assert runner._ALLOW_DETERMINISTIC_SCHEDULING is True
    assert allowed is runner._ALLOW_DETERMINISTIC_SCHEDULING
    assert runner._r.getstate() == state


def test_a_trio_without_the_switches_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(trio._core._run, "_ALLOW_DETERMINISTIC_SCHEDULING")
    with pytest.raises(RuntimeError, match="cannot be made to repeat"):
        deterministic_scheduling(1).__enter__()
