"""The same under asyncio (anyio's plugin, which comes with anyio): the broker runs on a thread of its own."""

import pytest
from shop import Warehouse, order

from trio_rmq.testing import AsyncBroker, Fail

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_an_order_is_packed(rocketmq: AsyncBroker) -> None:
    warehouse = Warehouse()
    await order(rocketmq.name_server, "lamp")
    async with warehouse.consumer(rocketmq.name_server) as consumer:
        await consumer.subscribe("Orders", warehouse.pack)
        await rocketmq.wait_until(lambda: warehouse.packed)
    assert warehouse.packed == ["lamp"]


async def test_a_busy_broker_is_asked_again(rocketmq: AsyncBroker) -> None:
    busy = rocketmq.inject(Fail(), times=2)
    await order(rocketmq.name_server, "lamp")
    assert busy.done == 2
    assert len(rocketmq.messages("Orders")) == 1
