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
    Ping,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from trio_rmq import limits
from trio_rmq.errors import ConnectError, ProtocolError
from trio_rmq.wire.cbor_codec import SUB_PROTOCOL, decode_commands, encode_commands
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

    async def receive(self) -> list[Command]:
        """See Channel."""
        data = await self._stream.receive(READ_BYTES)
        return self.decode(data)

    def decode(self, data: bytes | None) -> list[Command]:
        """The commands that `data` completes; None takes what is buffered since the handshake."""
        commands: list[Command] = []
        try:
            if data is not None:
                self._websocket.receive_data(data)
            for event in self._websocket.events():
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
        except RemoteProtocolError as error:
            raise ProtocolError(f"broken WebSocket framing: {error}", fatal=True) from error
        return commands

    def _owe(self, data: bytes) -> None:
        self._control.append(data)
        if self.on_control is not None:
            self.on_control()

    def encode(self, commands: list[Command]) -> bytes:
        """See Channel."""
        return encode_commands(commands)

    async def send(self, payload: bytes) -> None:
        """See Channel."""
        try:
            data = self._websocket.send(BytesMessage(data=payload))
        except LocalProtocolError as error:
            raise anyio.BrokenResourceError(f"WebSocket is closing: {error}") from error
        await self._stream.send(data)

    async def send_control(self) -> None:
        """See Channel."""
        while self._control:
            await self._stream.send(self._control.pop(0))

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
