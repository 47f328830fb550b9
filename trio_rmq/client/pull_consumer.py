"""The pull consumer: reads queues at offsets that its user chooses and keeps, one request a call.

No tasks, no membership of a group: nothing is pulled, shared out or committed by itself.  For queues that are shared
among members, buffered and committed, see LitePullConsumer.  Source: RocketMQ DefaultMQPullConsumer.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from trio_rmq.client import group_calls
from trio_rmq.client.instance import check_group, name_server_list
from trio_rmq.client.namespace import queue_with_namespace, queues_without_namespace, with_namespace
from trio_rmq.client.pull_calls import PullResult, pull_filtered
from trio_rmq.client.queue_offsets import QueueOffsets
from trio_rmq.client.route_cache import RouteCache
from trio_rmq.errors import ClientError
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.remoting.tls_context import TlsContext
from trio_rmq.wire.command import SerializeType
from trio_rmq.wire.groups import MessageQueue
from trio_rmq.wire.heartbeat import EXPRESSION_TAG, build_subscription

PULL_MESSAGES = 32


class PullConsumer:
    """Pulls in the name of `group`; an async context manager.

        async with PullConsumer("my-group", name_servers="127.0.0.1:9876") as consumer:
            for queue in await consumer.queues("Greetings"):
                result = await consumer.pull(queue, await consumer.min_offset(queue))

    `namespace` stands before topics and group at the brokers.
    Its methods raise ClientError outside the block, RouteNotFoundError for a topic nobody knows, RemotingError for a
    server that does not answer, ResponseError for one that refuses.  Any number of tasks may call them at once.
    """

    def __init__(
        self,
        group: str,
        *,
        name_servers: str | Sequence[str] | None = None,
        namespace: str = "",
        serialize_type: SerializeType = SerializeType.JSON,
        ssl_context: TlsContext | None = None,
        use_tls: bool = False,
    ) -> None:
        self.group = group
        self.namespace = namespace
        self._group_name = with_namespace(namespace, group)
        check_group(self._group_name)
        self._remoting = RemotingClient(serialize_type=serialize_type, ssl_context=ssl_context, use_tls=use_tls)
        self._offsets = QueueOffsets(self._remoting, RouteCache(self._remoting, name_server_list(name_servers)))
        self._open = False

    async def __aenter__(self) -> PullConsumer:
        await self._remoting.__aenter__()
        self._open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open = False
        await self._remoting.__aexit__(kind, error, traceback)

    async def pull(
        self,
        queue: MessageQueue,
        offset: int,
        *,
        expression: str = "*",
        expression_type: str = EXPRESSION_TAG,
        max_messages: int = PULL_MESSAGES,
        hold_seconds: float = 0.0,
    ) -> PullResult:
        """Up to `max_messages` from `offset` on; go on at the result's `next_offset`, whatever its status.

        `expression` is `*`, tags like `a || b`, or a filter of another `expression_type`; with nothing there, the
        broker holds the pull for up to `hold_seconds` until something comes.  ProtocolError for an expression that
        cannot be parsed.
        """
        self._check_open()
        if offset < 0 or max_messages < 1:
            raise ClientError(
                f"cannot pull {max_messages} messages from offset {offset}: give 1 or more, and 0 or more"
            )
        queue = queue_with_namespace(self.namespace, queue)
        return await pull_filtered(
            self._remoting,
            await self._offsets.address(queue),
            self._group_name,
            queue,
            offset=offset,
            subscription=build_subscription(queue.topic, expression, expression_type=expression_type),
            max_messages=max_messages,
            hold_seconds=hold_seconds,
            namespace=self.namespace,
        )

    async def queues(self, topic: str) -> list[MessageQueue]:
        """The topic's queues that can be read."""
        self._check_open()
        found = await self._offsets.queues(with_namespace(self.namespace, topic))
        return queues_without_namespace(self.namespace, found)

    async def min_offset(self, queue: MessageQueue) -> int:
        """The offset of the queue's first message still kept."""
        self._check_open()
        return await self._offsets.min_offset(queue_with_namespace(self.namespace, queue))

    async def max_offset(self, queue: MessageQueue) -> int:
        """The offset that the queue's next message will have."""
        self._check_open()
        return await self._offsets.max_offset(queue_with_namespace(self.namespace, queue))

    async def offset_for_timestamp(self, queue: MessageQueue, timestamp_ms: int) -> int:
        """The offset of the first message stored at or after the time (milliseconds since 1970), else the next one."""
        self._check_open()
        return await self._offsets.offset_for_timestamp(queue_with_namespace(self.namespace, queue), timestamp_ms)

    async def committed(self, queue: MessageQueue) -> int | None:
        """Where the group goes on in the queue by what the broker knows; None when it never committed."""
        self._check_open()
        queue = queue_with_namespace(self.namespace, queue)
        address = await self._offsets.address(queue)
        return await group_calls.committed_offset(self._remoting, address, self._group_name, queue)

    async def commit(self, queue: MessageQueue, offset: int) -> None:
        """Tell the broker that the group goes on at `offset`; acknowledged on return."""
        self._check_open()
        queue = queue_with_namespace(self.namespace, queue)
        await group_calls.commit(self._remoting, await self._offsets.address(queue), self._group_name, queue, offset)

    def _check_open(self) -> None:
        if not self._open:
            raise ClientError("the consumer is not open: use it inside `async with`")
