"""Count the messages of each queue by pulling them: pull.py NAME_SERVER TOPIC GROUP."""

import sys

import trio

from trio_rmq.client import PullConsumer, PullStatus


async def main(name_server: str, topic: str, group: str) -> None:
    async with PullConsumer(group, name_servers=name_server) as consumer:
        for queue in await consumer.queues(topic):
            count = 0
            offset = await consumer.min_offset(queue)
            while (result := await consumer.pull(queue, offset)).status is not PullStatus.NO_NEW_MESSAGE:
                count += len(result.messages)
                offset = result.next_offset
            print(f"{queue.broker_name} {queue.queue_id}: {count}")


if __name__ == "__main__":
    _, name_server, topic, group = sys.argv
    trio.run(main, name_server, topic, group)
