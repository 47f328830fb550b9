"""Consume what an expression takes until COUNT messages came: push_sql.py NAME_SERVER TOPIC GROUP EXPRESSION COUNT."""

import sys
from collections.abc import Sequence

import trio

from trio_rmq.client import PushConsumer, ReceivedMessage


async def main(name_server: str, topic: str, group: str, expression: str, count: int) -> None:
    enough = trio.Event()

    async def listen(messages: Sequence[ReceivedMessage]) -> None:
        nonlocal count
        for message in messages:
            print(message.body.decode())
            count -= 1
            if count == 0:
                enough.set()

    async with PushConsumer(group, name_servers=name_server) as consumer:
        await consumer.subscribe(topic, listen, expression=expression, expression_type="SQL92")
        await enough.wait()


if __name__ == "__main__":
    _, name_server, topic, group, expression, count = sys.argv
    trio.run(main, name_server, topic, group, expression, int(count))
