"""Consume a topic as a member of a group until COUNT messages came: push.py NAME_SERVER TOPIC GROUP COUNT."""

import sys
from collections.abc import Sequence

import trio  # under asyncio it is asyncio.run(main(...))

from trio_rmq.client import ConsumeLater, PushConsumer, ReceivedMessage


async def main(name_server: str, topic: str, group: str, count: int) -> None:
    enough = trio.Event()

    async def listen(messages: Sequence[ReceivedMessage]) -> ConsumeLater | None:
        nonlocal count
        for done, message in enumerate(messages):
            if message.body == b"not now" and message.reconsume_times == 0:
                return ConsumeLater(delay_level=1, consumed_count=done)  # this and those behind it, in a second
            print(message.body.decode())
            count -= 1
            if count == 0:
                enough.set()
        return None

    async with PushConsumer(group, name_servers=name_server, batch_size=8, concurrency=4) as consumer:
        await consumer.subscribe(topic, listen)
        await enough.wait()


if __name__ == "__main__":
    _, name_server, topic, group, count = sys.argv
    trio.run(main, name_server, topic, group, int(count))
