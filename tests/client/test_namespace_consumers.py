"""Consumers in a namespace: what brokers call their topics and groups, and what the program sees of it."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import pytest
import trio

from tests.client.test_lite_pull_cancel import NAMES, in_world
from tests.client.test_producer import known_queues
from trio_rmq.admin.client import AdminClient
from trio_rmq.admin.groups import show_group
from trio_rmq.client import (
    ConsumeLater,
    LitePullConsumer,
    Message,
    Producer,
    PullConsumer,
    PullStatus,
    PushConsumer,
    ReceivedMessage,
)
from trio_rmq.testing.world import World

TENANT = "TENANT"
LIMIT_SECONDS = 20


@pytest.mark.anyio
async def test_a_push_consumer_hears_its_namespace_only(name_server: str, topic: str) -> None:
    heard: list[ReceivedMessage] = []
    enough = anyio.Event()

    async def listen(messages: Sequence[ReceivedMessage]) -> None:
        heard.extend(messages)
        if len(heard) == 2:
            enough.set()

    async with (
        Producer(name_servers=name_server) as plain,
        Producer(name_servers=name_server, namespace=TENANT) as ours,
    ):
        await plain.send(Message(topic, b"of nobody"))
        await ours.send(Message(topic, b"by a producer of the namespace"))
        await plain.send(Message(f"{TENANT}%{topic}", b"by the full name"))
        queues = await known_queues(ours, topic)
        async with PushConsumer(topic, name_servers=name_server, namespace=TENANT) as consumer:
            await consumer.subscribe(topic, listen)
            with anyio.fail_after(LIMIT_SECONDS):
                await enough.wait()
                await consumer.wait_queues(lambda held: set(queues) <= set(held))
            async with AdminClient(name_servers=name_server) as admin:
                group = await show_group(admin, f"{TENANT}%{topic}")
            assert list(group.members) == [consumer.client_id]
            assert set(group.subscriptions) == {f"{TENANT}%{topic}", f"%RETRY%{TENANT}%{topic}"}
            await consumer.commit()
            lag = await consumer.lag(topic)
            assert set(lag) == set(queues)
            assert sum(one.count for one in lag.values()) == 0
            assert f"%RETRY%{topic}" in {queue.topic for queue in await consumer.lag()}
            await consumer.unsubscribe(topic)
            with anyio.fail_after(LIMIT_SECONDS):
                await consumer.wait_queues(lambda held: not set(queues) & set(held))
    assert {message.topic for message in heard} == {topic}
    assert {message.queue for message in heard} <= set(queues)
    assert {message.body for message in heard} == {b"by a producer of the namespace", b"by the full name"}


@pytest.mark.anyio
async def test_pull_consumers_take_and_give_queues_without_it(name_server: str, topic: str) -> None:
    async with Producer(name_servers=name_server, namespace=TENANT) as producer:
        sent = await producer.send(Message(topic, b"one"))
        queues = await known_queues(producer, topic)
    async with PullConsumer(topic, name_servers=name_server, namespace=TENANT) as pulling:
        assert set(await pulling.queues(topic)) == set(queues)
        assert (await pulling.min_offset(sent.queue), await pulling.max_offset(sent.queue)) == (0, 1)
        assert await pulling.offset_for_timestamp(sent.queue, 0) == 0
        result = await pulling.pull(sent.queue, 0)
        assert result.status is PullStatus.FOUND
        assert [(message.topic, message.queue) for message in result.messages] == [(topic, sent.queue)]
        await pulling.commit(sent.queue, 1)
        assert await pulling.committed(result.messages[0].queue) == 1
    async with PullConsumer(f"{TENANT}%{topic}", name_servers=name_server) as outside:
        full = type(sent.queue)(
            topic=f"{TENANT}%{topic}", broker_name=sent.queue.broker_name, queue_id=sent.queue.queue_id
        )
        assert await outside.committed(full) == 1
        await outside.commit(full, 0)
    async with LitePullConsumer(topic, name_servers=name_server, namespace=TENANT, auto_commit=False) as lite:
        await lite.subscribe(topic)
        with anyio.fail_after(LIMIT_SECONDS):
            await lite.wait_assignment(lambda held: set(held) == set(queues))
            (message,) = await lite.poll()
        assert (message.topic, message.queue, message.body) == (topic, sent.queue, b"one")
        await lite.seek_to_begin(message.queue)
        lite.pause(queues)
        assert await lite.poll(timeout_seconds=0.05) == []
        lite.resume(queues)
        await lite.commit({message.queue: 1})
        assert await lite.committed(sent.queue) == 1
        await lite.unsubscribe(topic)
        with anyio.fail_after(LIMIT_SECONDS):
            await lite.wait_assignment(lambda held: not held)
    async with LitePullConsumer(f"{topic}_b", name_servers=name_server, namespace=TENANT) as assigned:
        await assigned.assign([sent.queue])
        assert assigned.assignment() == [sent.queue]
        assert await assigned.offset_for_timestamp(sent.queue, 0) == 0
        assert [message.body for message in await assigned.poll()] == [b"one"]


def test_retries_and_dead_letters_keep_the_namespace() -> None:
    topics: list[str] = []
    dead: list[ReceivedMessage] = []

    async def client(world: World) -> None:
        given_up, buried = trio.Event(), trio.Event()

        async def fail(messages: Sequence[ReceivedMessage]) -> ConsumeLater:
            topics.append(messages[0].topic)
            if messages[0].reconsume_times < 2:
                return ConsumeLater()
            given_up.set()
            return ConsumeLater(delay_level=-1)

        async def bury(messages: Sequence[ReceivedMessage]) -> None:
            dead.extend(messages)
            buried.set()

        async with (
            Producer(name_servers=NAMES, namespace=TENANT) as producer,
            PushConsumer("readers", name_servers=NAMES, namespace=TENANT) as consumer,
        ):
            await producer.send(Message("Named", b"poison"))
            await consumer.subscribe("Named", fail)
            with trio.fail_after(600):
                await given_up.wait()
            async with PushConsumer("undertakers", name_servers=NAMES) as undertakers:
                await undertakers.subscribe(f"%DLQ%{TENANT}%readers", bury)
                with trio.fail_after(60):
                    await buried.wait()

    in_world(client, queues=1, latency_seconds=0)
    assert topics == ["Named"] * 3
    assert [(message.body, message.full_topic) for message in dead] == [(b"poison", f"{TENANT}%Named")]
