"""Producer and push consumer against a real standalone server, on {trio, asyncio} x {tcp, websocket}."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.cli.processes import running
from tests.interop.peers import free_ports
from trio_rmq.client import Message, MessageQueue, Producer, PushConsumer, ReceivedMessage, SendStatus, group_calls
from trio_rmq.client.group_calls import committed_offset, member_ids
from trio_rmq.errors import ClientError, ResponseError, SendError
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.wire.command import Command

pytestmark = pytest.mark.anyio
LIMIT_SECONDS = 20


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    namesrv_port, broker_port = free_ports(2)
    scratch = tmp_path_factory.mktemp("standalone")
    words = ("standalone", "--store", "store", "--port", str(broker_port), "--namesrv-port", str(namesrv_port))
    with running(scratch, *words) as server:
        yield namesrv_port, broker_port
        server.stop()


@pytest.fixture(params=["trio", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["", "ws://"], ids=["tcp", "websocket"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def name_server(ports: tuple[int, int], scheme: str) -> str:
    return f"{scheme}127.0.0.1:{ports[0]}"


@pytest.fixture
def broker(ports: tuple[int, int], scheme: str) -> str:
    return f"{scheme}127.0.0.1:{ports[1]}"


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> str:
    """A topic and group of this test's own."""
    return "".join(character if character.isalnum() else "_" for character in request.node.name)


class Inbox:
    """A listener that keeps what came and tells when there is enough."""

    def __init__(self, wanted: int) -> None:
        self.messages: list[ReceivedMessage] = []
        self._wanted = wanted
        self._enough = anyio.Event()

    async def __call__(self, messages: Sequence[ReceivedMessage]) -> None:
        self.messages.extend(messages)
        if len(self.bodies) >= self._wanted:
            self._enough.set()

    @property
    def bodies(self) -> set[bytes]:
        return {message.body for message in self.messages}

    async def wait_enough(self) -> None:
        with anyio.fail_after(LIMIT_SECONDS):
            await self._enough.wait()


async def test_many_sends_at_once_are_all_consumed_once(name_server: str, topic: str) -> None:
    inbox = Inbox(200)
    async with Producer(name_servers=name_server) as producer:
        async with anyio.create_task_group() as group:
            for number in range(200):
                group.start_soon(
                    producer.send, Message(topic, b"body %d" % number, keys=["a", "b"], properties={"n": "1"})
                )
        async with PushConsumer(topic, name_servers=name_server) as consumer:
            await consumer.subscribe(topic, inbox)
            await inbox.wait_enough()
    assert inbox.bodies == {b"body %d" % number for number in range(200)}
    assert len(inbox.messages) == 200
    assert inbox.messages[0].keys == ["a", "b"]
    assert inbox.messages[0].properties["n"] == "1"
    assert inbox.messages[0].topic == topic


async def test_a_chosen_queue_keeps_its_order_and_ids_are_unique(name_server: str, topic: str) -> None:
    async with Producer(name_servers=name_server) as producer:
        first = await producer.send(Message(topic, b"0"))
        queue = MessageQueue(topic=topic, broker_name=first.queue.broker_name, queue_id=1)
        results = [await producer.send(Message(topic, b"%d" % number), queue=queue) for number in range(5)]
    assert {result.status for result in results} == {SendStatus.SEND_OK}
    assert [result.queue_offset - results[0].queue_offset for result in results] == list(range(5))
    assert {result.queue for result in results} == {queue}
    assert len({result.message_id for result in results}) == 5


async def test_only_messages_with_the_tag_arrive(name_server: str, topic: str) -> None:
    inbox = Inbox(2)
    async with Producer(name_servers=name_server) as producer:
        for number, tag in enumerate(["red", "green", "blue", None]):
            await producer.send(Message(topic, b"%d" % number, tags=tag))
        async with PushConsumer(topic, name_servers=name_server) as consumer:
            await consumer.subscribe(topic, inbox, expression="red || blue")
            await inbox.wait_enough()
    assert inbox.bodies == {b"0", b"2"}


async def test_oneway_arrives(name_server: str, topic: str) -> None:
    inbox = Inbox(1)
    async with (
        Producer(name_servers=name_server) as producer,
        PushConsumer(topic, name_servers=name_server) as consumer,
    ):
        await producer.send(Message(topic, b"makes the topic", tags="other"))
        await consumer.subscribe(topic, inbox, expression="wanted")
        await producer.send_oneway(Message(topic, b"hello", tags="wanted"))
        await inbox.wait_enough()
    assert inbox.bodies == {b"hello"}


async def test_a_waiting_consumer_is_woken_by_an_arrival(name_server: str, topic: str) -> None:
    early, late = Inbox(1), Inbox(2)

    async def listen(messages: Sequence[ReceivedMessage]) -> None:
        await early(messages)
        await late(messages)

    async with Producer(name_servers=name_server) as producer:
        await producer.send(Message(topic, b"early"))
        async with PushConsumer(topic, name_servers=name_server) as consumer:
            await consumer.subscribe(topic, listen)
            await early.wait_enough()
            started = anyio.current_time()
            await producer.send(Message(topic, b"late"))
            await late.wait_enough()
            assert anyio.current_time() - started < 10  # a pull is held for 15 s: the arrival ended it


async def test_progress_is_kept_when_a_consumer_closes(name_server: str, broker: str, topic: str) -> None:
    async with Producer(name_servers=name_server) as producer:
        for number in range(8):
            await producer.send(Message(topic, b"old %d" % number))
        old = Inbox(8)
        async with PushConsumer(topic, name_servers=name_server) as consumer:
            await consumer.subscribe(topic, old)
            await old.wait_enough()
        async with RemotingClient() as client:
            queue = MessageQueue(topic=topic, broker_name="broker-a", queue_id=0)
            assert await committed_offset(client, broker, topic, queue) == 2
            with pytest.raises(ResponseError):  # nobody is left in the group
                await member_ids(client, broker, topic)
        await producer.send(Message(topic, b"new"))
        new = Inbox(1)
        async with PushConsumer(topic, name_servers=name_server) as consumer:
            await consumer.subscribe(topic, new)
            await new.wait_enough()
    assert new.bodies == {b"new"}


async def test_two_members_share_the_queues(name_server: str, topic: str) -> None:
    async with Producer(name_servers=name_server) as producer:
        await producer.send(Message(topic, b"makes the topic"))
        inboxes = [Inbox(1), Inbox(1)]
        async with PushConsumer(topic, name_servers=name_server) as first:
            await first.subscribe(topic, inboxes[0])
            async with PushConsumer(topic, name_servers=name_server) as second:
                await second.subscribe(topic, inboxes[1])
                with anyio.fail_after(LIMIT_SECONDS):
                    await first.wait_queues(lambda queues: _count(queues, topic) == 2)
                    await second.wait_queues(lambda queues: _count(queues, topic) == 2)
                assert not set(_queues(first, topic)) & set(_queues(second, topic))
            with anyio.fail_after(LIMIT_SECONDS):
                await first.wait_queues(lambda queues: _count(queues, topic) == 4)


def _count(queues: list[MessageQueue], topic: str) -> int:
    return len([queue for queue in queues if queue.topic == topic])


def _queues(consumer: PushConsumer, topic: str) -> list[MessageQueue]:
    return [queue for queue in consumer.queues() if queue.topic == topic]


async def test_a_cancelled_consumer_commits_only_what_was_finished(name_server: str, broker: str, topic: str) -> None:
    started = anyio.Event()

    async def listen(messages: Sequence[ReceivedMessage]) -> None:
        if messages[0].body == b"hangs":
            started.set()
            await anyio.sleep_forever()

    queue = MessageQueue(topic=topic, broker_name="broker-a", queue_id=0)
    async with Producer(name_servers=name_server) as producer:
        await producer.send(Message(topic, b"makes the topic"))
        before = await producer.send(Message(topic, b"done"), queue=queue)
        await producer.send(Message(topic, b"hangs"), queue=queue)
        with anyio.CancelScope() as scope:
            async with PushConsumer(topic, name_servers=name_server, grace_seconds=0.2) as consumer:
                await consumer.subscribe(topic, listen)
                with anyio.fail_after(LIMIT_SECONDS):
                    await started.wait()
                scope.cancel()
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        async with RemotingClient() as client:
            assert await committed_offset(client, broker, topic, queue) == before.queue_offset + 1


async def test_errors_name_the_address_and_the_mend(name_server: str, scheme: str) -> None:
    (dead_port,) = free_ports(1)
    dead = f"{scheme}127.0.0.1:{dead_port}"
    async with Producer(name_servers=dead, timeout_seconds=1) as producer:
        with pytest.raises(SendError, match=f"{dead_port}"):
            await producer.send(Message("Anything", b"body"))
    async with Producer(name_servers=[dead, name_server]) as producer:
        assert (await producer.send(Message("Reachable", b"body"))).status is SendStatus.SEND_OK
        with pytest.raises(ClientError, match="reserved"):
            await producer.send(Message("Reachable", b"body", properties={"UNIQ_KEY": "mine"}))
        with pytest.raises(ClientError, match="illegal characters"):
            await producer.send(Message("not/a/topic", b"body"))
    with pytest.raises(ClientError, match="async with"):
        await Producer(name_servers=name_server).send(Message("Reachable", b"body"))


async def test_sends_go_on_when_all_name_servers_are_gone(
    tmp_path: Path, scheme: str, caplog: pytest.LogCaptureFixture
) -> None:
    namesrv_port, broker_port = free_ports(2)
    broker_words = (
        "broker",
        f"namesrvAddr=127.0.0.1:{namesrv_port}",
        f"listenPort={broker_port}",
        "brokerIP1=127.0.0.1",
    )
    for name in ("namesrv", "broker"):
        (tmp_path / name).mkdir()
    with (
        running(tmp_path / "namesrv", "namesrv", f"listenPort={namesrv_port}") as name_server,
        running(tmp_path / "broker", *broker_words) as broker,
    ):
        async with Producer(name_servers=f"{scheme}127.0.0.1:{namesrv_port}") as producer:
            topic = "BenchmarkTest"  # there from the start, so its route is known at once
            await producer.send(Message(topic, b"learns the route"))
            name_server.stop()
            with caplog.at_level(logging.WARNING, "trio_rmq.client"):
                for _ in range(2):
                    await producer.refresh_route(topic)
                    assert (await producer.send(Message(topic, b"still here"))).status is SendStatus.SEND_OK
        broker.stop()
    assert [record.levelname for record in caplog.records if "no name server answers" in record.message] == ["WARNING"]


async def test_a_waiting_consumer_is_called_before_it_pulls_again(
    name_server: str, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    pulled = anyio.Event()
    plain_pull = group_calls.pull

    async def pull(*arguments: Any, **named: Any) -> Command:
        nonlocal pulled
        steps.append(f"pull {named['offset']}")
        pulled.set()
        pulled = anyio.Event()
        return await plain_pull(*arguments, **named)

    async def listen(messages: Sequence[ReceivedMessage]) -> None:
        steps.append(f"call {messages[0].queue_offset}")

    monkeypatch.setattr(group_calls, "pull", pull)
    async with (
        Producer(name_servers=name_server) as producer,
        PushConsumer(topic, name_servers=name_server) as consumer,
    ):
        queue = (await producer.send(Message(topic, b"x"))).queue
        await consumer.subscribe(topic, listen)
        with anyio.fail_after(LIMIT_SECONDS):
            for offset in range(1, 9):
                while f"pull {offset}" not in steps:
                    await pulled.wait()
                await producer.send(Message(topic, b"x"), queue=queue)
            while "pull 9" not in steps:
                await pulled.wait()
    for offset in range(1, 9):
        assert steps.index(f"call {offset}") < steps.index(f"pull {offset + 1}")
