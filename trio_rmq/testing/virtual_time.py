"""Virtual time for whole clusters: a clock that jumps, and a timetable of actions that need no task of their own.

`trio.testing.MockClock` finds out that all tasks wait by one more turn of the run loop, and what is to happen at a
time takes a task that sleeps until then.  A simulation of a cluster does little else, so `SimulatedClock` jumps when
Trio asks it how long to sleep - Trio asks only when no task can run - and carries out the timetable's actions itself.

Invariants: time never goes back; actions run in the order of their times, then of the calls that entered them; an
action runs when all that was runnable before has run, so it must not wait, and must not raise.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable

import trio

_ASLEEP_SECONDS = 3600.0


class Timetable:
    """Actions and when they are due."""

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    @property
    def next_time(self) -> float:
        """When the next action is due; infinite without one."""
        return self._entries[0][0] if self._entries else math.inf

    def enter(self, time: float, action: Callable[[], None]) -> None:
        """Let `action` run at `time`."""
        heapq.heappush(self._entries, (time, next(self._numbers), action))

    def run_due(self, now: float) -> None:
        """Run what is due, and what becomes due by it."""
        entries = self._entries
        while entries and entries[0][0] <= now:
            heapq.heappop(entries)[2]()


class SimulatedClock(trio.abc.Clock):
    """Seconds from 0; jumps to the next deadline or action as soon as all tasks wait.

    With neither it sleeps like any clock: only a thread or a signal can go on then.  `wait_all_tasks_blocked` never
    returns while there are deadlines: there is always a next moment at once.
    """

    def __init__(self) -> None:
        self.timetable = Timetable()
        self._now = 0.0

    def start_clock(self) -> None:
        """Nothing: time stands until all tasks wait."""

    def current_time(self) -> float:
        """Seconds since the start."""
        return self._now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Jump, run the actions of that moment; 0, so that Trio looks again at once."""
        timetable = self.timetable
        next_time = timetable.next_time
        if next_time <= deadline:
            if next_time == math.inf:
                return _ASLEEP_SECONDS
            self._now = max(self._now, next_time)
            timetable.run_due(self._now)
        else:
            self._now = max(self._now, deadline)
        return 0.0
