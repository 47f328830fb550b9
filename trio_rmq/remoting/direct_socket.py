"""A client connection's socket for what need not wait: the request that is alone, and reading.

Handing a request to the writing task costs two turns of the event loop, which pays when several share one write.  Who
is alone on a connection only waits for them.  Under Trio the system's socket is the stream's own, with nothing kept
between the two.  Under asyncio a transport stands between, which anyio starts and pauses around every read, and which
reads into 256 KiB at a time; there the socket is a second descriptor of the same connection, watched by the loop all
the time, and the transport stays paused.
"""

from __future__ import annotations

import socket as system
import sys
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
from anyio.abc import SocketAttribute, SocketStream

if TYPE_CHECKING:
    import asyncio

READ_BYTES = 120 * 1024
"""Below the 128 KiB from which malloc maps fresh pages for a buffer: there a read of 36 KiB took ten times as long."""


def direct_socket(stream: SocketStream) -> DirectSocket | WatchedSocket | None:
    """The socket of `stream`, which nobody else may then read; None where something stands before it."""
    socket: object = stream.extra(SocketAttribute.raw_socket)
    if isinstance(socket, system.socket):
        return DirectSocket(socket)
    asyncio = sys.modules.get("asyncio")
    if asyncio is None or not isinstance(socket, asyncio.trsock.TransportSocket):
        return None
    loop = asyncio.get_running_loop()
    # Not of anyio's public face: what came before the transport was paused.  Without it the stream serves.
    held = getattr(getattr(stream, "_protocol", None), "read_queue", None)
    if held is None or held or not isinstance(loop, asyncio.SelectorEventLoop):
        return None
    return WatchedSocket(socket.dup(), loop)


def event_type() -> type[anyio.Event]:
    """The running loop's own kind of event: anyio's, on Trio, is one around Trio's, at five times the cost."""
    kind: type[anyio.Event] = type(anyio.Event())
    return sys.modules["trio"].Event if kind.__module__.endswith("._trio") else kind


class DirectSocket:
    """Reads, and writes what can be written at once, on Trio's loop.  It is the stream that closes it."""

    __slots__ = ("_socket",)

    def __init__(self, socket: system.socket) -> None:
        self._socket = socket

    async def receive(self) -> bytes:
        """Wait until something is there, then at most READ_BYTES; anyio.EndOfStream at the end, or an OSError."""
        socket = self._socket
        trio = sys.modules["trio"]
        while True:
            try:
                await trio.lowlevel.wait_readable(socket)
                data = socket.recv(READ_BYTES)
            except BlockingIOError:
                continue
            except trio.ClosedResourceError:
                raise anyio.ClosedResourceError from None
            if not data:
                raise anyio.EndOfStream
            return data

    def send_now(self, data: bytes) -> int:
        """Send what the system takes of `data` at once, and return how much: nothing as well when it is lost.

        Of a lost connection the next one who waits for it is told.
        """
        try:
            return self._socket.send(data)
        except OSError:
            return 0

    def close(self) -> None:
        """Nothing: it is the stream's."""


class WatchedSocket(DirectSocket):
    """The same for asyncio: the loop calls when something is there, and it is read in that call.

    At most one read is kept until it is asked for; meanwhile nothing is watched.  It closes its own descriptor.
    """

    __slots__ = ("_came", "_is_watched", "_loop", "_waiter")

    def __init__(self, socket: system.socket, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(socket)
        socket.setblocking(False)
        self._loop = loop
        self._came: bytes | OSError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._is_watched = False

    async def receive(self) -> bytes:
        """See DirectSocket.  Cancelled, it leaves what came to the next one who asks."""
        if self._came is None:
            if not self._is_watched:
                if self._socket.fileno() < 0:
                    raise anyio.ClosedResourceError
                self._loop.add_reader(self._socket, self._read)
                self._is_watched = True
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        came, self._came = self._came, None
        if isinstance(came, OSError):
            raise came
        if not came:
            raise anyio.EndOfStream
        return came

    def _read(self) -> None:
        if self._came is not None:
            self._unwatch()
            return
        try:
            self._came = self._socket.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._came = error
        if not isinstance(self._came, bytes) or not self._came:
            self._unwatch()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _unwatch(self) -> None:
        if self._is_watched:
            self._is_watched = False
            self._loop.remove_reader(self._socket)

    def close(self) -> None:
        """Close this descriptor; the connection ends with the stream's."""
        self._unwatch()
        self._socket.close()
