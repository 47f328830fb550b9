"""The lite pull consumer: pulls ahead in the background and hands messages out when they are asked for.

Tasks and what they own: one pull a queue; when subscribed one heartbeat and one rebalance (the only one that takes and
drops queues; `assign` does so in its caller); one that persists offsets.  One task at a time polls.  Invariants: a
message's offset is committed only after the message was handed out and the next ones were asked for, or `commit` was
called; a dropped queue's offset is committed before another member may have it; closing stops intake, persists, then
says goodbye, also under a cancellation.  Source of the rules: RocketMQ DefaultLitePullConsumerImpl.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import TracebackType

import anyio
import anyio.abc
import anyio.lowlevel

from trio_rmq.client.allocation import Allocation, allocate_averagely
from trio_rmq.client.instance import check_group, name_server_list, new_client_id
from trio_rmq.client.lite_puller import LitePuller
from trio_rmq.client.membership import GroupMembership
from trio_rmq.client.message import ReceivedMessage
from trio_rmq.client.namespace import queue_with_namespace, queues_without_namespace, with_namespace
from trio_rmq.client.offset_store import (
    LocalOffsetStore,
    OffsetStore,
    ReadOffset,
    RemoteOffsetStore,
    local_offsets_path,
)
from trio_rmq.client.queue_offsets import QueueOffsets
from trio_rmq.client.route_cache import RouteCache
from trio_rmq.client.tracing import ConsumeTracer, TraceSender, trace_topic_of
from trio_rmq.clock import wall_ms
from trio_rmq.errors import ClientError, ProtocolError, RemotingError, ResponseError, RocketMQError
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.remoting.connection import Connection, ConnectionGroup
from trio_rmq.remoting.tls_context import TlsContext
from trio_rmq.wire.codes import RequestCode
from trio_rmq.wire.command import Command, SerializeType
from trio_rmq.wire.groups import MessageQueue
from trio_rmq.wire.heartbeat import BROADCASTING, CLUSTERING, CONSUME_ACTIVELY, EXPRESSION_TAG, build_subscription

logger = logging.getLogger(__name__)

POLL_MESSAGES = 32
POLL_SECONDS = 5.0
PULL_MESSAGES = 32
COMMIT_SECONDS = 5.0
REBALANCE_SECONDS = 20.0
FIRST_RETRY_SECONDS = 0.1
GOODBYE_SECONDS = 5.0
WAITING_COUNT_MAX = 1000
WAITING_BYTES_MAX = 100 * 1024 * 1024
"""Flow control a queue: pulled messages that wait to be handed out, and the bytes of their bodies."""


class LitePullConsumer:
    """Messages of subscribed topics or assigned queues, on demand; an async context manager and iterator.

        async with LitePullConsumer("my-group", name_servers="127.0.0.1:9876") as consumer:
            await consumer.subscribe("Greetings")
            async for message in consumer:
                print(message.body)

    Subscribed, it shares the topics' queues with the other members of `group`; with `broadcasting` it has them all,
    and keeps its offsets in a file (RocketMQ's place for it, or that of a LocalOffsetStore given as `offset_store`).
    Assigned, it has the queues it was given and is no member of the group.  A queue without an offset begins at its
    first message, with `from_first=False` after its last, with `from_timestamp_ms` at that store time.

    With `auto_commit`, what was handed out counts as consumed once more is asked for, and is committed every
    `commit_seconds` and at the end; so the last batch before leaving the block comes again unless `commit()` is called.
    Without, only `commit` commits.  `namespace` stands before topics and group at the brokers, and before nothing here.
    `trace` tells of each message that is handed out in a trace topic: True in RocketMQ's own, else in the one it names.
    """

    def __init__(
        self,
        group: str,
        *,
        name_servers: str | Sequence[str] | None = None,
        broadcasting: bool = False,
        from_first: bool = True,
        from_timestamp_ms: int | None = None,
        auto_commit: bool = True,
        commit_seconds: float = COMMIT_SECONDS,
        pull_batch_size: int = PULL_MESSAGES,
        waiting_count_max: int = WAITING_COUNT_MAX,
        waiting_bytes_max: int = WAITING_BYTES_MAX,
        allocation: Allocation = allocate_averagely,
        offset_store: OffsetStore | None = None,
        namespace: str = "",
        serialize_type: SerializeType = SerializeType.JSON,
        ssl_context: TlsContext | None = None,
        use_tls: bool = False,
        trace: bool | str = False,
    ) -> None:
        self.group = group
        self.namespace = namespace
        group = with_namespace(namespace, group)
        check_group(group)
        self.client_id = new_client_id()
        self._broadcasting = broadcasting
        self._from_first = from_first
        self._from_timestamp_ms = from_timestamp_ms
        self._auto_commit = auto_commit
        self._commit_seconds = commit_seconds
        self._allocation = allocation
        self._remoting = RemotingClient(
            serialize_type=serialize_type, ssl_context=ssl_context, use_tls=use_tls, lasting=True
        )
        self._remoting.register(RequestCode.NOTIFY_CONSUMER_IDS_CHANGED, self._on_members_changed)
        routes = RouteCache(self._remoting, name_server_list(name_servers))
        self._offsets = QueueOffsets(self._remoting, routes)
        self._membership = GroupMembership(
            self._remoting, routes, group, self.client_id,
            consume_type=CONSUME_ACTIVELY, message_model=BROADCASTING if broadcasting else CLUSTERING,
            from_first=from_first, from_timestamp_ms=from_timestamp_ms,
        )  # fmt: skip
        if offset_store is not None:
            self._store = offset_store
        elif broadcasting:
            self._store = LocalOffsetStore(local_offsets_path(group))
        else:
            self._store = RemoteOffsetStore(self._remoting, group, self._offsets.address)
        self._subscriptions = self._membership.subscriptions
        self._mode: str | None = None
        self._puller = LitePuller(
            self._remoting, self._offsets, group, self._subscriptions,
            pull_batch_size=pull_batch_size, count_max=waiting_count_max, size_max_bytes=waiting_bytes_max,
            namespace=namespace,
        )  # fmt: skip
        topic = trace_topic_of(trace)
        self._traces = TraceSender(self._remoting, routes, topic, group, "CONSUME") if topic else None
        self._tracer = ConsumeTracer(self._traces, self.group) if self._traces is not None else None
        self._polling = False
        self._assigning = anyio.Lock()
        self._rebalance_now = anyio.Event()
        self._rebalanced = anyio.Event()
        self._tasks: anyio.abc.TaskGroup | None = None
        self._closed = False

    # -- life ---------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> LitePullConsumer:
        await self._store.load()
        await self._remoting.__aenter__()
        self._task_group = ConnectionGroup()
        self._tasks = await self._task_group.__aenter__()
        self._tasks.start_soon(self._run_persist)
        if self._traces is not None:
            self._tasks.start_soon(self._traces.run)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closed = True
        self._puller.tell_arrival()
        try:
            await self._task_group.__aexit__(kind, error, traceback)
        finally:
            try:
                if self._traces is not None:
                    await self._traces.flush()
                with anyio.move_on_after(GOODBYE_SECONDS, shield=True):
                    await self._persist_quietly()
                    await self._membership.say_goodbye()
            finally:
                await self._remoting.__aexit__(kind, error, traceback)

    def _open_tasks(self) -> anyio.abc.TaskGroup:
        if self._tasks is None or self._closed:
            raise ClientError("the consumer is not open: use it inside `async with`")
        return self._tasks

    def _choose(self, mode: str) -> None:
        if self._mode not in (None, mode):
            raise ClientError(
                f"the consumer has queues by {self._mode} already: subscribe and assign exclude each other"
            )
        self._mode = mode

    # -- which queues -------------------------------------------------------------------------------------------

    async def subscribe(self, topic: str, expression: str = "*", *, expression_type: str = EXPRESSION_TAG) -> None:
        """Consume `topic` as a member of the group; `expression` is `*`, tags like `a || b`, or of another type.

        Queues are taken soon after.  ProtocolError when the expression cannot be parsed, ResponseError when the broker
        cannot read it or serves no filters of its type.
        """
        tasks = self._open_tasks()
        topic = with_namespace(self.namespace, topic)
        subscription = build_subscription(topic, expression, expression_type=expression_type, sub_version=wall_ms())
        await self._membership.check(subscription)
        first = self._mode is None
        self._choose("subscribe")
        self._subscriptions[topic] = subscription
        if first:
            tasks.start_soon(self._membership.run_heartbeat)
            tasks.start_soon(self._run_rebalance)
        await self._membership.introduce()
        self._rebalance_now.set()

    async def unsubscribe(self, topic: str) -> None:
        """Let go of a topic: nothing of it is handed out any more; its queues go to others soon after."""
        self._open_tasks()
        topic = with_namespace(self.namespace, topic)
        if self._subscriptions.pop(topic, None) is not None:
            for queue in self._puller.queues(topic):
                self._puller.pause(queue)
            await self._membership.introduce()
            self._rebalance_now.set()

    async def assign(
        self, queues: Collection[MessageQueue], expression: str = "*", *, expression_type: str = EXPRESSION_TAG
    ) -> None:
        """Consume exactly these queues; those given before and now again go on where they are.

        RouteNotFoundError, RemotingError or ResponseError when a queue's first offset is not to be had, or the broker
        cannot read the expression.
        """
        self._open_tasks()
        self._choose("assign")
        queues = [self._full(queue) for queue in queues]
        async with self._assigning:
            subscriptions = [
                build_subscription(topic, expression, expression_type=expression_type, sub_version=wall_ms())
                for topic in sorted({queue.topic for queue in queues})
            ]
            for subscription in subscriptions:
                await self._membership.check(subscription)
            self._subscriptions.update({subscription.topic: subscription for subscription in subscriptions})
            for queue in set(self._puller.queues()) - set(queues):
                await self._drop(queue)
            for queue in queues:
                if queue not in self._puller:
                    self._take(queue, await self._first_offset(queue))

    def assignment(self) -> list[MessageQueue]:
        """The queues that this consumer has now."""
        return queues_without_namespace(self.namespace, self._puller.queues())

    async def wait_assignment(self, wanted: Callable[[list[MessageQueue]], bool]) -> None:
        """Wait until `wanted` holds of the queues that this consumer has; asked after each round of rebalancing."""
        while not wanted(self.assignment()):
            await self._rebalanced.wait()

    async def queues(self, topic: str) -> list[MessageQueue]:
        """All queues of a topic, for `assign`; errors as of a PullConsumer."""
        self._open_tasks()
        found = await self._offsets.queues(with_namespace(self.namespace, topic))
        return queues_without_namespace(self.namespace, found)

    # -- messages -----------------------------------------------------------------------------------------------

    async def poll(
        self, max_messages: int = POLL_MESSAGES, *, timeout_seconds: float = POLL_SECONDS
    ) -> list[ReceivedMessage]:
        """The next messages, as soon as there is one; none when the time is over.

        Queues come in turn, each in its order.  A cancelled poll hands nothing out.  ClientError when another task is
        polling: whose messages are done could not be told.
        """
        self._open_tasks()
        if self._polling:
            raise ClientError("another task polls this consumer: let one task poll and hand messages on")
        if self._auto_commit:
            self._puller.acknowledge()
        self._polling = True
        try:
            await anyio.lowlevel.checkpoint()
            messages = self._puller.next_messages(max_messages)
            with anyio.move_on_after(timeout_seconds):
                while not messages and not self._closed:
                    await self._puller.wait_arrival()
                    messages = self._puller.next_messages(max_messages)
            if messages and self._tracer is not None:
                self._tracer.note_handed_out(messages)
            return messages
        finally:
            self._polling = False

    def __aiter__(self) -> LitePullConsumer:
        return self

    async def __anext__(self) -> ReceivedMessage:
        """The next message; with `auto_commit` the one before counts as consumed."""
        messages = await self.poll(1, timeout_seconds=math.inf)
        if not messages:
            raise StopAsyncIteration
        return messages[0]

    # -- places -------------------------------------------------------------------------------------------------

    async def seek(self, queue: MessageQueue, offset: int) -> None:
        """Go on at `offset`, back or forth; what was pulled is forgotten.

        ClientError for a queue that is not this consumer's, or an offset outside of what the broker has.
        """
        queue = self._check_held(queue)
        first, after = await self._offsets.min_offset(queue), await self._offsets.max_offset(queue)
        if not first <= offset <= after:
            raise ClientError(f"offset {offset} of {queue} is not between {first} and {after}")
        self._puller.go_to(queue, offset)

    async def seek_to_begin(self, queue: MessageQueue) -> None:
        """Go on at the first message still kept."""
        queue = self._check_held(queue)
        self._puller.go_to(queue, await self._offsets.min_offset(queue))

    async def seek_to_end(self, queue: MessageQueue) -> None:
        """Go on after the last message."""
        queue = self._check_held(queue)
        self._puller.go_to(queue, await self._offsets.max_offset(queue))

    async def offset_for_timestamp(self, queue: MessageQueue, timestamp_ms: int) -> int:
        """The offset of the first message stored at or after the time (milliseconds since 1970), else the next one."""
        self._open_tasks()
        return await self._offsets.offset_for_timestamp(self._full(queue), timestamp_ms)

    def pause(self, queues: Iterable[MessageQueue]) -> None:
        """Hand out nothing of these queues, and pull no more of them, until `resume`; what was pulled stays."""
        self._open_tasks()
        for queue in queues:
            self._puller.pause(self._full(queue))

    def resume(self, queues: Iterable[MessageQueue]) -> None:
        """Undo `pause`."""
        self._open_tasks()
        for queue in queues:
            self._puller.resume(self._full(queue))

    def _check_held(self, queue: MessageQueue) -> MessageQueue:
        self._open_tasks()
        queue = self._full(queue)
        self._puller.check(queue)
        return queue

    def _full(self, queue: MessageQueue) -> MessageQueue:
        return queue_with_namespace(self.namespace, queue)

    # -- offsets ------------------------------------------------------------------------------------------------

    async def commit(self, offsets: Mapping[MessageQueue, int] | None = None) -> None:
        """All that was handed out is consumed - or, of the queues given, all before that offset - and kept on return.

        RemotingError, ResponseError or ClientError when it could not be kept; it is tried again with the next commit.
        """
        self._open_tasks()
        if offsets is None:
            self._puller.acknowledge()
            self._remember()
            queues = self._puller.queues()
        else:
            full = {self._full(queue): offset for queue, offset in offsets.items()}
            queues = list(full)
            for queue, offset in full.items():
                self._puller.acknowledge_before(queue, offset)
                self._store.table.update(queue, offset, increase_only=False)
        await self._store.persist(queues)

    async def committed(self, queue: MessageQueue) -> int | None:
        """Where the group goes on in the queue: as remembered here, else as the store has it."""
        self._open_tasks()
        return await self._store.read(self._full(queue), ReadOffset.MEMORY_FIRST)

    def _remember(self) -> None:
        for queue, offset in self._puller.commit_offsets().items():
            self._store.table.update(queue, offset, increase_only=False)

    async def _persist_quietly(self) -> None:
        if self._auto_commit:
            self._remember()
        try:
            await self._store.persist(self._puller.queues())
        except RocketMQError as error:
            logger.warning("group %s: offsets are not committed: %s", self.group, error)

    async def _run_persist(self) -> None:
        while True:
            await anyio.sleep(self._commit_seconds)
            await self._persist_quietly()

    # -- taking and dropping ------------------------------------------------------------------------------------

    async def _on_members_changed(self, connection: Connection, command: Command) -> None:
        self._rebalance_now.set()

    async def _run_rebalance(self) -> None:
        retry_seconds: float | None = None  # after a round that could not be finished
        while True:
            with anyio.move_on_after(REBALANCE_SECONDS if retry_seconds is None else retry_seconds):
                await self._rebalance_now.wait()
            self._rebalance_now = anyio.Event()
            if retry_seconds is not None:  # maybe a broker was not known before, so it knows nothing of us
                await self._membership.introduce()
            topics = {*self._subscriptions, *(queue.topic for queue in self._puller.queues())}
            if all([await self._rebalance(topic) for topic in sorted(topics)]):
                retry_seconds = None
            else:
                retry_seconds = min((retry_seconds or FIRST_RETRY_SECONDS) * 2, REBALANCE_SECONDS)
            self._rebalanced.set()
            self._rebalanced = anyio.Event()

    async def _rebalance(self, topic: str) -> bool:
        """Take and drop queues of `topic` as they are allocated by now; False when that could not be told or done."""
        try:
            mine: list[MessageQueue] = []
            is_member = True
            if topic in self._subscriptions:
                mine = await self._offsets.queues(topic)
                if not self._broadcasting:
                    members = await self._membership.members(topic)
                    is_member = self.client_id in members
                    mine = self._allocation(self.client_id, mine, members) if is_member else []
            for queue in self._puller.queues(topic):
                if queue not in mine:
                    await self._drop(queue)
            fresh = [queue for queue in mine if queue not in self._puller]
            if isinstance(self._store, RemoteOffsetStore):
                await self._store.read_ahead(fresh)
            for queue in fresh:
                self._take(queue, await self._first_offset(queue))
        except (RemotingError, ResponseError, ProtocolError, ClientError) as error:
            logger.debug("group %s: no rebalance of %s now: %s", self.group, topic, error)
            return False
        return is_member

    async def _first_offset(self, queue: MessageQueue) -> int:
        offset = await self._store.read(queue, ReadOffset.MEMORY_FIRST)
        if offset is not None:
            return offset
        if self._from_timestamp_ms is not None:
            return await self._offsets.offset_for_timestamp(queue, self._from_timestamp_ms)
        return await (self._offsets.min_offset(queue) if self._from_first else self._offsets.max_offset(queue))

    def _take(self, queue: MessageQueue, offset: int) -> None:
        self._puller.take(queue, offset, self._open_tasks())
        logger.info("group %s takes %s from %d", self.group, queue, offset)

    async def _drop(self, queue: MessageQueue) -> None:
        """Stop pulling and handing out, keep what is done, and only then let go."""
        offset = self._puller.stop(queue)
        if self._auto_commit:
            self._store.table.update(queue, offset, increase_only=False)
        try:
            await self._store.persist([queue])
        except RocketMQError as error:
            logger.warning("group %s: the offset of %s is not committed: %s", self.group, queue, error)
        self._puller.remove(queue)
        self._store.table.forget(queue)
        logger.info("group %s lets go of %s at %d", self.group, queue, offset)
