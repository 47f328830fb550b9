"""A cluster of real server processes that can be stopped, killed, paused, wiped, upgraded and cut off.

    async with Cluster(folder) as cluster:
        async with Producer(name_servers=cluster.name_servers) as producer: ...
        await cluster.nodes["broker-a"].kill()

Everything between two parties goes through a proxy (`proxy`): `cluster.edge("producers", "broker-a")`.  A server that
ends by itself is noted, and started again after `restart_seconds` when that is set, as a supervisor would.  Leaving the
block kills what still runs.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from random import Random
from types import TracebackType
from typing import Any

import trio

from trio_rmq.errors import RocketMQError
from trio_rmq.testing.chaos.orders import Action, Deed, Orders, Rule, read_deeds, write_orders
from trio_rmq.testing.chaos.proxy import Edge, Proxy, Rewrite
from trio_rmq.testing.chaos.small_disk import SmallDisk
from trio_rmq.testing.chaos.sources import PARTIES
from trio_rmq.testing.chaos.systems import Launch, OurSystem, Place, System
from trio_rmq.testing.chaos.unsynced import lose_power
from trio_rmq.testing.world import named_rng

Note = Callable[..., None]
"""Told what happens: `note(node, what, **values)`, as `simulation.history.History.add`."""

STOP_SECONDS = 30.0
LOG_BYTES = 4096


PORTS = (20_000, 32_000)
"""Below those that systems give to whoever connects, so that nobody takes a server's port while it is down."""
PORT_NEIGHBOURS = (-2, -1, 0, 1)
"""Beside its port, a broker of Apache listens two below it and one above it."""


class NodeError(RocketMQError):
    """A server did not start, or did not stop, in time."""


def _nobody(process: str, what: str, **value: Any) -> None:
    return None


async def _free_port(rng: Random) -> int:
    """A port of 127.0.0.1 that is free now, with its neighbours."""
    while True:
        port = rng.randrange(*PORTS)
        try:
            for distance in PORT_NEIGHBOURS:
                for listener in await trio.open_tcp_listeners(port + distance, host="127.0.0.1"):
                    await listener.aclose()
        except OSError:
            continue
        return port


def _always(edge: Edge) -> Callable[[str], Edge]:
    """For a proxy that only one party is told of."""
    return lambda address: edge


class Node:
    """One server: its place on disk, and its process while it has one."""

    def __init__(
        self,
        cluster: Cluster,
        place: Place,
        kind: str,
    ) -> None:
        self.name = place.name
        self.place = place
        self.kind = kind
        """`broker` or `name server`."""
        self.system = cluster.system
        self.process: trio.Process | None = None
        self.disk: SmallDisk | None = None
        self.restart_seconds: float | None = cluster.restart_seconds if kind == "broker" else None
        self.orders = Orders()
        self._cluster = cluster
        self._wanted = False
        self._ready = False
        self._changed = trio.Event()
        self._rules = 0

    @property
    def is_up(self) -> bool:
        """Whether its process runs and has said that it is ready."""
        return self._ready

    @property
    def log_path(self) -> str:
        """Where all its output is, life after life."""
        return f"{self.place.folder}/output.log"

    # ---- life ----------------------------------------------------------------------------------------------------

    async def start(self, *, wait: bool = True) -> None:
        """Start the process; with `wait` return when it is ready.  NodeError when it ends or hangs before that."""
        self._wanted = True
        if self.process is None:
            await self._cluster.nursery.start(self._run)
        if wait:
            await self.wait_ready()

    async def wait_ready(self) -> None:
        """Until it is ready; NodeError when it is not in the system's time, or ended and is not started again."""
        with trio.move_on_after(self.system.start_seconds):
            while not self._ready:
                if self.process is None and self.restart_seconds is None:
                    raise NodeError(f"{self.name} ended before it was ready; its output: {self._end()}")
                await self._changed.wait()
            return
        raise NodeError(f"{self.name} was not ready within {self.system.start_seconds:g} s; its output: {self._end()}")

    async def wait_down(self) -> None:
        """Until its process has ended; at once when there is none."""
        while self.process is not None:
            await self._changed.wait()

    def _change(self, *, ready: bool) -> None:
        self._ready = ready
        self._changed.set()
        self._changed = trio.Event()

    def _end(self) -> str:
        with open(self.log_path, "rb") as file:
            file.seek(max(0, os.path.getsize(self.log_path) - LOG_BYTES))
            return file.read().decode(errors="replace")

    async def _run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """The process from its start to its end."""
        launch = self._cluster.launch(self)
        with open(self.log_path, "ab") as log:  # noqa: ASYNC230 - a local file, opened once a life
            process = self.process = await trio.lowlevel.open_process(
                launch.words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=launch.environment or None,
            )
            self._cluster.note(self.name, "starts")
            task_status.started()
            try:
                await self._read(process, launch.ready, log.fileno())
                status = await process.wait()
            finally:
                if process.returncode is None:
                    process.kill()
                    with trio.CancelScope(shield=True):
                        await process.wait()
                if process.stdout is not None:
                    await trio.aclose_forcefully(process.stdout)
                self.process = None
                self._change(ready=False)
        self._cluster.note(self.name, "ends" if self._wanted else "down", status=status)
        if self._wanted and self.restart_seconds is not None:
            await trio.sleep(self.restart_seconds)
            if self._wanted and self.process is None:
                await self._cluster.nursery.start(self._run)

    async def _read(self, process: trio.Process, ready: str, log: int) -> None:
        """Copy the output to the log until it ends; a line like `ready` sets the event."""
        assert process.stdout is not None  # noqa: S101 - a pipe was asked for
        rest = ""
        async for chunk in process.stdout:
            os.write(log, chunk)
            *lines, rest = (rest + chunk.decode(errors="replace")).split("\n")
            if not self._ready and any(re.search(ready, line) for line in lines):
                self._change(ready=True)
                self._cluster.note(self.name, "up")

    async def _gone(self, seconds: float) -> bool:
        with trio.move_on_after(seconds):
            await self.wait_down()
            return True
        return False

    async def stop(self) -> None:
        """SIGTERM, and wait for an orderly end; NodeError when there is none in time."""
        self._wanted = False
        self._signal(signal.SIGTERM)
        if not await self._gone(STOP_SECONDS):
            raise NodeError(f"{self.name} did not end within {STOP_SECONDS:g} s of SIGTERM; its output: {self._end()}")

    async def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._wanted = False
        self._signal(signal.SIGKILL)
        await self._gone(STOP_SECONDS)

    def pause(self) -> None:
        """SIGSTOP: it keeps its sockets and does nothing."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT: undo `pause`."""
        self._signal(signal.SIGCONT)

    async def restart(self) -> None:
        """Stop in order and start again."""
        await self.stop()
        await self.start()

    def _signal(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(number)

    # ---- disk, version, orders -----------------------------------------------------------------------------------

    def wipe(self) -> None:
        """Remove all that it stored.  It must not run."""
        self._must_be_down("wipe")
        for name in os.listdir(self.place.store):
            path = f"{self.place.store}/{name}"
            if os.path.isdir(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)

    def upgrade(self, system: System) -> None:
        """Let the next start be of another version or interpreter.  It must not run."""
        self._must_be_down("upgrade")
        self.system = system

    async def lose_power(self, rng: Random) -> int:
        """Kill it, and take from its disk what was not synced, as `rng` chooses; how many changes were not synced.

        ValueError when the cluster does not keep the journal for it (`track_unsynced`).
        """
        if not self.place.journal:
            raise ValueError("without track_unsynced nobody knows what was not synced: set it for the cluster")
        await self.kill()
        return lose_power(self.place.store, self.place.journal, rng)

    def _must_be_down(self, what: str) -> None:
        if self.process is not None:
            raise ValueError(f"{self.name} runs: stop it before you {what} it")

    def order(self, calls: tuple[str, ...], action: Action, **fields: Any) -> Rule:
        """Give the node's disk a fault; fields as of `Rule`.  It counts matching calls from now on."""
        self._rules += 1
        rule = Rule(self._rules, calls, action, **fields)
        self.orders.rules.append(rule)
        self.write_orders()
        return rule

    def withdraw(self, rule: Rule) -> None:
        """End a fault."""
        self.orders.rules = [other for other in self.orders.rules if other.number != rule.number]
        self.write_orders()

    def step_clock(self, offset_ms: int) -> None:
        """Set its wall clock so far from the machine's."""
        self.orders.wall_offset_ms = offset_ms
        self.write_orders()

    def write_orders(self) -> None:
        """Let the node see the orders as they are."""
        write_orders(self.place.orders, self.orders)

    def deeds(self) -> list[Deed]:
        """The faults of its disk that took place."""
        return read_deeds(self.place.orders)


class Cluster:
    """Name servers `namesrv-1`... and brokers `broker-a`..., started in this order; an async context manager.

    `settings` are RocketMQ's keys for brokers, `name_server_settings` for name servers.  `disk_bytes` puts each
    broker's store on a file system of that size (`small_disk`).  `track_unsynced` keeps what a power loss needs.
    `mutants` are planted into brokers of ours.  `note` is told what happens.
    """

    def __init__(
        self,
        folder: str,
        system: System | None = None,
        *,
        name_servers: int = 1,
        brokers: int = 1,
        settings: dict[str, str] | None = None,
        name_server_settings: dict[str, str] | None = None,
        restart_seconds: float | None = None,
        disk_bytes: int = 0,
        track_unsynced: bool = False,
        mutants: list[str] | None = None,
        seed: int = 0,
        note: Note = _nobody,
    ) -> None:
        self.folder = os.path.abspath(folder)
        self.system: System = system or OurSystem()
        self.restart_seconds = restart_seconds
        self.note = note
        self.nodes: dict[str, Node] = {}
        self.edges: dict[tuple[str, str], Edge] = {}
        self.nursery: trio.Nursery
        self._sizes = (name_servers, brokers)
        self._settings = dict(settings or {})
        self._name_server_settings = dict(name_server_settings or {})
        self._disk_bytes = disk_bytes
        self._track_unsynced = track_unsynced
        self._mutants = list(mutants or [])
        self._seed = seed
        self._proxies: dict[tuple[str, str], Proxy] = {}
        self._ports = Random()
        """Not the seed's: clusters of one seed may run side by side."""

    @property
    def name_servers(self) -> str:
        """What clients are to be given: the proxies in front of the name servers."""
        return ";".join(self._proxies["", node.name].address for node in self._of("name server"))

    @property
    def brokers(self) -> list[Node]:
        """The brokers, in order."""
        return self._of("broker")

    def _of(self, kind: str) -> list[Node]:
        return [node for node in self.nodes.values() if node.kind == kind]

    def edge(self, source: str, target: str) -> Edge:
        """From `producers`, `consumers`, `observer`, `others` or a broker to a server; made when first asked for."""
        if target not in self.nodes:
            raise ValueError(f"no server is called {target!r}: there are {', '.join(self.nodes)}")
        name = f"{source}->{target}"
        return self.edges.setdefault((source, target), Edge(name, named_rng(self._seed, name)))

    def heal(self) -> None:
        """End all faults of edges."""
        for edge in self.edges.values():
            edge.heal()

    # ---- life ----------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Cluster:
        self._stack = AsyncExitStack()
        self.nursery = await self._stack.enter_async_context(trio.open_nursery())
        try:
            await self._open()
        except BaseException:
            self.nursery.cancel_scope.cancel()
            await self._stack.aclose()
            raise
        return self

    async def _open(self) -> None:
        servers, brokers = self._sizes
        for number in range(servers):
            await self._add(f"namesrv-{number + 1}", "name server", self._name_server_settings)
        for number in range(brokers):
            await self._add(f"broker-{chr(ord('a') + number)}", "broker", self._settings)
        for node in self.nodes.values():
            await self._front(node)
        for node in self.nodes.values():
            await node.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for node in self.nodes.values():
            node.go_on()
        self.nursery.cancel_scope.cancel()
        await self._stack.__aexit__(kind, error, traceback)

    async def _add(self, name: str, kind: str, settings: dict[str, str]) -> None:
        folder = f"{self.folder}/{name}"
        disk, journal = f"{folder}/disk", ""
        os.makedirs(disk, exist_ok=True)
        small = None
        if kind == "broker" and self._disk_bytes:
            small = self._stack.enter_context(SmallDisk(disk, self._disk_bytes))
        if kind == "broker" and self._track_unsynced and not self.system.cannot("power"):
            journal = f"{disk}/journal"
        os.makedirs(f"{disk}/store", exist_ok=True)
        port = await _free_port(self._ports)
        place = Place(name, folder, f"{disk}/store", port, settings, f"{folder}/orders.json", journal)
        node = self.nodes[name] = Node(self, place, kind)
        node.disk = small
        if kind == "broker":
            node.orders.mutants = self._mutants
        node.write_orders()

    async def _front(self, node: Node) -> None:
        """Proxies in front of a server: one for clients, and before a name server one for each broker."""
        target = ("127.0.0.1", node.place.port)

        def edge_of(address: str) -> Edge:
            return self.edge(PARTIES.get(address, "others"), node.name)

        await self._serve(("", node.name), Proxy(target, edge_of))
        if node.kind == "name server":
            for broker in self.brokers:
                proxy = Proxy(
                    target, _always(self.edge(broker.name, node.name)), rewrite=partial(self._rewrite, broker)
                )
                await self._serve((broker.name, node.name), proxy)

    def _rewrite(self, broker: Node) -> Rewrite:
        """A broker tells name servers where it is: the proxy's address takes the place of its own."""
        own = f"127.0.0.1:{broker.place.port}"
        return Rewrite(own.encode(), self._proxies["", broker.name].address.encode())

    async def _serve(self, key: tuple[str, str], proxy: Proxy) -> None:
        await self.nursery.start(proxy.serve)
        self._proxies[key] = proxy

    def launch(self, node: Node) -> Launch:
        """How the node is started now."""
        if node.kind == "name server":
            return node.system.name_server(node.place)
        servers = ";".join(self._proxies[node.name, server.name].address for server in self._of("name server"))
        return node.system.broker(node.place, servers)
