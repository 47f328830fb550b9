"""Orderly consumption: one task a queue, which calls the listener with its messages one call after the other.

Invariants: of a queue one call runs at a time, and only while the queue's lock is surely ours; a message that fails is
tried again in place, before any later one, after a pause; a queue that is being left lets its running call end.
Source of the rules: RocketMQ ConsumeMessageOrderlyService.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import islice

import anyio
import anyio.abc

from trio_rmq.client.consuming import Delivery, batches
from trio_rmq.client.held_queue import HeldQueue
from trio_rmq.client.listening import heard, later_of
from trio_rmq.client.message import ConsumeLater, ReceivedMessage
from trio_rmq.client.queue_locks import RENEW_SECONDS, QueueLocks
from trio_rmq.client.send_back import FIRST_RETRY_LEVEL
from trio_rmq.errors import ClientError
from trio_rmq.wire.groups import MessageQueue

logger = logging.getLogger(__name__)

CALLS_A_TURN = 32
"""After so many calls of one queue another queue's may have their place in the limiter."""
SUSPEND_SECONDS_MIN = 0.01
SUSPEND_SECONDS_MAX = 30.0
LOST_LOCK_SECONDS = 3.0
"""How soon a lost lock is asked for again."""


class OrderlyConsuming:
    """Consumes in tasks of `tasks`, at most as many at once as the limiter lets; `locks` is None when broadcasting.

    `relocked(held)` is told of a queue whose lock was lost, or ran out, and is ours again: maybe another member
    consumed of it meanwhile.
    """

    def __init__(
        self,
        delivery: Delivery,
        tasks: anyio.abc.TaskGroup,
        held: Mapping[MessageQueue, HeldQueue],
        locks: QueueLocks | None,
        relocked: Callable[[HeldQueue], None],
    ) -> None:
        self._delivery = delivery
        self._tasks = tasks
        self._held = held
        self._locks = locks
        self._relocked = relocked
        self._started: dict[MessageQueue, float] = {}
        self._call_ended = anyio.Event()

    def taken(self, held: HeldQueue) -> None:
        """Start the queue's task."""
        self._tasks.start_soon(self._run_queue, held)

    def accept(self, held: HeldQueue, messages: list[ReceivedMessage]) -> None:
        """Put them behind those that wait."""
        held.waiting.extend(messages)
        held.tell_changed()

    def go_on(self) -> None:
        """Every queue looks again."""
        for held in self._held.values():
            held.tell_changed()

    async def run(self) -> None:
        """Renew the locks."""
        if self._locks is None:
            return
        while True:
            now = anyio.current_time()
            lost = any(not held.is_locked(now) for held in self._held.values())
            await anyio.sleep(LOST_LOCK_SECONDS if lost else RENEW_SECONDS)
            granted = await self._locks.lock(self._held)
            now = anyio.current_time()
            for queue, until in granted.items():
                held = self._held.get(queue)
                if held is None:
                    continue
                was_locked, held.locked_until = held.is_locked(now), until
                held.locked_at = now if until else held.locked_at
                if until and not was_locked:
                    held.locked_until = 0.0
                    self._relocked(held)
                elif was_locked and not until:
                    logger.warning("group %s: the lock of %s is another's now", self._delivery.group, queue)

    async def wait_calls_ended(self) -> None:
        """Wait until no call runs."""
        while self._started:
            await self._call_ended.wait()

    def describe(self) -> Sequence[str]:
        """A line for each call that runs now."""
        now = anyio.current_time()
        return [
            f"{queue}: {self._held[queue].at_work!r} for {now - started:.3f} s"
            for queue, started in self._started.items()
            if queue in self._held
        ]

    # -- a queue ------------------------------------------------------------------------------------------------

    def _may_call(self, held: HeldQueue) -> bool:
        return bool(held.waiting) and not held.leaving and self._delivery.open and held.is_locked(anyio.current_time())

    async def _run_queue(self, held: HeldQueue) -> None:
        while not held.leaving:
            if not self._may_call(held):
                await held.wait_changed()
                continue
            seconds = 0.0
            async with self._delivery.limiter:
                for _ in range(CALLS_A_TURN):
                    if seconds or not self._may_call(held):
                        break
                    seconds = await self._consume(held)
            if seconds:
                await self._suspend(held, seconds)

    async def _suspend(self, held: HeldQueue, seconds: float) -> None:
        with anyio.move_on_after(min(max(seconds, SUSPEND_SECONDS_MIN), SUSPEND_SECONDS_MAX)):
            while not held.leaving:
                await held.wait_changed()

    async def _consume(self, held: HeldQueue) -> float:
        """Call the listener with the next messages; how long the queue is suspended then, in seconds."""
        messages = next(batches(held, list(islice(held.waiting, self._delivery.batch_size)), self._delivery.batch_size))
        listener = self._delivery.listener(held, messages[0])
        if listener is None:
            return SUSPEND_SECONDS_MAX
        for _ in messages:
            held.waiting.popleft()
        held.calls += 1
        held.at_work = messages
        started = self._started[held.queue] = anyio.current_time()
        left = messages
        try:
            outcome, error = None, None
            seconds = self._delivery.consume_timeout_seconds
            with anyio.CancelScope(deadline=float("inf") if seconds is None else started + seconds) as scope:
                outcome, error = await heard(self._delivery.group, listener, messages)
            if scope.cancelled_caught:
                logger.error("group %s: the listener took %g s for %s", self._delivery.group, seconds, messages[0])
            later = ConsumeLater() if error is not None or scope.cancelled_caught else self._later(outcome)
            done = len(messages) if later is None else min(max(later.consumed_count, 0), len(messages))
            now = anyio.current_time()
            self._delivery.count(held.queue.topic, done, len(messages) - done, now - started, now)
            self._finish(held, messages[:done])
            left = messages[done:]
            if left and not held.state.dropped:
                left = await self._count_failure(held, left)
            if not left or later is None:
                return 0.0
            return self._delivery.suspend_seconds if later.suspend_seconds is None else later.suspend_seconds
        finally:
            held.waiting.extendleft(reversed(left))
            held.at_work = []
            del self._started[held.queue]
            self._call_ended.set()
            self._call_ended = anyio.Event()
            held.call_ended(anyio.current_time())

    def _later(self, outcome: object) -> ConsumeLater | None:
        try:
            return later_of(outcome)  # type: ignore[arg-type]  # it checks
        except ClientError as error:
            logger.error("group %s: %s", self._delivery.group, error)
            return ConsumeLater()

    async def _count_failure(self, held: HeldQueue, messages: list[ReceivedMessage]) -> list[ReceivedMessage]:
        """What is to be tried again in place; what failed too often goes to the dead letters, or not, and is done."""
        left: list[ReceivedMessage] = []
        most = self._delivery.max_reconsume_times
        for message in messages:
            times = message.reconsume_times
            if most is not None and times >= most:
                if self._delivery.broadcasting:
                    logger.warning("group %s: %s is dropped after %d tries", self._delivery.group, message, times + 1)
                    self._finish(held, [message])
                    continue
                if await self._delivery.send_back.send_to_retry(message, times, FIRST_RETRY_LEVEL + times):
                    self._finish(held, [message])
                    continue
            message.reconsume_times += 1
            left.append(message)
        return left

    def _finish(self, held: HeldQueue, messages: list[ReceivedMessage]) -> None:
        if messages and not held.state.dropped:
            held.finished(messages)
            self._delivery.room.finished(held)
