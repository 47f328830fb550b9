"""Consumers with blocking methods; each means what the async consumer's method of the same name means.

with LitePullConsumer("my-group", name_servers="127.0.0.1:9876") as consumer:
    consumer.subscribe("Greetings")
    for message in consumer:
        print(message.body)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TypedDict, Unpack

import anyio

from trio_rmq.client import lite_pull_consumer, pull_consumer, push_consumer
from trio_rmq.client.allocation import Allocation
from trio_rmq.client.blocking.portal import BlockingClient, BlockingPortalProvider
from trio_rmq.client.flow_control import FlowControl
from trio_rmq.client.lag import QueueLag
from trio_rmq.client.listening import BlockingListener, Interceptor, in_thread
from trio_rmq.client.lite_pull_consumer import POLL_MESSAGES, POLL_SECONDS
from trio_rmq.client.message import ReceivedMessage
from trio_rmq.client.offset_store import OffsetStore
from trio_rmq.client.pull_calls import PullResult
from trio_rmq.client.pull_consumer import PULL_MESSAGES
from trio_rmq.remoting.tls_context import TlsContext
from trio_rmq.wire.command import SerializeType
from trio_rmq.wire.groups import MessageQueue
from trio_rmq.wire.heartbeat import EXPRESSION_TAG


class LitePullSettings(TypedDict, total=False):
    """What may be said of a lite pull consumer; see `trio_rmq.client.LitePullConsumer`."""

    name_servers: str | Sequence[str] | None
    broadcasting: bool
    from_first: bool
    from_timestamp_ms: int | None
    auto_commit: bool
    commit_seconds: float
    pull_batch_size: int
    waiting_count_max: int
    waiting_bytes_max: int
    allocation: Allocation
    offset_store: OffsetStore | None
    namespace: str
    serialize_type: SerializeType
    ssl_context: TlsContext | None
    use_tls: bool
    trace: bool | str


class LitePullConsumer(BlockingClient[lite_pull_consumer.LitePullConsumer]):
    """`trio_rmq.client.LitePullConsumer` for a program without an event loop; one thread at a time may iterate."""

    def __init__(
        self, group: str, *, portal: BlockingPortalProvider | None = None, **settings: Unpack[LitePullSettings]
    ) -> None:
        super().__init__(lambda: lite_pull_consumer.LitePullConsumer(group, **settings), portal)

    def subscribe(self, topic: str, expression: str = "*", *, expression_type: str = EXPRESSION_TAG) -> None:
        """Consume `topic` as a member of the group."""
        self._wait(self._async_client.subscribe, topic, expression, expression_type=expression_type)

    def unsubscribe(self, topic: str) -> None:
        """Let go of a topic."""
        self._wait(self._async_client.unsubscribe, topic)

    def assign(
        self, queues: Collection[MessageQueue], expression: str = "*", *, expression_type: str = EXPRESSION_TAG
    ) -> None:
        """Consume exactly these queues."""
        self._wait(self._async_client.assign, queues, expression, expression_type=expression_type)

    def assignment(self) -> list[MessageQueue]:
        """The queues that this consumer has now."""
        return self._do(self._async_client.assignment)

    def wait_assignment(self, wanted: Callable[[list[MessageQueue]], bool]) -> None:
        """Wait until `wanted` holds of the queues that this consumer has; it is called in the loop's thread."""
        self._wait(self._async_client.wait_assignment, wanted)

    def queues(self, topic: str) -> list[MessageQueue]:
        """All queues of a topic, for `assign`."""
        return self._wait(self._async_client.queues, topic)

    def poll(
        self, max_messages: int = POLL_MESSAGES, *, timeout_seconds: float = POLL_SECONDS
    ) -> list[ReceivedMessage]:
        """The next messages, as soon as there is one; none when the time is over."""
        return self._wait(self._async_client.poll, max_messages, timeout_seconds=timeout_seconds)

    def __iter__(self) -> LitePullConsumer:
        return self

    def __next__(self) -> ReceivedMessage:
        """The next message; with `auto_commit` the one before counts as consumed."""
        try:
            return self._wait(self._async_client.__anext__)
        except StopAsyncIteration:
            raise StopIteration from None

    def seek(self, queue: MessageQueue, offset: int) -> None:
        """Go on at `offset`, back or forth."""
        self._wait(self._async_client.seek, queue, offset)

    def seek_to_begin(self, queue: MessageQueue) -> None:
        """Go on at the first message still kept."""
        self._wait(self._async_client.seek_to_begin, queue)

    def seek_to_end(self, queue: MessageQueue) -> None:
        """Go on after the last message."""
        self._wait(self._async_client.seek_to_end, queue)

    def offset_for_timestamp(self, queue: MessageQueue, timestamp_ms: int) -> int:
        """The offset of the first message stored at or after the time (milliseconds since 1970), else the next one."""
        return self._wait(self._async_client.offset_for_timestamp, queue, timestamp_ms)

    def pause(self, queues: Iterable[MessageQueue]) -> None:
        """Hand out nothing of these queues until `resume`."""
        self._do(self._async_client.pause, queues)

    def resume(self, queues: Iterable[MessageQueue]) -> None:
        """Undo `pause`."""
        self._do(self._async_client.resume, queues)

    def commit(self, offsets: Mapping[MessageQueue, int] | None = None) -> None:
        """All that was handed out is consumed - or all before these offsets - and kept on return."""
        self._wait(self._async_client.commit, offsets)

    def committed(self, queue: MessageQueue) -> int | None:
        """Where the group goes on in the queue."""
        return self._wait(self._async_client.committed, queue)


class PullConsumer(BlockingClient[pull_consumer.PullConsumer]):
    """`trio_rmq.client.PullConsumer` for a program without an event loop."""

    def __init__(
        self,
        group: str,
        *,
        name_servers: str | Sequence[str] | None = None,
        namespace: str = "",
        serialize_type: SerializeType = SerializeType.JSON,
        ssl_context: TlsContext | None = None,
        use_tls: bool = False,
        portal: BlockingPortalProvider | None = None,
    ) -> None:
        super().__init__(
            lambda: pull_consumer.PullConsumer(
                group,
                name_servers=name_servers,
                namespace=namespace,
                serialize_type=serialize_type,
                ssl_context=ssl_context,
                use_tls=use_tls,
            ),
            portal,
        )

    def pull(
        self,
        queue: MessageQueue,
        offset: int,
        *,
        expression: str = "*",
        expression_type: str = EXPRESSION_TAG,
        max_messages: int = PULL_MESSAGES,
        hold_seconds: float = 0.0,
    ) -> PullResult:
        """Up to `max_messages` from `offset` on; go on at the result's `next_offset`, whatever its status."""
        return self._wait(
            self._async_client.pull, queue, offset, expression=expression, expression_type=expression_type,
            max_messages=max_messages, hold_seconds=hold_seconds,
        )  # fmt: skip

    def queues(self, topic: str) -> list[MessageQueue]:
        """The topic's queues that can be read."""
        return self._wait(self._async_client.queues, topic)

    def min_offset(self, queue: MessageQueue) -> int:
        """The offset of the queue's first message still kept."""
        return self._wait(self._async_client.min_offset, queue)

    def max_offset(self, queue: MessageQueue) -> int:
        """The offset that the queue's next message will have."""
        return self._wait(self._async_client.max_offset, queue)

    def offset_for_timestamp(self, queue: MessageQueue, timestamp_ms: int) -> int:
        """The offset of the first message stored at or after the time (milliseconds since 1970), else the next one."""
        return self._wait(self._async_client.offset_for_timestamp, queue, timestamp_ms)

    def committed(self, queue: MessageQueue) -> int | None:
        """Where the group goes on in the queue; None when it never committed."""
        return self._wait(self._async_client.committed, queue)

    def commit(self, queue: MessageQueue, offset: int) -> None:
        """Tell the broker that the group goes on at `offset`; acknowledged on return."""
        self._wait(self._async_client.commit, queue, offset)


class PushSettings(TypedDict, total=False):
    """What may be said of a push consumer; see `trio_rmq.client.PushConsumer`."""

    name_servers: str | Sequence[str] | None
    orderly: bool
    broadcasting: bool
    batch_size: int
    concurrency: int | anyio.CapacityLimiter
    pull_batch_size: int
    flow_control: FlowControl | None
    from_first: bool
    from_timestamp_ms: int | None
    allocation: Allocation
    interceptors: Sequence[Interceptor]
    max_reconsume_times: int | None
    consume_timeout_seconds: float | None
    suspend_seconds: float
    local_retry_seconds: float
    commit_seconds: float
    grace_seconds: float
    offset_store: OffsetStore | None
    namespace: str
    serialize_type: SerializeType
    ssl_context: TlsContext | None
    use_tls: bool
    trace: bool | str


class PushConsumer(BlockingClient[push_consumer.PushConsumer]):
    """`trio_rmq.client.PushConsumer` for a program without an event loop: listeners are plain functions.

    They run in worker threads, at most `concurrency` at once.
    """

    def __init__(
        self, group: str, *, portal: BlockingPortalProvider | None = None, **settings: Unpack[PushSettings]
    ) -> None:
        concurrency = settings.get("concurrency", push_consumer.CONCURRENCY)
        # Not the limiter itself: the consumer's workers hold its tokens while their threads run.
        self._threads_max = concurrency if isinstance(concurrency, int) else concurrency.total_tokens
        self._threads: anyio.CapacityLimiter | None = None
        super().__init__(lambda: push_consumer.PushConsumer(group, **settings), portal)

    def subscribe(
        self,
        topic: str,
        listener: BlockingListener,
        *,
        expression: str = "*",
        expression_type: str = EXPRESSION_TAG,
    ) -> None:
        """Consume `topic` with a blocking function, called in worker threads."""
        client = self._async_client
        if self._threads is None:
            self._threads = self._do(anyio.CapacityLimiter, self._threads_max)
        self._wait(
            client.subscribe, topic, in_thread(listener, limiter=self._threads),
            expression=expression, expression_type=expression_type,
        )  # fmt: skip

    def unsubscribe(self, topic: str) -> None:
        """Let go of a topic."""
        self._wait(self._async_client.unsubscribe, topic)

    def suspend(self) -> None:
        """Begin no more listener calls, and pull nothing, until `resume`."""
        self._do(self._async_client.suspend)

    def resume(self) -> None:
        """Undo `suspend`."""
        self._do(self._async_client.resume)

    def queues(self) -> list[MessageQueue]:
        """The queues that this member consumes now."""
        return self._do(self._async_client.queues)

    def wait_queues(self, wanted: Callable[[list[MessageQueue]], bool]) -> None:
        """Wait until `wanted` holds of the queues that this member consumes; it is called in the loop's thread."""
        self._wait(self._async_client.wait_queues, wanted)

    def lag(self, topic: str | None = None) -> dict[MessageQueue, QueueLag]:
        """How far the group is behind, by what was committed."""
        return self._wait(self._async_client.lag, topic)

    def commit(self) -> None:
        """Keep the progress of now: all that is finished."""
        self._wait(self._async_client.commit)
