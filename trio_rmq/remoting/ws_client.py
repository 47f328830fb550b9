"""WebSocket + CBOR, client side: wsproto over an anyio byte stream, so that Trio and asyncio share it.

One binary message carries a CBOR sequence of commands; whatever was queued while a message was being sent joins the
next one.  A pong is owed by the reading task but sent by the writing one, as only one task may write to a stream.
"""

from __future__ import annotations

from collections.abc import Callable

import anyio
import anyio.abc
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from trio_rmq import limits
from trio_rmq.errors import ConnectError, ProtocolError
from trio_rmq.wire.cbor_codec import SUB_PROTOCOL, decode_commands, encode_messages
from trio_rmq.wire.command import Command, SerializeType

READ_BYTES = 64 * 1024
REJECTION_TEXT_BYTES = 500
"""How much of a refusal's text goes into the error."""


class WebSocketChannel:
    """CBOR commands over WebSocket; made by `connect_websocket`.  See Channel in `connection`."""

    serialize_type = SerializeType.CBOR

    def __init__(self, stream: anyio.abc.ByteStream, websocket: WSConnection) -> None:
        self.on_control: Callable[[], None] | None = None
        self._stream = stream
        self._websocket = websocket
        self._parts: list[bytes | bytearray] = []
        self._parts_bytes = 0
        self._control: list[bytes] = []
        self._fresh = True
        self._failure: Exception | None = None

    async def receive(self) -> list[Command]:
        """See Channel."""
        if self._failure is not None:
            raise self._failure
        if self._fresh:
            # What came in the same packet as the accepted handshake is buffered already.
            self._fresh = False
            if commands := self._commands():
                return commands
        data = await self._stream.receive(READ_BYTES)
        try:
            self._websocket.receive_data(data)
        except RemoteProtocolError as error:
            raise ProtocolError(f"broken WebSocket framing: {error}", fatal=True) from error
        return self._commands()

    def _commands(self) -> list[Command]:
        """The commands that are complete; what is wrong after them comes out with the next `receive`."""
        commands: list[Command] = []
        try:
            for event in self._websocket.events():
                self._take(event, commands)
        except (ProtocolError, anyio.EndOfStream) as error:
            if not commands:
                raise
            self._failure = error
        return commands

    def _take(self, event: Event, commands: list[Command]) -> None:
        if isinstance(event, BytesMessage):
            self._parts.append(event.data)
            self._parts_bytes += len(event.data)
            if self._parts_bytes > limits.FRAME_SIZE_MAX_BYTES:
                raise ProtocolError(f"message over {limits.FRAME_SIZE_MAX_BYTES} bytes", fatal=True)
            if event.message_finished:
                message = b"".join(self._parts)
                self._parts.clear()
                self._parts_bytes = 0
                commands.extend(decode_commands(message))
        elif isinstance(event, Ping):
            self._owe(self._websocket.send(event.response()))
        elif isinstance(event, CloseConnection):
            if self._websocket.state is ConnectionState.REMOTE_CLOSING:
                self._owe(self._websocket.send(event.response()))
            raise anyio.EndOfStream(f"WebSocket closed with {event.code} {event.reason or ''}".rstrip())
        elif isinstance(event, TextMessage):
            raise ProtocolError("text message, binary ones carry CBOR", fatal=True)

    def _owe(self, data: bytes) -> None:
        self._control.append(data)
        if self.on_control is not None:
            self.on_control()

    def encode(self, commands: list[Command]) -> list[bytes]:
        """See Channel."""
        return encode_messages(commands)

    async def send(self, payload: bytes) -> None:
        """See Channel."""
        try:
            data = self._websocket.send(BytesMessage(data=payload))
        except LocalProtocolError as error:
            raise anyio.BrokenResourceError(f"WebSocket is closing: {error}") from error
        await self._stream.send(data)

    def send_now(self, payload: bytes) -> int:
        """See Channel: a message has to be masked and framed as a whole."""
        return 0

    async def send_control(self) -> None:
        """See Channel."""
        while self._control:
            # Taken out only after it was sent: when the writing task is cancelled here, `aclose` still sends it.
            await self._stream.send(self._control[0])
            del self._control[0]

    async def aclose(self) -> None:
        """Send a close frame if the connection is open, and close the stream."""
        try:
            if self._websocket.state is ConnectionState.OPEN:
                self._control.append(self._websocket.send(CloseConnection(code=1000)))
            await self.send_control()
        finally:
            await self._stream.aclose()


async def shake_hands(stream: anyio.abc.ByteStream, *, address: str, host: str, path: str) -> WebSocketChannel:
    """Upgrade `stream`; ConnectError says why the server refused.  The caller bounds the time and closes on error."""
    websocket = WSConnection(ConnectionType.CLIENT)
    await stream.send(websocket.send(Request(host=host, target=path, subprotocols=[SUB_PROTOCOL])))
    status, text = 0, b""
    while True:
        try:
            data = await stream.receive(READ_BYTES)
            websocket.receive_data(data)
            for event in websocket.events():
                if isinstance(event, AcceptConnection):
                    if event.subprotocol != SUB_PROTOCOL:
                        raise ConnectError(f"{address} does not speak {SUB_PROTOCOL}", address=address)
                    return WebSocketChannel(stream, websocket)
                if isinstance(event, RejectConnection):
                    status = event.status_code
                    if not event.has_body:
                        raise _rejected(address, status, text)
                elif isinstance(event, RejectData):
                    text += bytes(event.data)
                    if event.body_finished:
                        raise _rejected(address, status, text)
        except RemoteProtocolError as error:
            raise ConnectError(f"{address} does not speak WebSocket: {error}", address=address) from error
        except anyio.EndOfStream:
            if status:
                raise _rejected(address, status, text) from None
            raise ConnectError(f"{address} closed the connection during its handshake", address=address) from None


def _rejected(address: str, status: int, text: bytes) -> ConnectError:
    reason = text[:REJECTION_TEXT_BYTES].decode("utf-8", "replace").strip()
    return ConnectError(f"{address} refused the WebSocket with HTTP {status}: {reason or 'no reason'}", address=address)
