"""Edges: what passes, what does not, and how it comes out, over real loopback sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from trio_rmq.testing.chaos.proxy import Edge, Proxy, Rewrite

SAFETY_SECONDS = 20


async def echo(stream: trio.SocketStream) -> None:
    """Gives back what comes, and ends when its peer does."""
    try:
        async for data in stream:
            await stream.send_all(data)
    except trio.BrokenResourceError:
        return


@asynccontextmanager
async def proxied(edge: Edge, rewrite: Rewrite | None = None) -> AsyncIterator[Proxy]:
    """An echo server behind a proxy whose only edge is `edge`."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, echo, listeners)
        port = listeners[0].socket.getsockname()[1]
        proxy = Proxy(("127.0.0.1", port), lambda _: edge, rewrite=None if rewrite is None else lambda: rewrite)
        await nursery.start(proxy.serve)
        with trio.fail_after(SAFETY_SECONDS):
            yield proxy
        nursery.cancel_scope.cancel()


async def connect(proxy: Proxy) -> trio.SocketStream:
    host, _, port = proxy.address.partition(":")
    return await trio.open_tcp_stream(host, int(port))


async def receive(stream: trio.SocketStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = await stream.receive_some()
        assert chunk, data
        data += chunk
    return data


@pytest.fixture
def edge() -> Edge:
    return Edge("clients->server", Random(1))


@pytest.mark.trio
async def test_bytes_and_the_end_of_a_stream_pass(edge: Edge) -> None:
    async with proxied(edge) as proxy, await connect(proxy) as stream:
        await stream.send_all(b"hello")
        await stream.send_eof()
        assert await receive(stream, 5) == b"hello"
        assert await stream.receive_some() == b""


@pytest.mark.trio
async def test_a_cut_resets_what_is_open_and_what_comes(edge: Edge) -> None:
    async with proxied(edge) as proxy, await connect(proxy) as stream:
        await stream.send_all(b"hello")
        await receive(stream, 5)
        edge.change(cut=True)
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        async with await connect(proxy) as second:
            with pytest.raises(trio.BrokenResourceError):
                await second.receive_some()
        edge.heal()
        async with await connect(proxy) as third:
            await third.send_all(b"again")
            assert await receive(third, 5) == b"again"


@pytest.mark.trio
async def test_silence_holds_back_and_passes_on_when_it_is_over(edge: Edge) -> None:
    async with proxied(edge) as proxy, await connect(proxy) as stream:
        await stream.send_all(b"hello")
        await receive(stream, 5)
        edge.change(silent=True)
        await stream.send_all(b"later")
        with trio.move_on_after(0.1) as waited:
            await stream.receive_some()
        assert waited.cancelled_caught
        edge.heal()
        assert await receive(stream, 5) == b"later"


@pytest.mark.trio
async def test_half_open_connections_are_silent_for_ever_and_new_ones_are_not(edge: Edge) -> None:
    async with proxied(edge) as proxy, await connect(proxy) as stream:
        await stream.send_all(b"hello")
        await receive(stream, 5)
        assert edge.half_open() == 1
        edge.heal()
        await stream.send_all(b"into the void")
        async with await connect(proxy) as second:
            await second.send_all(b"hello")
            assert await receive(second, 5) == b"hello"
        with trio.move_on_after(0.1) as waited:
            await stream.receive_some()
        assert waited.cancelled_caught


@pytest.mark.trio
async def test_fragments_and_slowness_change_no_byte_and_corruption_one_bit_a_chunk(edge: Edge) -> None:
    async with proxied(edge) as proxy, await connect(proxy) as stream:
        edge.change(fragment_bytes=1, delay_seconds=0.01)
        await stream.send_all(bytes(range(256)))
        assert await receive(stream, 256) == bytes(range(256))
        edge.change(fragment_bytes=0, delay_seconds=0.0, corrupt_chance=1.0)
        await stream.send_all(bytes(100))
        changed = await receive(stream, 100)
        assert edge.corrupted == sum(byte.bit_count() for byte in changed)
        assert edge.corrupted == 2  # there and back: at other bits, with this seed


@pytest.mark.trio
async def test_a_server_that_is_away_is_a_reset(edge: Edge) -> None:
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        await listener.aclose()
        proxy = Proxy(("127.0.0.1", port), lambda _: edge)
        await nursery.start(proxy.serve)
        async with await connect(proxy) as stream:
            with pytest.raises(trio.BrokenResourceError), trio.fail_after(SAFETY_SECONDS):
                await stream.receive_some()
        nursery.cancel_scope.cancel()


@given(text=st.lists(st.sampled_from([b"127.0.0.1:10911", b"127.", b"127.0.0.1:109", b"x"])), cuts=st.randoms())
def test_a_rewrite_finds_its_text_across_chunks(text: list[bytes], cuts: Random) -> None:
    stream = b"".join(text) + b"\n"
    rewrite = Rewrite(b"127.0.0.1:10911", b"127.0.0.1:54321")
    out, position = b"", 0
    while position < len(stream):
        size = cuts.randint(1, 8)
        out += rewrite.feed(stream[position : position + size])
        position += size
    assert out == stream.replace(b"127.0.0.1:10911", b"127.0.0.1:54321")


def test_a_rewrite_keeps_the_length() -> None:
    with pytest.raises(ValueError, match="as long as"):
        Rewrite(b"127.0.0.1:1", b"127.0.0.1:22")
