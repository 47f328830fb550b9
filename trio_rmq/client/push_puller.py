"""Pulls for a push consumer: one task a queue, which asks for more as long as there is room.

Invariants: a queue has one pull under way; what it brings is entered in the queue's state and handed to the listener's
side in one step, without a wait between, in the turn in which it was read; a pull that is cancelled before has changed
nothing.  Errors make pauses that grow.
Source of the rules: RocketMQ DefaultMQPushConsumerImpl.pullMessage, PullAPIWrapper.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial

import anyio
import anyio.lowlevel

from trio_rmq.client import group_calls
from trio_rmq.client.consumer_figures import ConsumerFigures
from trio_rmq.client.consuming import loop_clock
from trio_rmq.client.flow_control import Room
from trio_rmq.client.held_queue import HeldQueue
from trio_rmq.client.message import ReceivedMessage
from trio_rmq.client.queue_offsets import QueueOffsets
from trio_rmq.errors import ProtocolError, RemotingError, ResponseError, RouteNotFoundError
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.wire.codes import ResponseCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.groups import MessageQueue
from trio_rmq.wire.headers import PullMessageResponseHeader
from trio_rmq.wire.heartbeat import EXPRESSION_TAG, SubscriptionData

logger = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.1
PAUSE_SECONDS = 3.0
"""Pause of a queue's pull after an error: the first, doubled each time, and the longest."""
_UNKNOWN_TO_BROKER = frozenset({ResponseCode.SUBSCRIPTION_NOT_EXIST, ResponseCode.SUBSCRIPTION_NOT_LATEST})


class PushPuller:
    """Pulls into the queues it is given.

    `accept(held, messages)` takes what was pulled, `restart(queue, offset)` is asked to begin a queue anew elsewhere,
    and `introduce()` to tell the brokers of this member.
    """

    def __init__(
        self,
        remoting: RemotingClient,
        offsets: QueueOffsets,
        group: str,
        subscriptions: Mapping[str, SubscriptionData],
        room: Room,
        figures: ConsumerFigures,
        *,
        batch_size: int,
        broadcasting: bool,
        accept: Callable[[HeldQueue, list[ReceivedMessage]], None],
        restart: Callable[[MessageQueue, int], None],
        introduce: Callable[[], None],
        namespace: str = "",
    ) -> None:
        self._remoting = remoting
        self._offsets = offsets
        self._group = group
        self._subscriptions = subscriptions
        self._namespace = namespace
        self._room = room
        self._figures = figures
        self._batch_size = batch_size
        self._broadcasting = broadcasting
        self._accept = accept
        self._restart = restart
        self._introduce = introduce
        self._resumed = anyio.Event()
        self._resumed.set()
        self._scopes: set[anyio.CancelScope] = set()
        self._clock = anyio.current_time

    def suspend(self) -> None:
        """Pull nothing more until `resume`; pulls under way are given up."""
        if self._resumed.is_set():
            self._resumed = anyio.Event()
            for scope in self._scopes:
                scope.cancel()

    def resume(self) -> None:
        """Undo `suspend`."""
        self._resumed.set()

    async def run(self, held: HeldQueue) -> None:
        """Pull a queue until it is left."""
        self._clock = loop_clock()
        with held.pulling:
            while True:
                await self._resumed.wait()
                with anyio.CancelScope() as scope:
                    self._scopes.add(scope)
                    try:
                        await self._pull_on(held)
                    finally:
                        self._scopes.discard(scope)

    async def _pull_on(self, held: HeldQueue) -> None:
        """Pull a queue until cancelled."""
        pause = 0.0
        while True:
            while not held.is_locked(self._clock()):
                await held.wait_changed()
            if self._room.reason(held) is not None:
                await self._room.wait(held)
            try:
                await self._pull(held)
                pause = 0.0
            except (RemotingError, ResponseError, ProtocolError, RouteNotFoundError) as error:
                level = logging.WARNING if not pause else logging.DEBUG
                logger.log(level, "group %s: pull of %s failed: %s", self._group, held.queue, error)
                if isinstance(error, ResponseError) and error.response_code in _UNKNOWN_TO_BROKER:
                    self._introduce()
                pause = min(max(pause * 2, FIRST_PAUSE_SECONDS), PAUSE_SECONDS)
                await anyio.sleep(pause)

    async def _pull(self, held: HeldQueue) -> None:
        state = held.state
        queue = held.queue
        subscription = self._subscriptions.get(queue.topic)
        if subscription is None:  # unsubscribed just now: the rebalance will let it go
            raise ProtocolError(f"{queue.topic} is not subscribed any more")
        started = held.last_pull = self._clock()
        address = self._offsets.known_address(queue, started)
        if address is None:
            address = await self._offsets.address(queue)
            started = held.last_pull = self._clock()
        offset = state.next_offset
        answer = await group_calls.pull(
            self._remoting,
            address,
            self._group,
            queue,
            offset=offset,
            commit_offset=0 if self._broadcasting else state.commit_offset,
            sub_version=subscription.sub_version,
            expression_type=subscription.expression_type,
            max_messages=self._batch_size,
            now=started,
            on_answer=partial(self._take, held, subscription, started),
        )
        if answer.code == ResponseCode.SUCCESS:
            if state.next_offset < offset + self._batch_size:
                await anyio.lowlevel.checkpoint()  # the next pull will be held: the listener comes first
            return
        next_offset = answer.decode_header(PullMessageResponseHeader).next_begin_offset
        if answer.code == ResponseCode.PULL_OFFSET_MOVED:
            if next_offset == state.next_offset:
                raise ProtocolError(f"the broker refuses offset {next_offset} and names no other")
            logger.warning("group %s: %s has no offset %d, it goes on at %d",
                           self._group, queue, state.next_offset, next_offset)  # fmt: skip
            self._restart(queue, next_offset)
            await anyio.sleep_forever()  # until the rebalance has begun the queue anew
        state.moved(next_offset)

    def _take(self, held: HeldQueue, subscription: SubscriptionData, started: float, answer: Command) -> None:
        """Hand on what a pull brought, as soon as it is read: its task has its turn only later."""
        if answer.code != ResponseCode.SUCCESS or held.leaving or not self._resumed.is_set():
            return
        queue = held.queue
        next_offset = answer.decode_header(PullMessageResponseHeader).next_begin_offset
        wanted = subscription.tags_set if subscription.expression_type == EXPRESSION_TAG else ()
        messages = ReceivedMessage.pulled(queue, answer.body, self._namespace)
        if wanted:
            messages = [message for message in messages if message.stored.tags in wanted]
        now = self._clock()
        counts = self._figures.of(queue.topic, now).counts
        counts.pulls += 1
        counts.pulled += len(messages)
        counts.pull_seconds += now - started
        held.state.pulled(
            [message.queue_offset for message in messages],
            [message.stored_body_size_bytes for message in messages],
            next_offset,
        )
        if messages:
            self._accept(held, messages)
