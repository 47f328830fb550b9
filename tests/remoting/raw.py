"""A client of bare frames, for what a real one would never send."""

from __future__ import annotations

from collections.abc import Callable

import trio

from trio_rmq.remoting.handlers import HandlerTable
from trio_rmq.remoting.listener import serve_remoting
from trio_rmq.remoting.session import Session
from trio_rmq.remoting.settings import DEFAULT_SETTINGS, RemotingSettings
from trio_rmq.wire.command import Command
from trio_rmq.wire.frame import FrameSplitter, encode_frame

SessionCallback = Callable[[Session], None]


async def start_server(
    nursery: trio.Nursery,
    handlers: HandlerTable,
    *,
    settings: RemotingSettings = DEFAULT_SETTINGS,
    on_open: SessionCallback | None = None,
    on_close: SessionCallback | None = None,
) -> str:
    """Serve in `nursery` on a free port of 127.0.0.1; returns the address."""

    async def serve(task_status: trio.TaskStatus[list[str]]) -> None:
        await serve_remoting(
            ["127.0.0.1:0"], handlers, settings=settings, on_open=on_open, on_close=on_close, task_status=task_status
        )

    addresses: list[str] = await nursery.start(serve)
    return addresses[0]


class RawClient:
    """Bytes out, commands in."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._splitter = FrameSplitter()
        self._received: list[Command] = []

    async def send(self, *commands: Command) -> None:
        """Encode and send in one write."""
        await self.stream.send_all(b"".join(encode_frame(command) for command in commands))

    async def receive(self) -> Command:
        """The next command of the server; EOFError when it closes."""
        while not self._received:
            data = await self.stream.receive_some(65536)
            if not data:
                raise EOFError("the server closed the connection")
            self._received.extend(self._splitter.feed(data))
        return self._received.pop(0)

    async def closed_by_server(self) -> bool:
        """Whether the server closes without sending anything more."""
        try:
            return not self._received and await self.stream.receive_some(65536) == b""
        except trio.BrokenResourceError:
            return True


async def connect(nursery: trio.Nursery, address: str) -> RawClient:
    """Connect to "ip:port"; a task in `nursery` closes the connection when that ends."""
    host, _, port = address.rpartition(":")
    stream = await trio.open_tcp_stream(host.strip("[]"), int(port))
    nursery.start_soon(_close_in_the_end, stream)
    return RawClient(stream)


async def _close_in_the_end(stream: trio.SocketStream) -> None:
    try:
        await trio.sleep_forever()
    finally:
        stream.socket.close()
