"""Concurrent consumption: workers that take pulled messages in turn, each calling the listener with a few at a time.

A worker is a task that lives as long as the consumer; there are as many as were needed at once, at most `concurrency`.
The worker that finds more to do than its own call wakes the next before it calls, so that a listener that never waits
costs no task a message.  Invariants: a message is with one worker or in the row; it counts as unfinished until its call
said that it is done or a broker took it back; a call that takes too long is cancelled and its messages go back.
Source of the rules: RocketMQ ConsumeMessageConcurrentlyService.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence

import anyio
import anyio.abc
import anyio.lowlevel

from trio_rmq.client.consumer_figures import TopicCounts
from trio_rmq.client.consuming import Delivery, batches, loop_clock
from trio_rmq.client.held_queue import HeldQueue
from trio_rmq.client.listening import Outcome, guarded, later_of, log_failure
from trio_rmq.client.message import ConsumeLater, ConsumeResult, ReceivedMessage

logger = logging.getLogger(__name__)

CALLS_A_TURN = 128
TURN_SECONDS = 0.001
"""After so many calls that never waited, or so long, a worker lets other tasks run."""
OVERDUE_LEVEL = 3
"""The delay level (10 s by RocketMQ's table) of messages whose call took too long."""


class _Row:
    """Messages of one queue and one topic that wait for workers, from number `begin` on."""

    __slots__ = ("begin", "held", "messages")

    def __init__(self, held: HeldQueue, messages: list[ReceivedMessage]) -> None:
        self.held = held
        self.messages = messages
        self.begin = 0


class _Worker:
    """One worker and the call it is at; `held` and `started` are None between calls."""

    __slots__ = ("held", "is_overdue", "messages", "scope", "started", "wake")

    def __init__(self) -> None:
        self.held: HeldQueue | None = None
        self.messages: list[ReceivedMessage] = []
        self.started: float | None = None
        self.is_overdue = False
        self.scope = anyio.CancelScope()
        self.wake = anyio.Event()


class ConcurrentConsuming:
    """Consumes in tasks of `tasks`, any order, several calls a queue at once."""

    def __init__(self, delivery: Delivery, tasks: anyio.abc.TaskGroup, concurrency: int) -> None:
        self._delivery = delivery
        self._tasks = tasks
        self._concurrency = concurrency
        self._ready: deque[_Row] = deque()
        self._workers: list[_Worker] = []
        self._idle: list[_Worker] = []
        self._waking = False
        self._busy = 0
        self._call_ended = anyio.Event()
        self._clock = loop_clock()

    def taken(self, held: HeldQueue) -> None:
        """Nothing to prepare."""

    def accept(self, held: HeldQueue, messages: list[ReceivedMessage]) -> None:
        """Put them in the row."""
        if held.is_retry:
            self._ready.extend([_Row(held, same) for same in batches(held, messages, len(messages))])
        else:
            self._ready.append(_Row(held, messages))
        self._wake_one()

    def go_on(self) -> None:
        """Workers look at the row again."""
        self._wake_one()

    async def run(self) -> None:
        """Cancel calls that take too long."""
        seconds = self._delivery.consume_timeout_seconds
        if seconds is None:
            return
        while True:
            running = [worker for worker in self._workers if worker.started is not None and not worker.is_overdue]
            first = min((worker.started for worker in running if worker.started is not None), default=None)
            await anyio.sleep_until((anyio.current_time() if first is None else first) + seconds)
            now = anyio.current_time()
            for worker in self._workers:
                if worker.started is not None and worker.started + seconds <= now:
                    worker.is_overdue = True
                    worker.scope.cancel()

    async def wait_calls_ended(self) -> None:
        """Wait until no call runs and nothing is being given back."""
        while self._busy:
            await self._call_ended.wait()

    def describe(self) -> Sequence[str]:
        """A line for each call that runs now."""
        now = anyio.current_time()
        return [
            f"{worker.held.queue}: {worker.messages!r} for {now - worker.started:.3f} s"
            for worker in self._workers
            if worker.held is not None and worker.started is not None
        ]

    # -- workers ------------------------------------------------------------------------------------------------

    def _wake_one(self) -> None:
        """Have one more worker look at the row, unless one is about to."""
        if self._waking or not self._ready or not self._delivery.open:
            return
        if self._idle:
            self._idle.pop().wake.set()
        elif len(self._workers) < self._concurrency:
            worker = _Worker()
            self._workers.append(worker)
            self._tasks.start_soon(self._run_worker, worker)
        else:
            return
        self._waking = True

    async def _run_worker(self, worker: _Worker) -> None:
        while True:
            self._waking = False
            while not self._ready or not self._delivery.open:
                worker.wake = anyio.Event()
                self._idle.append(worker)
                await worker.wake.wait()
                self._waking = False
            self._busy += 1
            try:
                await self._work(worker)
            finally:
                self._busy -= 1
                self._call_ended.set()
                self._call_ended = anyio.Event()

    async def _work(self, worker: _Worker) -> None:
        """Make calls until one did not finish its messages, and bring those back; or until there is nothing to do."""
        later: ConsumeLater | None = ConsumeLater()
        shared = self._delivery.is_limiter_shared
        if shared:
            await self._delivery.limiter.acquire_on_behalf_of(worker)
        try:
            with anyio.CancelScope() as worker.scope:
                later = await guarded(self._call_while_done(worker, once=shared))
        except Exception as error:  # noqa: BLE001 - whatever a listener raises is the user's
            if worker.held is not None:
                log_failure(self._delivery.group, worker.messages, error)
        finally:
            if shared:
                self._delivery.limiter.release_on_behalf_of(worker)
        held, worker.held = worker.held, None
        messages, worker.messages = worker.messages, []
        started, worker.started = worker.started, None
        if held is None:
            return
        now = anyio.current_time()
        if worker.is_overdue:
            worker.is_overdue = False
            later = ConsumeLater(delay_level=OVERDUE_LEVEL)
        assert later is not None  # noqa: S101 - what is done leaves no call
        try:
            done = min(max(later.consumed_count, 0), len(messages))
            self._delivery.count(held.queue.topic, done, len(messages) - done, now - (started or now), now)
            await self._bring_back(held, messages, done, later.delay_level)
        finally:
            held.call_ended(anyio.current_time())

    async def _call_while_done(self, worker: _Worker, *, once: bool) -> ConsumeLater | None:
        """Make calls as long as their messages are done; what to do with those of `worker` that are not.

        Every line in here counts: a listener that never waits is called some 100,000 times a second.
        """
        delivery, ready, clock = self._delivery, self._ready, self._clock
        size, room, listeners = delivery.batch_size, delivery.room, delivery.listeners
        topic, counts = "", TopicCounts()
        now = clock()
        left, until = CALLS_A_TURN, now + TURN_SECONDS
        while ready and delivery.open:
            row = ready[0]
            held = row.held
            if held.leaving:
                ready.popleft()
                continue
            begin = row.begin
            row.begin = end = begin + size
            messages = row.messages[begin:end]
            if end >= len(row.messages):
                ready.popleft()
            if ready and not self._waking:
                self._wake_one()
            if topic != held.queue.topic:
                topic = held.queue.topic
                counts = delivery.figures.of(topic, now).counts
            listener = listeners.get(topic) or delivery.listener(held, messages[0])
            if listener is None:
                continue
            held.calls += 1
            worker.held = held
            worker.messages = messages
            worker.started = now
            outcome: Outcome = await listener(messages)
            if outcome is not None and outcome is not ConsumeResult.SUCCESS:
                return later_of(outcome)
            worker.held = worker.started = None
            before, now = now, clock()
            counts.calls += 1
            counts.call_seconds += now - before
            counts.consumed += len(messages)
            state = held.state
            if size == 1 and not state.dropped:
                state.finished_one(messages[0].queue_offset)
                if held.room is not None or room.has_total:
                    room.finished(held)
            else:
                self._done(held, messages)
            held.call_ended(now)
            if once:
                break
            left -= 1
            if not left or now > until or worker.is_overdue:
                worker.is_overdue = False
                await anyio.lowlevel.checkpoint()
                now = clock()
                left, until = CALLS_A_TURN, now + TURN_SECONDS
        return None

    def _done(self, held: HeldQueue, messages: list[ReceivedMessage]) -> None:
        if held.state.dropped:
            return
        held.finished(messages)
        self._delivery.room.finished(held)

    # -- what was not done --------------------------------------------------------------------------------------

    async def _bring_back(self, held: HeldQueue, messages: list[ReceivedMessage], done: int, delay_level: int) -> None:
        """Finish the first `done`; give the others back, or keep them to be tried again here."""
        self._done(held, messages[:done])
        left: list[ReceivedMessage] = []
        for message in messages[done:]:
            if held.state.dropped:
                return
            if self._delivery.broadcasting:
                logger.warning("group %s: %s is dropped: broadcasting retries nothing", self._delivery.group, message)
            elif not await self._delivery.send_back.give_back(message, delay_level):
                message.reconsume_times += 1
                left.append(message)
                continue
            self._done(held, [message])
        if left:
            self._tasks.start_soon(self._retry_here, held, left)

    async def _retry_here(self, held: HeldQueue, messages: list[ReceivedMessage]) -> None:
        await self._delivery.pause(self._delivery.local_retry_seconds)
        if not held.leaving:
            self.accept(held, messages)
