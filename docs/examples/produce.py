"""Send one message and say where it went: produce.py NAME_SERVERS TOPIC TEXT."""

import sys

import anyio

from trio_rmq.client import Message, Producer


async def main(name_servers: str, topic: str, text: str) -> None:
    async with Producer(name_servers=name_servers, group="docs") as producer:
        result = await producer.send(Message(topic, text.encode(), tags="demo", keys="greeting-1"))
        print(result.status.name, result.queue.broker_name, result.queue.queue_id, result.message_id)


anyio.run(main, *sys.argv[1:], backend="trio")
