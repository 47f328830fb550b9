"""Consume each queue in its order until COUNT messages came: push_orderly.py NAME_SERVER TOPIC GROUP COUNT."""

import asyncio
import sys
from collections.abc import Sequence

from trio_rmq.client import PushConsumer, ReceivedMessage


async def main(name_server: str, topic: str, group: str, count: int) -> None:
    enough = asyncio.Event()

    async def listen(messages: Sequence[ReceivedMessage]) -> None:
        nonlocal count
        for message in messages:  # an error in here, and it is tried again before any later one
            print(message.queue.queue_id, message.body.decode())
            count -= 1
            if count == 0:
                enough.set()

    async with PushConsumer(group, name_servers=name_server, orderly=True) as consumer:
        await consumer.subscribe(topic, listen)
        await enough.wait()


if __name__ == "__main__":
    _, name_server, topic, group, count = sys.argv
    asyncio.run(main(name_server, topic, group, int(count)))
