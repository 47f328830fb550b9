"""Print what comes to a topic, as a member of a group: lite_pull.py NAME_SERVER TOPIC GROUP COUNT."""

import sys

import trio  # under asyncio it is asyncio.run(main(...))

from trio_rmq.client import LitePullConsumer


async def main(name_server: str, topic: str, group: str, count: int) -> None:
    async with LitePullConsumer(group, name_servers=name_server) as consumer:
        await consumer.subscribe(topic, "red || blue")
        async for message in consumer:
            print(message.body.decode())
            count -= 1
            if count == 0:
                await consumer.commit()  # the last message was consumed too
                break


if __name__ == "__main__":
    _, name_server, topic, group, count = sys.argv
    trio.run(main, name_server, topic, group, int(count))
