"""One of two real brokers is killed under load: no send fails after its retries, and what was acknowledged is there."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import anyio
import pytest

from tests.interop.peers import free_ports, our_broker, our_name_server
from trio_rmq.client import Message, MessageQueue, Producer, PullConsumer, SendStatus
from trio_rmq.errors import RouteNotFoundError

pytestmark = pytest.mark.anyio
WORKERS = 16
LIMIT_SECONDS = 30


async def known_queues(client: Producer | PullConsumer, topic: str, count: int) -> list[MessageQueue]:
    """The topic's queues, once there are so many."""
    with anyio.fail_after(LIMIT_SECONDS):
        while True:
            try:
                queues = await client.queues(topic)
            except RouteNotFoundError:
                queues = []
            if len(queues) >= count:
                return queues
            await anyio.sleep(0.02)
            if isinstance(client, Producer) and queues:
                await client.refresh_route(topic)


async def read_all(name_server: str, topic: str) -> Counter[bytes]:
    found: Counter[bytes] = Counter()
    async with PullConsumer("reader", name_servers=name_server) as consumer:
        for queue in await known_queues(consumer, topic, 16):
            offset, end = 0, await consumer.max_offset(queue)
            while offset < end:
                result = await consumer.pull(queue, offset)
                found.update(message.body for message in result.messages)
                offset = result.next_offset
    return found


async def test_no_send_fails_and_nothing_acknowledged_is_lost(tmp_path: Path, scheme: str) -> None:
    ports = dict(zip("ab", free_ports(2), strict=True))
    with our_name_server(tmp_path) as names:
        name_server = scheme + names.address
        with (
            our_broker(tmp_path, names.address, name="a", port=ports["a"], defaultTopicQueueNums=8) as a,
            our_broker(tmp_path, names.address, name="b", port=ports["b"], defaultTopicQueueNums=8),
        ):
            topic = "Killed"
            acknowledged: list[bytes] = []
            used: Counter[str] = Counter()
            async with Producer(name_servers=name_server, group="killed", default_topic_queues=8) as producer:
                for queue in await known_queues(producer, "TBW102", 16):  # make it at both
                    place = MessageQueue(topic=topic, broker_name=queue.broker_name, queue_id=queue.queue_id)
                    await producer.send(Message(topic, b"makes the topic"), queue=place)
                await known_queues(producer, topic, 16)
                enough = {"before": anyio.Event(), "after": anyio.Event()}

                async def work(worker: int) -> None:
                    number = 0
                    while not enough["after"].is_set():
                        body = b"%d-%d" % (worker, number)
                        result = await producer.send(Message(topic, body))
                        assert result.status is SendStatus.SEND_OK
                        acknowledged.append(body)
                        used[result.queue.broker_name] += 1
                        number += 1
                        if used["a"] > 100:
                            enough["before"].set()
                        if len(acknowledged) > 1500:
                            enough["after"].set()

                with anyio.fail_after(LIMIT_SECONDS):
                    async with anyio.create_task_group() as group:
                        for worker in range(WORKERS):
                            group.start_soon(work, worker)
                        await enough["before"].wait()
                        a.process.kill()
                a.process.wait(timeout=10)
            assert used["b"] > used["a"]
            with our_broker(tmp_path, names.address, name="a", port=ports["a"], defaultTopicQueueNums=8):
                stored = await read_all(name_server, topic)
        assert [body for body in acknowledged if body not in stored] == []
