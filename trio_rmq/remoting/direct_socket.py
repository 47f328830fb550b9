"""A client connection's socket for what need not wait: the request that is alone, and reading.

Handing a request to the writing task costs two turns of the event loop, which pays when several share one write.  Who
is alone on a connection only waits for them.  Under Trio the system's socket is the stream's own, with nothing kept
between the two; under asyncio a transport stands between, which may hold bytes that came first.
"""

from __future__ import annotations

import socket as system
from contextlib import suppress

import anyio
from anyio.abc import SocketAttribute, SocketStream


def direct_socket(stream: SocketStream) -> DirectSocket | None:
    """The socket of `stream`, which nobody else may then read; None where something stands before it."""
    socket: object = stream.extra(SocketAttribute.raw_socket)
    return DirectSocket(socket) if isinstance(socket, system.socket) else None


class DirectSocket:
    """Reads, and writes what can be written at once.  It is the stream that closes it."""

    __slots__ = ("_socket",)

    def __init__(self, socket: system.socket) -> None:
        self._socket = socket

    async def receive(self, size_bytes: int) -> bytes:
        """Wait until something is there, then at most so many bytes; anyio.EndOfStream at the end, or an OSError."""
        socket = self._socket
        while True:
            await anyio.wait_readable(socket)
            with suppress(BlockingIOError):
                data = socket.recv(size_bytes)
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
