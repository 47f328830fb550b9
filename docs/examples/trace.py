"""Send a message, consume it, and print what the traces say of it: trace.py NAME_SERVERS TOPIC TRACE_TOPIC."""

import sys
from collections.abc import Sequence

import anyio

from trio_rmq.client import (
    ConsumeEndTrace,
    Message,
    Producer,
    PullConsumer,
    PushConsumer,
    ReceivedMessage,
    SendTrace,
    decode_traces,
)


async def main(name_servers: str, topic: str, trace_topic: str) -> None:
    consumed = anyio.Event()

    async def listen(messages: Sequence[ReceivedMessage]) -> None:
        consumed.set()

    async with (
        Producer(name_servers=name_servers, group="docs", trace=trace_topic) as producer,
        PushConsumer("docs_readers", name_servers=name_servers, trace=trace_topic) as consumer,
    ):
        sent = await producer.send(Message(topic, b"hello", keys="order-7"))
        await consumer.subscribe(topic, listen)
        await consumed.wait()

    async with PullConsumer("docs_traces", name_servers=name_servers) as reader:
        for queue in await reader.queues(trace_topic):
            result = await reader.pull(queue, await reader.min_offset(queue))
            for trace in (trace for message in result.messages for trace in decode_traces(message.body)):
                if trace.message_id != sent.message_id:
                    continue
                if isinstance(trace, SendTrace):
                    print("sent by", trace.group, "to", trace.store_host, "with keys", trace.keys)
                elif isinstance(trace, ConsumeEndTrace):
                    print("consumed by", trace.group, "successfully" if trace.success else "in vain")


anyio.run(main, *sys.argv[1:], backend="trio")
