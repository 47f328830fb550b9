"""What a session needs of its socket, and a plain TCP connection's own, which saves a turn of the event loop a chunk.

Trio's sockets give other tasks a turn after every call that did not wait, and try a call before they wait for it.  A
session answers a chunk and reads the next, so for it that was one turn after the answer and one read in vain.  Here the
answer leaves at once (`send_now`) and a read always waits: each chunk is one turn, and each turn lets others run.
"""

from __future__ import annotations

import errno
import socket as system
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any, Protocol

import trio


class SessionSocket(Protocol):
    """What a session needs of its connection: trio's sockets have it, and TLS over one does."""

    def recv(self, size_bytes: int, /) -> Awaitable[bytes]:
        """At most so many bytes; none at the end."""
        ...

    def send(self, data: bytes | bytearray | memoryview, /) -> Awaitable[int]:
        """Send some of `data`, at least one byte; how many."""
        ...

    def getpeername(self) -> Any:
        """The other side's host and port."""
        ...

    def getsockname(self) -> Any:
        """This side's host and port."""
        ...

    def close(self) -> None:
        """Close at once."""
        ...


def plain_socket(socket: trio.socket.SocketType) -> SessionSocket:
    """`socket`, which is used up, as a session best uses it; itself when it is no socket of the system's."""
    family, kind, protocol = socket.family, socket.type, socket.proto
    try:
        number = socket.detach()
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return socket  # a virtual network's
    owned = system.socket(family, kind, protocol, number)
    owned.setblocking(False)
    return PlainSocket(owned)


class PlainSocket:
    """A socket of the system's; see SessionSocket.  One task reads and one writes."""

    __slots__ = ("_socket",)

    def __init__(self, socket: system.socket) -> None:
        self._socket = socket

    async def recv(self, size_bytes: int, /) -> bytes:
        """Wait until something is there, then at most so many bytes; none at the end."""
        socket = self._socket
        while True:
            await trio.lowlevel.wait_readable(socket)
            with suppress(BlockingIOError):
                return socket.recv(size_bytes)

    def send_now(self, data: bytes | bytearray | memoryview, /) -> int:
        """Send what the system takes at once, maybe nothing; how many bytes.  OSError when the connection is lost."""
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0

    async def send(self, data: bytes | bytearray | memoryview, /) -> int:
        """Send some of `data`, at least one byte, and let others run; how many bytes."""
        await trio.lowlevel.checkpoint_if_cancelled()
        sent = self.send_now(data)
        if sent:
            await trio.lowlevel.cancel_shielded_checkpoint()
            return sent
        while not (sent := self.send_now(data)):
            await trio.lowlevel.wait_writable(self._socket)
        return sent

    def getpeername(self) -> Any:
        """The other side's host and port."""
        return self._socket.getpeername()

    def getsockname(self) -> Any:
        """This side's host and port."""
        return self._socket.getsockname()

    def close(self) -> None:
        """Close at once; who waits gets trio.ClosedResourceError."""
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()
