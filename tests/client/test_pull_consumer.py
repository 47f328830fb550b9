"""The explicit pull consumer against a real name server and broker, on {trio, asyncio} x {tcp, websocket}."""

from __future__ import annotations

import anyio
import pytest

from tests.interop.peers import free_ports
from trio_rmq.client import Message, MessageQueue, Producer, PullConsumer, PullStatus
from trio_rmq.errors import ClientError, ProtocolError, RemotingError, RouteNotFoundError

pytestmark = pytest.mark.anyio
LIMIT_SECONDS = 20


async def fill(name_server: str, topic: str, count: int, tags: list[str | None] | None = None) -> MessageQueue:
    """Messages `0`, `1` ... in queue 0 of a new topic."""
    queue = MessageQueue(topic=topic, broker_name="broker-a", queue_id=0)
    async with Producer(name_servers=name_server) as producer:
        await producer.send(Message(topic, b"makes the topic"), queue=None)
        for number in range(count):
            tag = tags[number % len(tags)] if tags else None
            await producer.send(Message(topic, b"%d" % number, tags=tag), queue=queue)
    return queue


async def test_pulls_go_on_where_the_result_says(name_server: str, topic: str) -> None:
    queue = await fill(name_server, topic, 50)
    async with PullConsumer(topic, name_servers=name_server) as consumer:
        assert len(await consumer.queues(topic)) == 4
        offset = await consumer.min_offset(queue)
        bodies: list[bytes] = []
        while (result := await consumer.pull(queue, offset, max_messages=20)).status is PullStatus.FOUND:
            bodies += [message.body for message in result.messages]
            offset = result.next_offset
        assert [body for body in bodies if body.isdigit()] == [b"%d" % number for number in range(50)]
        assert result.status is PullStatus.NO_NEW_MESSAGE
        assert offset == result.next_offset == result.max_offset == await consumer.max_offset(queue)


async def test_offsets_are_found_by_time_and_kept(name_server: str, topic: str) -> None:
    queue = await fill(name_server, topic, 3)
    async with PullConsumer(topic, name_servers=name_server) as consumer:
        after = await consumer.max_offset(queue)
        last = (await consumer.pull(queue, after - 1)).messages[0]
        found = await consumer.offset_for_timestamp(queue, last.store_timestamp_ms)
        stored_then = (await consumer.pull(queue, found)).messages[0].store_timestamp_ms
        assert stored_then == last.store_timestamp_ms
        assert await consumer.offset_for_timestamp(queue, last.store_timestamp_ms + 3_600_000) == after
        assert await consumer.committed(queue) in (None, 0)
        await consumer.commit(queue, 2)
        assert await consumer.committed(queue) == 2


async def test_tags_filter_and_a_bad_offset_is_mended(name_server: str, topic: str) -> None:
    queue = await fill(name_server, topic, 6, ["red", "green", None])
    async with PullConsumer(topic, name_servers=name_server) as consumer:
        result = await consumer.pull(queue, 0, expression="red || blue")
        assert [message.body for message in result.messages] == [b"0", b"3"]
        assert (await consumer.pull(queue, 0, expression="blue")).status is PullStatus.NO_MATCHED_MESSAGE
        beyond = await consumer.pull(queue, 1_000_000)
        assert beyond.status is PullStatus.OFFSET_ILLEGAL
        assert beyond.next_offset == await consumer.max_offset(queue)


async def test_a_held_pull_is_woken(name_server: str, topic: str) -> None:
    queue = await fill(name_server, topic, 1)
    got: list[bytes] = []
    async with (
        PullConsumer(topic, name_servers=name_server) as consumer,
        Producer(name_servers=name_server) as producer,
    ):
        end = await consumer.max_offset(queue)

        async def pull() -> None:
            result = await consumer.pull(queue, end, hold_seconds=LIMIT_SECONDS)
            got.extend(message.body for message in result.messages)

        with anyio.fail_after(LIMIT_SECONDS / 2):
            async with anyio.create_task_group() as group:
                group.start_soon(pull)
                await producer.send(Message(topic, b"late"), queue=queue)
    assert got == [b"late"]


async def test_misuse_and_absence_are_said(name_server: str, topic: str, scheme: str) -> None:
    queue = await fill(name_server, topic, 1)
    consumer = PullConsumer(topic, name_servers=name_server)
    with pytest.raises(ClientError, match="async with"):
        await consumer.pull(queue, 0)
    async with consumer:
        for offset, count in ((-1, 1), (0, 0)):
            with pytest.raises(ClientError, match="0 or more"):
                await consumer.pull(queue, offset, max_messages=count)
        with pytest.raises(ProtocolError, match="bars"):
            await consumer.pull(queue, 0, expression="||")
        with pytest.raises(RouteNotFoundError):
            await consumer.queues(topic + "_absent")
        with pytest.raises(RemotingError, match="no master"):
            await consumer.pull(MessageQueue(topic=topic, broker_name="broker-z", queue_id=0), 0)
    (dead,) = free_ports(1)
    async with PullConsumer(topic, name_servers=f"{scheme}127.0.0.1:{dead}") as lost:
        with pytest.raises(RemotingError, match=str(dead)):
            await lost.queues(topic)
