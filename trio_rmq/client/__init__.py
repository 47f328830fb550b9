"""Producers and consumers, on anyio: the same code under Trio and asyncio."""

from trio_rmq.client.flow_control import FlowControl
from trio_rmq.client.lag import QueueLag
from trio_rmq.client.listening import Consumption, Interceptor, in_thread
from trio_rmq.client.lite_pull_consumer import LitePullConsumer
from trio_rmq.client.message import (
    ConsumeLater,
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
    "ConsumeLater",
    "ConsumeResult",
    "Consumption",
    "FlowControl",
    "Interceptor",
    "LitePullConsumer",
    "LocalOffsetStore",
    "Message",
    "MessageQueue",
    "Producer",
    "PullConsumer",
    "PullResult",
    "PullStatus",
    "PushConsumer",
    "QueueLag",
    "ReceivedMessage",
    "SendResult",
    "SendStatus",
    "in_thread",
]
