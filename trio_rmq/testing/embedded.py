"""A name server and a broker inside a test: real servers on free ports, in the test's own nursery, gone at its end.

The production servers, unmodified and with their defaults; only the disk under the store is one that syncs nothing
(`memory_disk`).  Invariants: whatever a broker took - tasks, ports, memory - it gives back when its block ends, however
it ends; an error of the block comes out bare; a broker that fails ends the block with its reason; nothing is shared
between two brokers, so that any number can run beside each other in one process.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TypeVar

import anyio._backends._trio  # noqa: F401 - anyio would load it in the middle of the first broker's start
import trio
from trio.testing import MockClock

from trio_rmq.config import load_standalone_settings
from trio_rmq.standalone import serve_standalone
from trio_rmq.store.message_store import MessageStore
from trio_rmq.supervision import serving_while
from trio_rmq.testing.handle import BrokerHandle, Parts
from trio_rmq.testing.interposing import Interposer
from trio_rmq.testing.memory_disk import MemoryDisk, UnsyncedDisk
from trio_rmq.testing.virtual_network import Link
from trio_rmq.testing.virtual_time import SimulatedClock
from trio_rmq.testing.world import World, open_world

T = TypeVar("T")
SERVER_ADDRESS = "10.0.0.1"
"""The machine of a virtual broker."""
CLIENT_ADDRESS = "10.0.0.2"
"""The machine that the block of a virtual broker runs on."""


class EmbeddedBroker(BrokerHandle):
    """A broker in the test's own Trio run."""

    def __init__(self, parts: Parts, world: World | None = None) -> None:
        super().__init__(parts, _call)
        self.world = world
        """The simulated machines, of a virtual broker."""

    async def wait_until(self, predicate: Callable[[], object], timeout_seconds: float = 10.0) -> None:
        """Wait until `predicate()` is true; TimeoutError when it is not in time.

        It is asked again whenever the broker answered a request or stored a message.
        """
        with trio.move_on_after(timeout_seconds):
            await self.parts.interposer.wait_until(predicate)
            return
        raise TimeoutError(f"what a test waited for did not come true within {timeout_seconds:g} s")


def _call(function: Callable[[], T]) -> T:
    return function()


@asynccontextmanager
async def broker(*settings: str, folder: str | None = None) -> AsyncIterator[EmbeddedBroker]:
    """A broker on the loopback address for the block, with the store in memory, or in `folder` where one is given.

    `settings` are `KEY=VALUE` each, in RocketMQ's spelling, as on the command line of `trio-rmq standalone`.  Ports are
    free ones unless listenPort says otherwise.  Raises what `load_standalone_settings` and `serve_standalone` raise.
    """
    disk = MemoryDisk() if folder is None else UnsyncedDisk()
    places = (f"storePathRootDir={folder or 'memory'}", f"kvConfigPath={folder or 'memory'}/namesrv/kvConfig.json")
    async with _serving(disk, [*places, "listenPort=0", "fastPortEnable=false", *settings], namesrv_port=0) as parts:
        yield EmbeddedBroker(parts)


@asynccontextmanager
async def virtual_broker(*settings: str, seed: int = 0, link: Link | None = None) -> AsyncIterator[EmbeddedBroker]:
    """`broker` in a simulated world, for the block: virtual time, wall clock and network, everything in memory.

    The run must be on a `MockClock` (pytest-trio's `autojump_clock`) or a `SimulatedClock`; else RuntimeError.
    The block, and the tasks started in it, are on a machine of their own: clients opened there reach the broker, and
    nothing else.
    `link` says what its network is like; `seed` is that of all randomness.
    """
    if not isinstance(trio.lowlevel.current_clock(), MockClock | SimulatedClock):
        raise RuntimeError("a virtual broker needs virtual time: use pytest-trio's autojump_clock, or run on MockClock")
    disk = MemoryDisk()
    places = ("storePathRootDir=memory", "kvConfigPath=memory/namesrv/kvConfig.json")
    words = [*places, f"bindAddress={SERVER_ADDRESS}", "fastPortEnable=false", *settings]
    with _bare_errors():
        async with open_world(seed, link) as world:
            with world.node(SERVER_ADDRESS):
                async with _serving(disk, words, namesrv_port=9876) as parts:
                    with world.node(CLIENT_ADDRESS):
                        yield EmbeddedBroker(parts, world)


@asynccontextmanager
async def _serving(disk: UnsyncedDisk, words: list[str], *, namesrv_port: int) -> AsyncIterator[Parts]:
    namesrv, settings = load_standalone_settings(None, words)
    namesrv.listen_port = namesrv_port
    interposer = Interposer()
    serve = partial(
        serve_standalone,
        namesrv,
        settings.broker,
        settings.store,
        remoting=settings.remoting,
        disk=disk,
        hooks=interposer.hooks,
    )
    with _bare_errors():
        async with serving_while(serve) as ready:
            _tell_arrivals(ready.store, interposer)
            yield Parts(ready, settings.broker.broker_name, disk, interposer)


def _tell_arrivals(store: MessageStore, interposer: Interposer) -> None:
    """Have what is stored, by whomever, wake the tests that wait for it."""
    wake_pulls = store.on_arrival

    def arrived(topic: str, queue_id: int, max_offset: int, tags_code: int) -> None:
        if wake_pulls is not None:
            wake_pulls(topic, queue_id, max_offset, tags_code)
        interposer.changed()

    store.on_arrival, store.awaited = arrived, None


@contextmanager
def _bare_errors() -> Iterator[None]:
    """Take the group of the one nursery between here and the block away, and no group that the block made."""
    try:
        yield
    except BaseExceptionGroup as group:
        if len(group.exceptions) > 1:
            raise
        raise group.exceptions[0] from None
