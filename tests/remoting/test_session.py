"""The server's side of a connection: dispatch, runs, answers that wait, bounds and timeouts, on virtual time."""

from __future__ import annotations

import contextlib
import errno
import logging

import msgspec
import pytest
import trio
import trio.testing

from tests.remoting.conftest import (
    ASK_BACK,
    BATCH_ECHO,
    BATCH_LATER,
    CRASH,
    ECHO,
    HOLD,
    NOTIFY,
    RELEASE,
    UNKNOWN,
    Desk,
)
from tests.remoting.raw import RawClient, connect, start_server
from trio_rmq.errors import ConnectionLostError, ListenError, RequestTimeoutError
from trio_rmq.remoting.client import open_connection
from trio_rmq.remoting.handlers import HandlerTable
from trio_rmq.remoting.listener import serve_remoting
from trio_rmq.remoting.session import Session
from trio_rmq.remoting.settings import RemotingSettings
from trio_rmq.remoting.tcp import TcpSession
from trio_rmq.wire.command import FLAG_ONEWAY, Command
from trio_rmq.wire.frame import encode_frame

pytestmark = pytest.mark.trio


async def open_client(nursery: trio.Nursery, desk: Desk, settings: RemotingSettings | None = None) -> RawClient:
    """A server with the desk's handlers, and one connection to it."""
    address = await start_server(
        nursery,
        desk.table(),
        settings=settings or RemotingSettings(),
        on_open=desk.opened.append,
        on_close=desk.on_close,
    )
    return await connect(nursery, address)


async def expect_close(client: RawClient) -> None:
    """Wait, on virtual time, for the server to close."""
    assert await client.closed_by_server()


async def test_sessions_that_end_together_may_tell_one_another(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """A broker that goes down: each lost member is told to the others, which are going themselves."""

    def tell_all(session: Session) -> None:
        desk.on_close(session)
        for other in desk.opened:
            other.send_nowait(Command(NOTIFY))

    async with trio.open_nursery() as nursery:
        address = await start_server(nursery, desk.table(), on_open=desk.opened.append, on_close=tell_all)
        for _ in range(8):
            client = await connect(nursery, address)
            await client.send(Command(ECHO))
            await client.receive()
        nursery.cancel_scope.cancel()
    assert len(desk.closed) == 8
    assert "error while cleaning up" not in caplog.text


class TestDispatch:
    async def test_a_chunk_is_answered_in_order(self, nursery: trio.Nursery, desk: Desk) -> None:
        client = await open_client(nursery, desk)
        codes = [ECHO, UNKNOWN, CRASH, ECHO]
        await client.send(*(Command(code, opaque=number) for number, code in enumerate(codes)))
        answers = [await client.receive() for _ in codes]
        assert [(answer.opaque, answer.code) for answer in answers] == [(0, 0), (1, 3), (2, 1), (3, 0)]
        assert all(answer.is_response for answer in answers)

    async def test_consecutive_requests_of_a_batch_code_are_one_run(self, nursery: trio.Nursery, desk: Desk) -> None:
        client = await open_client(nursery, desk)
        codes = [BATCH_ECHO, BATCH_ECHO, ECHO, BATCH_ECHO, BATCH_ECHO, BATCH_ECHO]
        await client.send(*(Command(code, opaque=number) for number, code in enumerate(codes)))
        assert [(await client.receive()).opaque for _ in codes] == list(range(6))
        assert desk.runs == [2, 3]

    async def test_a_frame_that_comes_byte_by_byte_is_one_request(self, nursery: trio.Nursery, desk: Desk) -> None:
        client = await open_client(nursery, desk)
        frame = encode_frame(Command(ECHO, opaque=9, body=b"abc"))
        for number in range(len(frame)):
            await client.stream.send_all(frame[number : number + 1])
            await trio.testing.wait_all_tasks_blocked()
        assert (await client.receive()).opaque == 9

    async def test_a_later_answer_does_not_hold_up_the_others(self, nursery: trio.Nursery, desk: Desk) -> None:
        client = await open_client(nursery, desk)
        await client.send(Command(HOLD, opaque=1), Command(ECHO, opaque=2))
        assert (await client.receive()).opaque == 2
        await client.send(Command(RELEASE, opaque=3))
        assert {(await client.receive()).opaque for _ in range(2)} == {1, 3}
        assert desk.held == 0

    async def test_answers_released_together_leave_together(
        self, nursery: trio.Nursery, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        client = await open_client(nursery, desk)
        await client.send(*(Command(HOLD, opaque=number) for number in range(1, 51)))
        await trio.testing.wait_all_tasks_blocked()
        sends = []
        send = TcpSession._send

        async def counted(session: TcpSession, payload: bytes) -> int:
            sends.append(len(payload))
            return await send(session, payload)

        monkeypatch.setattr(TcpSession, "_send", counted)
        desk.release.set()
        assert {(await client.receive()).opaque for _ in range(50)} == set(range(1, 51))
        assert len(sends) <= 2

    async def test_a_batch_may_answer_in_part_later(self, nursery: trio.Nursery, desk: Desk) -> None:
        client = await open_client(nursery, desk)
        await client.send(*(Command(BATCH_LATER, opaque=number) for number in range(3)))
        answers = [await client.receive() for _ in range(3)]
        assert [(answer.opaque, answer.remark) for answer in answers] == [(0, "now"), (1, "later"), (2, "later")]

    async def test_a_later_that_fails_answers_each_request_it_owes(self, nursery: trio.Nursery, desk: Desk) -> None:
        client = await open_client(nursery, desk)
        oneway = Command(BATCH_LATER, opaque=3, flag=FLAG_ONEWAY)
        await client.send(
            Command(BATCH_LATER, opaque=0),
            Command(BATCH_LATER, opaque=1, body=b"crash"),
            oneway,
            Command(ECHO, opaque=4),
        )
        answers = {answer.opaque: answer for answer in [await client.receive() for _ in range(3)]}
        assert {opaque: answer.code for opaque, answer in answers.items()} == {0: 0, 1: 14, 4: 0}
        assert answers[1].remark == "the store failed"

    async def test_a_defect_is_logged_with_its_traceback(
        self, nursery: trio.Nursery, desk: Desk, caplog: pytest.LogCaptureFixture
    ) -> None:
        client = await open_client(nursery, desk)
        await client.send(Command(CRASH, opaque=1))
        await client.receive()
        assert any(record.exc_info and "failed in its handler" in record.message for record in caplog.records)

    async def test_an_answer_that_cannot_be_encoded_costs_only_its_request(
        self, nursery: trio.Nursery, desk: Desk
    ) -> None:
        table = HandlerTable()
        table.register(1, desk.echo)
        table.register(2, lambda session, command: command.reply(body=object()))  # type: ignore[arg-type] # the defect
        client = await connect(nursery, await start_server(nursery, table))
        await client.send(Command(1, opaque=1), Command(2, opaque=2), Command(1, opaque=3))
        answers = [await client.receive() for _ in range(3)]
        assert [(answer.opaque, answer.code) for answer in answers] == [(1, 0), (2, 1), (3, 0)]

    async def test_errors_of_the_callbacks_stay_in_their_connection(
        self, nursery: trio.Nursery, desk: Desk, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(session: Session) -> None:
            raise LookupError("a defect of the callback")

        address = await start_server(nursery, desk.table(), on_open=fail, on_close=fail)
        client = await connect(nursery, address)
        await client.send(Command(ECHO))
        await expect_close(client)
        assert len([record for record in caplog.records if record.exc_info]) == 2
        assert await connect(nursery, address), "the server lives"


class TestServerRequests:
    async def test_a_request_of_the_server_times_out(
        self, nursery: trio.Nursery, desk: Desk, autojump_clock: trio.testing.MockClock
    ) -> None:
        client = await open_client(nursery, desk)
        await client.send(Command(ECHO))
        await client.receive()
        session = desk.opened[0]
        with pytest.raises(RequestTimeoutError, match="within 3 s"):
            await session.request(Command(39), 3.0)
        assert trio.current_time() == pytest.approx(3.0)
        assert len(session._requests) == 0

    async def test_a_cancelled_request_of_the_server_leaves_nothing(self, nursery: trio.Nursery, desk: Desk) -> None:
        client = await open_client(nursery, desk)
        await client.send(Command(ECHO))
        await client.receive()
        session = desk.opened[0]
        async with trio.open_nursery() as inner:
            inner.start_soon(session.request, Command(39), 60.0)
            await trio.testing.wait_all_tasks_blocked()
            assert len(session._requests) == 1
            inner.cancel_scope.cancel()
        assert len(session._requests) == 0
        assert not session.closed

    async def test_a_client_that_goes_fails_the_request(self, nursery: trio.Nursery, desk: Desk) -> None:
        client = await open_client(nursery, desk)
        await client.send(Command(ASK_BACK))
        asked = await client.receive()
        assert not asked.is_response
        assert not asked.is_oneway
        session = desk.opened[0]
        async with trio.open_nursery() as inner:

            async def ask() -> None:
                with pytest.raises(ConnectionLostError):
                    await session.request(Command(39), 60.0)

            inner.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            await client.stream.aclose()
        assert session.closed
        assert not session.send_nowait(Command(39))

    async def test_a_notice_comes_marked_one_way(self, nursery: trio.Nursery, desk: Desk) -> None:
        client = await open_client(nursery, desk)
        await client.send(Command(NOTIFY, opaque=5))
        received = [await client.receive(), await client.receive()]
        notice = next(command for command in received if not command.is_response)
        assert notice.is_oneway
        assert bytes(notice.body) == b"notice"


class TestBounds:
    async def test_requests_in_flight(self, nursery: trio.Nursery, desk: Desk) -> None:
        client = await open_client(nursery, desk, RemotingSettings(requests_in_flight_max=2))
        await client.send(*(Command(HOLD, opaque=number, body=b"held") for number in range(10, 20)))
        await client.send(*(Command(HOLD, opaque=number) for number in (1, 2, 3)), Command(BATCH_ECHO, opaque=4))
        busy = [await client.receive(), await client.receive()]
        assert [(answer.opaque, answer.code) for answer in busy] == [(3, 2), (4, 2)]
        assert "limit is 2" in (busy[0].remark or "")
        desk.release.set()
        released = [await client.receive() for _ in range(12)]
        assert {answer.opaque for answer in released} == {1, 2, *range(10, 20)}
        await client.send(Command(HOLD, opaque=30))
        assert (await client.receive()).code == 0

    @pytest.mark.parametrize("websocket", [False, True], ids=["tcp", "websocket"])
    @pytest.mark.parametrize("by", ["count", "bytes"])
    async def test_nothing_is_read_while_too_much_is_in_flight(
        self, nursery: trio.Nursery, desk: Desk, by: str, websocket: bool
    ) -> None:
        settings = RemotingSettings(requests_in_flight_max=4, in_flight_bytes_pause=1000)
        address = await start_server(nursery, desk.table(), settings=settings)
        prefix = "ws://" if websocket else ""
        async with open_connection(f"{prefix}{address}") as connection, trio.open_nursery() as inner:
            held = [Command(HOLD, body=b"x")] * 3 if by == "count" else [Command(HOLD, body=bytes(1001))]
            results: list[Command] = []

            async def ask(command: Command) -> None:
                results.append(await connection.request(command, 1000))

            for command in held:
                inner.start_soon(ask, msgspec.structs.replace(command))
            while desk.held < len(held):
                await trio.testing.wait_all_tasks_blocked(0.01)
            inner.start_soon(ask, Command(ECHO, body=b"afterwards"))
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert desk.seen == []
            assert results == []
            desk.release.set()
        assert [answer.code for answer in results] == [0] * (len(held) + 1)
        assert len(desk.seen) == 1

    async def test_connections(self, nursery: trio.Nursery, desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
        address = await start_server(nursery, desk.table(), settings=RemotingSettings(connections_max=2))
        first, second = await connect(nursery, address), await connect(nursery, address)
        third = await connect(nursery, address)
        await expect_close(third)
        assert "refused a connection: 2 are open" in caplog.text
        await first.stream.aclose()
        await second.send(Command(ECHO))
        await second.receive()
        fourth = await connect(nursery, address)
        await fourth.send(Command(ECHO))
        assert (await fourth.receive()).code == 0

    async def test_a_reader_that_stops_reading_is_paused_then_dropped(
        self,
        nursery: trio.Nursery,
        desk: Desk,
        autojump_clock: trio.testing.MockClock,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.INFO, logger="trio_rmq.remoting")
        settings = RemotingSettings(outgoing_bytes_pause=256 * 1024, write_stall_seconds=30.0)
        client = await open_client(nursery, desk, settings)
        body = bytes(64 * 1024)

        async def flood() -> None:
            with contextlib.suppress(trio.BrokenResourceError):
                while True:
                    await client.send(Command(ECHO, body=body))

        autojump_clock.autojump_threshold = 0.1  # the system's buffers fill in real time
        async with trio.open_nursery() as inner:
            inner.start_soon(flood)
            await trio.sleep(15)
            unwritten = desk.opened[0]._outgoing_bytes
            await desk.gone.wait()
        assert 128 * 1024 < unwritten < 1024 * 1024, "it stays paused until half of the bound is unwritten"
        assert "it read nothing for 30 s" in caplog.text
        assert 30 <= trio.current_time() <= 33

    async def test_a_paused_reader_goes_on_when_it_reads_again(self, nursery: trio.Nursery, desk: Desk) -> None:
        client = await open_client(nursery, desk, RemotingSettings(outgoing_bytes_pause=256 * 1024))
        body = bytes(64 * 1024)
        count = 400

        async def flood() -> None:
            for number in range(count):
                await client.send(Command(ECHO, opaque=number, body=body))

        async with trio.open_nursery() as inner:
            inner.start_soon(flood)
            await trio.testing.wait_all_tasks_blocked(cushion=0.05)
            assert desk.opened[0]._resume_reading is not None
            assert [(await client.receive()).opaque for _ in range(count)] == list(range(count))

    async def test_a_peer_that_reads_no_notices_is_dropped_at_the_bound(
        self, nursery: trio.Nursery, desk: Desk, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, logger="trio_rmq.remoting")
        client = await open_client(nursery, desk, RemotingSettings(outgoing_bytes_max=1024 * 1024))
        await client.send(Command(ECHO))
        await client.receive()
        session = desk.opened[0]
        sent = 0
        while session.send_nowait(Command(39, body=bytes(100_000))):
            sent += 1
            assert sent < 20
        assert session.closed
        assert "bytes unread" in caplog.text
        await trio.testing.wait_all_tasks_blocked()
        assert desk.closed == [session]

    async def test_replies_leave_after_the_peer_has_finished_sending(self, nursery: trio.Nursery, desk: Desk) -> None:
        client = await open_client(nursery, desk)
        body = bytes(1024 * 1024)

        async def send() -> None:
            await client.send(*(Command(ECHO, opaque=number, body=body) for number in range(8)))
            await client.stream.send_eof()

        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        assert [(await client.receive()).opaque for _ in range(8)] == list(range(8))
        await expect_close(client)


class TestIdle:
    async def test_a_silent_connection_is_closed(
        self,
        nursery: trio.Nursery,
        desk: Desk,
        autojump_clock: trio.testing.MockClock,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.INFO, logger="trio_rmq.remoting")
        client = await open_client(nursery, desk)
        await trio.sleep(50)
        await client.send(Command(ECHO))
        await client.receive()
        await expect_close(client)
        assert trio.current_time() == pytest.approx(170.0)
        assert "idle for 120 s" in caplog.text
        assert desk.closed == desk.opened

    async def test_one_that_says_nothing_at_all_is_closed(
        self, nursery: trio.Nursery, desk: Desk, autojump_clock: trio.testing.MockClock
    ) -> None:
        client = await open_client(nursery, desk)
        await expect_close(client)
        assert trio.current_time() == pytest.approx(120.0)

    async def test_a_heartbeat_keeps_it(
        self, nursery: trio.Nursery, desk: Desk, autojump_clock: trio.testing.MockClock
    ) -> None:
        client = await open_client(nursery, desk)
        for _ in range(10):
            await client.send(Command(ECHO))
            await client.receive()
            await trio.sleep(100)
        assert not desk.closed

    async def test_what_the_server_writes_keeps_it_too(
        self, nursery: trio.Nursery, desk: Desk, autojump_clock: trio.testing.MockClock
    ) -> None:
        client = await open_client(nursery, desk)
        await client.send(Command(ECHO))
        await client.receive()
        for _ in range(5):
            await trio.sleep(100)
            assert desk.opened[0].send_nowait(Command(39))
            await client.receive()
        assert not desk.closed

    async def test_a_frame_that_drips_in_does_not(
        self, nursery: trio.Nursery, desk: Desk, autojump_clock: trio.testing.MockClock
    ) -> None:
        client = await open_client(nursery, desk)
        frame = encode_frame(Command(ECHO, body=bytes(1000)))

        async def drip() -> None:
            with contextlib.suppress(trio.BrokenResourceError):
                for number in range(len(frame)):
                    await client.stream.send_all(frame[number : number + 1])
                    await trio.sleep(10)

        async with trio.open_nursery() as inner:
            inner.start_soon(drip)
            await expect_close(client)
            assert trio.current_time() <= 200


class TestListener:
    async def test_a_port_in_use_is_a_sentence(self, nursery: trio.Nursery, desk: Desk) -> None:
        address = await start_server(nursery, desk.table())
        with pytest.raises(ListenError, match="Address already in use") as caught:
            await serve_remoting(["127.0.0.1:0", address], desk.table())
        assert caught.value.address == address

    async def test_several_addresses_are_bound_and_told(self, nursery: trio.Nursery, desk: Desk) -> None:
        async def serve(task_status: trio.TaskStatus[list[str]]) -> None:
            await serve_remoting(["127.0.0.1:0", "localhost:0"], desk.table(), task_status=task_status)

        addresses: list[str] = await nursery.start(serve)
        assert len(addresses) == 2
        for address in addresses:
            client = await connect(nursery, address)
            await client.send(Command(ECHO))
            assert (await client.receive()).code == 0

    async def test_a_session_knows_both_ends(self, nursery: trio.Nursery, desk: Desk) -> None:
        client = await open_client(nursery, desk)
        await client.send(Command(ECHO))
        await client.receive()
        (session,) = desk.opened
        host, port = client.stream.socket.getsockname()[:2]
        assert session.peer == f"{host}:{port}"
        assert session.peer_host == (bytes([127, 0, 0, 1]), port)
        assert session.local_address.startswith("127.0.0.1:")
        assert session.transport == "tcp"

    async def test_cancelling_the_server_closes_everything(self, desk: Desk) -> None:
        async with trio.open_nursery() as nursery:
            client = await open_client(nursery, desk)
            await client.send(Command(HOLD), Command(ECHO))
            await client.receive()
            await trio.testing.wait_all_tasks_blocked()
            assert desk.held == 1
            nursery.cancel_scope.cancel()
        assert desk.held == 0
        assert len(desk.opened) == 1
        assert desk.closed == desk.opened

    async def test_a_client_that_goes_ends_what_it_holds(self, nursery: trio.Nursery, desk: Desk) -> None:
        client = await open_client(nursery, desk)
        await client.send(Command(HOLD, body=b"held"), Command(ECHO))
        await client.receive()
        await trio.testing.wait_all_tasks_blocked()
        assert desk.held == 1
        await client.stream.aclose()
        await desk.gone.wait()
        assert desk.held == 0

    async def test_accepting_goes_on_after_the_system_ran_out_of_files(
        self,
        nursery: trio.Nursery,
        desk: Desk,
        autojump_clock: trio.testing.MockClock,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        accept = trio.SocketListener.accept
        failures = [errno.EMFILE, errno.ENFILE]

        async def failing_accept(listener: trio.SocketListener) -> trio.SocketStream:
            stream = await accept(listener)
            if failures:
                await stream.aclose()
                raise OSError(failures.pop(), "no more files")
            return stream

        monkeypatch.setattr(trio.SocketListener, "accept", failing_accept)
        address = await start_server(nursery, desk.table())
        for _ in range(2):
            await expect_close(await connect(nursery, address))
        client = await connect(nursery, address)
        await client.send(Command(ECHO))
        assert (await client.receive()).code == 0
        assert caplog.text.count("cannot accept connections") == 2
