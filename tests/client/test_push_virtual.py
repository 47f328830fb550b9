"""Push consumers on virtual time: cancelled at every step, cut off, slow, many; and their locks, which take minutes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from functools import partial

import pytest
import trio
import trio.lowlevel

from tests.client.scripted_broker import ScriptedBroker, scripted_queue
from tests.client.test_lite_pull_cancel import BROKER, CLIENT, COUNT, NAMES, QUEUE, in_world
from trio_rmq.client import FlowControl, Message, MessageQueue, Producer, PullConsumer, PushConsumer, ReceivedMessage
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.testing.virtual_network import Link
from trio_rmq.testing.world import World, simulate
from trio_rmq.wire.codes import RequestCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.headers import CreateTopicRequestHeader

SCRIPTED = "10.0.0.9"


def in_scripted_world(client: Callable[[World, ScriptedBroker], Awaitable[None]]) -> None:
    """Run `client` on its own machine beside a scripted broker."""

    async def main(world: World) -> None:
        broker = ScriptedBroker()
        async with trio.open_nursery() as servers:
            with world.node(SCRIPTED):
                await servers.start(broker.serve, f"{SCRIPTED}:9876")
            with world.node(CLIENT):
                await client(world, broker)
            servers.cancel_scope.cancel()

    simulate(main, seed=1, link=Link(latency_seconds=0.002))


CONSUMER: ContextVar[bool] = ContextVar("CONSUMER", default=False)
"""Whether a task belongs to the consumer that is to be cancelled."""


class CancelAtAnyTask(trio.abc.Instrument):
    """Cancels a scope at the n-th step of all the consumer's tasks together; `steps` counts on."""

    def __init__(self, step: int, scope: trio.CancelScope) -> None:
        self.steps = 0
        self._step = step
        self._scope = scope

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task.context.get(CONSUMER, False):
            self.steps += 1
            if self.steps == self._step:
                self._scope.cancel()


async def cancelled_at(step: int, broker: ScriptedBroker, *, orderly: bool) -> bool:
    """Consume and let go, cancelled at that step; whether there were as many."""
    place = scripted_queue("T")
    broker.offsets.clear()
    broker.locks.clear()
    processed = 0
    done = trio.Event()

    async def listen(messages: Sequence[ReceivedMessage]) -> None:
        nonlocal processed
        await trio.lowlevel.checkpoint()
        for message in messages:
            assert message.queue_offset == processed
            processed += 1
            if processed == COUNT:
                done.set()

    token = CONSUMER.set(True)
    with trio.CancelScope() as scope:
        cancel = CancelAtAnyTask(step, scope)
        trio.lowlevel.add_instrument(cancel)
        try:
            async with PushConsumer(
                "g", name_servers=f"{SCRIPTED}:9876", orderly=orderly, concurrency=1, pull_batch_size=4
            ) as consumer:
                await consumer.subscribe("T", listen)
                await done.wait()
                await consumer.unsubscribe("T")
                await consumer.wait_queues(lambda queues: place not in queues)
        finally:
            trio.lowlevel.remove_instrument(cancel)
    CONSUMER.reset(token)
    assert broker.offsets.get(place, 0) == processed, step
    return cancel.steps >= step


@pytest.mark.parametrize("orderly", [False, True], ids=["concurrent", "orderly"])
def test_no_progress_is_lost_or_made_up_whatever_step_is_cancelled(orderly: bool) -> None:
    async def client(world: World, broker: ScriptedBroker) -> None:
        broker.append("T", *[b"%d" % number for number in range(COUNT)])
        step = 1
        with trio.fail_after(3600):  # of virtual time: a cancelled consumer that does not end is found
            while await cancelled_at(step, broker, orderly=orderly):
                step += 1
        assert step > 100, step

    in_scripted_world(client)


def test_members_come_and_go_and_each_queue_has_one_owner() -> None:
    """Joins, leaves and a kill; what was acknowledged never comes again, because queues go over in good order."""

    async def client(world: World) -> None:
        topic = "Simulated"
        seen: list[bytes] = []
        stops: list[trio.CancelScope] = []
        consumers: list[PushConsumer] = []
        told = trio.Event()

        async def listen(messages: Sequence[ReceivedMessage]) -> None:
            nonlocal told
            await trio.sleep(0.01)
            seen.extend(message.body for message in messages)
            told.set()
            told = trio.Event()

        async def member(orderly: bool, task_status: trio.TaskStatus[None]) -> None:
            with trio.CancelScope() as scope:
                consumer = PushConsumer("group", name_servers=NAMES, orderly=orderly)
                consumers.append(consumer)
                stops.append(scope)
                async with consumer:
                    await consumer.subscribe(topic, listen)
                    task_status.started()
                    await trio.sleep_forever()

        def owned() -> list[MessageQueue]:
            return [queue for consumer in consumers for queue in consumer.queues() if queue.topic == topic]

        async def settled(count: int) -> None:
            with trio.fail_after(2):
                while len(owned()) != count or len(set(owned())) != count:
                    with trio.move_on_after(0.01):
                        await told.wait()

        async def leave() -> None:
            consumer, scope = consumers.pop(0), stops.pop(0)
            scope.cancel()
            while consumer.queues() and not consumer._delivery.closing.is_set():
                await trio.lowlevel.checkpoint()

        async with Producer(name_servers=NAMES) as producer, trio.open_nursery() as members:
            sent = 0

            async def feed() -> None:
                nonlocal sent
                while sent < 200:
                    await producer.send(Message(topic, b"n%d" % sent))
                    sent += 1

            members.start_soon(feed)
            for _ in range(3):
                await members.start(member, True)
                await settled(4)
            await leave()
            await settled(4)
            await members.start(member, True)
            await settled(4)
            await leave()
            await leave()
            await settled(4)
            with trio.fail_after(30):
                while len({body for body in seen if body[:1] == b"n"}) < 200:
                    await told.wait()
            members.cancel_scope.cancel()
        assert len(seen) <= 200 + 1 + COUNT + 4  # a cancelled listener's message comes again: at most one a leave

    in_world(client)


def test_twenty_members_of_two_hundred_queues_settle_within_two_seconds() -> None:
    async def client(world: World, broker: ScriptedBroker) -> None:
        broker.queue_counts["T"] = 200

        async def listen(messages: Sequence[ReceivedMessage]) -> None:
            pass

        async with trio.open_nursery() as members:
            consumers = [PushConsumer("g", name_servers=f"{SCRIPTED}:9876") for _ in range(20)]

            async def run(consumer: PushConsumer) -> None:
                async with consumer:
                    await consumer.subscribe("T", listen)
                    await trio.sleep_forever()

            for consumer in consumers:
                members.start_soon(run, consumer)
            await broker.until(lambda: len(broker.members.get("g", ())) == 20)
            await trio.sleep(2)
            owned = [queue for consumer in consumers for queue in consumer.queues() if queue.topic == "T"]
            assert len(owned) == len(set(owned)) == 200
            assert {len([queue for queue in one.queues() if queue.topic == "T"]) for one in consumers} == {10}
            members.cancel_scope.cancel()

    in_scripted_world(client)


def test_after_leaves_and_kills_two_hundred_queues_settle_within_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a real broker; who is killed only has his connections closed: no commit, no goodbye."""
    topic = "Wide"
    alive: list[tuple[PushConsumer, trio.CancelScope]] = []

    async def listen(messages: Sequence[ReceivedMessage]) -> None:
        pass

    async def member(task_status: trio.TaskStatus[None]) -> None:
        with trio.CancelScope() as scope:
            async with PushConsumer("wide", name_servers=NAMES) as consumer:
                await consumer.subscribe(topic, listen)
                alive.append((consumer, scope))
                task_status.started()
                await trio.sleep_forever()

    def owned() -> list[int]:
        """How many queues each member has; no queue has two owners, and none has no owner."""
        queues = [[queue for queue in one.queues() if queue.topic == topic] for one, _ in alive]
        every = [queue for of_one in queues for queue in of_one]
        assert len(every) == len(set(every)) == 200
        return [len(of_one) for of_one in queues]

    async def client(world: World) -> None:
        async with RemotingClient() as remoting:
            header = CreateTopicRequestHeader(
                topic=topic, default_topic="TBW102", read_queue_nums=200, write_queue_nums=200, perm=6,
                topic_filter_type="SINGLE_TAG", order=False,
            )  # fmt: skip
            create = Command(RequestCode.UPDATE_AND_CREATE_TOPIC, header)
            assert (await remoting.request(f"{BROKER}:10911", create)).code == 0
        async with trio.open_nursery() as members:
            for _ in range(20):
                await members.start(member)
            await trio.sleep(2)
            assert owned() == [10] * 20
            for goodbye_seconds in (5.0, 0.0):
                monkeypatch.setattr("trio_rmq.client.push_consumer.GOODBYE_SECONDS", goodbye_seconds)
                for _ in range(5):
                    _, scope = alive.pop(len(alive) // 2)
                    scope.cancel()
                await trio.sleep(2)
                assert sum(owned()) == 200
                assert set(owned()) <= {200 // len(alive), 200 // len(alive) + 1}
            for _ in range(6):
                await members.start(member)
            await trio.sleep(2)
            assert set(owned()) == {12, 13}
            await trio.sleep(30)
            assert set(owned()) == {12, 13}
            members.cancel_scope.cancel()

    in_world(client)


def test_locks_are_renewed_run_out_and_are_got_again() -> None:
    async def client(world: World, broker: ScriptedBroker) -> None:
        place = scripted_queue("T")
        bodies: list[bytes] = []
        broker.append("T", b"0")

        async def listen(messages: Sequence[ReceivedMessage]) -> None:
            bodies.extend(message.body for message in messages)

        async with PushConsumer("g", name_servers=f"{SCRIPTED}:9876", orderly=True) as consumer:
            await consumer.subscribe("T", listen)
            await trio.sleep(70)
            assert bodies == [b"0"]
            assert len([asked for asked in broker.lock_requests if place in asked]) == 4  # at 0, 20, 40, 60 seconds

            world.network.cut(CLIENT, SCRIPTED)  # the lock runs out here before the broker gives it to another
            await trio.sleep(31)
            world.network.heal(CLIENT, SCRIPTED)
            broker.locks[place] = "another"
            broker.append("T", b"1")
            await trio.sleep(30)
            assert bodies == [b"0"]
            assert consumer.queues() == [scripted_queue("%RETRY%g"), place]

            broker.append("T", b"2")
            broker.offsets[place] = 2  # the other one consumed b"1"
            del broker.locks[place]
            await trio.sleep(30)
            assert bodies == [b"0", b"2"]

            broker.locks[place] = "another"  # lost again, and nobody went on
            await trio.sleep(25)
            broker.append("T", b"3")
            await trio.sleep(1)
            assert bodies == [b"0", b"2"]
            del broker.locks[place]
            await trio.sleep(10)
            assert bodies == [b"0", b"2", b"3"]
        assert broker.offsets[place] == 4

    in_scripted_world(client)


def test_what_is_unfinished_bounds_what_is_pulled() -> None:
    async def client(world: World, broker: ScriptedBroker) -> None:
        flows = (
            (FlowControl(count_max=100), 1, 128),
            (FlowControl(size_max_bytes=1000), 1, 128),
            (FlowControl(total_count_max=100), 3, 195),
            (FlowControl(total_size_max_bytes=1000), 3, 195),
            (FlowControl(span_max=50), 1, 64),
        )
        for number, (flow, queue_count, most) in enumerate(flows):
            topic = f"T{number}"
            broker.queue_counts[topic] = queue_count
            for queue_id in range(queue_count):
                broker.append(topic, *[b"ten bytes." for _ in range(300)], queue_id=queue_id)
            release = trio.Event()
            count = 0

            async def listen(messages: Sequence[ReceivedMessage], release: trio.Event) -> None:
                nonlocal count
                if messages[0].queue_offset == 0:
                    await release.wait()
                count += 1

            async with PushConsumer(
                f"g{number}", name_servers=f"{SCRIPTED}:9876", flow_control=flow,
                concurrency=20 if flow.span_max == 50 else 1, consume_timeout_seconds=None,
            ) as consumer:  # fmt: skip
                await consumer.subscribe(topic, partial(listen, release=release))
                await trio.sleep(5)
                pulled = sum(held.state.next_offset for held in consumer._held.values() if held.queue.topic == topic)
                assert 32 < pulled <= most
                release.set()
                await trio.sleep(20)
                assert count == 300 * queue_count

    in_scripted_world(client)


def test_a_broker_that_vanishes_between_pull_and_commit_costs_no_message() -> None:
    async def client(world: World) -> None:
        bodies: list[bytes] = []
        arrived = trio.Event()

        async def listen(messages: Sequence[ReceivedMessage]) -> None:
            if not bodies:
                world.network.cut(CLIENT, BROKER)
                world.network.reset(CLIENT, BROKER)
            bodies.extend(message.body for message in messages)
            if b"after" in bodies:
                arrived.set()

        async with Producer(name_servers=NAMES) as producer:
            async with PushConsumer("group", name_servers=NAMES, concurrency=1) as consumer:
                await consumer.subscribe("Simulated", listen)
                await trio.sleep(40)
                world.network.heal(CLIENT, BROKER)
                await producer.send(Message("Simulated", b"after"), queue=QUEUE, timeout_seconds=30)
                with trio.fail_after(40):
                    await arrived.wait()
            async with PullConsumer("group", name_servers=NAMES) as asking:
                after = await asking.max_offset(QUEUE)
                assert await asking.committed(QUEUE) == after
        assert {b"%d" % number for number in range(COUNT)} <= set(bodies)
        assert len(bodies) == len(set(bodies)) + 1  # b"0" twice: one made the topic

    in_world(client)


def test_a_closing_consumer_whose_broker_is_away_still_ends() -> None:
    async def client(world: World) -> None:
        heard = trio.Event()

        async def listen(messages: Sequence[ReceivedMessage]) -> None:
            heard.set()

        started = trio.current_time()
        async with PushConsumer("group", name_servers=NAMES, orderly=True) as consumer:
            await consumer.subscribe("Simulated", listen)
            await heard.wait()
            world.network.cut(CLIENT, BROKER)
        assert trio.current_time() - started < 10

    in_world(client)
