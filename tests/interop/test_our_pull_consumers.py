"""Our pull consumers against Apache's name server and broker: offsets, times, seeks, and a group of two members."""

from __future__ import annotations

from collections.abc import Iterator

import anyio
import pytest

from tests.interop.peers import apache_broker, apache_name_server
from trio_rmq.client import LitePullConsumer, Message, Producer, PullConsumer, PullStatus
from trio_rmq.wire.command import SerializeType

pytestmark = [pytest.mark.interop, pytest.mark.anyio]
COUNT = 200
LIMIT_SECONDS = 60


@pytest.fixture(scope="module", params=["4.9.7", "5.3.3"])
def apache(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    scratch, version = tmp_path_factory.mktemp("apache"), str(request.param)
    with (
        apache_name_server(scratch, version=version) as namesrv,
        apache_broker(scratch, namesrv.address, version=version),
    ):
        yield namesrv.address


@pytest.fixture(params=["trio", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[SerializeType.JSON, SerializeType.ROCKETMQ], ids=lambda kind: kind.name)
def encoding(request: pytest.FixtureRequest) -> SerializeType:
    return SerializeType(request.param)


async def test_pulls(apache: str, anyio_backend: str, encoding: SerializeType) -> None:
    topic = f"Pulled_{anyio_backend}_{encoding.name}"
    async with Producer(name_servers=apache) as producer:
        sent = [await producer.send(Message(topic, b"%d" % number, tags="ab"[number % 2])) for number in range(COUNT)]
    async with PullConsumer(f"G{topic}", name_servers=apache, serialize_type=encoding) as consumer:
        bodies = set()
        for queue in await consumer.queues(topic):
            offset = await consumer.min_offset(queue)
            while (
                result := await consumer.pull(queue, offset, expression="a")
            ).status is not PullStatus.NO_NEW_MESSAGE:
                bodies |= {int(message.body) for message in result.messages}
                offset = result.next_offset
            assert offset == await consumer.max_offset(queue)
            await consumer.commit(queue, offset)
            assert await consumer.committed(queue) == offset
        assert bodies == set(range(0, COUNT, 2))
        last = sent[-1]
        found = (await consumer.pull(last.queue, last.queue_offset)).messages[0]
        by_time = await consumer.offset_for_timestamp(found.queue, found.store_timestamp_ms)
        assert by_time <= found.queue_offset
        assert (await consumer.pull(last.queue, 10**6)).status is PullStatus.OFFSET_ILLEGAL


async def test_two_lite_members(apache: str, anyio_backend: str, encoding: SerializeType) -> None:
    topic = f"Lite_{anyio_backend}_{encoding.name}"
    async with Producer(name_servers=apache) as producer:
        await producer.send(Message(topic, b"-1"))
        bodies: set[int] = set()
        enough = anyio.Event()

        async def consume(consumer: LitePullConsumer) -> None:
            async for message in consumer:
                bodies.add(int(message.body))
                if len(bodies) == COUNT + 1:
                    enough.set()

        with anyio.fail_after(LIMIT_SECONDS):
            async with (
                LitePullConsumer(f"G{topic}", name_servers=apache, serialize_type=encoding) as first,
                LitePullConsumer(f"G{topic}", name_servers=apache, serialize_type=encoding) as second,
            ):
                await first.subscribe(topic)
                await second.subscribe(topic)
                for consumer in (first, second):
                    await consumer.wait_assignment(lambda queues: len(queues) == 2)
                async with anyio.create_task_group() as group:
                    group.start_soon(consume, first)
                    group.start_soon(consume, second)
                    for number in range(COUNT):
                        await producer.send(Message(topic, b"%d" % number))
                    await enough.wait()
                    group.cancel_scope.cancel()
                for consumer in (first, second):
                    await consumer.commit()
                queue = first.assignment()[0]
                await first.seek_to_begin(queue)
                assert (await first.poll(1))[0].queue_offset == 0
                await first.seek_to_end(queue)
    async with PullConsumer(f"G{topic}", name_servers=apache) as asking:
        for queue in await asking.queues(topic):
            assert await asking.committed(queue) == await asking.max_offset(queue)
