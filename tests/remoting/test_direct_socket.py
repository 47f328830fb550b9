"""A client connection's socket, read without the stream: on both event loops what comes arrives once and in order."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import pytest
import trio
from anyio.abc import SocketAttribute, SocketStream

from tests.remoting.conftest import ECHO
from trio_rmq.errors import ConnectionLostError
from trio_rmq.remoting.client import open_connection
from trio_rmq.remoting.direct_socket import READ_BYTES, DirectSocket, direct_socket, event_type
from trio_rmq.wire.command import Command

LARGE = bytes(range(256)) * (8 * 1024 * 1024 // 256)
WAIT_SECONDS = 10

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def joined() -> AsyncIterator[tuple[SocketStream, SocketStream]]:
    """Two ends of a connection on 127.0.0.1."""
    send, receive = anyio.create_memory_object_stream[SocketStream](1)
    async with (
        send,
        receive,
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as group,
    ):
        group.start_soon(listener.serve, send.send)
        stream = await anyio.connect_tcp("127.0.0.1", listener.extra(SocketAttribute.local_port))
        async with stream, await receive.receive() as peer:
            yield stream, peer
        group.cancel_scope.cancel()


@asynccontextmanager
async def direct() -> AsyncIterator[tuple[DirectSocket, SocketStream]]:
    """A direct socket and its peer."""
    with anyio.fail_after(WAIT_SECONDS):
        async with joined() as (stream, peer):
            socket = direct_socket(stream)
            assert socket is not None
            yield socket, peer
            socket.close()


async def read_all(socket: DirectSocket) -> bytes:
    """What comes until the end."""
    got = bytearray()
    with suppress(anyio.EndOfStream):
        while True:
            data = await socket.receive()
            assert len(data) <= READ_BYTES
            got += data
            for _ in range(len(data) % 3):  # more comes before it is asked for
                await anyio.lowlevel.checkpoint()
    return bytes(got)


async def test_what_comes_is_read_whole_and_in_order_then_its_end() -> None:
    async with direct() as (socket, peer), anyio.create_task_group() as group:

        async def send_all() -> None:
            await peer.send(LARGE)
            await peer.send_eof()

        group.start_soon(send_all)
        assert await read_all(socket) == LARGE
        with pytest.raises(anyio.EndOfStream):
            await socket.receive()


async def test_a_read_ends_when_the_socket_is_closed(anyio_backend_name: str) -> None:
    if anyio_backend_name != "trio":
        pytest.skip("asyncio's is closed by who reads it")
    async with direct() as (socket, _peer), anyio.create_task_group() as group:

        async def read() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await socket.receive()

        group.start_soon(read)
        await anyio.wait_all_tasks_blocked()
        trio.lowlevel.notify_closing(socket._socket)


async def test_events_are_the_loop_s_own(anyio_backend_name: str) -> None:
    assert event_type() is (trio.Event if anyio_backend_name == "trio" else type(anyio.Event()))


async def test_a_read_that_is_cancelled_takes_nothing_with_it() -> None:
    async with direct() as (socket, peer):
        got = bytearray()
        for turn in itertools.count():
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:

                    async def read() -> None:
                        got.extend(await socket.receive())

                    group.start_soon(read)
                    await peer.send(b"%d," % turn)
                    for _ in range(turn % 7):
                        await anyio.lowlevel.checkpoint()
                    scope.cancel()
            if turn == 50:
                break
        await peer.send_eof()
        got += await read_all(socket)
        assert got == b"".join(b"%d," % turn for turn in range(51))


async def test_what_is_sent_now_comes_and_the_stream_keeps_nothing_that_it_could_overtake(
    anyio_backend_name: str,
) -> None:
    with anyio.fail_after(WAIT_SECONDS):
        async with joined() as (stream, peer):
            socket = direct_socket(stream)
            assert socket is not None
            got = bytearray()
            async with anyio.create_task_group() as group:

                async def read() -> None:
                    while len(got) < len(LARGE) + 4:
                        got.extend(await peer.receive())

                group.start_soon(read)
                await stream.send(LARGE)
                if anyio_backend_name == "asyncio":
                    kept: Any = stream
                    assert not kept._transport.get_write_buffer_size()  # what send_now relies on
                assert socket.send_now(b"last") == 4
            assert got == LARGE + b"last"
            socket.close()


async def test_a_stream_that_holds_what_came_first_is_read_itself(anyio_backend_name: str) -> None:
    if anyio_backend_name != "asyncio":
        pytest.skip("Trio's stream holds nothing")
    async with joined() as (stream, _peer):
        protocol = stream._protocol  # type: ignore[attr-defined]
        protocol.data_received(b"early")
        assert direct_socket(stream) is None
        assert await stream.receive() == b"early"


async def test_a_request_into_a_connection_that_the_peer_reset_fails_as_lost() -> None:
    opened = anyio.Event()

    async def reset(stream: SocketStream) -> None:
        await opened.wait()
        stream.extra(SocketAttribute.raw_socket).setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SO_LINGER, 0 s: a reset
        await anyio.aclose_forcefully(stream)

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as group,
    ):
        group.start_soon(listener.serve, reset)
        async with open_connection(f"127.0.0.1:{listener.extra(SocketAttribute.local_port)}") as connection:
            opened.set()
            with pytest.raises(ConnectionLostError):
                await connection.request(Command(ECHO))
        group.cancel_scope.cancel()
