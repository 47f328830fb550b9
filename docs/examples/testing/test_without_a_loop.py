"""Plain tests: the broker runs on a thread of its own, the clients are the blocking ones, or other programs."""

import anyio
from shop import order

from trio_rmq.client.blocking import LitePullConsumer
from trio_rmq.testing import ThreadedBroker


def test_what_was_ordered(rocketmq_thread: ThreadedBroker) -> None:
    anyio.run(order, rocketmq_thread.name_server, "lamp")  # any program could do it: the port is a real one
    with LitePullConsumer("office", name_servers=rocketmq_thread.name_server) as consumer:
        consumer.subscribe("Orders")
        message = next(iter(consumer))
    assert message.body == b'{"item": "lamp"}'
    rocketmq_thread.wait_until(lambda: rocketmq_thread.received("Orders", group="office"))
