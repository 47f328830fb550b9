"""A message that fails until it is a dead letter, one that fails once: dead_letters.py NAME_SERVER TOPIC GROUP."""

import sys
from collections.abc import Sequence

import trio  # under asyncio it is asyncio.run(main(...))

from trio_rmq.client import ConsumeLater, Message, Producer, PullConsumer, PushConsumer, ReceivedMessage


async def consume(name_server: str, topic: str, group: str) -> None:
    last_try = trio.Event()

    async def listen(messages: Sequence[ReceivedMessage]) -> ConsumeLater | None:
        [message] = messages
        if message.body == b"shaky" and message.reconsume_times == 1:
            print("shaky: consumed after a retry")
            return None
        if message.reconsume_times == 2:
            last_try.set()
        return ConsumeLater(delay_level=1)  # again in a second; 0 leaves it to the broker, -1 gives up at once

    async with PushConsumer(group, name_servers=name_server, max_reconsume_times=2) as consumer:
        await consumer.subscribe(topic, listen)
        await last_try.wait()


async def read_dead_letters(name_server: str, group: str) -> None:
    async with PullConsumer("undertaker", name_servers=name_server) as consumer:
        for queue in await consumer.queues(f"%DLQ%{group}"):
            offset = await consumer.min_offset(queue)
            while offset < await consumer.max_offset(queue):
                result = await consumer.pull(queue, offset)
                for message in result.messages:
                    print(f"{message.body.decode()}: dead, it failed {message.reconsume_times} times")
                offset = result.next_offset


async def main(name_server: str, topic: str, group: str) -> None:
    async with Producer(name_servers=name_server, group="docs") as producer:
        for body in (b"shaky", b"broken"):
            await producer.send(Message(topic, body))
    await consume(name_server, topic, group)
    await read_dead_letters(name_server, group)


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
