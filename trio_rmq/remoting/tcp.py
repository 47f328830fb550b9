"""RocketMQ's TCP remoting, server side: frames over a Trio socket, read and written directly.

A read takes all that the system has, up to a bound; every whole frame in it is decoded and dispatched, and the replies
leave in one send.  Source of the frame: protocol/README.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import trio

from trio_rmq.errors import ProtocolError
from trio_rmq.remoting.handlers import HandlerTable, Reply
from trio_rmq.remoting.plain_socket import PlainSocket, SessionSocket
from trio_rmq.remoting.session import Session, SessionCallback, logger
from trio_rmq.remoting.settings import RemotingSettings
from trio_rmq.wire.frame import FrameSplitter, encode_frame

SMALL_READ_BYTES = 64 * 1024
"""Size of a read until one comes back full: a chunk of this size is answered within a few milliseconds."""

ACTIVE_READ_BYTES = 1024
"""A read without a whole frame counts against idleness from this size on: a frame that drips in does not."""


class TcpSession(Session):
    """A connection that speaks length-prefixed frames; `first` are the bytes read to tell the transport."""

    transport: Literal["tcp", "websocket"] = "tcp"

    __slots__ = ("_first", "_plain", "_splitter")

    def __init__(
        self,
        socket: SessionSocket,
        first: bytes,
        handlers: HandlerTable,
        settings: RemotingSettings,
        *,
        on_open: SessionCallback | None = None,
        on_close: SessionCallback | None = None,
    ) -> None:
        super().__init__(socket, handlers, settings, on_open=on_open, on_close=on_close)
        self._first = first
        self._splitter = FrameSplitter()
        self._plain = socket if isinstance(socket, PlainSocket) else None

    async def _serve(self) -> None:
        receive = self._socket.recv
        splitter = self._splitter
        split = splitter.feed
        large_read = self._settings.read_chunk_bytes
        small_read = min(SMALL_READ_BYTES, large_read)
        read_size = small_read
        data, self._first = self._first, b""
        try:
            while data:
                commands = split(data)
                if commands:
                    self.last_activity = trio.current_time()
                    replies = self._handle(commands)
                    if replies:
                        await self._reply(replies)
                    if self._in_flight.requests:
                        await self._in_flight.wait_for_room()
                    if splitter.failure is not None:
                        raise splitter.failure
                elif len(data) >= ACTIVE_READ_BYTES:
                    self.last_activity = trio.current_time()
                read_size = large_read if len(data) >= small_read else small_read
                data = await receive(read_size)
        except ProtocolError as error:
            logger.warning("connection with %s: closed, %s", self.peer, error)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            logger.debug("connection with %s: lost, %s", self.peer, error)
            self.close(f"lost: {error}")

    def _encode(self, replies: Sequence[Reply]) -> list[bytes]:
        return [b"".join([reply if isinstance(reply, bytes) else encode_frame(reply) for reply in replies])]

    def _send_now(self, payload: bytes) -> int:
        return 0 if self._plain is None else self._plain.send_now(payload)

    async def _send(self, payload: bytes) -> int:
        return await self.send_some(payload)
