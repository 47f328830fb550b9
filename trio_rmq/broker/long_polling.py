"""Held pulls: consumers that found nothing wait here until something arrives for them or their time is over.

A held pull is no task: the store's arrival call takes those of one queue whose tag filter takes the message out of the
table, and one task answers them all in its next step; another sleeps until the first one's time is over.  No scan, no
polling.  Invariants: a pull is in the table from `hold` until it is woken or given up; the number of held pulls is
bounded; each is woken once at most.  Source of the rules: RocketMQ PullRequestHoldService (4.9).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from heapq import heapify, heappop, heappush

import trio

from trio_rmq.limits import HELD_PULLS_MAX

_ANSWERS_A_SLICE = 64
"""Pulls answered before other tasks get their turn: some 2 ms."""

_ENDED_MAX = 1000
"""So many entries of ended pulls may stand among the times before they are thrown out."""

Wake = Callable[[bool], Callable[[], None]]
"""Answers a held pull: whether something arrived, else its time is over.  Must not raise; what it returns is called
after others that were woken with it, and once for all for which it is the same."""


class _Waiter:
    __slots__ = ("key", "tags_codes", "wake")

    def __init__(self, key: tuple[str, int], tags_codes: frozenset[int] | None, wake: Wake) -> None:
        self.key = key
        self.tags_codes = tags_codes
        self.wake: Wake | None = wake
        """None once it is answered or given up."""


class HeldPulls:
    """All held pulls of one broker, and what its own services wait for; `run` answers the pulls."""

    def __init__(self, *, held_max: int = HELD_PULLS_MAX) -> None:
        self._waiters: dict[tuple[str, int], dict[_Waiter | trio.Event, None]] = {}
        self.awaited: Collection[tuple[str, int]] = self._waiters
        """The queues, by topic and queue id, that pulls are held for."""
        self._held = 0
        self._held_max = held_max
        self._woken: list[_Waiter] = []
        self._some_woken = trio.Event()
        self._times: list[tuple[float, int, _Waiter]] = []
        self._number = 0
        self._ended = 0
        """How many of `_times` are of pulls that ended before."""
        self._alarm = trio.CancelScope()

    @property
    def held(self) -> int:
        """How many pulls are held now."""
        return self._held

    @property
    def full(self) -> bool:
        """Whether no further pull can be held; it is then answered at once."""
        return self._held >= self._held_max

    def arrived(self, topic: str, queue_id: int, max_offset: int, tags_code: int) -> None:
        """A message became visible: wake the pulls of its queue whose filter takes it (the store's on_arrival)."""
        waiters = self._waiters.get((topic, queue_id))
        if waiters:
            for waiter in [*waiters]:
                if isinstance(waiter, trio.Event):
                    waiter.set()
                elif waiter.tags_codes is None or tags_code in waiter.tags_codes:
                    self._wake(waiter)

    def wake_topic(self, topic: str) -> None:
        """Wake every pull of a topic that changed or went away, so that it is answered anew."""
        for waiters in [waiters for (name, _), waiters in self._waiters.items() if name == topic]:
            for waiter in [*waiters]:
                if isinstance(waiter, trio.Event):
                    waiter.set()
                else:
                    self._wake(waiter)

    def hold(
        self,
        topic: str,
        queue_id: int,
        tags_codes: frozenset[int] | None,
        until: float,
        wake: Wake,
        *,
        arrived: bool = False,
    ) -> Callable[[], None]:
        """Hold a pull until a message of the queue arrives that the filter takes, or until that time of the loop.

        Then `wake` is called, in a step of the service; soon, when something `arrived` since the queue was looked at.
        What it returns gives the pull up; after `wake` it does nothing.
        """
        waiter = _Waiter((topic, queue_id), tags_codes, wake)
        self._waiters.setdefault(waiter.key, {})[waiter] = None
        self._held += 1
        self._number += 1
        heappush(self._times, (until, self._number, waiter))
        if arrived:
            self._wake(waiter)
        elif until < self._alarm.deadline:
            self._alarm.deadline = until
        return partial(self._give_up, waiter)

    def _give_up(self, waiter: _Waiter) -> None:
        if waiter.wake is not None:
            waiter.wake = None
            self._held -= 1
            if self._waits(waiter):
                self._ended += 1
                self._remove(waiter.key, waiter)

    def _wake(self, waiter: _Waiter) -> None:
        self._remove(waiter.key, waiter)
        self._woken.append(waiter)
        self._ended += 1
        self._some_woken.set()

    async def run(self) -> None:
        """The service; runs until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_times)
            while True:
                await self._some_woken.wait()
                self._some_woken = trio.Event()
                woken, self._woken = self._woken, []
                await self._answer(woken, arrived=True)

    async def _watch_times(self) -> None:
        times = self._times
        while True:
            with trio.CancelScope(deadline=times[0][0] if times else math.inf) as self._alarm:
                await trio.sleep_forever()
            now, due = trio.current_time(), []
            while times and times[0][0] <= now:
                waiter = heappop(times)[2]
                if self._waits(waiter):
                    self._remove(waiter.key, waiter)
                    due.append(waiter)
                else:
                    self._ended -= 1
            await self._answer(due, arrived=False)

    async def _answer(self, waiters: list[_Waiter], *, arrived: bool) -> None:
        for begin in range(0, len(waiters), _ANSWERS_A_SLICE):
            if begin:
                await trio.lowlevel.checkpoint()
            flushes: dict[Callable[[], None], None] = {}
            for waiter in waiters[begin : begin + _ANSWERS_A_SLICE]:
                wake, waiter.wake = waiter.wake, None
                if wake is not None:  # else it was given up meanwhile
                    self._held -= 1
                    flushes[wake(arrived)] = None
            for flush in flushes:
                flush()
        if self._ended > _ENDED_MAX and 2 * self._ended > len(self._times):
            self._times[:] = [entry for entry in self._times if self._waits(entry[2])]
            heapify(self._times)
            self._ended = 0

    def _waits(self, waiter: _Waiter) -> bool:
        return waiter in self._waiters.get(waiter.key, ())

    def _remove(self, key: tuple[str, int], waiter: _Waiter | trio.Event) -> None:
        waiters = self._waiters.get(key)
        if waiters is not None:
            waiters.pop(waiter, None)
            if not waiters:
                del self._waiters[key]

    async def wait_message(self, topic: str, *queue_ids: int) -> None:
        """Wait until a message arrives in one of the queues: a service of the broker waits, which counts as no pull.

        Call it in the same step in which the queues were found empty.  It may return without one.
        """
        arrived = trio.Event()
        with self.waking(arrived, topic, *queue_ids):
            await arrived.wait()

    @contextmanager
    def waking(self, event: trio.Event, topic: str, *queue_ids: int) -> Iterator[None]:
        """For the block, set `event` when a message arrives in one of the queues, as for `wait_message`."""
        keys = [(topic, queue_id) for queue_id in queue_ids]
        for key in keys:
            self._waiters.setdefault(key, {})[event] = None
        try:
            yield
        finally:
            for key in keys:
                self._remove(key, event)
