"""A lite pull consumer on virtual time: cancelled at every step of its task, cut off, and left alone for a while."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import trio
import trio.lowlevel

from trio_rmq.broker.server import serve_broker
from trio_rmq.client import LitePullConsumer, Message, MessageQueue, Producer, PullConsumer
from trio_rmq.config import BrokerConfig, NamesrvConfig
from trio_rmq.namesrv.server import serve_name_server
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.testing.stores import small_config
from trio_rmq.testing.virtual_network import Link
from trio_rmq.testing.world import World, simulate

NAME_SERVER, BROKER, CLIENT = "10.0.0.1", "10.0.0.2", "10.0.0.3"
NAMES = f"{NAME_SERVER}:9876"
COUNT = 6
QUEUE = MessageQueue(topic="Simulated", broker_name="b", queue_id=0)


def in_world(client: Callable[[World], Awaitable[None]], *, queues: int = 8, latency_seconds: float = 0.002) -> None:
    """Run `client` on its own machine beside a name server and a broker that has COUNT messages in QUEUE.

    `queues` bounds how many the topic has.
    """

    async def main(world: World) -> None:
        async with trio.open_nursery() as servers:
            with world.node(NAME_SERVER):
                names = NamesrvConfig(kv_config_path="kv.json")
                await servers.start(partial(serve_name_server, names, disk=FaultyDisk()))
            with world.node(BROKER):
                broker = BrokerConfig(
                    broker_ip1=BROKER, broker_name="b", namesrv_addr=NAMES, default_topic_queue_nums=queues
                )
                await servers.start(partial(serve_broker, broker, small_config("store"), disk=FaultyDisk()))
            with world.node(CLIENT):
                async with Producer(name_servers=NAMES) as producer:
                    await producer.send(Message("Simulated", b"0"), queue=None)
                    await producer.refresh_route("Simulated")
                    for number in range(COUNT):
                        await producer.send(Message("Simulated", b"%d" % number), queue=QUEUE)
                await client(world)
            servers.cancel_scope.cancel()

    simulate(main, seed=1, link=Link(latency_seconds=latency_seconds))


class CancelAt(trio.abc.Instrument):
    """Cancels a scope at the n-th step of the task that made this; `steps` counts on."""

    def __init__(self, step: int, scope: trio.CancelScope) -> None:
        self.steps = 0
        self._step = step
        self._scope = scope
        self._task = trio.lowlevel.current_task()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self.steps += 1
            if self.steps == self._step:
                self._scope.cancel()


def cancelled_at(step: int, *, subscribed: bool) -> bool:
    """Consume, cancelled at that step; whether the task had as many."""
    reached = False

    async def client(world: World) -> None:
        nonlocal reached
        processed = 0
        with trio.CancelScope() as scope:
            cancel = CancelAt(step, scope)
            trio.lowlevel.add_instrument(cancel)
            try:
                async with LitePullConsumer("group", name_servers=NAMES) as consumer:
                    if subscribed:
                        await consumer.subscribe("Simulated")
                    else:
                        await consumer.assign([QUEUE])
                    async for message in consumer:
                        await trio.lowlevel.checkpoint()
                        if message.queue == QUEUE:
                            processed = message.queue_offset + 1
                            if message.body == b"%d" % (COUNT - 1):
                                await consumer.commit()
                                break
            finally:
                trio.lowlevel.remove_instrument(cancel)
        reached = cancel.steps >= step
        async with PullConsumer("group", name_servers=NAMES) as asking:
            committed = await asking.committed(QUEUE)
        assert (committed or 0) == processed, step

    in_world(client)
    return reached


def test_no_progress_is_lost_or_made_up_whatever_step_is_cancelled() -> None:
    for subscribed in (False, True):
        step = 1
        while cancelled_at(step, subscribed=subscribed):
            step += 1
        assert step > 20


def test_progress_is_committed_now_and_then_and_a_cut_is_ridden_out() -> None:
    async def client(world: World) -> None:
        async with (
            PullConsumer("group", name_servers=NAMES) as asking,
            Producer(name_servers=NAMES) as producer,
            LitePullConsumer("group", name_servers=NAMES) as consumer,
        ):
            await consumer.assign([QUEUE])
            first = await consumer.poll()
            assert await consumer.poll(timeout_seconds=20) == []  # the first are done now, and time passes
            assert await asking.committed(QUEUE) == first[-1].queue_offset + 1
            await producer.send(Message("Simulated", b"before"), queue=QUEUE)
            assert [message.body for message in await consumer.poll()] == [b"before"]
            world.network.cut(CLIENT, BROKER)
            assert await consumer.poll(timeout_seconds=60) == []
            world.network.heal(CLIENT, BROKER)
            world.network.reset(CLIENT, BROKER)
            await trio.sleep(1)  # until the producer knows: it sends to a given queue once
            await producer.send(Message("Simulated", b"after"), queue=QUEUE)
            assert [message.body for message in await consumer.poll(timeout_seconds=60)] == [b"after"]

    in_world(client)
