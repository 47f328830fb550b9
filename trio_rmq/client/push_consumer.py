"""The push consumer: gives each message of its topics to an async listener, sharing queues with its group's members.

Tasks and what they own: one heartbeat, one rebalance (the only one that takes or drops queues), one that commits
offsets, one pull a queue, one per running listener call.  Invariants: an offset is committed only when every message
before it was consumed or given back; a dropped queue's offset is committed before another member may have it; closing
ends intake first, lets running listeners end, commits, then says goodbye.  A cancel anywhere leaves unfinished
messages uncommitted: they are delivered again.  Source of the rules: RocketMQ DefaultMQPushConsumerImpl, RebalanceImpl.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from types import TracebackType

import anyio
import anyio.abc

from trio_rmq.client import group_calls
from trio_rmq.client.allocation import Allocation, allocate_averagely
from trio_rmq.client.instance import name_server_addresses, new_client_id
from trio_rmq.client.lasting import LastingRemoting
from trio_rmq.client.message import ConsumeResult, ReceivedMessage
from trio_rmq.client.process_queue import ProcessQueue
from trio_rmq.client.route_cache import RouteCache
from trio_rmq.clock import wall_ms
from trio_rmq.errors import ClientError, ProtocolError, RemotingError, ResponseError, RocketMQError, RouteNotFoundError
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.remoting.connection import Connection, ConnectionGroup
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command, SerializeType
from trio_rmq.wire.groups import MessageQueue
from trio_rmq.wire.headers import PullMessageResponseHeader
from trio_rmq.wire.heartbeat import (
    CLUSTERING,
    CONSUME_FROM_FIRST_OFFSET,
    CONSUME_FROM_LAST_OFFSET,
    CONSUME_PASSIVELY,
    ConsumerData,
    HeartbeatData,
    SubscriptionData,
    build_subscription,
)
from trio_rmq.wire.record import decode_records

logger = logging.getLogger(__name__)

Listener = Callable[[Sequence[ReceivedMessage]], Awaitable[ConsumeResult | None]]
"""Consumes messages of one queue; None or SUCCESS finishes them, RECONSUME_LATER or an exception brings them again."""

HEARTBEAT_SECONDS = 30.0
REBALANCE_SECONDS = 20.0
FIRST_RETRY_SECONDS = 0.1
COMMIT_SECONDS = 5.0
ERROR_PAUSE_SECONDS = 3.0
"""Pause of a queue's pull after an error."""
LOCAL_RETRY_SECONDS = 5.0
"""Pause before messages that could not be given back are consumed again here."""
MAX_RECONSUME_TIMES = 16
RETRY_PREFIX = "%RETRY%"
PENDING_COUNT_MAX = 1000
PENDING_BYTES_MAX = 100 * 1024 * 1024
PENDING_SPAN_MAX = 2000
"""Flow control a queue: unfinished messages, their bytes, and how far they span."""
GOODBYE_SECONDS = 5.0


class _Held:
    """One queue of ours: its state and the scope of its pull."""

    def __init__(self, state: ProcessQueue) -> None:
        self.state = state
        self.pulling = anyio.CancelScope()
        self.room = anyio.Event()
        self.committed = -1


class PushConsumer:
    """Consumes topics as a member of `group`; an async context manager that consumes while its block runs.

        async def listen(messages):
            for message in messages:
                print(message.body)

        async with PushConsumer("my-group", name_servers="127.0.0.1:9876") as consumer:
            await consumer.subscribe("Greetings", listen)
            await anyio.sleep_forever()

    `batch_size` is the most messages per listener call, `concurrency` the most calls at a time, `from_first` says where
    a new group begins, `grace_seconds` how long closing waits for running listeners, `local_retry_seconds` how long a
    failed message waits that could not be given back to the broker.
    """

    def __init__(
        self,
        group: str,
        *,
        name_servers: str | Sequence[str] | None = None,
        batch_size: int = 1,
        concurrency: int = 20,
        pull_batch_size: int = 32,
        from_first: bool = True,
        allocation: Allocation = allocate_averagely,
        grace_seconds: float = 30.0,
        local_retry_seconds: float = LOCAL_RETRY_SECONDS,
        serialize_type: SerializeType = SerializeType.JSON,
    ) -> None:
        self.group = group
        self.client_id = new_client_id()
        self._batch_size = batch_size
        self._pull_batch_size = pull_batch_size
        self._from_first = from_first
        self._allocation = allocation
        self._grace_seconds = grace_seconds
        self._local_retry_seconds = local_retry_seconds
        self._remoting = RemotingClient(serialize_type=serialize_type)
        self._remoting.register(RequestCode.NOTIFY_CONSUMER_IDS_CHANGED, self._on_members_changed)
        self._routes = RouteCache(self._remoting, name_server_addresses(name_servers))
        self._limiter = anyio.CapacityLimiter(concurrency)
        self._listeners: dict[str, Listener] = {}
        self._subscriptions: dict[str, SubscriptionData] = {}
        self._held: dict[MessageQueue, _Held] = {}
        self._rebalance_now = anyio.Event()
        self._rebalanced = anyio.Event()
        self._rebalance_failed: float | None = None
        """How long to wait before the next round after one that could not be finished."""
        self._closing = anyio.Event()
        self._running = 0
        self._listener_ended = anyio.Event()
        self._intake: anyio.abc.TaskGroup | None = None
        self._consuming: anyio.abc.TaskGroup | None = None

    # -- life ---------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> PushConsumer:
        self._lasting = LastingRemoting(self._remoting)
        await self._lasting.__aenter__()
        self._consuming_group = ConnectionGroup()
        self._consuming = await self._consuming_group.__aenter__()
        self._intake_group = ConnectionGroup()
        self._intake = await self._intake_group.__aenter__()
        self._intake.start_soon(self._run_heartbeat)
        self._intake.start_soon(self._run_rebalance)
        self._intake.start_soon(self._run_commit)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closing.set()
        try:
            try:
                await self._intake_group.__aexit__(kind, error, traceback)
            finally:
                await self._end_listeners()
                await self._consuming_group.__aexit__(kind, error, traceback)
        finally:
            try:
                with anyio.move_on_after(GOODBYE_SECONDS, shield=True):
                    await self._commit_all()
                    await self._say_goodbye()
            finally:
                await self._lasting.__aexit__(kind, error, traceback)

    async def _end_listeners(self) -> None:
        """Let running listener calls end, for as long as the grace lasts; a cancellation ends them at once."""
        with anyio.move_on_after(self._grace_seconds):
            while self._running:
                await self._listener_ended.wait()

    async def subscribe(self, topic: str, listener: Listener, *, expression: str = "*") -> None:
        """Consume `topic`; `expression` is `*` or tags like `a || b`.  Queues are taken soon after.

        ProtocolError when the expression cannot be parsed; ClientError outside `async with`.
        """
        if self._intake is None or self._closing.is_set():
            raise ClientError("the consumer is not open: subscribe inside `async with`")
        self._subscriptions[topic] = build_subscription(topic, expression, sub_version=wall_ms())
        self._listeners[topic] = listener
        retry = RETRY_PREFIX + self.group
        self._subscriptions.setdefault(retry, build_subscription(retry, "*", sub_version=wall_ms()))
        await self._learn_routes()
        await self._send_heartbeats()
        self._rebalance_now.set()

    def queues(self) -> list[MessageQueue]:
        """The queues that this member consumes now."""
        return sorted(self._held, key=lambda queue: queue.sort_key)

    async def wait_rebalanced(self) -> None:
        """Wait until the next round of rebalancing, over all topics, is over."""
        await self._rebalanced.wait()

    # -- services -----------------------------------------------------------------------------------------------

    async def _on_members_changed(self, connection: Connection, command: Command) -> None:
        self._rebalance_now.set()

    async def _run_heartbeat(self) -> None:
        while True:
            await anyio.sleep(HEARTBEAT_SECONDS)
            await self._learn_routes()
            await self._send_heartbeats()

    async def _run_rebalance(self) -> None:
        while True:
            with anyio.move_on_after(REBALANCE_SECONDS if self._rebalance_failed is None else self._rebalance_failed):
                await self._rebalance_now.wait()
            self._rebalance_now = anyio.Event()
            if self._rebalance_failed is not None:  # maybe a broker was not known yet, so it knows nothing of us
                await self._learn_routes()
                await self._send_heartbeats()
            outcomes = [await self._rebalance(topic) for topic in list(self._subscriptions)]
            if all(outcomes):
                self._rebalance_failed = None
            else:  # a route or a member list is not to be had yet: soon again, then less and less soon
                self._rebalance_failed = min((self._rebalance_failed or FIRST_RETRY_SECONDS) * 2, REBALANCE_SECONDS)
            self._rebalanced.set()
            self._rebalanced = anyio.Event()

    async def _run_commit(self) -> None:
        while True:
            await anyio.sleep(COMMIT_SECONDS)
            await self._commit_all()

    async def _learn_routes(self) -> None:
        for topic in list(self._subscriptions):
            with suppress(RemotingError, RouteNotFoundError):
                await self._routes.route(topic)

    async def _send_heartbeats(self) -> None:
        data = HeartbeatData(
            client_id=self.client_id,
            consumer_data_set=[
                ConsumerData(
                    group_name=self.group,
                    consume_type=CONSUME_PASSIVELY,
                    message_model=CLUSTERING,
                    consume_from_where=CONSUME_FROM_FIRST_OFFSET if self._from_first else CONSUME_FROM_LAST_OFFSET,
                    subscription_data_set=list(self._subscriptions.values()),
                )
            ],
        )
        for address in self._routes.broker_addresses():
            try:
                await group_calls.send_heartbeat(self._remoting, address, data)
            except (RemotingError, ResponseError) as error:
                logger.warning("heartbeat to %s failed: %s", address, error)

    # -- rebalance ----------------------------------------------------------------------------------------------

    async def _rebalance(self, topic: str) -> bool:
        """Take the queues of `topic` that are ours by now, and drop those that no longer are.

        False when that could not be told: no route yet, no broker that answers.
        """
        try:
            route = await self._routes.route(topic)
            queues = sorted(route.read_queues, key=lambda queue: queue.sort_key)
            address = next(iter(filter(None, map(route.master, route.brokers))), None)
            if address is None:
                return False
            members = sorted(await group_calls.member_ids(self._remoting, address, self.group))
        except (RemotingError, ResponseError, RouteNotFoundError, ProtocolError) as error:
            logger.debug("group %s: no rebalance of %s now: %s", self.group, topic, error)
            return False
        mine = set(self._allocation(self.client_id, queues, members))
        for queue in [queue for queue in self._held if queue.topic == topic and queue not in mine]:
            await self._drop(queue)
        for queue in queues:
            if queue in mine and queue not in self._held:
                await self._take(queue)
        return mine <= self._held.keys()

    async def _take(self, queue: MessageQueue) -> None:
        try:
            offset = await self._first_offset(queue)
        except (RemotingError, ResponseError) as error:
            logger.warning("group %s: the offset of %s is not to be had: %s", self.group, queue, error)
            return
        held = self._held[queue] = _Held(ProcessQueue(queue, offset))
        assert self._intake is not None  # noqa: S101 - runs inside it
        self._intake.start_soon(self._run_pull, held)
        logger.info("group %s takes %s from %d", self.group, queue, offset)

    async def _drop(self, queue: MessageQueue) -> None:
        """Stop pulling, commit what is finished, and only then let go."""
        held = self._held[queue]
        held.state.dropped = True
        held.pulling.cancel()
        await self._commit(held)
        del self._held[queue]
        logger.info("group %s lets go of %s at %d", self.group, queue, held.state.commit_offset)

    async def _first_offset(self, queue: MessageQueue) -> int:
        address = self._master(queue)
        offset = await group_calls.committed_offset(self._remoting, address, self.group, queue)
        if offset is not None:
            return offset
        if self._from_first or queue.topic.startswith(RETRY_PREFIX):
            return await group_calls.min_offset(self._remoting, address, queue)
        return await group_calls.max_offset(self._remoting, address, queue)

    def _master(self, queue: MessageQueue) -> str:
        for route in self._routes.known():
            address = route.master(queue.broker_name)
            if address is not None:
                return address
        raise RemotingError(f"broker {queue.broker_name} has no master now")

    # -- pulling ------------------------------------------------------------------------------------------------

    async def _run_pull(self, held: _Held) -> None:
        with held.pulling:
            while True:
                await self._wait_room(held)
                try:
                    await self._pull(held)
                except (RemotingError, ResponseError, ProtocolError) as error:
                    logger.debug("group %s: pull of %s failed: %s", self.group, held.state.queue, error)
                    await anyio.sleep(ERROR_PAUSE_SECONDS)

    async def _wait_room(self, held: _Held) -> None:
        state = held.state
        while state.count > PENDING_COUNT_MAX or state.size_bytes > PENDING_BYTES_MAX or state.span > PENDING_SPAN_MAX:
            held.room = anyio.Event()
            await held.room.wait()

    async def _pull(self, held: _Held) -> None:
        state = held.state
        queue = state.queue
        subscription = self._subscriptions[queue.topic]
        answer = await group_calls.pull(
            self._remoting,
            self._master(queue),
            self.group,
            queue,
            offset=state.next_offset,
            commit_offset=state.commit_offset,
            sub_version=subscription.sub_version,
            max_messages=self._pull_batch_size,
        )
        next_offset = answer.decode_header(PullMessageResponseHeader).next_begin_offset
        if answer.code != ResponseCode.SUCCESS:
            state.moved(next_offset)
            return
        wanted = set(subscription.tags_set)
        messages = [
            ReceivedMessage.from_record(stored, queue)
            for stored in decode_records(answer.body)
            if not wanted or stored.tags in wanted
        ]
        state.pulled([(message.queue_offset, len(message.stored.body)) for message in messages], next_offset)
        assert self._consuming is not None  # noqa: S101 - pulls run inside it
        for start in range(0, len(messages), self._batch_size):
            self._consuming.start_soon(self._consume, held, messages[start : start + self._batch_size])

    # -- consuming ----------------------------------------------------------------------------------------------

    async def _consume(self, held: _Held, messages: list[ReceivedMessage]) -> None:
        """Give messages to the listener until they are finished, given back, or no longer ours."""
        while not held.state.dropped and not self._closing.is_set():
            async with self._limiter:
                if held.state.dropped or self._closing.is_set():
                    return
                self._running += 1
                try:
                    messages = await self._unfinished(held, messages, await self._call_listener(messages))
                finally:
                    self._running -= 1
                    self._listener_ended.set()
                    self._listener_ended = anyio.Event()
            if not messages:
                return
            with anyio.move_on_after(self._local_retry_seconds):
                await self._closing.wait()

    async def _call_listener(self, messages: list[ReceivedMessage]) -> bool:
        listener = self._listeners.get(messages[0].topic)
        if listener is None:
            logger.warning("group %s has no listener for %s: the message waits", self.group, messages[0].topic)
            return False
        try:
            return await listener(messages) is not ConsumeResult.RECONSUME_LATER
        except Exception:
            logger.exception("the listener of group %s failed on %s", self.group, messages[0].message_id)
            return False

    async def _unfinished(self, held: _Held, messages: list[ReceivedMessage], consumed: bool) -> list[ReceivedMessage]:
        """Finish what was consumed or could be given back; the rest is to be consumed again."""
        left = [] if consumed else [message for message in messages if not await self._give_back(message)]
        kept = {message.queue_offset for message in left}
        held.state.finished(message.queue_offset for message in messages if message.queue_offset not in kept)
        held.room.set()
        return left

    async def _give_back(self, message: ReceivedMessage) -> bool:
        try:
            await group_calls.give_back(
                self._remoting,
                self._master(message.queue),
                self.group,
                message.stored,
                max_reconsume_times=MAX_RECONSUME_TIMES,
            )
        except (RemotingError, ResponseError) as error:
            logger.debug("group %s: %s could not be given back: %s", self.group, message.message_id, error)
            return False
        return True

    # -- offsets ------------------------------------------------------------------------------------------------

    async def _commit_all(self) -> None:
        for held in list(self._held.values()):
            await self._commit(held)

    async def _commit(self, held: _Held) -> None:
        offset = held.state.commit_offset
        if offset == held.committed:
            return
        try:
            await group_calls.commit(
                self._remoting, self._master(held.state.queue), self.group, held.state.queue, offset
            )
        except RocketMQError as error:
            logger.warning(
                "group %s: offset %d of %s is not committed: %s", self.group, offset, held.state.queue, error
            )
            return
        held.committed = offset

    async def _say_goodbye(self) -> None:
        for address in self._routes.broker_addresses():
            with suppress(RemotingError, ResponseError):
                await group_calls.unregister(self._remoting, address, self.client_id, self.group)
