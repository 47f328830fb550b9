"""Send messages without an event loop, one and many: blocking_produce.py NAME_SERVER TOPIC COUNT."""

import sys

from trio_rmq.client import Message, SendResult
from trio_rmq.client.blocking import Producer


def main(name_server: str, topic: str, count: int) -> None:
    with Producer(name_servers=name_server) as producer:
        result = producer.send(Message(topic, b"hello"))
        print(result.status.name, result.message_id)
        messages = [Message(topic, b"message %d" % number) for number in range(count)]
        for message, result in zip(messages, producer.send_many(messages), strict=True):
            if not isinstance(result, SendResult):
                print(message.body.decode(), result)  # an error: what each try met, and where
        print("done")


if __name__ == "__main__":
    _, name_server, topic, count = sys.argv
    main(name_server, topic, int(count))
