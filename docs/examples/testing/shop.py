"""What the tests beside this file test: orders go to a topic, and a warehouse packs them."""

import json
from collections.abc import Sequence

from trio_rmq.client import Message, Producer, PushConsumer, ReceivedMessage


class Warehouse:
    """Packs what is ordered; what cannot be packed comes again later, and is a dead letter in the end."""

    def __init__(self) -> None:
        self.packed: list[str] = []

    async def pack(self, messages: Sequence[ReceivedMessage]) -> None:
        for message in messages:
            self.packed.append(json.loads(message.body)["item"])

    def consumer(self, name_server: str) -> PushConsumer:
        return PushConsumer("warehouse", name_servers=name_server, max_reconsume_times=16)


async def order(name_server: str, item: str) -> None:
    async with Producer(name_servers=name_server, group="shop", try_timeout_seconds=1) as producer:
        await producer.send(Message("Orders", json.dumps({"item": item}).encode()))
