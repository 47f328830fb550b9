"""How a lite pull consumer comes to its first offsets: all of a broker with one question, and what that costs it."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from trio_rmq.client import LitePullConsumer, Message, Producer
from trio_rmq.testing import EmbeddedBroker, Fail, virtual_broker
from trio_rmq.testing.virtual_network import Link
from trio_rmq.wire.codes import RequestCode

pytestmark = pytest.mark.trio
QUEUES = 16
SETTINGS = (f"defaultTopicQueueNums={QUEUES}",)


async def fill(broker: EmbeddedBroker) -> None:
    async with Producer(name_servers=broker.name_server, default_topic_queues=QUEUES) as producer:
        await producer.send(Message("Orders", b"one"))


async def test_the_offsets_of_many_queues_cost_one_round_trip(autojump_clock: MockClock) -> None:
    latency_seconds = 0.05
    async with virtual_broker(*SETTINGS, link=Link(latency_seconds=latency_seconds)) as broker:
        await fill(broker)
        async with LitePullConsumer("warehouse", name_servers=broker.name_server) as consumer:
            await consumer.subscribe("Orders")
            before = trio.current_time()
            await consumer.wait_assignment(lambda queues: len(queues) == QUEUES)
            round_trips = (trio.current_time() - before) / (2 * latency_seconds)
        asked = broker.exchanges([RequestCode.QUERY_CONSUMER_OFFSET])
    assert len(asked) == QUEUES
    assert round_trips < 4  # who the members are, and the offsets


async def test_a_refused_question_is_asked_again(autojump_clock: MockClock) -> None:
    async with virtual_broker(*SETTINGS) as broker:
        await fill(broker)
        broker.inject(Fail(), requests=[RequestCode.QUERY_CONSUMER_OFFSET], times=QUEUES + 1)
        async with LitePullConsumer("warehouse", name_servers=broker.name_server) as consumer:
            await consumer.subscribe("Orders")
            assert [message.body for message in await consumer.poll()] == [b"one"]
