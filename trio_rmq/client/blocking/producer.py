"""Producers with blocking methods; each means what the async producer's method of the same name means.

with Producer(name_servers="127.0.0.1:9876") as producer:
    producer.send(Message("Greetings", b"hello"))

Any number of threads may send through one producer.  A `send` makes its first try in the thread that calls it
(`thread_sending.py`), where that is possible; everything else is done in the loop.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Self, TypedDict, TypeVar, Unpack

from trio_rmq.client import producer, transaction_producer
from trio_rmq.client.auto_batch import AutoBatch
from trio_rmq.client.blocking.portal import BlockingClient, BlockingPortalProvider
from trio_rmq.client.compression import Compression
from trio_rmq.client.listening import in_thread
from trio_rmq.client.many import SENDS_AT_ONCE
from trio_rmq.client.message import Message, ReceivedMessage, SendResult
from trio_rmq.client.queue_choice import QueueSelector
from trio_rmq.client.send_interceptors import SendInterceptor
from trio_rmq.client.thread_sending import ThreadSender
from trio_rmq.client.transaction_producer import TransactionSendResult, TransactionState
from trio_rmq.errors import ClientError
from trio_rmq.remoting.tls_context import TlsContext
from trio_rmq.wire.command import SerializeType
from trio_rmq.wire.groups import MessageQueue

P = TypeVar("P", bound=producer.Producer)


class ProducerSettings(TypedDict, total=False):
    """What may be said of a producer; see `trio_rmq.client.Producer`.  Interceptors are async: they run in the loop."""

    name_servers: str | Sequence[str] | None
    group: str
    timeout_seconds: float
    try_timeout_seconds: float | None
    retry_times: int
    retry_when_not_stored: bool
    send_latency_fault_enable: bool
    latency_table: Sequence[tuple[float, float]]
    compression: Compression | None
    auto_batch: AutoBatch | None
    interceptors: Sequence[SendInterceptor]
    namespace: str
    body_size_max_bytes: int
    default_topic_queues: int
    serialize_type: SerializeType
    ssl_context: TlsContext | None
    use_tls: bool
    trace: bool | str


class TransactionSettings(ProducerSettings, total=False):
    """What may be said of a transactional producer; see `trio_rmq.client.TransactionProducer`."""

    topics: Sequence[str]
    local_timeout_seconds: float | None
    check_timeout_seconds: float
    checks_at_once: int


class _Sends(BlockingClient[P]):
    """What both producers have."""

    _first_tries: ThreadSender | None = None

    def open(self) -> Self:
        """See BlockingClient."""
        super().open()
        self._first_tries = self._async_client.thread_sender()
        return self

    def close(self) -> None:
        """See BlockingClient."""
        if self._first_tries is not None:
            self._first_tries.close()
            self._first_tries = None
        super().close()

    def send(
        self,
        message: Message,
        *,
        queue: MessageQueue | None = None,
        selector: QueueSelector | None = None,
        argument: object = None,
        timeout_seconds: float | None = None,
    ) -> SendResult:
        """Send, and return when the broker has acknowledged the message."""
        client, first_tries = self._async_client, self._first_tries
        if first_tries is not None and selector is None and message.sharding_key is None:
            sent = first_tries.send(message, queue, timeout_seconds)
            if isinstance(sent, SendResult):
                return sent
            if sent is not None:
                return self._wait(client.send_on, sent, message, queue=queue, timeout_seconds=timeout_seconds)
        return self._wait(
            client.send, message, queue=queue, selector=selector, argument=argument,
            timeout_seconds=timeout_seconds,
        )  # fmt: skip

    def send_many(
        self,
        messages: Sequence[Message],
        *,
        queue: MessageQueue | None = None,
        selector: QueueSelector | None = None,
        argument: object = None,
        timeout_seconds: float | None = None,
        at_once: int = SENDS_AT_ONCE,
    ) -> list[SendResult | ClientError]:
        """Send each message as `send` would, and return when each has ended.

        In the messages' order what each came to: its result, or the error that `send` would have raised.  They may be
        stored in any order; `send_batch` keeps it.
        """
        return self._wait(
            self._async_client.send_many, messages, queue=queue, selector=selector, argument=argument,
            timeout_seconds=timeout_seconds, at_once=at_once,
        )  # fmt: skip

    def send_oneway(
        self,
        message: Message,
        *,
        queue: MessageQueue | None = None,
        selector: QueueSelector | None = None,
        argument: object = None,
    ) -> None:
        """Send without waiting for an answer: nothing tells whether it arrives."""
        self._wait(self._async_client.send_oneway, message, queue=queue, selector=selector, argument=argument)

    def send_batch(
        self, messages: Sequence[Message], *, queue: MessageQueue | None = None, timeout_seconds: float | None = None
    ) -> SendResult:
        """Send messages of one topic as one request: all are stored, in order, in one queue, or none."""
        return self._wait(self._async_client.send_batch, messages, queue=queue, timeout_seconds=timeout_seconds)

    def request(
        self,
        message: Message,
        *,
        queue: MessageQueue | None = None,
        selector: QueueSelector | None = None,
        argument: object = None,
        timeout_seconds: float | None = None,
    ) -> ReceivedMessage:
        """Send, and return the reply that a consumer of the message makes."""
        return self._wait(
            self._async_client.request, message, queue=queue, selector=selector, argument=argument,
            timeout_seconds=timeout_seconds,
        )  # fmt: skip

    def recall(self, topic: str, recall_handle: str, *, timeout_seconds: float = 3.0) -> str:
        """Take back a message that waits for its time; its id."""
        return self._wait(self._async_client.recall, topic, recall_handle, timeout_seconds=timeout_seconds)

    def select_queue(self, message: Message, selector: QueueSelector, argument: object = None) -> MessageQueue:
        """The queue that `selector` chooses; it is called in the loop's thread."""
        return self._wait(self._async_client.select_queue, message, selector, argument)

    def queues(self, topic: str) -> list[MessageQueue]:
        """The queues of a topic that can be written."""
        return self._wait(self._async_client.queues, topic)

    def refresh_route(self, topic: str) -> None:
        """Ask the name servers for the topic's place now."""
        self._wait(self._async_client.refresh_route, topic)


class Producer(_Sends[producer.Producer]):
    """`trio_rmq.client.Producer` for a program without an event loop."""

    def __init__(self, *, portal: BlockingPortalProvider | None = None, **settings: Unpack[ProducerSettings]) -> None:
        super().__init__(lambda: producer.Producer(**settings), portal)


class TransactionProducer(_Sends[transaction_producer.TransactionProducer]):
    """`trio_rmq.client.TransactionProducer` for a program without an event loop.

    `check` is a plain function and runs in worker threads; local transactions run in the thread that sends.
    """

    def __init__(
        self,
        check: Callable[[ReceivedMessage], TransactionState],
        *,
        portal: BlockingPortalProvider | None = None,
        **settings: Unpack[TransactionSettings],
    ) -> None:
        super().__init__(lambda: transaction_producer.TransactionProducer(in_thread(check), **settings), portal)

    def send_in_transaction(
        self,
        message: Message,
        local_transaction: Callable[[str], TransactionState],
        *,
        queue: MessageQueue | None = None,
        timeout_seconds: float | None = None,
        check_immunity_seconds: int | None = None,
    ) -> TransactionSendResult:
        """Store the message out of sight, run the local transaction in this thread, and tell the broker how it ended.

        A local transaction that takes longer than `local_timeout_seconds` counts as UNKNOWN, but is waited for.
        """
        client = self._async_client

        def send(decide: Callable[[str], Awaitable[TransactionState]]) -> Awaitable[TransactionSendResult]:
            return client.send_in_transaction(
                message, decide, queue=queue, timeout_seconds=timeout_seconds,
                check_immunity_seconds=check_immunity_seconds,
            )  # fmt: skip

        return self._wait_answering(send, local_transaction)
