"""Threads that share a producer, as a web framework's do: blocking_produce_threads.py NAME_SERVER TOPIC COUNT."""

import sys
from concurrent.futures import ThreadPoolExecutor

from trio_rmq.client import Message
from trio_rmq.client.blocking import Producer


class Application:
    """Opens its producer when it starts and closes it when it ends, as a web framework's hooks would."""

    def __init__(self, name_server: str, topic: str) -> None:
        self.producer = Producer(name_servers=name_server, group="web")
        self.topic = topic

    def start(self) -> None:
        self.producer.open()

    def handle(self, number: int) -> str:
        """One web request, in a thread of the framework's."""
        return self.producer.send(Message(self.topic, b"order %d" % number, keys=f"order-{number}")).message_id

    def stop(self) -> None:
        self.producer.close()


if __name__ == "__main__":
    _, name_server, topic, count = sys.argv
    application = Application(name_server, topic)
    application.start()
    with ThreadPoolExecutor(8) as threads:
        for message_id in threads.map(application.handle, range(int(count))):
            print(message_id)
    application.stop()
