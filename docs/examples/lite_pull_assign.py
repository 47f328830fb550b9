"""Read all queues of a topic again since a time: lite_pull_assign.py NAME_SERVER TOPIC GROUP SINCE_MS COUNT."""

import asyncio
import sys

from trio_rmq.client import LitePullConsumer


async def main(name_server: str, topic: str, group: str, since_ms: int, count: int) -> None:
    async with LitePullConsumer(group, name_servers=name_server, auto_commit=False) as consumer:
        queues = await consumer.queues(topic)
        await consumer.assign(queues)
        for queue in queues:
            await consumer.seek(queue, await consumer.offset_for_timestamp(queue, since_ms))
        while count > 0:
            for message in await consumer.poll(max_messages=10, timeout_seconds=5):
                print(message.body.decode())
                count -= 1
        await consumer.commit()


if __name__ == "__main__":
    _, name_server, topic, group, since_ms, count = sys.argv
    asyncio.run(main(name_server, topic, group, int(since_ms), int(count)))
