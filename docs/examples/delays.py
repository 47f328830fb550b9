"""Messages that wait a delay level each, consumed as they come: delays.py NAME_SERVER TOPIC GROUP."""

import sys
from collections.abc import Sequence

import trio  # under asyncio it is asyncio.run(main(...))

from trio_rmq.client import Message, Producer, PushConsumer, ReceivedMessage


async def main(name_server: str, topic: str, group: str) -> None:
    enough = trio.Event()

    async def listen(messages: Sequence[ReceivedMessage]) -> None:
        for message in messages:
            print(message.body.decode())
            if message.body == b"after five seconds":
                enough.set()

    async with Producer(name_servers=name_server, group="docs") as producer:
        await producer.send(Message(topic, b"after five seconds", delay_level=2))
        await producer.send(Message(topic, b"after a second", delay_level=1))
        await producer.send(Message(topic, b"at once"))
        async with PushConsumer(group, name_servers=name_server) as consumer:
            await consumer.subscribe(topic, listen)
            await enough.wait()


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
