"""Two consumers on one loop, their listeners in worker threads: blocking_push.py NAME_SERVER TOPIC COUNT."""

import sys
import threading
from collections.abc import Sequence

from trio_rmq.client import ReceivedMessage
from trio_rmq.client.blocking import BlockingPortalProvider, PushConsumer


class Application:
    """Opens its consumers when it starts and closes them when it ends, as a web framework's hooks would."""

    def __init__(self, name_server: str, topic: str, count: int) -> None:
        self.portal = BlockingPortalProvider()
        self.heard = threading.Semaphore(0)
        self.topic = topic
        self.count = count
        self.consumers = [
            PushConsumer(f"{topic}-{name}", name_servers=name_server, portal=self.portal) for name in ("one", "two")
        ]

    def start(self) -> None:
        for consumer in self.consumers:
            consumer.open()
            consumer.subscribe(self.topic, self.listen)

    def listen(self, messages: Sequence[ReceivedMessage]) -> None:
        for message in messages:
            sys.stdout.write(message.body.decode() + "\n")  # in one piece: several threads write
            self.heard.release()

    def stop(self) -> None:
        for consumer in self.consumers:
            consumer.close()


if __name__ == "__main__":
    _, name_server, topic, count = sys.argv
    application = Application(name_server, topic, int(count))
    application.start()
    for _ in range(2 * application.count):
        application.heard.acquire()
    application.stop()
