"""Make a topic, find what is in it, delete it: admin.py NAME_SERVERS TOPIC."""

import sys

import anyio

from trio_rmq.admin.client import AdminClient
from trio_rmq.admin.messages import query_by_key, view_message
from trio_rmq.admin.topics import create_topic, delete_topic, max_offset, min_offset, offset_for_timestamp, topic_queues
from trio_rmq.client import Message, Producer


async def main(name_servers: str, topic: str) -> None:
    async with AdminClient(name_servers=name_servers) as admin, Producer(name_servers=name_servers) as producer:
        await create_topic(admin, topic, write_queues=2)
        for number in range(3):
            result = await producer.send(Message(topic, b"order %d" % number, keys=["orders", f"order-{number}"]))
        found = await query_by_key(admin, topic, "orders")
        print([message.body.decode() for message in found])
        print((await view_message(admin, result.offset_message_id)).keys)
        for queue in await topic_queues(admin, topic):
            first, end = await min_offset(admin, queue), await max_offset(admin, queue)
            since = await offset_for_timestamp(admin, queue, found[0].store_timestamp_ms)
            print(f"queue {queue.queue_id}: {end - first} messages, of them {end - since} not before the first order")
        await delete_topic(admin, topic)


anyio.run(main, *sys.argv[1:], backend="trio")
