"""Start many sends at once and gather the results: produce_many.py NAME_SERVERS TOPIC COUNT."""

import sys

import anyio

from trio_rmq.client import Message, Producer, SendResult
from trio_rmq.errors import SendError


async def main(name_servers: str, topic: str, count: str) -> None:
    results: dict[int, SendResult] = {}

    async with Producer(name_servers=name_servers, group="docs") as producer:

        async def send(number: int) -> None:
            try:
                results[number] = await producer.send(Message(topic, b"message %d" % number))
            except SendError as error:
                print(f"message {number}: {error}")  # what each try met, and where

        async with anyio.create_task_group() as group:
            for number in range(int(count)):
                group.start_soon(send, number)
    print(len(results), "acknowledged")


anyio.run(main, *sys.argv[1:], backend="trio")
