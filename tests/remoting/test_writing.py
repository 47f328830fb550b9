"""What waits to be written: peers that read nothing or slowly, and what is too long for one message."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trio.testing
from wsproto import ConnectionType, WSConnection
from wsproto.connection import Connection
from wsproto.events import BytesMessage, Request

from tests.remoting.conftest import BATCH_ECHO, ECHO, HOLD, LONG, RELEASE, Desk
from trio_rmq.remoting.client import open_connection
from trio_rmq.remoting.listener import serve_remoting
from trio_rmq.remoting.settings import DEFAULT_SETTINGS, RemotingSettings
from trio_rmq.testing.world import World, open_world
from trio_rmq.wire.cbor_codec import SUB_PROTOCOL, encode_commands
from trio_rmq.wire.command import Command
from trio_rmq.wire.frame import encode_frame

pytestmark = pytest.mark.trio

SERVER, CLIENT = "10.0.0.1", "10.0.0.2"
ADDRESS = f"{SERVER}:10911"
MIB = 1024 * 1024
TRANSPORTS = pytest.mark.parametrize("transport", ["tcp", "websocket"])


@asynccontextmanager
async def served(desk: Desk, settings: RemotingSettings = DEFAULT_SETTINGS) -> AsyncIterator[World]:
    """A world with the desk's handlers on SERVER; the block runs on CLIENT."""
    async with open_world() as world, trio.open_nursery() as nursery:
        with world.node(SERVER):
            await nursery.start(
                partial(
                    serve_remoting,
                    [ADDRESS],
                    desk.table(),
                    settings=settings,
                    on_open=desk.opened.append,
                    on_close=desk.on_close,
                )
            )
        with world.node(CLIENT):
            yield world
        nursery.cancel_scope.cancel()


def handshake(transport: str) -> bytes:
    """What a client sends first."""
    request = Request(host="x", target="/", subprotocols=[SUB_PROTOCOL])
    return b"" if transport == "tcp" else WSConnection(ConnectionType.CLIENT).send(request)


def encoded(transport: str, command: Command) -> bytes:
    """The command as a frame, or in a message."""
    if transport == "tcp":
        return encode_frame(command)
    return Connection(ConnectionType.CLIENT).send(BytesMessage(data=encode_commands([command])))


async def connect(transport: str) -> tuple[trio.SocketStream, int]:
    """A connection whose handshake, if any, is answered but unread; how long the answer is."""
    size = 0
    if transport != "tcp":
        async with await trio.open_tcp_stream(SERVER, 10911) as stream:
            await stream.send_all(handshake(transport))
            size = len(await stream.receive_some())
    stream = await trio.open_tcp_stream(SERVER, 10911)
    if size:
        await stream.send_all(handshake(transport))
        await trio.sleep(1)
    return stream, size


@TRANSPORTS
async def test_a_peer_that_reads_nothing_from_the_first_byte_on_is_dropped(
    transport: str, desk: Desk, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="trio_rmq.remoting")
    async with served(desk) as world:
        size = (await connect(transport))[1]
        world.network.set_link(SERVER, CLIENT, one_way=True, buffer_bytes=size)
        stream, _ = await connect(transport)
        desk.gone = trio.Event()
        sent_at = trio.current_time()
        await stream.send_all(encoded(transport, Command(ECHO)))
        await desk.gone.wait()
        assert trio.current_time() - sent_at == pytest.approx(30.0, abs=0.01)
        assert "it read nothing for 30 s" in caplog.text


@TRANSPORTS
async def test_who_reads_slowly_but_steadily_is_not_dropped(
    transport: str, desk: Desk, autojump_clock: trio.testing.MockClock
) -> None:
    async with served(desk) as world:
        world.network.set_link(SERVER, CLIENT, one_way=True, buffer_bytes=4096)
        stream, _ = await connect(transport)
        request = encoded(transport, Command(ECHO, body=bytes(64 * 1024)))
        desk.gone = trio.Event()
        await stream.send_all(request)
        read = 0
        while read < 64 * 1024:
            await trio.sleep(25)
            read += len(await stream.receive_some(4096))
        assert not desk.gone.is_set()
        assert trio.current_time() > 300

        await stream.send_all(request)
        stopped_at = trio.current_time()
        for _ in range(3):
            await trio.sleep(20)
            stopped_at = trio.current_time()
            await stream.receive_some(4096)
        await desk.gone.wait()
        assert trio.current_time() - stopped_at == pytest.approx(30.0, abs=0.1)


async def test_the_watch_of_writes_costs_one_look_in_a_stall_time(
    desk: Desk, autojump_clock: trio.testing.MockClock
) -> None:
    async with served(desk), open_connection(ADDRESS) as connection:
        for _ in range(100):
            await connection.request(Command(ECHO))
        (session,) = desk.opened[-1:]

        def watched() -> bool:
            return session._watch_writes is None

        assert watched()
        await trio.sleep(31)
        assert not watched(), "no write waits: the watch has let it go"
        await connection.request(Command(ECHO))
        await trio.sleep(31)
        await connection.request(Command(ECHO))
        assert not session.closed


class TestLongMessages:
    """More than 16 MiB that leave together over WebSocket."""

    async def test_requests_sent_together(self, desk: Desk, autojump_clock: trio.testing.MockClock) -> None:
        async with served(desk), open_connection(f"ws://{ADDRESS}") as connection:
            requests = [Command(BATCH_ECHO, body=bytes([number]) * (3 * MIB)) for number in range(11)]
            answers = await connection.request_many(requests, 60.0)
        assert [answer.body for answer in answers if isinstance(answer, Command)] == [each.body for each in requests]
        assert desk.runs == [5, 5, 1], "as few messages as the bound allows"

    async def test_requests_queued_together(self, desk: Desk, autojump_clock: trio.testing.MockClock) -> None:
        found: list[bytes] = []
        async with served(desk), open_connection(f"ws://{ADDRESS}") as connection:

            async def ask(body: bytes) -> None:
                answer = await connection.request(Command(ECHO, body=body), 60.0)
                assert answer.body == body
                found.append(body[:1])

            async with trio.open_nursery() as askers:
                for number in range(40):
                    askers.start_soon(ask, bytes([number]) * (MIB - 40_000 * (number % 2)))
        assert sorted(found) == [bytes([number]) for number in range(40)]

    async def test_replies_of_one_message(self, desk: Desk, autojump_clock: trio.testing.MockClock) -> None:
        async with served(desk), open_connection(f"ws://{ADDRESS}") as connection:
            answers = await connection.request_many([Command(LONG, body=bytes([n])) for n in range(9)], 60.0)
        assert [answer.body for answer in answers if isinstance(answer, Command)] == [
            bytes([number]) * (4 * MIB) for number in range(9)
        ]

    async def test_replies_released_together(self, desk: Desk, autojump_clock: trio.testing.MockClock) -> None:
        async with served(desk), open_connection(f"ws://{ADDRESS}") as connection:
            answers: list[Command] = []

            async def ask(code: int, body: bytes) -> None:
                answers.append(await connection.request(Command(code, body=body), 60.0))

            async with trio.open_nursery() as askers:
                for _ in range(5):
                    askers.start_soon(ask, HOLD, b"held")
                for number in range(5):
                    askers.start_soon(ask, LONG, bytes([number]))
                await trio.sleep(0.1)
                askers.start_soon(ask, RELEASE, b"")
        assert len(answers) == 11
