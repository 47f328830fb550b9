"""WebSocket + CBOR, server side: each binary message is a CBOR sequence of commands, and so is each of ours.

The replies of one message leave in one message (in several when it would be too long for the peer); commands that queue
up while a message is being sent join the next one.
trio-websocket does the handshake, masking, ping and close over `_SessionStream`, which replays the bytes that told the
transport and keeps the session's clock.  No extension is negotiated: compressing what may hold other people's messages
costs more than it saves here, and leaks lengths.

A web page may open a WebSocket to any host its reader can reach, so a handshake with an `Origin` is refused unless the
settings allow that origin.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, wrap_server_stream
from wsproto.utilities import LocalProtocolError
from wsproto.utilities import ProtocolError as WebSocketProtocolError

from trio_rmq.errors import ProtocolError
from trio_rmq.remoting.handlers import HandlerTable, Reply
from trio_rmq.remoting.plain_socket import SessionSocket
from trio_rmq.remoting.session import Session, SessionCallback, logger
from trio_rmq.remoting.settings import RemotingSettings
from trio_rmq.wire.cbor_codec import SUB_PROTOCOL, decode_commands, encode_messages
from trio_rmq.wire.command import Command

READ_BYTES = 64 * 1024
CLOSE_SECONDS = 1.0
"""Longest wait for the peer's half of a closing handshake."""

CLOSE_PROTOCOL_ERROR = 1002
CLOSE_UNSUPPORTED_DATA = 1003
BROKEN_CLOSE_CODES = frozenset({1002, 1003, 1007, 1009, 1010})
"""Close codes (RFC 6455, 7.4.1) that say one side broke a rule."""

PEERS_FAULTS = (ConnectionClosed, ProtocolError, WebSocketProtocolError, trio.BrokenResourceError)


class _SessionStream(trio.abc.Stream):
    """A session's socket as the stream that trio-websocket reads and writes."""

    def __init__(self, session: WebSocketSession, socket: SessionSocket, first: bytes) -> None:
        self._session = session
        self._socket = socket
        self._first = first

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._first:
            data, self._first = self._first, b""
            await trio.lowlevel.checkpoint()
            return data
        try:
            data = await self._socket.recv(max_bytes or READ_BYTES)
        except OSError as error:
            raise trio.BrokenResourceError(str(error)) from error
        self._session.last_activity = trio.current_time()
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`."""
        send_some = self._session.send_some
        try:
            position = await send_some(data)
            if position < len(data):
                view = memoryview(data)
                while position < len(view):
                    position += await send_some(view[position:])
        except OSError as error:
            raise trio.BrokenResourceError(str(error)) from error

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        self._socket.close()
        self._session.stream_closed()
        await trio.lowlevel.checkpoint()


class WebSocketSession(Session):
    """A connection that speaks WebSocket; `first` are the bytes read to tell the transport."""

    transport: Literal["tcp", "websocket"] = "websocket"

    __slots__ = ("_first", "_handshake_scope", "_websocket")

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
        self._handshake_scope: trio.CancelScope | None = None
        self._websocket: WebSocketConnection | None = None

    def stream_closed(self) -> None:
        """trio-websocket closed the stream; before the handshake is done that is all it tells."""
        if self._handshake_scope is not None:
            self._handshake_scope.cancel()

    async def run(self) -> None:
        """See Session.  At the end the ring of session, WebSocket and stream is opened: all are freed at once."""
        try:
            await super().run()
        finally:
            self._websocket = None

    async def _serve(self) -> None:
        try:
            websocket = await self._shake_hands()
            if websocket is not None:
                self._websocket = websocket
                await self._serve_messages(websocket)
        except ConnectionClosed as closed:
            reason = closed.reason
            broken = reason is not None and reason.code in BROKEN_CLOSE_CODES
            logger.log(
                logging.WARNING if broken else logging.DEBUG,
                "connection with %s: closed, WebSocket %s",
                self.peer,
                reason,
            )
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self.close(f"lost: {error}")

    def _log_defect(self, group: BaseExceptionGroup[Exception]) -> None:
        # trio-websocket's reading task lets some errors through that are the peer's: one that goes away while it is
        # told what is wrong with its bytes, and (wsproto, in the handshake) headers that are no text.
        peers_faults = PEERS_FAULTS if self._websocket is not None else (*PEERS_FAULTS, UnicodeError)
        ours = group.split(peers_faults)[1]
        if ours is None:
            what = "no valid WebSocket handshake" if self._websocket is None else "broken WebSocket"
            logger.warning("connection with %s: closed, %s: %s", self.peer, what, group.exceptions[0])
        else:
            super()._log_defect(ours)

    async def _shake_hands(self) -> WebSocketConnection | None:
        assert self._nursery is not None  # noqa: S101 - called inside the session's nursery
        stream = _SessionStream(self, self._socket, self._first)
        self._first = b""
        with trio.move_on_after(self._settings.handshake_seconds) as self._handshake_scope:
            request = await wrap_server_stream(
                self._nursery,
                stream,
                max_message_size=self._settings.message_size_max_bytes,
                receive_buffer_size=READ_BYTES,
            )
            refusal = self._refusal(request)
            if refusal is None:
                websocket = await request.accept(subprotocol=SUB_PROTOCOL)
                self._handshake_scope = None
                return websocket
            status, reason = refusal
            logger.warning("connection with %s: WebSocket refused, %s", self.peer, reason)
            await request.reject(status, body=f"{reason}\n".encode(), extra_headers=[(b"Content-Type", b"text/plain")])
            return None
        logger.warning("connection with %s: closed, no valid WebSocket handshake", self.peer)
        return None

    def _refusal(self, request: WebSocketRequest) -> tuple[int, str] | None:
        """The HTTP status and sentence to refuse the handshake with, or None to accept it."""
        allowed = self._settings.allowed_origins
        for name, value in request.headers:
            if name.lower() == b"origin":
                origin = value.decode("latin-1")
                if origin not in allowed and "*" not in allowed:
                    return 403, f"origin {origin!r} is not allowed"
        if SUB_PROTOCOL not in request.proposed_subprotocols:
            return 400, f"the sub-protocol {SUB_PROTOCOL} must be proposed"
        return None

    async def _serve_messages(self, websocket: WebSocketConnection) -> None:
        while True:
            message = await websocket.get_message()
            if not isinstance(message, bytes):
                await self._refuse_message(websocket, CLOSE_UNSUPPORTED_DATA, "text message, binary ones carry CBOR")
                return
            try:
                commands = decode_commands(message)
            except ProtocolError as error:
                await self._refuse_message(websocket, CLOSE_PROTOCOL_ERROR, str(error))
                return
            replies = self._handle(commands)
            if replies:
                await self._reply(replies)
            if self._in_flight.requests:
                await self._in_flight.wait_for_room()

    async def _refuse_message(self, websocket: WebSocketConnection, code: int, reason: str) -> None:
        logger.warning("connection with %s: closed, %s", self.peer, reason)
        with trio.move_on_after(CLOSE_SECONDS):
            await websocket.aclose(code, reason[:100])

    def _encode(self, replies: Sequence[Reply]) -> list[bytes]:
        return encode_messages([reply for reply in replies if isinstance(reply, Command)])

    async def _send(self, payload: bytes) -> int:
        assert self._websocket is not None  # noqa: S101 - nothing is sent before the handshake
        try:
            await self._websocket.send_message(payload)
        except ConnectionClosed as closed:
            raise trio.BrokenResourceError(f"WebSocket closed, {closed.reason!r}") from None
        except LocalProtocolError as error:
            raise trio.BrokenResourceError(f"WebSocket is closing, {error}") from None
        return len(payload)
