"""Clients whose name servers an address server tells: producers, consumers, admin calls, and what fails how."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import anyio
import pytest
import trio
from trio.testing import MockClock

from tests.broker.name_servers import PORT
from tests.broker.name_servers import name_server as a_name_server
from tests.broker.running import CLIENT, NAME_SERVER, broker_in
from tests.client.test_producer import known_queues
from tests.remoting.address_server import URL, AddressServer, listing
from trio_rmq.admin.client import AdminClient
from trio_rmq.client import LitePullConsumer, Message, Producer, PullConsumer, PushConsumer
from trio_rmq.errors import ClientError, RemotingError, SendError
from trio_rmq.testing.world import open_world


@contextmanager
def address_server(line: str) -> Iterator[str]:
    """A real HTTP server that answers every GET with `line`; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(line.encode() + b"\n")

        def log_message(self, *words: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/rocketmq/nsaddr"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.anyio
async def test_every_client_takes_its_url(name_server: str, topic: str) -> None:
    with address_server(name_server) as url, anyio.fail_after(30):
        heard = anyio.Event()

        async def listen(messages: object) -> None:
            heard.set()

        async with Producer(name_servers=url) as producer:
            assert (await producer.send(Message(topic, b"x"))).queue.topic == topic
            queues = await known_queues(producer, topic)
        async with PullConsumer(topic, name_servers=url) as pulling:
            assert sum([await pulling.max_offset(queue) for queue in queues]) == 1
        async with LitePullConsumer(topic, name_servers=url, from_first=True) as lite:
            await lite.assign(queues)
            assert [message.body for message in await lite.poll()] == [b"x"]
        async with PushConsumer(f"{topic}_push", name_servers=url, from_first=True) as pushing:
            await pushing.subscribe(topic, listen)
            await heard.wait()
        async with AdminClient(name_servers=url) as admin:
            assert "broker-a" in await admin.masters()


@pytest.mark.anyio
async def test_an_address_server_that_is_away_is_named(topic: str) -> None:
    url = "http://127.0.0.1:9/rocketmq/nsaddr"
    async with Producer(name_servers=url) as producer:
        with pytest.raises(
            SendError, match=f"asking the name servers: no name server is known: cannot connect to {url}"
        ):
            await producer.send(Message(topic, b"x"))
    async with AdminClient(name_servers=url) as admin:
        with pytest.raises(RemotingError, match="no name server is known"):
            await admin.masters()


@pytest.mark.parametrize("url", ["http://host:8080", "http://host:8080/x;other:9876"])
def test_a_url_that_cannot_be_asked_is_refused_with_the_mend(url: str) -> None:
    with pytest.raises(ClientError, match=r"a name server is host:port|stands alone"):
        Producer(name_servers=url)


@pytest.mark.trio
async def test_a_producer_follows_the_list_and_goes_on_without_the_address_server(autojump_clock: MockClock) -> None:
    server = AddressServer(listing(f"10.0.0.50:{PORT}"))
    async with (
        open_world() as world,
        server.on(world),
        a_name_server(world),
        broker_in(world, namesrv_addr=f"{NAME_SERVER}:{PORT}") as running,
        running.client() as client,
    ):
        await client.create_topic()
        with world.node(CLIENT):
            async with Producer(name_servers=URL) as producer:
                with pytest.raises(SendError, match=r"no answer of 10\.0\.0\.50:9876 within 3 s"):
                    await producer.send(Message("T", b"nobody is there"))
                server.answer = listing(f"{NAME_SERVER}:{PORT}")
                await trio.sleep(150)
                await producer.send(Message("T", b"the list has changed"))
                server.answer = None
                await trio.sleep(600)
                began = trio.current_time()
                await producer.send(Message("T", b"on the old list"))
                assert trio.current_time() - began < 1
                assert producer._routes.known()[0].learned_at > began - 40  # the routes are still asked for
