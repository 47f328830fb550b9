"""Hours pass in seconds: broker, clients and test are on virtual time and a virtual network (pytest-trio)."""

import pytest
import trio
from shop import Warehouse

from trio_rmq.client import Message, Producer, ReceivedMessage, TransactionProducer, TransactionState
from trio_rmq.testing import EmbeddedBroker

pytestmark = pytest.mark.trio


@pytest.mark.rocketmq("defaultTopicQueueNums=1")  # fewer queues are fewer pulls, of which there are many in hours
async def test_nearly_five_hours_of_tries_end_in_a_dead_letter(virtual_rocketmq: EmbeddedBroker) -> None:
    warehouse = Warehouse()
    async with Producer(name_servers=virtual_rocketmq.name_server, group="shop") as producer:
        await producer.send(Message("Orders", b"this is no JSON"))
    started = trio.current_time()
    async with warehouse.consumer(virtual_rocketmq.name_server) as consumer:
        await consumer.subscribe("Orders", warehouse.pack)
        await virtual_rocketmq.wait_until(lambda: virtual_rocketmq.dead_letters("warehouse"), timeout_seconds=24 * 3600)
    assert len(virtual_rocketmq.retried("warehouse")) == 17  # the first try, and 16 more
    assert 4.7 < (trio.current_time() - started) / 3600 < 4.8


async def test_a_message_for_tonight(virtual_rocketmq: EmbeddedBroker) -> None:
    async with Producer(name_servers=virtual_rocketmq.name_server, group="shop") as producer:
        await producer.send(Message("Reminders", b"water the plants", delay_ms=8 * 3600 * 1000))
    (waiting,) = virtual_rocketmq.delayed("Reminders")
    assert waiting.message.body == b"water the plants"
    await trio.sleep(8 * 3600 - 1)
    assert not virtual_rocketmq.messages("Reminders")
    await trio.sleep(2)
    assert len(virtual_rocketmq.messages("Reminders")) == 1


async def test_a_transaction_is_asked_about_until_it_is_known(virtual_rocketmq: EmbeddedBroker) -> None:
    known = TransactionState.UNKNOWN

    async def check(message: ReceivedMessage) -> TransactionState:
        return known

    async def pay(transaction_id: str) -> TransactionState:
        raise ConnectionError("the bank has paid, but its answer was lost")

    async with TransactionProducer(check, name_servers=virtual_rocketmq.name_server, group="shop") as producer:
        await producer.send_in_transaction(Message("Payments", b"order 7"), pay)
        await trio.sleep(600)  # ten minutes of questions without an answer
        assert virtual_rocketmq.half_messages("Payments")
        known = TransactionState.COMMIT
        await trio.sleep(61)
    assert not virtual_rocketmq.half_messages("Payments")
    assert [message.body for message in virtual_rocketmq.messages("Payments")] == [b"order 7"]
