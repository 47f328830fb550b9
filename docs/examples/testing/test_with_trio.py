"""A broker for every test, in the test's own nursery (pytest-trio)."""

import pytest
from shop import Warehouse, order

from trio_rmq.testing import Disconnect, Drop, EmbeddedBroker

pytestmark = pytest.mark.trio


async def test_an_order_is_packed(rocketmq: EmbeddedBroker) -> None:
    warehouse = Warehouse()
    await order(rocketmq.name_server, "lamp")
    async with warehouse.consumer(rocketmq.name_server) as consumer:
        await consumer.subscribe("Orders", warehouse.pack)
        await rocketmq.wait_until(lambda: warehouse.packed)
    assert warehouse.packed == ["lamp"]


async def test_an_order_survives_a_lost_connection(rocketmq: EmbeddedBroker) -> None:
    lost = rocketmq.inject(Disconnect(), times=2)
    await order(rocketmq.name_server, "lamp")
    assert lost.done == 2
    assert len(rocketmq.messages("Orders")) == 1


async def test_an_answer_that_is_lost_doubles_the_order(rocketmq: EmbeddedBroker) -> None:
    rocketmq.inject(Drop(answer_only=True))
    await order(rocketmq.name_server, "lamp")
    first, second = rocketmq.messages("Orders")
    assert first.message_id == second.message_id  # by which a consumer can tell


@pytest.mark.rocketmq("autoCreateTopicEnable=false")
async def test_a_broker_that_makes_no_topics(rocketmq: EmbeddedBroker) -> None:
    with pytest.raises(Exception, match="Orders"):
        await order(rocketmq.name_server, "lamp")
