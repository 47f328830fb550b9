"""What a test sees of an embedded broker, and each fault that it can ask for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from trio_rmq.client import (
    Message,
    Producer,
    PushConsumer,
    ReceivedMessage,
    TransactionProducer,
    TransactionState,
)
from trio_rmq.errors import RocketMQError, SendError
from trio_rmq.testing import EmbeddedBroker, virtual_broker
from trio_rmq.testing.faults import PULLS, SENDS, Delay, Disconnect, Drop, Duplicate, Fail
from trio_rmq.wire.codes import RequestCode, ResponseCode


def on_virtual_time(main: Callable[[], Awaitable[None]], **options: Any) -> None:
    options["clock"] = MockClock(autojump_threshold=0)
    trio.run(main, **options)


pytestmark = pytest.mark.trio(run=on_virtual_time)


@pytest.fixture
async def broker() -> AsyncIterator[EmbeddedBroker]:
    async with virtual_broker() as running:
        yield running


@asynccontextmanager
async def producing(broker: EmbeddedBroker) -> AsyncIterator[Producer]:
    async with Producer(name_servers=broker.name_server, group="shop", try_timeout_seconds=1) as producer:
        await producer.send(Message("Orders", b"first"))
        yield producer


def bodies(messages: Sequence[ReceivedMessage]) -> list[bytes]:
    return [message.body for message in messages]


def answers(broker: EmbeddedBroker) -> list[int | None]:
    """The codes that sends after the first were answered with; None for no answer."""
    exchanges = broker.exchanges(SENDS)[1:]
    return [None if exchange.answer is None else exchange.answer.code for exchange in exchanges]


# What it shows ---------------------------------------------------------------------------------------------------


async def test_what_was_sent_received_retried_and_given_up(broker: EmbeddedBroker) -> None:
    async def listen(messages: Sequence[ReceivedMessage]) -> None:
        if messages[0].body == b"bad":
            raise ValueError("a bad order")

    async with (
        producing(broker) as producer,
        PushConsumer("warehouse", name_servers=broker.name_server, max_reconsume_times=1) as consumer,
    ):
        await consumer.subscribe("Orders", listen)
        await producer.send(Message("Orders", b"bad", tags="red"))
        await broker.wait_until(lambda: broker.delayed("%RETRY%warehouse"))
        (waiting,) = broker.delayed()
        assert waiting.message.body == b"bad"
        assert waiting.message.topic == "Orders"
        assert not broker.dead_letters("warehouse")
        await broker.wait_until(lambda: broker.dead_letters("warehouse"), timeout_seconds=60)
    assert bodies(broker.sent("Orders")) == bodies(broker.messages("Orders")) == [b"first", b"bad"]
    assert bodies(broker.sent("Bills")) == bodies(broker.sent("%RETRY%warehouse")) == []
    assert sorted(bodies(broker.received("Orders", "warehouse"))) == [b"bad", b"first"]
    assert bodies(broker.received("%RETRY%warehouse")) == [b"bad"]
    assert broker.received(group="office") == []
    assert [message.reconsume_times for message in broker.retried("warehouse")] == [0, 1]
    assert not broker.retried("office")
    assert not broker.delayed()
    (dead,) = broker.dead_letters("warehouse")
    assert (dead.body, dead.tags) == (b"bad", "red")


async def test_what_waits_for_its_time(broker: EmbeddedBroker) -> None:
    async with producing(broker) as producer:
        await producer.send(Message("Orders", b"in two hours", delay_level=18))
        timed = await producer.send(Message("Orders", b"in an hour", delay_ms=3_600_000))
        recalled = await producer.send(Message("Bills", b"never", delay_ms=60_000))
        assert bodies(broker.sent()) == [b"first", b"in two hours", b"in an hour", b"never"]
        assert [one.message.body for one in broker.delayed("Bills")] == [b"never"]
        assert timed.recall_handle is not None
        assert recalled.recall_handle is not None
        await producer.recall("Bills", recalled.recall_handle)
        first, second = broker.delayed()
        assert (first.message.body, second.message.body) == (b"in an hour", b"in two hours")
        assert abs(second.due_ms - first.due_ms - 3_600_000) < 1000
        await trio.sleep(3601)
        assert [one.message.body for one in broker.delayed()] == [b"in two hours"]
        assert bodies(broker.messages("Orders")) == [b"first", b"in an hour"]


async def test_half_messages(broker: EmbeddedBroker) -> None:
    decided = TransactionState.UNKNOWN

    async def check(message: ReceivedMessage) -> TransactionState:
        return decided

    async def undecided(transaction_id: str) -> TransactionState:
        return TransactionState.UNKNOWN

    async with TransactionProducer(check, name_servers=broker.name_server, group="shop") as producer:
        await producer.send_in_transaction(Message("Orders", b"paid?"), undecided)
        assert bodies(broker.half_messages("Orders")) == [b"paid?"]
        assert broker.half_messages("Bills") == broker.messages("Orders") == []
        await trio.sleep(100)
        assert bodies(broker.half_messages()) == [b"paid?"]
        decided = TransactionState.COMMIT
        await broker.wait_until(lambda: broker.messages("Orders"), timeout_seconds=100)
        assert broker.half_messages() == []


async def test_what_nobody_asked_for_ends_a_wait_too(broker: EmbeddedBroker) -> None:
    async with producing(broker) as producer:
        await producer.send(Message("Orders", b"in a second", delay_level=1))
        started = trio.current_time()
        await broker.wait_until(lambda: len(broker.messages("Orders")) == 2)
        assert trio.current_time() - started < 1.1  # no request came meanwhile


async def test_waiting_has_an_end(broker: EmbeddedBroker) -> None:
    with pytest.raises(TimeoutError, match="within 5 s"):
        await broker.wait_until(lambda: False, timeout_seconds=5)


# What it does to requests ----------------------------------------------------------------------------------------


async def test_the_next_sends_fail_with_a_code(broker: EmbeddedBroker) -> None:
    async with producing(broker) as producer:
        busy = broker.inject(Fail(ResponseCode.SYSTEM_BUSY), times=2)
        await producer.send(Message("Orders", b"second"))
        assert answers(broker) == [ResponseCode.SYSTEM_BUSY, ResponseCode.SYSTEM_BUSY, ResponseCode.SUCCESS]
        assert busy.done == 2
        broker.inject(Fail(ResponseCode.NO_PERMISSION, "not today"), times=None, topic="Bills")
        with pytest.raises(RocketMQError, match="not today"):
            await producer.send(Message("Bills", b"third"))
        await producer.send(Message("Orders", b"fourth"))
        broker.clear_faults()
        await producer.send(Message("Bills", b"fifth"))
    assert bodies(broker.messages("Orders")) == [b"first", b"second", b"fourth"]
    assert bodies(broker.messages("Bills")) == [b"fifth"]


async def test_a_skipped_request_is_met_later(broker: EmbeddedBroker) -> None:
    async with producing(broker) as producer:
        broker.inject(Fail(), skip=1)
        await producer.send(Message("Orders", b"second"))
        await producer.send(Message("Orders", b"third"))
    assert answers(broker) == [ResponseCode.SUCCESS, ResponseCode.SYSTEM_BUSY, ResponseCode.SUCCESS]


async def test_requests_are_delayed(broker: EmbeddedBroker) -> None:
    async with producing(broker) as producer:
        broker.inject(Delay(0.5))
        started = trio.current_time()
        await producer.send(Message("Orders", b"second"))
        assert 0.5 <= trio.current_time() - started < 0.6
    assert bodies(broker.messages("Orders")) == [b"first", b"second"]


@pytest.mark.parametrize("fault", [Drop(), Disconnect()])
async def test_a_lost_send_is_sent_again(broker: EmbeddedBroker, fault: Drop | Disconnect) -> None:
    async with producing(broker) as producer:
        broker.inject(fault)
        await producer.send(Message("Orders", b"second"))
        assert answers(broker) == [None, ResponseCode.SUCCESS]
    assert bodies(broker.messages("Orders")) == [b"first", b"second"]
    assert bodies(broker.sent("Orders")) == [b"first", b"second"]


@pytest.mark.parametrize("fault", [Drop(answer_only=True), Disconnect(answer_only=True)])
@pytest.mark.parametrize("flush", ["ASYNC_FLUSH", "SYNC_FLUSH"])
async def test_a_send_whose_answer_is_lost_is_stored_twice(fault: Drop | Disconnect, flush: str) -> None:
    async with virtual_broker(f"flushDiskType={flush}") as broker, producing(broker) as producer:
        broker.inject(fault)
        await producer.send(Message("Orders", b"second"))
        assert answers(broker) == [None, ResponseCode.SUCCESS]
        assert bodies(broker.messages("Orders")) == [b"first", b"second", b"second"]
        assert bodies(broker.sent("Orders")) == [b"first", b"second"]


@pytest.mark.parametrize("flush", ["ASYNC_FLUSH", "SYNC_FLUSH"])
async def test_a_send_is_dealt_with_twice(flush: str) -> None:
    async with virtual_broker(f"flushDiskType={flush}") as broker, producing(broker) as producer:
        broker.inject(Duplicate())
        await producer.send(Message("Orders", b"second"))
        assert answers(broker) == [ResponseCode.SUCCESS]
        first, second = broker.messages("Orders")[1:]
        assert first.body == second.body == b"second"
        assert first.message_id == second.message_id


async def test_one_of_many_sends_in_one_read(broker: EmbeddedBroker) -> None:
    async with producing(broker) as producer:
        broker.inject(Fail(), skip=1)
        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(producer.send, Message("Orders", b"%d" % number))
        assert sorted(answers(broker), key=str) == [0, 0, 0, 0, ResponseCode.SYSTEM_BUSY]
    assert sorted(bodies(broker.messages("Orders"))) == [b"0", b"1", b"2", b"3", b"first"]


async def test_any_request_can_be_met(broker: EmbeddedBroker) -> None:
    got = trio.Event()

    async def listen(messages: Sequence[ReceivedMessage]) -> None:
        got.set()

    async with producing(broker), PushConsumer("warehouse", name_servers=broker.name_server) as consumer:
        pulls = broker.inject(Fail(ResponseCode.SYSTEM_ERROR), requests=PULLS, times=3)
        beats = broker.inject(Drop(), requests={RequestCode.GET_CONSUMER_LIST_BY_GROUP})
        await consumer.subscribe("Orders", listen)
        with trio.fail_after(60):
            await got.wait()
        assert (pulls.done, beats.done) == (3, 1)


async def test_one_way_sends_are_noted_and_lost(broker: EmbeddedBroker) -> None:
    async with producing(broker) as producer:
        broker.inject(Drop(), skip=1)
        for body in (b"second", b"third", b"fourth"):
            await producer.send_oneway(Message("Orders", body))
        await broker.wait_until(lambda: len(broker.exchanges(SENDS)) == 4)
        assert answers(broker) == [None, None, None]
    assert bodies(broker.messages("Orders")) == [b"first", b"second", b"fourth"]


# What it does to connections and the disk ------------------------------------------------------------------------


async def test_connections_are_dropped_and_refused(broker: EmbeddedBroker) -> None:
    async with producing(broker) as producer:
        broker.refuse_connections()
        await producer.send(Message("Orders", b"over the open connection"))
        assert broker.disconnect() >= 1
        with pytest.raises(RocketMQError):
            await producer.send(Message("Orders", b"refused"), timeout_seconds=5)
        broker.refuse_connections(False)
        await producer.send(Message("Orders", b"taken"))
        assert broker.disconnect() >= 1
        await producer.send(Message("Orders", b"sent anew"))
    assert bodies(broker.messages("Orders")) == [b"first", b"over the open connection", b"taken", b"sent anew"]


async def test_a_full_disk(broker: EmbeddedBroker) -> None:
    async with producing(broker) as producer:
        broker.fill_disk()
        with pytest.raises(SendError, match="answered 14"):
            await producer.send(Message("Orders", b"no room"))
        await trio.sleep(60)  # the broker looks for room now and then
        with pytest.raises(SendError, match="answered 14"):
            await producer.send(Message("Orders", b"no room"))
        assert bodies(broker.messages("Orders")) == [b"first"]
        broker.free_disk()
        await producer.send(Message("Orders", b"room"))
    assert bodies(broker.messages("Orders")) == [b"first", b"room"]


async def test_a_rebalance_on_demand(broker: EmbeddedBroker) -> None:
    async def listen(messages: Sequence[ReceivedMessage]) -> None:
        pass

    def asked() -> int:
        return len(broker.exchanges({RequestCode.GET_CONSUMER_LIST_BY_GROUP}))

    async with producing(broker), PushConsumer("warehouse", name_servers=broker.name_server) as consumer:
        await consumer.subscribe("Orders", listen)
        await consumer.wait_queues(lambda queues: len(queues) == 5)
        await trio.sleep(1)
        before = asked()
        assert broker.rebalance("warehouse") == 1
        assert broker.rebalance("office") == 0
        await broker.wait_until(lambda: asked() > before, timeout_seconds=1)
