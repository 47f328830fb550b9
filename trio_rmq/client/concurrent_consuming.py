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
from operator import length_hint

import anyio
import anyio.abc
import anyio.lowlevel

from trio_rmq.client.consuming import Delivery, batches, loop_clock
from trio_rmq.client.held_queue import HeldQueue
from trio_rmq.client.listening import Listener, Outcome, guarded, later_of, log_failure
from trio_rmq.client.message import ConsumeLater, ConsumeResult, ReceivedMessage

logger = logging.getLogger(__name__)

CALLS_A_TURN = 128
TURN_SECONDS = 0.001
"""After so many calls that never waited, or so long, a worker lets other tasks run."""
OVERDUE_LEVEL = 3
"""The delay level (10 s by RocketMQ's table) of messages whose call took too long."""


class _Row:
    """Messages of one queue and one topic, as calls for whoever takes the next one from `calls`."""

    __slots__ = ("calls", "held")

    def __init__(self, held: HeldQueue, messages: list[ReceivedMessage], size: int) -> None:
        self.held = held
        if size == 1:
            calls = [[message] for message in messages]
        else:
            calls = [messages[begin : begin + size] for begin in range(0, len(messages), size)]
        self.calls = iter(calls)


class _Worker:
    """One worker and the call it is at, or whose messages it brings back.

    `held` is None when it has neither, `started` unless a call runs.
    """

    __slots__ = ("held", "is_overdue", "messages", "scope", "started", "wake")

    def __init__(self, wake: anyio.Event) -> None:
        self.held: HeldQueue | None = None
        self.messages: list[ReceivedMessage] = []
        self.started: float | None = None
        self.is_overdue = False
        self.scope = anyio.CancelScope()
        self.wake = wake


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
        self._call_ended: anyio.Event | None = None
        self._event_type = type(anyio.Event())  # of this backend, which anyio.Event() would look up each time
        self._clock = loop_clock()

    def taken(self, held: HeldQueue) -> None:
        """Nothing to prepare."""

    def accept(self, held: HeldQueue, messages: list[ReceivedMessage]) -> None:
        """Put them in the row."""
        size = self._delivery.batch_size
        if held.is_retry:
            self._ready.extend([_Row(held, same, size) for same in batches(held, messages, len(messages))])
        else:
            self._ready.append(_Row(held, messages, size))
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
        while any(worker.held is not None for worker in self._workers):
            self._call_ended = anyio.Event()
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
            worker = _Worker(self._event_type())
            self._workers.append(worker)
            self._tasks.start_soon(self._run_worker, worker)
        else:
            return
        self._waking = True

    async def _run_worker(self, worker: _Worker) -> None:
        """Make calls, and bring back what one did not finish.

        The scope by which a call is cancelled lasts until one was: a scope for every time that there is something to do
        would cost as much as several calls.
        """
        self._waking = False
        while True:
            later = ConsumeLater()
            try:
                with anyio.CancelScope() as worker.scope:
                    later = await guarded(self._call_on(worker))
            except Exception as error:  # whatever a listener raises is the user's
                if worker.held is None:
                    raise
                log_failure(self._delivery.group, worker.messages, error)
            if worker.is_overdue:
                worker.is_overdue = False
                later = ConsumeLater(delay_level=OVERDUE_LEVEL)
            if worker.held is not None:
                await self._end_failed(worker, worker.held, later)

    async def _end_failed(self, worker: _Worker, held: HeldQueue, later: ConsumeLater) -> None:
        messages, worker.messages = worker.messages, []
        started, worker.started = worker.started, None
        now = anyio.current_time()
        try:
            done = min(max(later.consumed_count, 0), len(messages))
            self._delivery.count(held.queue.topic, done, len(messages) - done, now - (started or now), now)
            await self._bring_back(held, messages, done, later.delay_level)
        finally:
            held.call_ended(anyio.current_time())
            self._set_free(worker)

    def _set_free(self, worker: _Worker) -> None:
        worker.held = None
        if self._call_ended is not None:
            self._call_ended.set()
            self._call_ended = None

    async def _call_on(self, worker: _Worker) -> ConsumeLater:
        """Make calls, as they come, until one did not finish its messages; what to do with those of `worker` then."""
        delivery, limiter = self._delivery, self._delivery.limiter
        while True:
            while not self._ready or not delivery.open:
                await self._rest(worker)
            if delivery.is_limiter_shared:
                await limiter.acquire_on_behalf_of(worker)
                try:
                    later = await self._call_while_done(worker, once=True)
                finally:
                    limiter.release_on_behalf_of(worker)
            else:
                later = await self._call_while_done(worker, once=False)
            if later is not None:
                return later

    async def _rest(self, worker: _Worker) -> None:
        worker.wake = self._event_type()
        self._idle.append(worker)
        try:
            await worker.wake.wait()
        finally:
            if worker.wake.is_set():
                self._waking = False
            else:
                self._idle.remove(worker)

    async def _call_while_done(self, worker: _Worker, *, once: bool) -> ConsumeLater | None:
        """Make calls as long as their messages are done; what to do with those of `worker` that are not.

        Every line of the inner loop counts: a listener that never waits is called some 200,000 times a second.  What
        need not be done for each call is done for all that are made of a row one after the other.  So are calls and
        their time counted, which are behind by no more than what was done within TURN_SECONDS.
        """
        delivery, ready, clock = self._delivery, self._ready, self._clock
        size, room, listeners = delivery.batch_size, delivery.room, delivery.listeners
        listener: Listener | None
        now = clock()
        left, until = CALLS_A_TURN, now + TURN_SECONDS
        while ready and delivery.open:
            row = ready[0]
            held = row.held
            if held.leaving:
                ready.popleft()
                continue
            topic, state = held.queue.topic, held.state
            counts = delivery.figures.of(topic, now).counts
            held.calls += 1
            worker.held = held
            first, calls = now, 0
            try:
                for messages in row.calls:
                    if not self._waking and (len(ready) > 1 or length_hint(row.calls)):
                        self._wake_one()
                    listener = listeners.get(topic) or delivery.listener(held, messages[0])
                    if listener is None:
                        continue
                    worker.messages = messages
                    worker.started = now
                    outcome: Outcome = await listener(messages)
                    if outcome is not None and outcome is not ConsumeResult.SUCCESS:
                        return later_of(outcome)
                    now = clock()
                    calls += 1
                    counts.consumed += len(messages)
                    if size == 1 and not state.dropped:
                        state.finished_one(messages[0].queue_offset)
                        if held.room is not None or room.has_total:
                            room.finished(held)
                    else:
                        self._done(held, messages)
                    if once or now > until or held.leaving or worker.is_overdue or not delivery.open:
                        break
            finally:
                left -= calls
                counts.calls += calls
                counts.call_seconds += now - first
            if not length_hint(row.calls) and ready and ready[0] is row:
                ready.popleft()
            worker.started = None
            held.call_ended(now)
            self._set_free(worker)
            if once:
                break
            if left <= 0 or now > until or worker.is_overdue:
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
