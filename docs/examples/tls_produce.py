"""Send and read by TLS, with an authority of one's own: tls_produce.py NAME_SERVERS TOPIC CA_FILE."""

import ssl
import sys

import anyio

from trio_rmq.client import LitePullConsumer, Message, Producer


async def main(name_servers: str, topic: str, ca_file: str) -> None:
    trusting = ssl.create_default_context(cafile=ca_file)
    async with Producer(name_servers=name_servers, ssl_context=trusting) as producer:
        print((await producer.send(Message(topic, b"over TLS"))).status.name)
        queues = await producer.queues(topic)
    async with LitePullConsumer("docs_tls", name_servers=name_servers, ssl_context=trusting) as consumer:
        await consumer.assign(queues)
        print([message.body.decode() for message in await consumer.poll()])


anyio.run(main, *sys.argv[1:], backend="trio")
