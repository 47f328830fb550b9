"""The lite pull consumer against a real name server and broker, on {trio, asyncio} x {tcp, websocket}."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from tests.client.test_pull_consumer import LIMIT_SECONDS, fill
from trio_rmq.client import LitePullConsumer, LocalOffsetStore, Message, MessageQueue, Producer, ReceivedMessage
from trio_rmq.client.group_calls import committed_offset, member_ids
from trio_rmq.errors import ClientError, ResponseError
from trio_rmq.remoting.client import RemotingClient

pytestmark = pytest.mark.anyio


async def receive(consumer: LitePullConsumer, count: int, *, max_messages: int = 32) -> list[ReceivedMessage]:
    """At least so many messages, `makes the topic` left out."""
    messages: list[ReceivedMessage] = []
    with anyio.fail_after(LIMIT_SECONDS):
        while len(messages) < count:
            polled = await consumer.poll(max_messages)
            messages += [message for message in polled if message.body.isdigit()]
    return messages


def bodies(messages: list[ReceivedMessage]) -> list[int]:
    return [int(message.body) for message in messages]


async def kept(broker: str, group: str, queue: MessageQueue) -> int | None:
    """What the broker has for the group."""
    async with RemotingClient() as client:
        return await committed_offset(client, broker, group, queue)


async def test_subscribed_polls_bring_everything_once(name_server: str, broker: str, topic: str) -> None:
    async with Producer(name_servers=name_server) as producer:
        for number in range(100):
            await producer.send(Message(topic, b"%d" % number))
    async with LitePullConsumer(topic, name_servers=name_server) as consumer:
        await consumer.subscribe(topic)
        assert sorted(bodies(await receive(consumer, 100, max_messages=7))) == list(range(100))
        assert len(consumer.assignment()) == 4
        await consumer.commit()
        async with RemotingClient() as client:
            assert await member_ids(client, broker, topic) == [consumer.client_id]
    queues = [MessageQueue(topic=topic, broker_name="broker-a", queue_id=number) for number in range(4)]
    assert [await kept(broker, topic, queue) for queue in queues] == [25, 25, 25, 25]
    async with RemotingClient() as client:
        with pytest.raises(ResponseError):  # it left the group
            await member_ids(client, broker, topic)


async def test_iteration_commits_what_was_followed_by_more(name_server: str, broker: str, topic: str) -> None:
    queue = await fill(name_server, topic, 5)
    async with LitePullConsumer(topic, name_servers=name_server) as consumer:
        await consumer.assign([queue])
        with anyio.fail_after(LIMIT_SECONDS):
            async for message in consumer:
                if message.body == b"3":
                    break
    assert await kept(broker, topic, queue) == message.queue_offset  # the last one was not followed: it comes again
    async with LitePullConsumer(topic, name_servers=name_server) as consumer:
        await consumer.assign([queue])
        assert bodies(await receive(consumer, 2)) == [3, 4]


async def test_tags_filter_and_filtered_messages_are_passed_over(name_server: str, broker: str, topic: str) -> None:
    queue = await fill(name_server, topic, 6, ["red", "green", None])
    async with LitePullConsumer(topic, name_servers=name_server) as consumer:
        await consumer.subscribe(topic, "red || blue")
        assert bodies(await receive(consumer, 2)) == [0, 3]
        await consumer.commit()
    assert (await kept(broker, topic, queue) or 0) >= 4


async def test_without_auto_commit_only_commit_commits(name_server: str, broker: str, topic: str) -> None:
    queue = await fill(name_server, topic, 10)
    async with LitePullConsumer(topic, name_servers=name_server, auto_commit=False) as consumer:
        await consumer.assign([queue])
        messages = await receive(consumer, 10)
        await consumer.poll(timeout_seconds=0)
        await consumer.commit({queue: messages[4].queue_offset})
        assert await consumer.committed(queue) == messages[4].queue_offset
    assert await kept(broker, topic, queue) == messages[4].queue_offset
    async with LitePullConsumer(topic, name_servers=name_server, auto_commit=False) as consumer:
        await consumer.assign([queue])
        assert bodies(await receive(consumer, 6)) == [4, 5, 6, 7, 8, 9]
        await consumer.commit()
    assert await kept(broker, topic, queue) == messages[9].queue_offset + 1


async def test_seeks_go_back_and_forth(name_server: str, topic: str) -> None:
    queue = await fill(name_server, topic, 10)
    async with LitePullConsumer(topic, name_servers=name_server) as consumer:
        await consumer.assign([queue])
        messages = await receive(consumer, 10)
        await consumer.seek(queue, messages[7].queue_offset)
        assert bodies(await receive(consumer, 3)) == [7, 8, 9]
        await consumer.seek_to_begin(queue)
        assert bodies(await receive(consumer, 10)) == list(range(10))
        await consumer.seek_to_begin(queue)
        await consumer.seek_to_end(queue)
        async with Producer(name_servers=name_server) as producer:
            await producer.send(Message(topic, b"10"), queue=queue)
        assert bodies(await receive(consumer, 1)) == [10]
        time_ms = messages[9].store_timestamp_ms
        await consumer.seek(queue, await consumer.offset_for_timestamp(queue, time_ms))
        assert (await receive(consumer, 1))[0].store_timestamp_ms == time_ms
        for offset in (-1, 1000):
            with pytest.raises(ClientError, match="not between"):
                await consumer.seek(queue, offset)
        with pytest.raises(ClientError, match="assignment"):
            await consumer.seek(MessageQueue(topic=topic, broker_name="broker-a", queue_id=1), 0)


async def test_a_paused_queue_waits_until_it_is_resumed(name_server: str, topic: str) -> None:
    queue = await fill(name_server, topic, 3)
    other = MessageQueue(topic=topic, broker_name="broker-a", queue_id=1)
    async with LitePullConsumer(topic, name_servers=name_server) as consumer:
        await consumer.assign([queue, other])
        consumer.pause([queue])
        async with Producer(name_servers=name_server) as producer:
            await producer.send(Message(topic, b"100"), queue=other)
        assert bodies(await receive(consumer, 1)) == [100]
        assert [message.queue for message in await consumer.poll(timeout_seconds=0)] in ([], [other])
        consumer.resume([queue])
        assert bodies(await receive(consumer, 3)) == [0, 1, 2]


async def test_a_full_buffer_pauses_pulling_and_loses_nothing(name_server: str, topic: str) -> None:
    queue = await fill(name_server, topic, 60)
    async with LitePullConsumer(topic, name_servers=name_server, pull_batch_size=4, waiting_count_max=5) as consumer:
        await consumer.assign([queue])
        assert bodies(await receive(consumer, 60, max_messages=1)) == list(range(60))


async def test_two_members_share_the_queues_and_hand_over(name_server: str, broker: str, topic: str) -> None:
    queue = await fill(name_server, topic, 8)
    async with LitePullConsumer(topic, name_servers=name_server) as first:
        await first.subscribe(topic)
        await receive(first, 8)
        await first.commit()
        async with LitePullConsumer(topic, name_servers=name_server) as second:
            await second.subscribe(topic)
            with anyio.fail_after(LIMIT_SECONDS):
                for consumer in (first, second):
                    await consumer.wait_assignment(lambda queues: len(queues) == 2)
            assert not set(first.assignment()) & set(second.assignment())
            async with Producer(name_servers=name_server) as producer:
                await producer.send(Message(topic, b"8"), queue=queue)
            owner = first if queue in first.assignment() else second
            assert bodies(await receive(owner, 1)) == [8]
            await second.unsubscribe(topic)
            with anyio.fail_after(LIMIT_SECONDS):
                await second.wait_assignment(lambda queues: not queues)
        with anyio.fail_after(LIMIT_SECONDS):
            await first.wait_assignment(lambda queues: len(queues) == 4)


async def test_broadcasting_members_each_get_all_and_keep_files(name_server: str, topic: str, tmp_path: Path) -> None:
    await fill(name_server, topic, 5)
    for turn in range(2):
        for name in ("a", "b"):
            store = LocalOffsetStore(tmp_path / name / "offsets.json")
            async with LitePullConsumer(
                topic, name_servers=name_server, broadcasting=True, offset_store=store
            ) as consumer:
                await consumer.subscribe(topic)
                expected = [turn] if turn else [0, 1, 2, 3, 4]
                assert bodies(await receive(consumer, len(expected))) == expected
                await consumer.commit()
        queue = MessageQueue(topic=topic, broker_name="broker-a", queue_id=0)
        async with Producer(name_servers=name_server) as producer:
            await producer.send(Message(topic, b"1"), queue=queue)


async def test_a_new_group_may_begin_at_the_end_or_a_time(name_server: str, topic: str) -> None:
    queue = await fill(name_server, topic, 3)
    async with (
        LitePullConsumer(topic + "_end", name_servers=name_server, from_first=False) as at_end,
        LitePullConsumer(topic + "_time", name_servers=name_server, from_timestamp_ms=1) as at_time,
        Producer(name_servers=name_server) as producer,
    ):
        await at_end.assign([queue])
        await at_time.assign([queue])
        await producer.send(Message(topic, b"3"), queue=queue)
        assert bodies(await receive(at_time, 4)) == [0, 1, 2, 3]
        await receive(at_end, 1)


async def test_assigning_again_keeps_the_places_of_queues_kept(name_server: str, broker: str, topic: str) -> None:
    queue = await fill(name_server, topic, 4)
    other = MessageQueue(topic=topic, broker_name="broker-a", queue_id=1)
    async with LitePullConsumer(topic, name_servers=name_server) as consumer:
        await consumer.assign([queue])
        first = await receive(consumer, 2, max_messages=1)
        await consumer.assign([queue, other])
        assert bodies(first + await receive(consumer, 2, max_messages=1)) == [0, 1, 2, 3]
        await consumer.poll(timeout_seconds=0)
        await consumer.assign([other])
        assert consumer.assignment() == [other]
        assert await kept(broker, topic, queue) == first[0].queue_offset + 4


async def test_a_cancelled_consumer_keeps_what_was_done(name_server: str, broker: str, topic: str) -> None:
    queue = await fill(name_server, topic, 4)
    with anyio.CancelScope() as scope:
        async with LitePullConsumer(topic, name_servers=name_server) as consumer:
            await consumer.assign([queue])
            with anyio.fail_after(LIMIT_SECONDS):
                async for message in consumer:
                    if message.body == b"2":
                        scope.cancel()
    assert scope.cancelled_caught
    assert await kept(broker, topic, queue) == message.queue_offset + 1  # the cancelled wait for more followed it


async def test_misuse_is_said(name_server: str, topic: str) -> None:
    queue = await fill(name_server, topic, 1)
    consumer = LitePullConsumer(topic, name_servers=name_server)
    with pytest.raises(ClientError, match="async with"):
        await consumer.subscribe(topic)
    async with consumer:
        await consumer.assign([queue])
        with pytest.raises(ClientError, match="exclude"):
            await consumer.subscribe(topic)
        await receive(consumer, 1)
        async with anyio.create_task_group() as group:
            group.start_soon(consumer.poll)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(ClientError, match="another task polls"):
                await consumer.poll()
            group.cancel_scope.cancel()
    with pytest.raises(ClientError, match="async with"):
        await consumer.poll()
