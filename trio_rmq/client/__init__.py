"""Producers and consumers, on anyio: the same code under Trio and asyncio."""

from trio_rmq.client.message import (
    ConsumeResult,
    Message,
    MessageQueue,
    ReceivedMessage,
    SendResult,
    SendStatus,
)
from trio_rmq.client.producer import Producer
from trio_rmq.client.push_consumer import PushConsumer

__all__ = [
    "ConsumeResult",
    "Message",
    "MessageQueue",
    "Producer",
    "PushConsumer",
    "ReceivedMessage",
    "SendResult",
    "SendStatus",
]
