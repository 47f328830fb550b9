"""The WebSocket half of the listener, spoken to by wsproto: handshake rules, messages, control frames, bad input."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import pytest
import trio
import trio.testing
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    Pong,
    RejectConnection,
    Request,
    TextMessage,
)

from tests.remoting.conftest import BATCH_ECHO, ECHO, HOLD, NOTIFY, UNKNOWN, Desk
from tests.remoting.raw import RawClient, connect, start_server
from trio_rmq.remoting.settings import DEFAULT_SETTINGS, RemotingSettings
from trio_rmq.wire.cbor_codec import SUB_PROTOCOL, decode_commands, encode_commands
from trio_rmq.wire.command import Command, SerializeType

pytestmark = pytest.mark.trio


UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: rmq.cbor.v1\r\n\r\n"
)


class RawWebSocket:
    """A client that sends any event, and shows those that come."""

    def __init__(self, client: RawClient) -> None:
        self.stream = client.stream
        self.protocol = WSConnection(ConnectionType.CLIENT)
        self._events: list[Event] = []

    async def open(self, *, protocols: Sequence[str] = (SUB_PROTOCOL,), origin: str | None = None) -> Event:
        """Shake hands; the server's answer."""
        headers = [] if origin is None else [(b"Origin", origin.encode())]
        await self.send(Request(host="test", target="/", subprotocols=list(protocols), extra_headers=headers))
        return await self.receive()

    async def send(self, event: Event) -> None:
        """Send one event."""
        await self.stream.send_all(self.protocol.send(event))

    async def send_commands(self, *commands: Command) -> None:
        """All in one message."""
        await self.send(BytesMessage(data=encode_commands(list(commands))))

    async def receive(self) -> Event:
        """The next event; EOFError when the server closes the stream."""
        while not self._events:
            data = await self.stream.receive_some(65536)
            if not data:
                raise EOFError("the server closed the connection")
            self.protocol.receive_data(data)
            self._events.extend(self.protocol.events())
        return self._events.pop(0)

    async def ended(self) -> None:
        """Return when the server has closed the stream, whatever it sends before."""
        with contextlib.suppress(trio.BrokenResourceError):
            while await self.stream.receive_some(65536):
                pass

    async def receive_commands(self) -> list[Command]:
        """The commands of the next whole message."""
        message = b""
        while True:
            event = await self.receive()
            assert isinstance(event, BytesMessage), event
            message += event.data
            if event.message_finished:
                return decode_commands(message)

    async def receive_close(self) -> int:
        """The code of the close frame that must come next."""
        event = await self.receive()
        assert isinstance(event, CloseConnection), event
        return int(event.code)


async def raw_websocket(
    nursery: trio.Nursery, desk: Desk, settings: RemotingSettings = DEFAULT_SETTINGS
) -> RawWebSocket:
    """A client that has not shaken hands yet."""
    address = await start_server(
        nursery, desk.table(), settings=settings, on_open=desk.opened.append, on_close=desk.on_close
    )
    return RawWebSocket(await connect(nursery, address))


async def open_websocket(
    nursery: trio.Nursery, desk: Desk, settings: RemotingSettings = DEFAULT_SETTINGS
) -> RawWebSocket:
    """A client after its handshake."""
    websocket = await raw_websocket(nursery, desk, settings)
    assert isinstance(await websocket.open(), AcceptConnection)
    return websocket


class TestHandshake:
    async def test_the_sub_protocol_is_agreed_and_nothing_else(self, nursery: trio.Nursery, desk: Desk) -> None:
        websocket = await raw_websocket(nursery, desk)
        answer = await websocket.open(protocols=["other", SUB_PROTOCOL])
        assert isinstance(answer, AcceptConnection)
        assert answer.subprotocol == SUB_PROTOCOL
        assert not answer.extensions

    async def test_without_the_sub_protocol_it_is_refused(self, nursery: trio.Nursery, desk: Desk) -> None:
        websocket = await raw_websocket(nursery, desk)
        answer = await websocket.open(protocols=["other"])
        assert isinstance(answer, RejectConnection)
        assert answer.status_code == 400
        assert not desk.seen

    @pytest.mark.parametrize(
        ("allowed", "accepted"),
        [
            (frozenset[str](), False),
            (frozenset({"https://other.example"}), False),
            (frozenset({"https://page.example"}), True),
            (frozenset({"*"}), True),
        ],
    )
    async def test_an_origin_must_be_allowed(
        self,
        nursery: trio.Nursery,
        desk: Desk,
        allowed: frozenset[str],
        accepted: bool,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        websocket = await raw_websocket(nursery, desk, RemotingSettings(allowed_origins=allowed))
        answer = await websocket.open(origin="https://page.example")
        if accepted:
            assert isinstance(answer, AcceptConnection)
        else:
            assert isinstance(answer, RejectConnection)
            assert answer.status_code == 403
            assert "origin 'https://page.example' is not allowed" in caplog.text

    @pytest.mark.parametrize(
        "request_bytes",
        [
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            b"GET \x00\x01\x02 nonsense\r\n\r\n",
            UPGRADE.replace(b"Host: x", b"Host: \xff\xfe"),
            UPGRADE.replace(b"rmq.cbor.v1", b"\xe4"),
            b"GET / HTTP/1.1\r\n" + b"X: " + bytes([65]) * 100_000,
        ],
    )
    async def test_what_is_no_upgrade_is_refused_and_closed(
        self, nursery: trio.Nursery, desk: Desk, request_bytes: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        websocket = await raw_websocket(nursery, desk)
        await websocket.stream.send_all(request_bytes)
        await websocket.ended()
        await trio.testing.wait_all_tasks_blocked()
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "no valid WebSocket handshake" in caplog.text
        assert desk.closed == desk.opened

    async def test_a_handshake_that_drips_in_is_given_up(
        self, nursery: trio.Nursery, desk: Desk, autojump_clock: trio.testing.MockClock
    ) -> None:
        websocket = await raw_websocket(nursery, desk)
        request = b"GET / HTTP/1.1\r\nHost: x\r\nX: " + bytes([65]) * 1000

        async def drip() -> None:
            with contextlib.suppress(trio.BrokenResourceError):
                for number in range(len(request)):
                    await websocket.stream.send_all(request[number : number + 1])
                    await trio.sleep(1)

        async with trio.open_nursery() as inner:
            inner.start_soon(drip)
            await websocket.ended()
        assert trio.current_time() < 20


class TestMessages:
    async def test_the_replies_of_one_message_leave_in_one(self, nursery: trio.Nursery, desk: Desk) -> None:
        websocket = await open_websocket(nursery, desk)
        codes = [ECHO, UNKNOWN, BATCH_ECHO, BATCH_ECHO, BATCH_ECHO]
        await websocket.send_commands(*(Command(code, opaque=number) for number, code in enumerate(codes)))
        answers = await websocket.receive_commands()
        assert [(answer.opaque, answer.code) for answer in answers] == [(0, 0), (1, 3), (2, 0), (3, 0), (4, 0)]
        assert desk.runs == [3]
        assert desk.seen[0].serialize_type is SerializeType.CBOR
        assert desk.opened[0].transport == "websocket"

    async def test_a_message_in_fragments_is_one_message(self, nursery: trio.Nursery, desk: Desk) -> None:
        websocket = await open_websocket(nursery, desk)
        message = encode_commands([Command(ECHO, opaque=1, body=b"abc"), Command(ECHO, opaque=2)])
        await websocket.send(BytesMessage(data=message[:5], message_finished=False))
        await websocket.send(BytesMessage(data=message[5:]))
        assert [answer.opaque for answer in await websocket.receive_commands()] == [1, 2]

    async def test_commands_released_together_share_messages(self, nursery: trio.Nursery, desk: Desk) -> None:
        websocket = await open_websocket(nursery, desk)
        await websocket.send_commands(*(Command(HOLD, opaque=number) for number in range(40)))
        await trio.testing.wait_all_tasks_blocked()
        desk.release.set()
        messages, answers = 0, 0
        while answers < 40:
            answers += len(await websocket.receive_commands())
            messages += 1
        assert messages <= 2

    async def test_a_notice_joins(self, nursery: trio.Nursery, desk: Desk) -> None:
        websocket = await open_websocket(nursery, desk)
        await websocket.send_commands(Command(NOTIFY, opaque=1))
        received = await websocket.receive_commands()
        while len(received) < 2:
            received += await websocket.receive_commands()
        assert {command.is_response for command in received} == {True, False}

    async def test_an_empty_message_is_no_command(self, nursery: trio.Nursery, desk: Desk) -> None:
        websocket = await open_websocket(nursery, desk)
        await websocket.send(BytesMessage(data=b""))
        await websocket.send_commands(Command(ECHO, opaque=1))
        assert [answer.opaque for answer in await websocket.receive_commands()] == [1]


class TestControlFrames:
    async def test_ping_is_answered(self, nursery: trio.Nursery, desk: Desk) -> None:
        websocket = await open_websocket(nursery, desk)
        await websocket.send(Ping(payload=b"are you there"))
        answer = await websocket.receive()
        assert isinstance(answer, Pong)
        assert bytes(answer.payload) == b"are you there"

    async def test_close_is_answered(self, nursery: trio.Nursery, desk: Desk) -> None:
        websocket = await open_websocket(nursery, desk)
        await websocket.send_commands(Command(HOLD, body=b"held"))
        await websocket.send(CloseConnection(code=1000))
        assert await websocket.receive_close() == 1000
        with pytest.raises(EOFError):
            await websocket.receive()
        await trio.testing.wait_all_tasks_blocked()
        assert len(desk.closed) == 1
        assert desk.held == 0

    async def test_a_silent_one_is_closed(
        self, nursery: trio.Nursery, desk: Desk, autojump_clock: trio.testing.MockClock
    ) -> None:
        websocket = await open_websocket(nursery, desk)
        assert await websocket.stream.receive_some(1) == b""
        assert trio.current_time() == pytest.approx(120.0)


class TestBadInput:
    @pytest.mark.parametrize(
        ("event", "code"),
        [
            (TextMessage(data="hello"), 1003),
            (BytesMessage(data=b"\xff\xff\xff"), 1002),
            (BytesMessage(data=b"\x83\x01\x02"), 1002),
            (BytesMessage(data=b"\x81" * 100_000), 1002),
        ],
        ids=["text", "no CBOR", "cut short", "deep"],
    )
    async def test_a_bad_message_closes_its_connection_only(
        self, nursery: trio.Nursery, desk: Desk, event: Event, code: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        websocket = await open_websocket(nursery, desk)
        address = desk.opened[0].local_address
        bystander = await connect(nursery, address)
        await websocket.send(event)
        assert await websocket.receive_close() == code
        assert "closed, " in caplog.text
        await websocket.send(CloseConnection(code=code))
        await bystander.send(Command(ECHO, opaque=1))
        assert (await bystander.receive()).opaque == 1

    async def test_an_oversized_message_closes(self, nursery: trio.Nursery, desk: Desk) -> None:
        websocket = await open_websocket(nursery, desk, RemotingSettings(message_size_max_bytes=10_000))
        await websocket.send_commands(Command(ECHO, body=bytes(20_000)))
        assert await websocket.receive_close() == 1009

    @pytest.mark.parametrize("data", [b"\xff" * 64, b"\x82\x01\x00"], ids=["reserved bits", "unmasked"])
    async def test_broken_framing_closes(
        self, nursery: trio.Nursery, desk: Desk, data: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        websocket = await open_websocket(nursery, desk)
        await websocket.stream.send_all(data)
        await websocket.ended()
        await trio.testing.wait_all_tasks_blocked()
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "1002" in caplog.text
        assert desk.closed == desk.opened

    async def test_a_connection_cut_off_is_noticed(self, nursery: trio.Nursery, desk: Desk) -> None:
        websocket = await open_websocket(nursery, desk)
        await websocket.send_commands(Command(HOLD), Command(ECHO))
        await websocket.receive_commands()
        await websocket.stream.aclose()
        await desk.gone.wait()
        assert desk.held == 0

    async def test_one_that_stops_reading_is_dropped(
        self, nursery: trio.Nursery, desk: Desk, autojump_clock: trio.testing.MockClock
    ) -> None:
        websocket = await open_websocket(nursery, desk)

        async def flood() -> None:
            with contextlib.suppress(trio.BrokenResourceError):
                while True:
                    await websocket.send_commands(Command(ECHO, body=bytes(256 * 1024)))

        async with trio.open_nursery() as inner:
            inner.start_soon(flood)
            await desk.gone.wait()
        assert trio.current_time() <= 125
