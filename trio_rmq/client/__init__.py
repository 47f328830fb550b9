"""Producers and consumers, on anyio: the same code under Trio and asyncio."""

from trio_rmq.client.lite_pull_consumer import LitePullConsumer
from trio_rmq.client.message import (
    ConsumeResult,
    Message,
    MessageQueue,
    ReceivedMessage,
    SendResult,
    SendStatus,
)
from trio_rmq.client.offset_store import LocalOffsetStore
from trio_rmq.client.producer import Producer
from trio_rmq.client.pull_calls import PullResult, PullStatus
from trio_rmq.client.pull_consumer import PullConsumer
from trio_rmq.client.push_consumer import PushConsumer

__all__ = [
    "ConsumeResult",
    "LitePullConsumer",
    "LocalOffsetStore",
    "Message",
    "MessageQueue",
    "Producer",
    "PullConsumer",
    "PullResult",
    "PullStatus",
    "PushConsumer",
    "ReceivedMessage",
    "SendResult",
    "SendStatus",
]
