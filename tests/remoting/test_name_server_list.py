"""Lists of name servers that an HTTP address server tells: what is asked, believed, kept and said."""

from __future__ import annotations

import logging

import pytest
import trio
from trio.testing import MockClock

from tests.remoting.address_server import ADDRESS_SERVER, URL, AddressServer, listing
from trio_rmq.errors import ConfigError, ConnectError, RemotingError
from trio_rmq.remoting.http_get import http_get
from trio_rmq.remoting.name_server_list import NameServerList
from trio_rmq.testing.world import open_world

pytestmark = pytest.mark.trio

ONE, TWO = "10.0.0.1:9876", "10.0.0.9:9876"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n10.\r\na\r\n0.0.1:9876\r\n0\r\n\r\n"
UNTIL_CLOSED = b"HTTP/1.0 200 OK\r\n\r\n10.0.0.1:9876"


async def get(answer: bytes | None, *, piece_bytes: int = 65536) -> bytes | RemotingError:
    """What a GET brings, or raises, with a bound of 1000 bytes and 3 seconds."""
    async with open_world() as world, AddressServer(answer, piece_bytes).on(world):
        with world.node("10.0.0.3"):
            try:
                return await http_get(URL, timeout_seconds=3, body_size_max_bytes=1000)
            except RemotingError as error:
                return error


class TestHttp:
    @pytest.mark.parametrize("piece_bytes", [1, 65536])
    @pytest.mark.parametrize("answer", [listing(ONE), CHUNKED, UNTIL_CLOSED], ids=["length", "chunked", "until closed"])
    async def test_a_body_comes_whole_however_it_is_framed_and_cut(
        self, autojump_clock: MockClock, answer: bytes, piece_bytes: int
    ) -> None:
        assert await get(answer, piece_bytes=piece_bytes) == ONE.encode()

    async def test_what_is_asked(self, autojump_clock: MockClock) -> None:
        server = AddressServer(listing(ONE))
        async with open_world() as world, server.on(world):
            with world.node("10.0.0.3"):
                url = f"http://{ADDRESS_SERVER}:8080/rocketmq/nsaddr-unit?nofix=1"
                await http_get(url, timeout_seconds=3, body_size_max_bytes=1000)
        first, *fields = server.requests[0].splitlines()
        assert first == "GET /rocketmq/nsaddr-unit?nofix=1 HTTP/1.1"
        assert f"Host: {ADDRESS_SERVER}:8080" in fields

    @pytest.mark.parametrize(
        ("answer", "sentence"),
        [
            (listing("no", "404 Not Found"), "answered HTTP 404, not 200"),
            (b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n", "answered HTTP 302"),
            (listing("x" * 1001), "more than 1000 bytes"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", "does not speak HTTP"),
            (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 40_000, "does not speak HTTP"),
            (b"", "does not speak HTTP"),
            (b"\0\0\0\1garbage\r\n\r\n", "does not speak HTTP"),
            (None, "no answer within 3 s"),
        ],
        ids=["404", "redirect", "too long", "cut short", "endless head", "closed", "garbage", "silence"],
    )
    async def test_anything_else_is_an_error_that_names_the_server(
        self, autojump_clock: MockClock, answer: bytes | None, sentence: str
    ) -> None:
        error = await get(answer)
        assert isinstance(error, RemotingError)
        assert sentence in str(error)
        assert error.address == URL
        assert trio.current_time() < 4

    async def test_nobody_there(self, autojump_clock: MockClock) -> None:
        async with open_world() as world:
            with world.node(ADDRESS_SERVER):
                pass
            with world.node("10.0.0.3"), pytest.raises(ConnectError, match="refused"):
                await http_get(URL, timeout_seconds=3, body_size_max_bytes=1000)


class TestList:
    async def test_addresses_that_are_given_are_the_list(self) -> None:
        names = NameServerList([ONE, f"ws://{TWO}"])
        assert not names.is_fetched
        assert await names.current() == names.addresses == (ONE, f"ws://{TWO}")

    @pytest.mark.parametrize(
        "given",
        [
            ["http://host:8080/rocketmq/nsaddr", ONE],
            ["http://host:8080"],
            ["http://host:8080/"],
            ["http://user@host/x"],
            ["http://host:99999/x"],
            ["http:///rocketmq/nsaddr"],
            ["http://host/a b"],
        ],
    )
    async def test_a_url_that_cannot_be_asked_is_refused(self, given: list[str]) -> None:
        with pytest.raises(ConfigError):
            NameServerList(given)

    async def test_it_is_fetched_when_it_is_wanted_and_again_when_it_is_old(self, autojump_clock: MockClock) -> None:
        server = AddressServer(listing(f" {ONE}; {TWO};{ONE};\r\nhttp://elsewhere\n"))
        async with open_world() as world, server.on(world):
            with world.node("10.0.0.3"):
                names = NameServerList([URL])
                assert (names.is_fetched, names.addresses) == (True, ())
                assert await names.current() == (ONE, TWO)
                server.answer = listing(TWO)
                await trio.sleep(119)
                assert await names.current() == (ONE, TWO)
                await trio.sleep(2)
                assert await names.current(may_refresh=False) == (ONE, TWO)
                assert await names.current() == (TWO,)
                assert len(server.requests) == 2

    async def test_many_that_want_it_at_once_ask_once(self, autojump_clock: MockClock) -> None:
        server = AddressServer(listing(ONE))
        async with open_world() as world, server.on(world):
            with world.node("10.0.0.3"):
                names = NameServerList([URL])
                async with trio.open_nursery() as nursery:
                    for _ in range(50):
                        nursery.start_soon(names.current)
                assert len(server.requests) == 1

    async def test_who_waits_goes_on_when_who_asked_is_cancelled(self, autojump_clock: MockClock) -> None:
        server = AddressServer(None)
        async with open_world() as world, server.on(world):
            with world.node("10.0.0.3"):
                names = NameServerList([URL])
                found: list[tuple[str, ...]] = []

                async def wait() -> None:
                    found.append(await names.current())

                async with trio.open_nursery() as nursery, trio.open_nursery() as asking:
                    asking.start_soon(names.current)
                    await trio.sleep(0.5)
                    nursery.start_soon(wait)
                    await trio.sleep(0.5)
                    server.answer = listing(ONE)
                    asking.cancel_scope.cancel()
                assert found == [(ONE,)]

    @pytest.mark.parametrize(
        "answer",
        [
            None,
            listing("", "503 Service Unavailable"),
            listing(""),
            listing(" ; ;"),
            listing("no address"),
            listing(";".join(f"10.0.0.1:{port}" for port in range(65))),
            b"\xff\xfe",
        ],
        ids=["silence", "503", "empty", "blank", "no address", "too many", "garbage"],
    )
    async def test_a_list_that_cannot_be_had_leaves_the_old_one_and_says_so_once(
        self, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, answer: bytes | None
    ) -> None:
        caplog.set_level(logging.WARNING)
        server = AddressServer(listing(ONE))
        async with open_world() as world, server.on(world):
            with world.node("10.0.0.3"):
                names = NameServerList([URL])
                await names.refresh()
                server.answer = answer
                for _ in range(3):
                    await trio.sleep(120)
                    assert await names.current() == (ONE,)
                server.answer = listing(TWO)
                await trio.sleep(120)
                assert await names.current() == (TWO,)
        first, last = (record.getMessage() for record in caplog.records)
        assert first.startswith(f"no name servers from {URL}: ")
        assert first.endswith(f"; going on with {ONE}")
        assert last == f"the address server {URL} answers again"
        assert len(server.requests) == 5

    async def test_without_any_the_error_names_the_address_server(self, autojump_clock: MockClock) -> None:
        async with open_world() as world, AddressServer(listing("", "500 Oops")).on(world):
            with world.node("10.0.0.3"):
                names = NameServerList([URL])
                with pytest.raises(RemotingError, match=f"no name server is known: {URL} answered HTTP 500"):
                    await names.current()
