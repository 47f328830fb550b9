"""The client half against servers that do what ours never would, under both backends."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.abc
import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    Pong,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)

from trio_rmq import limits
from trio_rmq.errors import ConnectError, ConnectionLostError, TooManyRequestsError
from trio_rmq.remoting.client import RemotingClient, open_connection
from trio_rmq.wire.cbor_codec import SUB_PROTOCOL, decode_commands, encode_commands
from trio_rmq.wire.command import Command
from trio_rmq.wire.frame import encode_frame

pytestmark = pytest.mark.anyio

Script = Callable[[anyio.abc.ByteStream], Awaitable[None]]


@asynccontextmanager
async def served_by(script: Script) -> AsyncIterator[str]:
    """A listener whose connections each run `script`; its address."""
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as group:

        async def handle(stream: anyio.abc.SocketStream) -> None:
            async with stream:
                await script(stream)

        group.start_soon(listener.serve, handle)
        yield f"127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}"
        group.cancel_scope.cancel()


class WebSocketPeer:
    """The server's side of a WebSocket, event by event."""

    def __init__(self, stream: anyio.abc.ByteStream) -> None:
        self._stream = stream
        self._protocol = WSConnection(ConnectionType.SERVER)
        self._events: list[Event] = []

    async def receive(self) -> Event:
        """The next event."""
        while not self._events:
            self._protocol.receive_data(await self._stream.receive())
            self._events.extend(self._protocol.events())
        return self._events.pop(0)

    async def send(self, *events: Event) -> None:
        """Send events in one write."""
        await self._stream.send(b"".join(self._protocol.send(event) for event in events))

    async def accept(self) -> None:
        """Complete the handshake."""
        assert isinstance(await self.receive(), Request)
        await self.send(AcceptConnection(subprotocol=SUB_PROTOCOL))

    async def receive_commands(self) -> list[Command]:
        """The commands of the next message, which is short enough to come whole."""
        event = await self.receive()
        assert isinstance(event, BytesMessage)
        return decode_commands(bytes(event.data))


@pytest.mark.parametrize("data", [bytes(64), b"\xff" * 64, b"HTTP/1.1 400 Bad Request\r\n\r\n"])
async def test_a_server_that_sends_no_frames_ends_the_connection(data: bytes) -> None:
    async def script(stream: anyio.abc.ByteStream) -> None:
        await stream.receive()
        await stream.send(data)
        await anyio.sleep(math.inf)

    async with served_by(script) as address, open_connection(address) as connection:
        with pytest.raises(ConnectionLostError, match="no valid command"):
            await connection.request(Command(1), 60.0)
        assert connection.closed


BAD_FRAMES = {"length": bytes(4), "header": b"\0\0\0\x09\0\0\0\x05hello"}


@pytest.mark.parametrize("data", BAD_FRAMES.values(), ids=BAD_FRAMES.keys())
async def test_answers_before_bad_bytes_count(data: bytes) -> None:
    async def script(stream: anyio.abc.ByteStream) -> None:
        await stream.receive()
        await stream.send(encode_frame(Command(7, flag=1, opaque=1)) + data)
        await anyio.sleep(math.inf)

    async with served_by(script) as address, open_connection(address) as connection:
        answers = await connection.request_many([Command(1), Command(1)], 60.0)
        await connection.wait_closed()
    assert isinstance(answers[0], Command)
    assert answers[0].code == 7
    assert isinstance(answers[1], ConnectionLostError)
    assert "no valid command" in connection.close_reason


async def test_what_comes_split_and_joined_is_read(anyio_backend_name: str) -> None:
    async def script(stream: anyio.abc.ByteStream) -> None:
        await stream.receive()
        data = b"".join(encode_frame(Command(number, flag=1, opaque=number)) for number in (3, 2, 99, 1))
        for start in range(0, len(data), 7):
            await stream.send(data[start : start + 7])
        await anyio.sleep(math.inf)

    async with served_by(script) as address, open_connection(address) as connection:
        answers = await connection.request_many([Command(1), Command(1), Command(1)], 60.0)
    assert [answer.code for answer in answers if isinstance(answer, Command)] == [1, 2, 3]


async def test_a_server_that_stops_reading_meets_the_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "OUTGOING_BYTES_PAUSE", 1024 * 1024)
    monkeypatch.setattr(limits, "OUTGOING_BYTES_MAX", 4 * 1024 * 1024)
    go_on = anyio.Event()

    async def script(stream: anyio.abc.ByteStream) -> None:
        await stream.receive(1)  # anyio's asyncio stream takes in everything until its first receive
        await go_on.wait()
        while True:
            await stream.receive()

    async with served_by(script) as address, open_connection(address) as connection:
        sent = 0
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(TooManyRequestsError):  # noqa: PT012 - the loop ends by it
            while sent < 1000:
                connection.send_nowait(Command(1, body=bytes(256 * 1024)))
                sent += 1
                await anyio.lowlevel.checkpoint()
        with pytest.raises(TooManyRequestsError, match="waited"):
            await connection.request(Command(1), timeout_seconds=0.01)
        assert len(connection._requests) == 0
        async with anyio.create_task_group() as group:
            group.start_soon(connection.send_oneway, Command(1))
            await anyio.wait_all_tasks_blocked()
            go_on.set()
        assert not connection.closed


async def test_too_many_requests_are_refused_before_they_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CLIENT_REQUESTS_MAX", 3)

    async def script(stream: anyio.abc.ByteStream) -> None:
        await anyio.sleep(math.inf)

    async with served_by(script) as address, open_connection(address) as connection:
        with pytest.raises(TooManyRequestsError, match="limit is 3"):
            await connection.request_many([Command(1) for _ in range(4)])
        assert len(connection._requests) == 0


class TestWebSocket:
    async def test_ping_is_answered_while_a_request_waits(self) -> None:
        async def script(stream: anyio.abc.ByteStream) -> None:
            peer = WebSocketPeer(stream)
            await peer.accept()
            (request,) = await peer.receive_commands()
            await peer.send(Ping(payload=b"there?"))
            pong = await peer.receive()
            assert isinstance(pong, Pong)
            answer = encode_commands([Command(5, flag=1, opaque=request.opaque, body=bytes(pong.payload))])
            await peer.send(
                BytesMessage(data=answer[:3], message_finished=False), Ping(), BytesMessage(data=answer[3:])
            )
            await peer.receive()

        async with served_by(script) as address, open_connection(f"ws://{address}/any?path") as connection:
            answer = await connection.request(Command(1), 60.0)
        assert (answer.code, bytes(answer.body)) == (5, b"there?")

    async def test_commands_in_the_handshakes_last_bytes_are_read(self) -> None:
        async def script(stream: anyio.abc.ByteStream) -> None:
            peer = WebSocketPeer(stream)
            await peer.receive()
            notice = encode_commands([Command(40, flag=2, body=b"welcome")])
            await peer.send(AcceptConnection(subprotocol=SUB_PROTOCOL), BytesMessage(data=notice))
            await peer.receive()

        seen: list[bytes] = []
        noticed = anyio.Event()

        async def notice(connection: object, command: Command) -> None:
            seen.append(bytes(command.body))
            noticed.set()

        async with served_by(script) as address, open_connection(f"ws://{address}", handlers={40: notice}):
            with anyio.fail_after(10):
                await noticed.wait()
        assert seen == [b"welcome"]

    @pytest.mark.parametrize(
        ("events", "reason"),
        [
            ([CloseConnection(code=1001, reason="going away")], "closed by the server"),
            ([TextMessage(data="hello")], "text message"),
            ([BytesMessage(data=b"\xff")], "CBOR"),
        ],
    )
    async def test_endings(self, events: list[Event], reason: str) -> None:
        async def script(stream: anyio.abc.ByteStream) -> None:
            peer = WebSocketPeer(stream)
            await peer.accept()
            await peer.receive()
            await peer.send(*events)
            assert isinstance(await peer.receive(), CloseConnection)

        async with served_by(script) as address, open_connection(f"ws://{address}") as connection:
            with pytest.raises(ConnectionLostError, match=reason):
                await connection.request(Command(1), 60.0)

    async def test_a_message_over_the_bound_ends_the_connection(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "FRAME_SIZE_MAX_BYTES", 1000)

        async def script(stream: anyio.abc.ByteStream) -> None:
            peer = WebSocketPeer(stream)
            await peer.accept()
            await peer.receive()
            await peer.send(BytesMessage(data=bytes(1001), message_finished=False))
            await peer.receive()

        async with served_by(script) as address, open_connection(f"ws://{address}") as connection:
            with pytest.raises(ConnectionLostError, match="over 1000 bytes"):
                await connection.request(Command(1), 60.0)

    @pytest.mark.parametrize(
        ("events", "reason"),
        [
            ([RejectConnection(status_code=503)], "HTTP 503: no reason"),
            (
                [
                    RejectConnection(status_code=403, has_body=True, headers=[(b"content-length", b"12")]),
                    RejectData(data=b"not allowed\n"),
                ],
                "HTTP 403: not allowed",
            ),
            ([AcceptConnection()], f"does not speak {SUB_PROTOCOL}"),
        ],
    )
    async def test_refusals_are_connect_errors_that_say_why(self, events: list[Event], reason: str) -> None:
        async def script(stream: anyio.abc.ByteStream) -> None:
            peer = WebSocketPeer(stream)
            await peer.receive()
            await peer.send(*events)

        async with served_by(script) as address, RemotingClient() as client:
            with pytest.raises(ConnectError, match=reason):
                await client.request(f"ws://{address}", Command(1), 60.0)

    @pytest.mark.parametrize("data", [b"", b"SSH-2.0-nothing\r\n\r\n", bytes(100)])
    async def test_what_is_no_websocket_is_a_connect_error(self, data: bytes) -> None:
        async def script(stream: anyio.abc.ByteStream) -> None:
            await stream.receive()
            if data:
                await stream.send(data)

        async with served_by(script) as address, RemotingClient() as client:
            with pytest.raises(ConnectError, match=address):
                await client.request(f"ws://{address}", Command(1), 60.0)
