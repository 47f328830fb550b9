"""Hours of retries and delays on virtual time: broker, name server, producer and push consumer of this package."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import trio

from tests.client.test_lite_pull_cancel import NAMES, in_world
from trio_rmq.client import Message, Producer, PushConsumer, ReceivedMessage
from trio_rmq.testing.world import World

LEVELS_SECONDS = [1, 5, 10, 30, *(60 * minutes for minutes in (*range(1, 11), 20, 30, 60, 120))]


def test_a_message_that_always_fails_is_tried_17_times_and_then_dead() -> None:
    times: list[float] = []
    counts: list[int] = []
    dead: list[ReceivedMessage] = []

    async def client(world: World) -> None:
        given_up, buried = trio.Event(), trio.Event()

        async def fail(messages: Sequence[ReceivedMessage]) -> None:
            for message in messages:
                if message.body == b"poison":
                    times.append(trio.current_time())
                    counts.append(message.reconsume_times)
                    assert message.topic == "Simulated", "the listener sees the topic that it knows"
                    if len(counts) == 17:
                        given_up.set()
                    raise ValueError("this one cannot be used")

        async def bury(messages: Sequence[ReceivedMessage]) -> None:
            dead.extend(messages)
            buried.set()

        async with Producer(name_servers=NAMES) as producer, PushConsumer("readers", name_servers=NAMES) as consumer:
            await consumer.subscribe("Simulated", fail)
            sent = await producer.send(Message("Simulated", b"poison", keys="k", tags="t"))
            with trio.fail_after(6 * 3600):
                await given_up.wait()
            async with PushConsumer("undertakers", name_servers=NAMES) as undertakers:
                await undertakers.subscribe("%DLQ%readers", bury)
                with trio.fail_after(60):
                    await buried.wait()
        [message] = dead
        assert message.body == b"poison"
        assert (message.keys, message.tags) == (["k"], "t")
        assert message.message_id == sent.message_id

    in_world(client, queues=1, latency_seconds=0)
    assert counts == list(range(17))
    waits = [later - earlier for earlier, later in pairwise(times)]
    for wait, level in zip(waits, LEVELS_SECONDS[2:], strict=True):
        assert level <= wait < level + 1
    assert sum(LEVELS_SECONDS[2:]) == 4 * 3600 + 45 * 60 + 40


def test_the_highest_level_delivers_after_two_hours() -> None:
    async def client(world: World) -> None:
        arrived = trio.Event()

        async def listen(messages: Sequence[ReceivedMessage]) -> None:
            if any(message.body == b"late" for message in messages):
                arrived.set()

        async with Producer(name_servers=NAMES) as producer, PushConsumer("readers", name_servers=NAMES) as consumer:
            await consumer.subscribe("Simulated", listen)
            await producer.send(Message("Simulated", b"late", delay_level=18))
            began = trio.current_time()
            with trio.fail_after(3 * 3600):
                await arrived.wait()
            assert 7199.9 < trio.current_time() - began < 7200.5

    in_world(client, queues=1, latency_seconds=0)
