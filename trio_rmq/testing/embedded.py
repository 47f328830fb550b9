"""A name server and a broker inside a test: real servers on free ports, in the test's own nursery, gone at its end.

The production servers, unmodified and with their defaults; only the disk under the store is one that syncs nothing
(`memory_disk`).  Invariants: whatever a broker took - tasks, ports, memory - it gives back when its block ends, however
it ends; an error of the block comes out bare; a broker that fails ends the block with its reason; nothing is shared
between two brokers, so that any number can run beside each other in one process.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial

import trio
from trio.testing import MockClock

from trio_rmq.config import load_standalone_settings
from trio_rmq.standalone import StandaloneReady, serve_standalone
from trio_rmq.store.message_store import MessageStore
from trio_rmq.supervision import serving_while
from trio_rmq.testing.memory_disk import MemoryDisk, UnsyncedDisk
from trio_rmq.testing.virtual_network import Link
from trio_rmq.testing.world import World, open_world

SERVER_ADDRESS = "10.0.0.1"
"""The machine of a virtual broker."""
CLIENT_ADDRESS = "10.0.0.2"
"""The machine that the block of a virtual broker runs on."""


class EmbeddedBroker:
    """A running broker as its test sees it."""

    def __init__(self, ready: StandaloneReady, disk: UnsyncedDisk, world: World | None = None) -> None:
        self.name_server = ready.namesrv_address
        """`host:port` of the name server: what clients of every language are given."""
        self.address = ready.broker_address
        """`host:port` of the broker, which serves TCP remoting and WebSocket."""
        self.store: MessageStore = ready.store
        """The broker's store, to read from."""
        self.world = world
        """The simulated machines, of a virtual broker."""
        self._disk = disk

    def __repr__(self) -> str:
        return f"<embedded broker at {self.address}, name server at {self.name_server}>"


@asynccontextmanager
async def broker(*settings: str, folder: str | None = None) -> AsyncIterator[EmbeddedBroker]:
    """A broker on the loopback address for the block, with the store in memory, or in `folder` where one is given.

    `settings` are `KEY=VALUE` each, in RocketMQ's spelling, as on the command line of `trio-rmq standalone`.  Ports are
    free ones unless listenPort says otherwise.  Raises what `load_standalone_settings` and `serve_standalone` raise.
    """
    disk = MemoryDisk() if folder is None else UnsyncedDisk()
    places = (f"storePathRootDir={folder or 'memory'}", f"kvConfigPath={folder or 'memory'}/namesrv/kvConfig.json")
    async with _serving(disk, [*places, "listenPort=0", "fastPortEnable=false", *settings], namesrv_port=0) as ready:
        yield EmbeddedBroker(ready, disk)


@asynccontextmanager
async def virtual_broker(*settings: str, seed: int = 0, link: Link | None = None) -> AsyncIterator[EmbeddedBroker]:
    """`broker` in a simulated world, for the block: virtual time, wall clock and network, everything in memory.

    The run must be on a `MockClock` (pytest-trio's `autojump_clock`; RuntimeError when it is not).  The block, and the
    tasks started in it, are on a machine of their own: clients opened there reach the broker, and nothing else.
    `link` says what its network is like; `seed` is that of all randomness.
    """
    if not isinstance(trio.lowlevel.current_clock(), MockClock):
        raise RuntimeError("a virtual broker needs virtual time: use pytest-trio's autojump_clock, or run on MockClock")
    disk = MemoryDisk()
    places = ("storePathRootDir=memory", "kvConfigPath=memory/namesrv/kvConfig.json")
    words = [*places, f"bindAddress={SERVER_ADDRESS}", "fastPortEnable=false", *settings]
    with _bare_errors():
        async with open_world(seed, link) as world:
            with world.node(SERVER_ADDRESS):
                async with _serving(disk, words, namesrv_port=9876) as ready:
                    with world.node(CLIENT_ADDRESS):
                        yield EmbeddedBroker(ready, disk, world)


@asynccontextmanager
async def _serving(disk: UnsyncedDisk, words: list[str], *, namesrv_port: int) -> AsyncIterator[StandaloneReady]:
    namesrv, settings = load_standalone_settings(None, words)
    namesrv.listen_port = namesrv_port
    serve = partial(serve_standalone, namesrv, settings.broker, settings.store, remoting=settings.remoting, disk=disk)
    with _bare_errors():
        async with serving_while(serve) as ready:
            yield ready


@contextmanager
def _bare_errors() -> Iterator[None]:
    """Take the group of the one nursery between here and the block away, and no group that the block made."""
    try:
        yield
    except BaseExceptionGroup as group:
        if len(group.exceptions) > 1:
            raise
        raise group.exceptions[0] from None
