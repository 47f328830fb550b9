"""One run of several nodes that repeats exactly from its seed: virtual time, network, wall clocks, randomness.

`simulate` is the whole of it for most tests.  Everything that touches private names of Trio or wsproto to make a run
repeat stands in this file, and a test runs the same world twice, once in another process with another hash seed, and
compares traces: when an upgrade moves those names, that test says so.

What may still differ between runs, so nodes must not use it: threads, signals, real files, iteration over sets of
objects, `id()`.
"""

from __future__ import annotations

import gc
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from hashlib import sha256
from random import Random
from typing import Any, TypeVar

import trio
import wsproto.frame_protocol
import wsproto.utilities

from trio_rmq.client import instance
from trio_rmq.clock import use_wall_clock
from trio_rmq.randomness import use_rng
from trio_rmq.testing.virtual_network import Link, VirtualNetwork, open_network
from trio_rmq.testing.virtual_time import SimulatedClock

T = TypeVar("T")

START_WALL_MS = 1_700_000_000_000
"""The wall clock of every world at its start: 2023-11-14 22:13:20 UTC."""


class World:
    """The parts of one run; made by `open_world`."""

    def __init__(self, seed: int, network: VirtualNetwork, start_wall_ms: int) -> None:
        self.seed = seed
        self.network = network
        self.start_wall_ms = start_wall_ms
        self._start_seconds = trio.current_time()

    def rng(self, name: str) -> Random:
        """A generator of its own for `name`: what one part of a test draws leaves every other part's draws alone."""
        return named_rng(self.seed, name)

    def wall_ms(self) -> int:
        """The true wall clock of this world, which moves with virtual time."""
        return self.start_wall_ms + int((trio.current_time() - self._start_seconds) * 1000)

    @contextmanager
    def node(
        self,
        address: str,
        *,
        wall_offset_ms: Callable[[], int] = lambda: 0,
        check: Callable[[], None] = lambda: None,
        life: int = 0,
    ) -> Iterator[None]:
        """Within the block, and in every task started in it, code runs on the machine with this IP address.

        Its sockets, its wall clock (the world's plus `wall_offset_ms()`, so a test can set it back) and its randomness
        are its own.  `check` as of VirtualNetwork.node; each `life` of a machine draws other random numbers.
        """
        with (
            self.network.node(address, check=check),
            use_wall_clock(lambda: self.wall_ms() + wall_offset_ms()),
            use_rng(self.rng(f"node/{address}/{life}" if life else f"node/{address}")),
        ):
            yield


def named_rng(seed: int, name: str) -> Random:
    """A generator that depends on nothing but `seed` and `name`, the same in every process."""
    return Random(int.from_bytes(sha256(f"{seed}/{name}".encode()).digest()))


@asynccontextmanager
async def open_world(
    seed: int = 0, link: Link | None = None, *, start_wall_ms: int = START_WALL_MS, **network_options: Any
) -> AsyncIterator[World]:
    """A world inside the present Trio run, which should be on virtual time; options as of VirtualNetwork.

    To repeat exactly, the run must have been started by `simulate` or inside `deterministic_scheduling`.
    """
    async with open_network(named_rng(seed, "network"), link, **network_options) as network:
        world = World(seed, network, start_wall_ms)
        with use_wall_clock(world.wall_ms), use_rng(world.rng("world")):
            yield world


def simulate(main: Callable[[World], Awaitable[T]], *, seed: int = 0, link: Link | None = None, **options: Any) -> T:
    """Run `main(world)` in a Trio run of its own, on virtual time, repeating exactly for one seed; its result."""

    async def run() -> T:
        async with open_world(seed, link, **options) as world:
            return await main(world)

    with deterministic_scheduling(seed), _without_collector():
        return trio.run(run, clock=SimulatedClock())


@contextmanager
def _without_collector() -> Iterator[None]:
    """No cyclic garbage is collected inside: when it is depends on the process, and finalisers may schedule tasks."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def deterministic_scheduling(seed: int) -> Iterator[None]:
    """Trio runs inside the block schedule tasks, and WebSocket clients mask frames, in an order fixed by `seed`."""
    runner: Any = trio._core._run
    for name in ("_ALLOW_DETERMINISTIC_SCHEDULING", "_r"):
        if not hasattr(runner, name):
            raise RuntimeError(f"trio {trio.__version__} has no trio._core._run.{name}: runs cannot be made to repeat")
    allowed, state, global_state = runner._ALLOW_DETERMINISTIC_SCHEDULING, runner._r.getstate(), random.getstate()
    runner._ALLOW_DETERMINISTIC_SCHEDULING = True
    runner._r.seed(seed)
    random.seed(seed)  # trio-websocket draws the payload of its pings there
    masks = _Masks(named_rng(seed, "masks"))
    modules: tuple[Any, ...] = (wsproto.frame_protocol, wsproto.utilities)
    real = [module.os for module in modules]
    for module in modules:
        module.os = masks
    clients: Any = instance
    system = clients.os
    clients.os = _Process(system)
    try:
        yield
    finally:
        clients.os = system
        runner._ALLOW_DETERMINISTIC_SCHEDULING = allowed
        runner._r.setstate(state)
        random.setstate(global_state)
        for module, its_os in zip(modules, real, strict=True):
            module.os = its_os


class _Masks:
    """Stands for `os` in wsproto, which takes nothing from it but random bytes."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def urandom(self, size: int) -> bytes:
        return self._rng.randbytes(size)


class _Process:
    """Stands for `os` where clients name themselves: one process id in every run, so that ids are of one length."""

    def __init__(self, system: Any) -> None:
        self.environ = system.environ

    def getpid(self) -> int:
        return 4242
