"""Batches by hand, then gathered by themselves, packed and watched: produce_batches.py NAME_SERVERS TOPIC."""

import sys

import anyio

from trio_rmq.client import (
    AutoBatch,
    Compression,
    CompressionType,
    Message,
    Producer,
    Sending,
    SendResult,
    split_batch,
)
from trio_rmq.client.send_interceptors import Proceed


async def watch(sending: Sending, proceed: Proceed) -> SendResult | None:
    """An interceptor: around each try; raise ClientError instead of calling `proceed` to forbid it."""
    result = await proceed()
    count = 1 if isinstance(sending.message, Message) else len(sending.message)
    print(f"{count} to {sending.queue.broker_name}, {len(sending.outgoing.body)} bytes")
    return result


async def main(name_servers: str, topic: str) -> None:
    messages = [Message(topic, b"%03d" % number * 100) for number in range(100)]
    packing = Compression(CompressionType.ZLIB, threshold_bytes=1024)
    async with Producer(name_servers=name_servers, compression=packing, interceptors=[watch]) as producer:
        for batch in split_batch(messages, 16 * 1024):
            await producer.send_batch(batch)
        await producer.send(Message(topic, b"again and " * 500))
    gather = AutoBatch(count=50, delay_seconds=0.05)
    async with Producer(name_servers=name_servers, auto_batch=gather) as producer:
        async with anyio.create_task_group() as group:
            for message in messages:
                group.start_soon(producer.send, message)  # of many tasks, each of which waits for its own
        for outcome in await producer.send_many(messages):  # of one, which waits for all
            if not isinstance(outcome, SendResult):
                raise outcome
    print("all acknowledged")


anyio.run(main, *sys.argv[1:], backend="trio")
