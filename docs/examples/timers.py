"""Two messages for later, one of them taken back: timers.py NAME_SERVERS TOPIC."""

import sys
import time

import anyio

from trio_rmq.client import Message, Producer
from trio_rmq.errors import ResponseError


async def main(name_servers: str, topic: str) -> None:
    async with Producer(name_servers=name_servers, group="docs") as producer:
        by_delay = await producer.send(Message(topic, b"in half a second", delay_ms=500))
        at_ms = int(time.time() * 1000) + 60_000
        by_time = await producer.send(Message(topic, b"in a minute", deliver_at_ms=at_ms))
        await producer.recall(topic, by_time.recall_handle or "")
        print("taken back")
        await anyio.sleep(0.7)
        try:
            await producer.recall(topic, by_delay.recall_handle or "")
        except ResponseError as error:
            print("too late:", error.response_code)


anyio.run(main, *sys.argv[1:], backend="trio")
