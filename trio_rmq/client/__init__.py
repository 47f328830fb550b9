"""Producers and consumers, on anyio: the same code under Trio and asyncio."""

from trio_rmq.client.auto_batch import AutoBatch
from trio_rmq.client.batches import split_batch
from trio_rmq.client.compression import Compression, CompressionType
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
from trio_rmq.client.queue_choice import QueueSelector, select_by_hash, select_by_machine_room, select_randomly
from trio_rmq.client.replies import ReplyMessage, reply_to
from trio_rmq.client.send_interceptors import Sending, SendInterceptor
from trio_rmq.client.transaction_producer import (
    CheckListener,
    LocalTransaction,
    TransactionProducer,
    TransactionSendResult,
    TransactionState,
)
from trio_rmq.wire.trace import (
    ConsumeEndTrace,
    ConsumeStartTrace,
    EndTransactionTrace,
    RecallTrace,
    SendTrace,
    Trace,
    decode_traces,
)

__all__ = [
    "AutoBatch",
    "CheckListener",
    "Compression",
    "CompressionType",
    "ConsumeEndTrace",
    "ConsumeLater",
    "ConsumeResult",
    "ConsumeStartTrace",
    "Consumption",
    "EndTransactionTrace",
    "FlowControl",
    "Interceptor",
    "LitePullConsumer",
    "LocalOffsetStore",
    "LocalTransaction",
    "Message",
    "MessageQueue",
    "Producer",
    "PullConsumer",
    "PullResult",
    "PullStatus",
    "PushConsumer",
    "QueueLag",
    "QueueSelector",
    "RecallTrace",
    "ReceivedMessage",
    "ReplyMessage",
    "SendInterceptor",
    "SendResult",
    "SendStatus",
    "SendTrace",
    "Sending",
    "Trace",
    "TransactionProducer",
    "TransactionSendResult",
    "TransactionState",
    "decode_traces",
    "in_thread",
    "reply_to",
    "select_by_hash",
    "select_by_machine_room",
    "select_randomly",
    "split_batch",
]
