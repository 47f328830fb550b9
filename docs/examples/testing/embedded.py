"""A broker without pytest: embedded.py."""

import anyio
import trio
from shop import order

from trio_rmq.testing import broker, threaded_broker


async def main() -> None:
    async with broker() as running:
        await order(running.name_server, "lamp")
        print([message.body.decode() for message in running.messages("Orders")])


trio.run(main)

with threaded_broker() as running:  # without Trio
    anyio.run(order, running.name_server, "chair")
    print([message.body.decode() for message in running.messages("Orders")])
