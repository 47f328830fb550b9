"""The socket of the virtual network: what `trio.socket.socket` returns while one is open.

Invariants: bytes arrive once and in order; a writer gets no further ahead of its reader than the link's buffer; an
operation that waits raises ClosedResourceError when its own socket is closed, as Trio's does; what a call changes is
changed before its last checkpoint, which cannot be cancelled.
"""

from __future__ import annotations

import errno
import os
import struct
from collections import deque
from functools import partial
from operator import index
from socket import AddressFamily, SocketKind
from typing import TYPE_CHECKING, Any, NoReturn

import trio
from trio import socket as tsocket

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType
    from typing import Self

    from typing_extensions import Buffer

    from trio_rmq.testing.virtual_network import VirtualNetwork

    ExceptionType = type[BaseException]


class VirtualSocket(tsocket.SocketType):
    """One end of a connection, a listener, or a socket that is neither yet."""

    def __init__(self, network: VirtualNetwork, node: str, family: AddressFamily, proto: int = 0) -> None:
        super().__init__()
        self.node = node
        self.life = network.life(node)
        self.peer: VirtualSocket | None = None
        self.last_arrival = 0.0
        self._network = network
        self._family = family
        self._proto = proto
        self._fileno = network.register(self)
        self._local: tuple[str, int] = ("::" if family == tsocket.AF_INET6 else "0.0.0.0", 0)  # noqa: S104 - not bound yet
        self._remote: tuple[str, int] | None = None
        self._options: dict[tuple[int, int], Any] = {}
        self._incoming = bytearray()
        self._window = 0
        self._freed = 0
        self._end_received = False
        self._end_sent = False
        self._error = 0
        self._backlog: deque[VirtualSocket] | None = None
        self._backlog_max = 0
        self._connected = trio.Event()
        self._readers = trio.lowlevel.ParkingLot()
        self._writers = trio.lowlevel.ParkingLot()

    # ---- facts -------------------------------------------------------------------------------------------------

    @property
    def family(self) -> AddressFamily:
        """AF_INET or AF_INET6."""
        return self._family

    @property
    def type(self) -> SocketKind:
        """SOCK_STREAM."""
        return tsocket.SOCK_STREAM

    @property
    def proto(self) -> int:
        """As given."""
        return self._proto

    @property
    def did_shutdown_SHUT_WR(self) -> bool:  # noqa: N802 - trio's name
        """Whether the writing half was shut down."""
        return self._end_sent

    @property
    def _sock(self) -> VirtualSocket:
        return self  # anyio asks the raw socket for its addresses

    def fileno(self) -> int:
        """A number of no real file; -1 once closed."""
        return self._fileno

    def getsockname(self) -> Any:
        """The local address."""
        self._check_open()
        return self._address(self._local)

    def getpeername(self) -> Any:
        """The remote address; ENOTCONN without one."""
        self._check_open()
        if self._remote is None:
            _fail(errno.ENOTCONN)
        return self._address(self._remote)

    def _address(self, address: tuple[str, int]) -> Any:
        return (*address, 0, 0) if self._family == tsocket.AF_INET6 else address

    def getsockopt(self, level: int, optname: int, buflen: int | None = None) -> Any:
        """What was set, 0 otherwise; SO_ACCEPTCONN says whether this is a listener."""
        self._check_open()
        if (level, optname) == (tsocket.SOL_SOCKET, tsocket.SO_ACCEPTCONN):
            return int(self._backlog is not None)
        return self._options.get((level, optname), 0 if buflen is None else b"\0" * buflen)

    def setsockopt(self, level: int, optname: int, value: int | Buffer | None, optlen: int | None = None) -> None:
        """Kept for `getsockopt`; only SO_LINGER with time 0 has an effect: closing resets the connection."""
        self._check_open()
        self._options[level, optname] = value

    def is_readable(self) -> bool:
        """Whether a read or accept would return at once."""
        return bool(self._incoming or self._end_received or self._error or self._backlog)

    def __repr__(self) -> str:
        return f"<VirtualSocket {self._fileno} of {self.node}: {self._local} - {self._remote}>"

    # ---- opening -----------------------------------------------------------------------------------------------

    async def bind(self, address: Any) -> None:
        """Choose the local address; EADDRINUSE, EADDRNOTAVAIL."""
        self._check_open()
        host, port = self._network.resolve(address)
        await trio.lowlevel.checkpoint()
        self._local = (host, self._network.bind(self.node, host, port))

    def listen(self, backlog: int = 128) -> None:
        """Take connections; attempts beyond `backlog` are repeated by their clients."""
        self._check_open()
        self._local = (self._local[0], self._local[1] or self._network.free_port(self.node))
        self._network.listen(self, *self._local)
        self._backlog = deque()
        self._backlog_max = max(1, backlog)

    def take(self, client: VirtualSocket, address: str, port: int) -> bool:
        """The network's call for a new connection: False while the backlog is full."""
        assert self._backlog is not None  # noqa: S101 - listeners alone are asked
        if len(self._backlog) >= self._backlog_max:
            return False
        server = VirtualSocket(self._network, self.node, self._family)
        server._local, server._remote = (address, port), client._local
        server._join(client)
        self._backlog.append(server)
        self._readers.unpark()
        self._network.transmit("accepted", self.node, client.node, server, 0, partial(client._on_accepted, server))
        return True

    def _join(self, peer: VirtualSocket) -> None:
        self.peer = peer
        self._window = self._network.link(self.node, peer.node).buffer_bytes
        self._connected.set()

    def _on_accepted(self, server: VirtualSocket) -> None:
        if self._fileno < 0 or self._error:
            self._network.transmit("reset", self.node, server.node, self, 0, server.on_reset)
        else:
            self._join(server)

    async def accept(self) -> tuple[tsocket.SocketType, Any]:
        """The next connection and its remote address; EINVAL without `listen`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_open()
        if self._backlog is None:
            _fail(errno.EINVAL)
        while not self._backlog:
            await self._wait(self._readers)
        server = self._backlog.popleft()
        await trio.lowlevel.cancel_shielded_checkpoint()
        assert server._remote is not None  # noqa: S101 - it came with a client
        return server, server._address(server._remote)

    async def connect(self, address: Any) -> None:
        """Connect; ECONNREFUSED without a listener, ETIMEDOUT without an answer.  A cancel closes the socket."""
        self._check_open()
        host, port = self._network.resolve(address)
        node = self._network.node_of(host, self.node)
        source = host if node == self.node else self.node
        self._local = (source, self._local[1] or self._network.free_port(self.node))
        self._remote = (host, port)
        attempt = partial(self._network.on_connect, self, node, host, port)
        self._network.transmit("connect", self.node, node, self, 0, attempt)
        try:
            with trio.move_on_after(self._network.connect_seconds) as scope:
                await self._connected.wait()
        except trio.Cancelled:
            self.close()
            raise
        self._check_not_closed_meanwhile()
        if self._error:
            _fail(self._error)
        if scope.cancelled_caught:
            self._error = errno.ETIMEDOUT
            _fail(errno.ETIMEDOUT)

    # ---- data --------------------------------------------------------------------------------------------------

    async def recv(self, buflen: int, flags: int = 0, /) -> bytes:
        """At most `buflen` bytes, maybe fewer than there are; b"" after the peer's end; ECONNRESET."""
        buflen = index(buflen)
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_open()
        if self.peer is None:
            _fail(errno.ENOTCONN)
        waited = False
        while not self._incoming:
            if self._error:
                _fail(self._error)
            if self._end_received:
                break
            await self._wait(self._readers)
            waited = True
        data = self._read(buflen, self.peer) if self._incoming else b""
        if not waited:
            await trio.lowlevel.cancel_shielded_checkpoint()
        return data

    def _read(self, buflen: int, peer: VirtualSocket) -> bytes:
        size = self._split(min(buflen, len(self._incoming)), peer.node, self.node)
        data = bytes(self._incoming[:size])
        del self._incoming[:size]
        self._freed += size
        if 4 * self._freed >= self._network.link(peer.node, self.node).buffer_bytes:
            self._tell_window(peer)
        return data

    def _tell_window(self, peer: VirtualSocket) -> None:
        """Let the peer send as much more as was read: as real systems do, not before it is worth a packet."""
        size, self._freed = self._freed, 0
        self._network.transmit("window", self.node, peer.node, self, 0, partial(peer._on_window, size))

    async def recv_into(self, buffer: Buffer, nbytes: int = 0, flags: int = 0) -> int:
        """`recv` into a buffer; how many bytes."""
        view = memoryview(buffer)
        data = await self.recv(nbytes or len(view))
        view[: len(data)] = data
        return len(data)

    async def send(self, data: Buffer, flags: int = 0, /) -> int:
        """Hand over at least one byte, waiting for room; how many were taken.  EPIPE, ECONNRESET, ETIMEDOUT."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_open()
        if self.peer is None:
            _fail(errno.ENOTCONN)
        view = memoryview(data)
        waited = False
        while True:
            if self._error or self._end_sent:
                _fail(self._error or errno.EPIPE)
            if self._window > 0 or not len(view):
                break
            await self._wait(self._writers)
            waited = True
        size = self._split(min(len(view), self._window), self.node, self.peer.node)
        self._window -= size
        peer = self.peer
        if size:
            arrival = partial(peer._on_data, bytes(view[:size]))
            self._network.transmit("data", self.node, peer.node, self, size, arrival)
        if not waited:
            await trio.lowlevel.cancel_shielded_checkpoint()
        return size

    async def sendmsg(
        self, buffers: Iterable[Buffer], ancdata: Any = (), flags: int = 0, address: Any = None, /
    ) -> int:
        """`send` of several buffers as one."""
        return await self.send(b"".join(buffers))

    def _split(self, size: int, source: str, target: str) -> int:
        chance = self._network.link(source, target).split_chance
        if chance and size > 1 and self._network.rng.random() < chance:
            return self._network.rng.randint(1, size)
        return size

    async def wait_writable(self) -> None:
        """Until a send would take at least one byte or fail."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_open()
        while not (self._window > 0 or self._error or self._end_sent):
            await self._wait(self._writers)
        await trio.lowlevel.cancel_shielded_checkpoint()

    def shutdown(self, flag: int) -> None:
        """SHUT_WR and SHUT_RDWR tell the peer that no more comes; ENOTCONN without one."""
        self._check_open()
        if self.peer is None:
            _fail(errno.ENOTCONN)
        if flag in (tsocket.SHUT_WR, tsocket.SHUT_RDWR) and not self._end_sent:
            self._end_sent = True
            self._network.transmit("end", self.node, self.peer.node, self, 0, self.peer._on_end)
            self._writers.unpark_all()
        if flag in (tsocket.SHUT_RD, tsocket.SHUT_RDWR):
            self._end_received = True
            self._readers.unpark_all()

    # ---- what arrives ------------------------------------------------------------------------------------------

    def _receives(self) -> bool:
        """Whether this end still takes packets; if not, the sender learns it as the real network would tell it."""
        assert self.peer is not None  # noqa: S101 - packets come from the peer
        if not self.life.alive:
            self._network.unanswered(self, self.peer)
            return False
        if self._fileno < 0:
            self._network.transmit("reset", self.node, self.peer.node, None, 0, self.peer.on_reset)
            return False
        return not self._error

    def _on_data(self, data: bytes) -> None:
        if self._receives():
            self._incoming += data
            self._readers.unpark()

    def _on_window(self, size: int) -> None:
        if self.life.alive and self._fileno >= 0:
            self._window += size
            self._writers.unpark()

    def _on_end(self) -> None:
        if self.life.alive and self._fileno >= 0:
            self._end_received = True
            self._readers.unpark_all()

    def on_reset(self) -> None:
        """The peer's system does not know this connection any more."""
        self.fail(errno.ECONNRESET)

    def fail(self, error: int) -> None:
        """Break the connection, or the attempt at one: what waits and what comes raises this error number."""
        if self._error or self._fileno < 0 or not self.life.alive:
            return
        self._error = error
        self._incoming.clear()
        self._connected.set()
        self._readers.unpark_all()
        self._writers.unpark_all()

    # ---- closing -----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close: unread input, or SO_LINGER 0, resets the peer; otherwise it reads to the end of what was sent."""
        if self._fileno < 0:
            return
        fileno, self._fileno = self._fileno, -1
        self._network.unregister(self, fileno)
        self._connected.set()
        self._readers.unpark_all()
        self._writers.unpark_all()
        for waiting in self._backlog or ():
            waiting.abort()
        if self.peer is None or self._error:
            return
        if self._incoming or self._lingers_not():
            self._network.transmit("reset", self.node, self.peer.node, self, 0, self.peer.on_reset)
        elif not self._end_sent:
            self._network.transmit("end", self.node, self.peer.node, self, 0, self.peer._on_end)

    def abort(self) -> None:
        """Close with a reset."""
        if self._fileno >= 0:
            self._options[tsocket.SOL_SOCKET, tsocket.SO_LINGER] = struct.pack("ii", 1, 0)
            self.close()

    def _lingers_not(self) -> bool:
        value = self._options.get((tsocket.SOL_SOCKET, tsocket.SO_LINGER))
        return value is not None and not isinstance(value, int) and bytes(value) == struct.pack("ii", 1, 0)

    def detach(self) -> int:
        """Not possible: there is no file behind this socket."""
        _fail(errno.EOPNOTSUPP)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: ExceptionType | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._fileno < 0:
            _fail(errno.EBADF)

    async def _wait(self, lot: trio.lowlevel.ParkingLot) -> None:
        if lot:
            raise trio.BusyResourceError("another task is waiting for this end of the socket")
        await lot.park()
        self._check_not_closed_meanwhile()

    def _check_not_closed_meanwhile(self) -> None:
        if self._fileno < 0:
            raise trio.ClosedResourceError("another task closed this socket")


def _fail(error: int) -> NoReturn:
    raise OSError(error, os.strerror(error))
