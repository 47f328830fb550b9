"""Print what comes to a topic, without an event loop: blocking_lite_pull.py NAME_SERVER TOPIC GROUP COUNT."""

import sys

from trio_rmq.client.blocking import LitePullConsumer


def main(name_server: str, topic: str, group: str, count: int) -> None:
    with LitePullConsumer(group, name_servers=name_server) as consumer:
        consumer.subscribe(topic)
        for message in consumer:
            print(message.body.decode())
            count -= 1
            if count == 0:
                consumer.commit()  # the last message was consumed too
                break


if __name__ == "__main__":
    _, name_server, topic, group, count = sys.argv
    main(name_server, topic, group, int(count))
