"""The virtual network: real stream code runs over it, and each fault does what its sentence says."""

from __future__ import annotations

import errno
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from random import Random
from typing import Any

import anyio
import pytest
import trio
import trio.testing
from anyio.abc import SocketAttribute
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_rmq.testing.virtual_network import Link, VirtualNetwork, open_network

SERVER, CLIENT = "10.0.0.1", "10.0.0.2"


def run(main: Callable[[], Awaitable[Any]]) -> None:
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@asynccontextmanager
async def pair(network: VirtualNetwork) -> AsyncIterator[tuple[trio.SocketStream, trio.SocketStream]]:
    """A connected client and server stream."""
    with network.node(SERVER):
        (listener,) = await trio.open_tcp_listeners(0, host=SERVER)
    with network.node(CLIENT):
        client = await trio.open_tcp_stream(SERVER, listener.socket.getsockname()[1])
    server = await listener.accept()
    await listener.aclose()
    async with client, server:
        yield client, server


def reason_of(error: BaseException) -> BaseException:
    """The one failure inside the group that `open_tcp_stream` raises from."""
    assert isinstance(error.__cause__, BaseExceptionGroup)
    (reason,) = error.__cause__.exceptions
    return reason


def test_trios_own_conformance_checks_pass() -> None:
    """The checks of trio.testing for every stream: conflicts, cancellation, closing, half-closing, clogging."""

    async def make() -> tuple[trio.SocketStream, trio.SocketStream]:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        client = await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
        server = await listener.accept()
        await listener.aclose()
        return client, server

    async def make_clogged() -> tuple[trio.SocketStream, trio.SocketStream]:
        client, server = await make()
        for stream in (client, server):
            with trio.move_on_after(0.001):
                await stream.send_all(b"x" * 1024 * 1024)
        return client, server

    async def main() -> None:
        async with open_network(Random(1)) as network:
            network.set_link("127.0.0.1", "127.0.0.1", buffer_bytes=64 * 1024)
            await trio.testing.check_half_closeable_stream(make, make_clogged)

    trio.run(main)


def test_round_trips_take_their_latency_under_trio_and_anyio() -> None:
    async def main() -> None:
        async def echo(stream: trio.SocketStream) -> None:
            async for data in stream:
                await stream.send_all(data)

        async with open_network(Random(1), Link(latency_seconds=0.05)) as network, trio.open_nursery() as nursery:
            with network.node(SERVER):
                serve = partial(trio.serve_tcp, echo, 9000, host=SERVER)
                await nursery.start(serve)
            network.name("server", SERVER)
            with network.node(CLIENT):
                start = trio.current_time()
                stream = await trio.open_tcp_stream("server", 9000)
                for _ in range(100):
                    await stream.send_all(b"x")
                    assert await stream.receive_some() == b"x"
                assert trio.current_time() - start == pytest.approx(101 * 0.1)
                async with await anyio.connect_tcp("server", 9000) as other:
                    await other.send(b"hello")
                    assert await other.receive() == b"hello"
                    assert other.extra(SocketAttribute.remote_address) == (SERVER, 9000)
                    assert other.extra(SocketAttribute.local_address)[0] == CLIENT
            nursery.cancel_scope.cancel()

    run(main)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1 << 32), st.binary(min_size=1, max_size=400), st.sampled_from([1, 7, 64, 4096]))
def test_bytes_arrive_whole_and_in_order_however_they_are_split(seed: int, payload: bytes, buffer_bytes: int) -> None:
    link = Link(latency_seconds=0.01, jitter_seconds=0.1, buffer_bytes=buffer_bytes, split_chance=0.7)

    async def main() -> None:
        async with open_network(Random(seed), link) as network, pair(network) as (client, server):

            async def write(stream: trio.SocketStream) -> None:
                await stream.send_all(payload * 3)
                await stream.send_eof()

            async def read(stream: trio.SocketStream) -> None:
                assert b"".join([data async for data in stream]) == payload * 3

            async with trio.open_nursery() as nursery:
                for stream in (client, server):
                    nursery.start_soon(write, stream)
                    nursery.start_soon(read, stream)

    run(main)


def test_a_reader_that_stops_stops_its_writer() -> None:
    async def main() -> None:
        async with open_network(Random(1), Link(buffer_bytes=1000)) as network, pair(network) as (client, server):
            sent = 0
            with trio.move_on_after(60):
                while True:
                    sent += await client.socket.send(b"x" * 300)
            assert sent == 1000
            assert len(await server.receive_some(400)) == 400
            await client.wait_send_all_might_not_block()
            assert await client.socket.send(b"x" * 500) == 400

    run(main)


def test_bandwidth_sets_the_pace() -> None:
    async def main() -> None:
        link = Link(latency_seconds=0.0, bytes_per_second=1000.0)
        async with open_network(Random(1), link) as network, pair(network) as (client, server):
            start = trio.current_time()
            await client.send_all(b"x" * 5000)
            await client.send_eof()
            assert sum([len(data) async for data in server]) == 5000
            assert trio.current_time() - start == pytest.approx(5.0)

    run(main)


def test_a_one_way_cut_delays_and_loses_nothing() -> None:
    async def main() -> None:
        async with open_network(Random(1), Link(latency_seconds=0.01)) as network, pair(network) as (client, server):
            network.cut(CLIENT, SERVER, one_way=True)
            await client.send_all(b"first ")
            await client.send_all(b"second")
            await server.send_all(b"the other way works")
            assert await client.receive_some() == b"the other way works"
            with trio.move_on_after(30) as scope:
                await server.receive_some()
            assert scope.cancelled_caught
            network.heal(CLIENT, SERVER, one_way=True)
            assert await server.receive_some(6) == b"first "
            await client.send_eof()
            assert b"".join([data async for data in server]) == b"second"

    run(main)


def test_packets_under_way_when_the_cut_comes_wait_too() -> None:
    async def main() -> None:
        async with open_network(Random(1), Link(latency_seconds=1.0)) as network, pair(network) as (client, server):
            await client.send_all(b"x")
            network.cut(CLIENT, SERVER)
            with trio.move_on_after(30) as scope:
                await server.receive_some()
            assert scope.cancelled_caught
            network.heal(CLIENT, SERVER)
            assert await server.receive_some() == b"x"

    run(main)


def test_a_sender_gives_up_when_a_cut_lasts() -> None:
    async def main() -> None:
        async with open_network(Random(1), give_up_seconds=60.0) as network, pair(network) as (client, server):
            network.cut(CLIENT, SERVER)
            await client.send_all(b"x")
            start = trio.current_time()
            with pytest.raises(trio.BrokenResourceError) as caught:
                await client.receive_some()
            assert isinstance(caught.value.__cause__, OSError)
            assert caught.value.__cause__.errno == errno.ETIMEDOUT
            assert trio.current_time() - start == pytest.approx(60.0)
            network.heal(CLIENT, SERVER)
            with trio.move_on_after(60) as scope:  # the server never heard of anything
                await server.receive_some()
            assert scope.cancelled_caught

    run(main)


def test_a_reset_breaks_both_ends_at_once() -> None:
    async def main() -> None:
        async with open_network(Random(1)) as network, pair(network) as (client, server):
            await client.send_all(b"lost")
            assert network.reset(SERVER, CLIENT) == 1
            for stream in (client, server):
                with pytest.raises(trio.BrokenResourceError):
                    await stream.receive_some()
                with pytest.raises(trio.BrokenResourceError):
                    await stream.send_all(b"x")

    run(main)


def test_a_killed_process_ends_or_resets_its_connections() -> None:
    async def main() -> None:
        async with open_network(Random(1)) as network, pair(network) as (client, server):
            network.kill_process(SERVER)
            assert await client.receive_some() == b""
            await client.send_all(b"x")
            await trio.sleep(1)
            with pytest.raises(trio.BrokenResourceError):
                await client.receive_some()
            with pytest.raises(trio.ClosedResourceError):
                await server.receive_some()
        async with open_network(Random(1)) as network, pair(network) as (client, _):
            await client.send_all(b"unread")
            await trio.sleep(1)
            network.kill_process(SERVER)
            with pytest.raises(trio.BrokenResourceError):
                await client.receive_some()

    run(main)


def test_a_silent_machine_answers_nothing_and_resets_what_it_forgot() -> None:
    async def main() -> None:
        async with open_network(Random(1), connect_seconds=20.0) as network, pair(network) as (client, server):
            network.silence(SERVER)
            await server.send_all(b"never leaves")
            await server.aclose()
            await client.send_all(b"x")
            with trio.move_on_after(100) as scope:
                await client.receive_some()
            assert scope.cancelled_caught
            with network.node(CLIENT), pytest.raises(OSError, match=r"10\.0\.0\.1") as caught:
                await trio.open_tcp_stream(SERVER, 9000)
            assert isinstance(reason_of(caught.value), TimeoutError)
            network.revive(SERVER)
            with pytest.raises(trio.BrokenResourceError):
                await client.receive_some()
            with network.node(CLIENT), pytest.raises(OSError, match=r"10\.0\.0\.1") as caught:
                await trio.open_tcp_stream(SERVER, 9000)
            assert isinstance(reason_of(caught.value), ConnectionRefusedError)
        async with open_network(Random(1), give_up_seconds=50.0) as network, pair(network) as (client, _):
            network.silence(SERVER)
            await client.send_all(b"x")
            with pytest.raises(trio.BrokenResourceError):
                await client.receive_some()
            assert network.give_up_seconds == 50.0

    run(main)


def test_addresses_are_checked_as_a_system_does() -> None:
    async def main() -> None:
        async with open_network(Random(1)) as network:
            with network.node(SERVER):
                listeners = await trio.open_tcp_listeners(9000, host="0.0.0.0")  # noqa: S104 - nothing real is opened
                with pytest.raises(OSError) as caught:  # noqa: PT011 - the number is what is checked
                    await trio.open_tcp_listeners(9000, host="0.0.0.0")  # noqa: S104 - nothing real is opened
                assert caught.value.errno == errno.EADDRINUSE
                with pytest.raises(OSError) as caught:  # noqa: PT011 - the number is what is checked
                    await trio.open_tcp_listeners(9000, host=CLIENT)
                assert caught.value.errno == errno.EADDRNOTAVAIL
                own = await trio.open_tcp_stream("localhost", 9000)  # a wildcard listener hears the loopback
                assert own.socket.getsockname()[0] == "127.0.0.1"
            with network.node(CLIENT):
                (same_port,) = await trio.open_tcp_listeners(9000, host=CLIENT)
                with pytest.raises(OSError, match="no such name"):
                    await trio.open_tcp_stream("nowhere.example", 9000)
            for listener in (*listeners, same_port):
                await listener.aclose()
            await own.aclose()

    run(main)


def test_a_full_backlog_makes_clients_wait() -> None:
    async def main() -> None:
        async with open_network(Random(1)) as network:
            with network.node(SERVER):
                (listener,) = await trio.open_tcp_listeners(9000, host=SERVER, backlog=1)
            with network.node(CLIENT):
                first = await trio.open_tcp_stream(SERVER, 9000)
                with trio.move_on_after(30) as scope:
                    await trio.open_tcp_stream(SERVER, 9000)
                assert scope.cancelled_caught
                accepted = await listener.accept()
                second = await trio.open_tcp_stream(SERVER, 9000)
            for resource in (first, second, accepted, listener):
                await resource.aclose()

    run(main)


def test_a_node_is_what_its_tasks_inherit() -> None:
    async def main() -> None:
        async with open_network(Random(1)) as network, trio.open_nursery() as nursery:
            found: list[str] = []

            async def grandchild(address: str) -> None:
                (listener,) = await trio.open_tcp_listeners(0, host=address)
                found.append(listener.socket.getsockname()[0])
                await listener.aclose()

            async def child(address: str) -> None:
                async with trio.open_nursery() as inner:
                    inner.start_soon(grandchild, address)

            for address in (SERVER, CLIENT, "fd00::7"):
                with network.node(address):
                    nursery.start_soon(child, address)
            await trio.sleep(1)
            assert sorted(found) == [SERVER, CLIENT, "fd00::7"]

    run(main)


def test_the_real_network_is_back_afterwards() -> None:
    async def main() -> None:
        async with open_network(Random(1)):
            assert trio.socket.socket().fileno() >= 1_000_000
        with trio.socket.socket() as socket:
            assert socket.fileno() < 1_000_000

    run(main)


def test_nothing_under_way_means_no_timer() -> None:
    async def main() -> None:
        async with open_network(Random(1)):
            await trio.testing.wait_all_tasks_blocked()
            assert trio.lowlevel.current_statistics().seconds_to_next_deadline == math.inf

    trio.run(main)
