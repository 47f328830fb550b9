"""Keep the order of what belongs together: produce_ordered.py NAME_SERVERS TOPIC."""

import sys

import anyio

from trio_rmq.client import Message, Producer


async def main(name_servers: str, topic: str) -> None:
    async with Producer(name_servers=name_servers, group="docs") as producer:
        for step in ("created", "paid", "shipped"):
            for order in ("order-1", "order-2"):
                result = await producer.send(Message(topic, step.encode(), sharding_key=order))
                print(order, step, result.queue.queue_id, result.queue_offset)


anyio.run(main, *sys.argv[1:], backend="asyncio")
