"""The push consumer: gives each message of its topics to an async listener, sharing queues with its group's members.

Here stand its settings, its life and what its user may call; the work is done by parts with a task, or tasks, of their
own: `rebalance` takes and leaves queues, `push_puller` pulls them, `concurrent_consuming` or `orderly_consuming` calls
listeners, `membership` sends heartbeats; here runs what commits offsets.  Invariants: an offset is committed only when
every message before it was consumed or given back; a queue's progress is kept before another member may have it;
closing ends intake first, lets running listeners end, commits, gives locks back, then says goodbye.  A cancel anywhere
leaves unfinished messages uncommitted: they are delivered again.  Source of the rules: RocketMQ
DefaultMQPushConsumerImpl.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from types import TracebackType

import anyio
import anyio.abc

from trio_rmq.client.allocation import Allocation, allocate_averagely
from trio_rmq.client.broker_calls import BrokerCalls
from trio_rmq.client.concurrent_consuming import ConcurrentConsuming
from trio_rmq.client.consumer_figures import ConsumerFigures
from trio_rmq.client.consuming import Consuming, Delivery
from trio_rmq.client.flow_control import FlowControl, Room
from trio_rmq.client.held_queue import RETRY_PREFIX, HeldQueue
from trio_rmq.client.instance import check_group, name_server_list, new_client_id
from trio_rmq.client.lag import QueueLag, group_lag
from trio_rmq.client.listening import Interceptor, Listener, intercepted
from trio_rmq.client.membership import GroupMembership
from trio_rmq.client.message import ReceivedMessage
from trio_rmq.client.namespace import queue_without_namespace, queues_without_namespace, with_namespace
from trio_rmq.client.offset_store import LocalOffsetStore, OffsetStore, RemoteOffsetStore, local_offsets_path
from trio_rmq.client.orderly_consuming import OrderlyConsuming
from trio_rmq.client.push_puller import PushPuller
from trio_rmq.client.queue_locks import QueueLocks
from trio_rmq.client.queue_offsets import QueueOffsets
from trio_rmq.client.rebalance import Rebalance
from trio_rmq.client.route_cache import RouteCache
from trio_rmq.client.send_back import SendBack
from trio_rmq.client.tracing import ConsumeTracer, TraceSender, trace_topic_of
from trio_rmq.clock import wall_ms
from trio_rmq.errors import ClientError, RocketMQError
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.remoting.connection import ConnectionGroup
from trio_rmq.remoting.tls_context import TlsContext
from trio_rmq.wire import running
from trio_rmq.wire.command import SerializeType
from trio_rmq.wire.groups import MessageQueue
from trio_rmq.wire.heartbeat import (
    BROADCASTING,
    CLUSTERING,
    CONSUME_PASSIVELY,
    EXPRESSION_TAG,
    build_subscription,
)

logger = logging.getLogger(__name__)

CONCURRENCY = 20
COMMIT_SECONDS = 5.0
LOCAL_RETRY_SECONDS = 5.0
"""Pause before messages that could not be given back are consumed again here."""
CONSUME_TIMEOUT_SECONDS = 900.0
SUSPEND_SECONDS = 1.0
GOODBYE_SECONDS = 5.0


class PushConsumer:
    """Consumes topics as a member of `group`; an async context manager that consumes while its block runs.

        async def listen(messages):
            for message in messages:
                print(message.body)

        async with PushConsumer("my-group", name_servers="127.0.0.1:9876") as consumer:
            await consumer.subscribe("Greetings", listen)
            await anyio.sleep_forever()

    `orderly` calls the listener with the messages of a queue one after the other; the queue is locked at its broker.
    `broadcasting` gives this member all queues, keeps offsets in a local file and retries nothing.
    `batch_size` is the most messages per listener call, `concurrency` the most calls at a time (a CapacityLimiter is
    shared with whoever else has it), `flow_control` how much is held unfinished.  A group that has no offset in a queue
    begins at its first message, with `from_first=False` after its last, with `from_timestamp_ms` at that store time.

    A message whose listener call raised, or said so, is delivered again by the broker, at most `max_reconsume_times`
    times (None: 16, orderly: without end), then it is a dead letter.  A call is cancelled, and counts as failed, after
    `consume_timeout_seconds`.  `suspend_seconds` is an orderly queue's pause before it tries a failed message again,
    `local_retry_seconds` that before a message is consumed again which no broker took back.  `grace_seconds` is how
    long closing waits for running calls.  `trace` tells of each listener call in a trace topic: True in RocketMQ's own,
    else in the one it names.
    `namespace` stands before topics and group at the brokers, and before nothing here.
    """

    def __init__(
        self,
        group: str,
        *,
        name_servers: str | Sequence[str] | None = None,
        orderly: bool = False,
        broadcasting: bool = False,
        batch_size: int = 1,
        concurrency: int | anyio.CapacityLimiter = CONCURRENCY,
        pull_batch_size: int = 32,
        flow_control: FlowControl | None = None,
        from_first: bool = True,
        from_timestamp_ms: int | None = None,
        allocation: Allocation = allocate_averagely,
        interceptors: Sequence[Interceptor] = (),
        max_reconsume_times: int | None = None,
        consume_timeout_seconds: float | None = CONSUME_TIMEOUT_SECONDS,
        suspend_seconds: float = SUSPEND_SECONDS,
        local_retry_seconds: float = LOCAL_RETRY_SECONDS,
        commit_seconds: float = COMMIT_SECONDS,
        grace_seconds: float = 30.0,
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
        if batch_size < 1 or pull_batch_size < 1 or (isinstance(concurrency, int) and concurrency < 1):
            raise ClientError("batch_size, pull_batch_size and concurrency must be 1 or more")
        self._group_name = group
        self.client_id = new_client_id()
        self._orderly = orderly
        self._broadcasting = broadcasting
        self._concurrency = concurrency if isinstance(concurrency, int) else max(int(concurrency.total_tokens), 1)
        self._interceptors = tuple(interceptors)
        self._commit_seconds = commit_seconds
        self._grace_seconds = grace_seconds
        self._started_ms = 0
        self._name_servers = name_server_list(name_servers)
        self._remoting = RemotingClient(
            serialize_type=serialize_type, ssl_context=ssl_context, use_tls=use_tls, lasting=True
        )
        routes = RouteCache(self._remoting, self._name_servers)
        topic = trace_topic_of(trace)
        self._traces = TraceSender(self._remoting, routes, topic, group, "CONSUME") if topic else None
        if self._traces is not None:
            tracer = ConsumeTracer(self._traces, self.group, consume_timeout_seconds)
            self._interceptors = (tracer, *self._interceptors)
        self._offsets = QueueOffsets(self._remoting, routes)
        self._membership = GroupMembership(
            self._remoting, routes, group, self.client_id,
            consume_type=CONSUME_PASSIVELY, message_model=BROADCASTING if broadcasting else CLUSTERING,
            from_first=from_first, from_timestamp_ms=from_timestamp_ms,
        )  # fmt: skip
        self._subscriptions = self._membership.subscriptions
        self._listeners: dict[str, Listener] = {}
        self._held: dict[MessageQueue, HeldQueue] = {}
        if offset_store is not None:
            self._store = offset_store
        elif broadcasting:
            self._store = LocalOffsetStore(local_offsets_path(group))
        else:
            self._store = RemoteOffsetStore(self._remoting, group, self._offsets.address)
        room = Room(flow_control or FlowControl(), self._held, orderly=orderly)
        self._figures = ConsumerFigures()
        self._delivery = Delivery(
            group=group,
            listeners=self._listeners,
            send_back=SendBack(self._remoting, routes, self._offsets, group, max_reconsume_times),
            room=room,
            figures=self._figures,
            batch_size=batch_size,
            limiter=anyio.CapacityLimiter(concurrency) if isinstance(concurrency, int) else concurrency,
            is_limiter_shared=not isinstance(concurrency, int),
            broadcasting=broadcasting,
            max_reconsume_times=max_reconsume_times,
            consume_timeout_seconds=consume_timeout_seconds,
            local_retry_seconds=local_retry_seconds,
            suspend_seconds=suspend_seconds,
        )
        self._locks: QueueLocks | None = None
        if orderly and not broadcasting:
            self._locks = QueueLocks(self._remoting, self._offsets, group, self.client_id)
        self._rebalance = Rebalance(
            self._membership, self._offsets, self._store, allocation,
            group=group, client_id=self.client_id, broadcasting=broadcasting, from_first=from_first,
            from_timestamp_ms=from_timestamp_ms, orderly=orderly, locks=self._locks, on_take=self._on_take,
            held=self._held,
        )  # fmt: skip
        self._puller = PushPuller(
            self._remoting, self._offsets, group, self._subscriptions, room, self._figures,
            batch_size=pull_batch_size, broadcasting=broadcasting, accept=self._accept,
            restart=self._rebalance.restart, introduce=self._rebalance.introduce, namespace=namespace,
        )  # fmt: skip
        BrokerCalls(
            self._delivery, lambda: self._consuming, self._rebalance, self._held, self._subscriptions,
            self._properties, orderly=orderly, namespace=namespace,
        ).register(self._remoting)  # fmt: skip
        self._intake: anyio.abc.TaskGroup | None = None
        self._consuming: Consuming

    # -- life ---------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> PushConsumer:
        if self._intake is not None:
            raise ClientError("a consumer is opened once: make another one")
        self._life = self._open()
        await self._life.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._life.__aexit__(kind, error, traceback)

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[None]:
        """From the outside in: what is needed longest ends last."""
        await self._store.load()
        self._started_ms = wall_ms()
        async with self._remoting:
            try:
                async with ConnectionGroup() as services, ConnectionGroup() as consuming:
                    self._consuming = self._start_consuming(consuming)
                    services.start_soon(self._membership.run_heartbeat)
                    services.start_soon(self._consuming.run)
                    services.start_soon(self._run_commit)
                    if self._traces is not None:
                        services.start_soon(self._traces.run)
                    try:
                        async with ConnectionGroup() as self._intake:
                            self._intake.start_soon(self._rebalance.run)
                            try:
                                yield
                            finally:
                                self._delivery.open = False
                                self._delivery.closing.set()
                    finally:
                        with anyio.move_on_after(self._grace_seconds):
                            await self._consuming.wait_calls_ended()
            finally:
                if self._traces is not None:
                    await self._traces.flush()
                with anyio.move_on_after(GOODBYE_SECONDS, shield=True):
                    await self._commit_all()
                    if self._locks is not None:
                        await self._locks.unlock_all()
                    await self._membership.say_goodbye()

    def _start_consuming(self, tasks: anyio.abc.TaskGroup) -> Consuming:
        if self._orderly:
            return OrderlyConsuming(self._delivery, tasks, self._held, self._locks, self._rebalance.relocked)
        return ConcurrentConsuming(self._delivery, tasks, self._concurrency)

    def _on_take(self, held: HeldQueue) -> None:
        assert self._intake is not None  # noqa: S101 - the rebalance runs inside it
        self._consuming.taken(held)
        self._intake.start_soon(self._puller.run, held)

    def _accept(self, held: HeldQueue, messages: list[ReceivedMessage]) -> None:
        self._consuming.accept(held, messages)

    # -- what to consume ----------------------------------------------------------------------------------------

    async def subscribe(
        self, topic: str, listener: Listener, *, expression: str = "*", expression_type: str = EXPRESSION_TAG
    ) -> None:
        """Consume `topic`; `expression` is `*`, tags like `a || b`, or of another type.  Queues are taken soon after.

        A topic subscribed already gets the new expression and listener.  ProtocolError when the expression cannot be
        parsed, ResponseError when the broker cannot read it or serves no filters of its type; then the topic stays as
        it was.  ClientError outside `async with`.
        """
        self._check_open()
        topic = with_namespace(self.namespace, topic)
        subscription = build_subscription(topic, expression, expression_type=expression_type, sub_version=wall_ms())
        await self._membership.check(subscription)
        self._listeners[topic] = intercepted(listener, self._interceptors, self.group)
        self._subscriptions[topic] = subscription
        if not self._broadcasting:
            retry = RETRY_PREFIX + self._group_name
            self._subscriptions.setdefault(retry, build_subscription(retry, "*", sub_version=wall_ms()))
        await self._membership.introduce()
        self._rebalance.soon()

    async def unsubscribe(self, topic: str) -> None:
        """Let go of a topic: no more calls for it; its queues go to others soon after."""
        self._check_open()
        topic = with_namespace(self.namespace, topic)
        self._listeners.pop(topic, None)
        if self._subscriptions.pop(topic, None) is not None:
            await self._membership.introduce()
            self._rebalance.soon()

    def suspend(self) -> None:
        """Begin no more listener calls, and pull nothing, until `resume`; running calls end, queues stay ours."""
        self._check_open()
        self._delivery.open = False
        self._puller.suspend()

    def resume(self) -> None:
        """Undo `suspend`."""
        self._check_open()
        self._delivery.open = True
        self._puller.resume()
        self._consuming.go_on()

    # -- how it stands ------------------------------------------------------------------------------------------

    def queues(self) -> list[MessageQueue]:
        """The queues that this member consumes now."""
        return sorted(queues_without_namespace(self.namespace, self._held), key=lambda queue: queue.sort_key)

    async def wait_queues(self, wanted: Callable[[list[MessageQueue]], bool]) -> None:
        """Wait until `wanted` holds of the queues that this member consumes; asked after each round of rebalancing."""
        self._check_open()
        await self._rebalance.wait(lambda: wanted(self.queues()))

    async def lag(self, topic: str | None = None) -> dict[MessageQueue, QueueLag]:
        """How far the group is behind, by what was committed: in all queues of a topic, or of all its topics.

        RouteNotFoundError, RemotingError or ResponseError when a server cannot say.
        """
        self._check_open()
        topics = list(self._subscriptions) if topic is None else [with_namespace(self.namespace, topic)]
        lags = await group_lag(self._remoting, self._offsets, self._group_name, topics)
        return {queue_without_namespace(self.namespace, queue): lag for queue, lag in lags.items()}

    async def commit(self) -> None:
        """Keep the progress of now: all that is finished.  It is kept every `commit_seconds`, and at the end, too.

        RemotingError, ResponseError or ClientError when it could not be kept; it is tried again with the next commit.
        """
        self._check_open()
        await self._store.persist(self._remember())

    def _check_open(self) -> None:
        if self._intake is None or self._delivery.closing.is_set():
            raise ClientError("the consumer is not open: use it inside `async with`")

    def _properties(self) -> dict[str, str]:
        return {
            "consumerGroup": self._group_name,
            "messageModel": BROADCASTING if self._broadcasting else CLUSTERING,
            "consumeMessageBatchMaxSize": str(self._delivery.batch_size),
            "maxReconsumeTimes": str(
                -1 if self._delivery.max_reconsume_times is None else self._delivery.max_reconsume_times
            ),
            running.PROP_NAMESERVER_ADDR: ";".join(self._name_servers.addresses) + ";",
            running.PROP_THREADPOOL_CORE_SIZE: str(self._concurrency),
            running.PROP_CONSUMER_START_TIMESTAMP: str(self._started_ms),
        }

    # -- offsets ------------------------------------------------------------------------------------------------

    def _remember(self) -> list[MessageQueue]:
        return [held.queue for held in list(self._held.values()) if self._rebalance.remember(held)]

    async def _run_commit(self) -> None:
        while True:
            await anyio.sleep(self._commit_seconds)
            self._figures.sample(anyio.current_time())
            await self._commit_all()

    async def _commit_all(self) -> None:
        try:
            await self._store.persist(self._remember())
        except RocketMQError as error:
            logger.warning("group %s: offsets are not committed: %s", self.group, error)
