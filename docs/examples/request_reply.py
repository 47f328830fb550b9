"""Answer so many questions, then end: request_reply.py NAME_SERVERS TOPIC GROUP COUNT."""

import sys
from collections.abc import Sequence

import anyio

from trio_rmq.client import Producer, PushConsumer, ReceivedMessage, reply_to


async def main(name_servers: str, topic: str, group: str, count: str) -> None:
    answered, done = 0, anyio.Event()

    async def answer(requests: Sequence[ReceivedMessage]) -> None:
        nonlocal answered
        for request in requests:
            await producer.send(reply_to(request, request.body.upper()))
            answered += 1
        if answered >= int(count):
            done.set()

    async with (
        Producer(name_servers=name_servers, group="docs_answering") as producer,
        PushConsumer(group, name_servers=name_servers) as consumer,
    ):
        await consumer.subscribe(topic, answer)
        print("ready", flush=True)
        await done.wait()


anyio.run(main, *sys.argv[1:], backend="trio")
