"""The producer on virtual time: retries, deadlines, name servers that fall silent, slow and killed brokers."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from trio_rmq.broker.server import serve_broker
from trio_rmq.client import Message, Producer, PullConsumer, SendStatus
from trio_rmq.config import BrokerConfig, NamesrvConfig
from trio_rmq.errors import RouteNotFoundError, SendError
from trio_rmq.namesrv.server import serve_name_server
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.testing.stores import small_config
from trio_rmq.testing.virtual_network import Link
from trio_rmq.testing.world import World, simulate
from trio_rmq.wire import headers
from trio_rmq.wire.codes import RequestCode
from trio_rmq.wire.command import Command

NAME_SERVERS = ("10.0.0.1", "10.0.0.2")
BROKERS = {"a": "10.0.1.1", "b": "10.0.1.2"}
CLIENT = "10.0.2.1"
NAMES = ";".join(f"{address}:9876" for address in NAME_SERVERS)
TOPIC = "T"


class Cluster:
    """Two name servers and two brokers, each on its own machine, which can be killed and started again."""

    def __init__(self, world: World, nursery: trio.Nursery) -> None:
        self.world = world
        self._nursery = nursery
        self._scopes: dict[str, trio.CancelScope] = {}
        self.disks = {name: FaultyDisk() for name in BROKERS}

    async def start_name_server(self, address: str) -> None:
        with self.world.node(address):
            config = NamesrvConfig(kv_config_path="kv.json")
            await self._start(address, partial(serve_name_server, config, disk=FaultyDisk()))

    async def start_broker(self, name: str, **settings: object) -> None:
        address = BROKERS[name]
        fields = {"broker_ip1": address, "broker_name": name, "namesrv_addr": NAMES, **settings}
        config = BrokerConfig(**fields)  # type: ignore[arg-type]  # they are its fields
        with self.world.node(address):
            await self._start(name, partial(serve_broker, config, small_config("store"), disk=self.disks[name]))

    async def _start(self, name: str, serve: Callable[..., Awaitable[None]]) -> None:
        scope = self._scopes[name] = trio.CancelScope()

        async def run(*, task_status: trio.TaskStatus[object]) -> None:
            with scope:
                await serve(task_status=task_status)

        await self._nursery.start(run)

    def kill(self, name: str) -> None:
        """End it at once; of a broker, what it had written stays on its disk."""
        self._scopes[name].cancel()

    async def create_topic(self, queues: int = 4) -> None:
        async with RemotingClient() as client:
            for address in BROKERS.values():
                header = headers.CreateTopicRequestHeader(
                    topic=TOPIC, default_topic="TBW102", read_queue_nums=queues, write_queue_nums=queues, perm=6,
                    topic_filter_type="SINGLE_TAG", order=False,
                )  # fmt: skip
                command = Command(RequestCode.UPDATE_AND_CREATE_TOPIC, header=header)
                assert (await client.request(f"{address}:10911", command)).code == 0


@asynccontextmanager
async def cluster(world: World) -> AsyncIterator[Cluster]:
    async with trio.open_nursery() as nursery:
        cluster = Cluster(world, nursery)
        for address in NAME_SERVERS:
            await cluster.start_name_server(address)
        for name in BROKERS:
            await cluster.start_broker(name)
        with world.node(CLIENT):
            await cluster.create_topic()
            yield cluster
        nursery.cancel_scope.cancel()


def run(program: Callable[[World, Cluster], Awaitable[None]], *, seed: int = 1) -> None:
    async def main(world: World) -> None:
        async with cluster(world) as servers:
            await program(world, servers)

    simulate(main, seed=seed, link=Link(latency_seconds=0.002))


async def read_all() -> list[bytes]:
    """All bodies of the topic."""
    bodies: list[bytes] = []
    async with PullConsumer("reader", name_servers=NAMES) as consumer:
        for queue in await consumer.queues(TOPIC):
            offset, end = 0, await consumer.max_offset(queue)
            while offset < end:
                result = await consumer.pull(queue, offset)
                bodies += [message.body for message in result.messages]
                offset = result.next_offset
    return bodies


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("scheme", ["", "ws://"], ids=["tcp", "websocket"])
def test_no_send_fails_when_one_of_two_brokers_is_killed_and_all_that_was_acknowledged_is_there(
    seed: int, scheme: str
) -> None:
    async def program(world: World, servers: Cluster) -> None:
        acknowledged: list[bytes] = []
        used: Counter[str] = Counter()

        async def load(seconds: float, events: Callable[[], None] = lambda: None) -> None:
            until = trio.current_time() + seconds

            async def send(worker: int) -> None:
                while trio.current_time() < until:
                    body = b"%d-%d-%f" % (worker, len(acknowledged), trio.current_time())
                    result = await producer.send(Message(TOPIC, body))
                    assert result.status is SendStatus.SEND_OK
                    acknowledged.append(body)
                    used[result.queue.broker_name] += 1

            used.clear()
            async with trio.open_nursery() as nursery:
                for worker in range(8):
                    nursery.start_soon(send, worker)
                await trio.sleep(seconds / 4)
                events()

        names = ";".join(f"{scheme}{address}:9876" for address in NAME_SERVERS)
        async with Producer(name_servers=names) as producer:
            await load(0.4, lambda: servers.kill("a"))
            assert used["b"] > used["a"] > 0
            await servers.start_broker("a")
            await trio.sleep(32)  # the routes are asked for anew every 30 s
            await load(0.05)
        assert set(used) == {"a", "b"}  # it is used again
        stored = Counter(await read_all())
        assert set(acknowledged) <= set(stored)
        assert len(acknowledged) == len(set(acknowledged))

    run(program, seed=seed)


def test_a_broker_that_falls_silent_costs_a_try_within_the_deadline() -> None:
    async def program(world: World, servers: Cluster) -> None:
        async with Producer(name_servers=NAMES, timeout_seconds=3, try_timeout_seconds=1) as producer:
            for _ in range(8):
                await producer.send(Message(TOPIC, b"x"))
            world.network.cut(CLIENT, BROKERS["a"])
            for _ in range(8):
                began = trio.current_time()
                result = await producer.send(Message(TOPIC, b"x"))
                assert result.queue.broker_name == "b"
                assert trio.current_time() - began < 1.1
            world.network.cut(CLIENT, BROKERS["b"])
            began = trio.current_time()
            with pytest.raises(SendError) as caught:
                await producer.send(Message(TOPIC, b"x"))
            assert trio.current_time() - began == pytest.approx(3, abs=0.01)
            assert len(caught.value.tries) == 3
            # The connection to the first was given up: nothing came on it any more.
            a, b, told = f"{BROKERS['a']}:10911", f"{BROKERS['b']}:10911", "(told by name server 10.0.0.1:9876)"
            assert f"{b} gave no answer within 1 s {told}" in str(caught.value)
            assert f"no connection to {a} within 3 s {told}" in str(caught.value)

    run(program)


def test_latency_faults_keep_the_next_messages_away_from_a_silent_broker() -> None:
    async def program(world: World, servers: Cluster) -> None:
        settings = {"timeout_seconds": 3.0, "try_timeout_seconds": 1.0}
        async with Producer(name_servers=NAMES, send_latency_fault_enable=True, **settings) as producer:  # type: ignore[arg-type]  # its fields
            for _ in range(8):
                await producer.send(Message(TOPIC, b"x"))
            world.network.cut(CLIENT, BROKERS["a"])
            slow = 0
            for _ in range(40):
                began = trio.current_time()
                await producer.send(Message(TOPIC, b"x"))
                slow += trio.current_time() - began > 0.5
            assert slow == 1
            world.network.heal(CLIENT, BROKERS["a"])
            await trio.sleep(601)
            used = [(await producer.send(Message(TOPIC, b"x"))).queue.broker_name for _ in range(8)]
            assert set(used) == {"a", "b"}

    run(program)


def test_name_servers_fail_over_and_when_all_are_dead_sending_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    async def program(world: World, servers: Cluster) -> None:
        async with Producer(name_servers=NAMES) as producer:
            world.network.cut(CLIENT, NAME_SERVERS[0])  # silent, not refused
            began = trio.current_time()
            await producer.send(Message(TOPIC, b"x"))
            assert trio.current_time() - began < 1.3
            servers.kill(NAME_SERVERS[1])
            with caplog.at_level(logging.WARNING, "trio_rmq.client"):
                for _ in range(5):
                    await trio.sleep(40)
                    began = trio.current_time()
                    assert (await producer.send(Message(TOPIC, b"x"))).status is SendStatus.SEND_OK
                    assert trio.current_time() - began < 0.1  # nobody waits for name servers who has a route
            with pytest.raises(SendError, match="asking the name servers"):
                await producer.send(Message("Other", b"x"))
            world.network.heal(CLIENT, NAME_SERVERS[0])
            await trio.sleep(70)
        said = [record.message for record in caplog.records if record.name == "trio_rmq.client.route_cache"]
        assert len(said) == 2
        assert "no name server answers" in said[0]
        assert said[1] == "a name server answers again"

    run(program)


def test_a_name_server_that_only_swallows_questions_is_asked_once() -> None:
    """Whoever gives up waiting for one name server leaves the next question to the next one."""

    async def program(world: World, servers: Cluster) -> None:
        async with Producer(name_servers=NAMES, timeout_seconds=1) as producer:
            world.network.cut(CLIENT, NAME_SERVERS[0])
            with pytest.raises(SendError, match=r"name servers: no answer of 10\.0\.0\.1:9876, .* within 1 s"):
                await producer.send(Message(TOPIC, b"x"))
            assert (await producer.send(Message(TOPIC, b"x"))).status is SendStatus.SEND_OK

    run(program)


def test_an_unreachable_address_is_told_with_the_name_server_that_told_it() -> None:
    async def program(world: World, servers: Cluster) -> None:
        servers.kill("a")
        servers.kill("b")
        await trio.sleep(0.1)
        await servers.start_broker("a", broker_ip1="10.9.9.9")  # where nobody is
        async with Producer(name_servers=NAMES) as producer:
            with pytest.raises(SendError) as caught:
                await producer.send(Message(TOPIC, b"x"))
        for attempt in caught.value.tries[:1]:
            assert "10.9.9.9:10911" in attempt
            assert "(told by name server 10.0.0.1:9876)" in attempt

    run(program)


def test_a_new_topic_is_made_by_its_first_sends_and_found_everywhere_later() -> None:
    async def program(world: World, servers: Cluster) -> None:
        async with Producer(name_servers=NAMES) as producer:
            async with trio.open_nursery() as nursery:
                for number in range(20):
                    nursery.start_soon(producer.send, Message("New", b"%d" % number))
            await trio.sleep(1.5)
            for _ in range(20):
                await producer.send(Message("New", b"x"))
            assert {queue.broker_name for queue in await producer.queues("New")} == {"a", "b"}

    run(program)


def test_an_unknown_topic_says_how_to_get_it() -> None:
    async def program(world: World, servers: Cluster) -> None:
        servers.kill("a")
        servers.kill("b")
        await trio.sleep(0.1)
        async with Producer(name_servers=NAMES) as producer:
            with pytest.raises(RouteNotFoundError, match="knows the topic Unknown: create it, or let a broker do so"):
                await producer.send(Message("Unknown", b"x"))

    run(program)
