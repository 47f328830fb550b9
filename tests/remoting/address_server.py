"""An HTTP server on a simulated machine that answers what it is set to: an address server, or none worth the name."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import trio

from trio_rmq.testing.world import World

ADDRESS_SERVER = "10.0.0.80"
URL = f"http://{ADDRESS_SERVER}:8080/rocketmq/nsaddr"


def listing(text: str, status: str = "200 OK") -> bytes:
    """A whole answer with `text` as its body."""
    body = text.encode()
    return b"HTTP/1.1 %b\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%b" % (
        status.encode(), len(body), body,
    )  # fmt: skip


class AddressServer:
    """Answers each connection with `answer` in pieces of `piece_bytes`, then closes it; with None it says nothing."""

    def __init__(self, answer: bytes | None = None, piece_bytes: int = 65536) -> None:
        self.answer = answer
        self.piece_bytes = piece_bytes
        self.requests: list[str] = []
        self.times: list[float] = []

    async def handle(self, stream: trio.SocketStream) -> None:
        """One connection."""
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            request += await stream.receive_some(65536)
        self.requests.append(request.decode())
        self.times.append(round(trio.current_time(), 1))
        if self.answer is None:
            await trio.sleep_forever()
        try:
            for first in range(0, len(self.answer), self.piece_bytes):
                await stream.send_all(self.answer[first : first + self.piece_bytes])
        except trio.BrokenResourceError:
            pass  # it had heard enough

    @asynccontextmanager
    async def on(self, world: World, node: str = ADDRESS_SERVER) -> AsyncIterator[AddressServer]:
        """Serve on a machine of `world` for the block."""
        async with trio.open_nursery() as nursery:
            with world.node(node):
                await nursery.start(partial(trio.serve_tcp, self.handle, 8080))
            yield self
            nursery.cancel_scope.cancel()
