"""How long the turns of the event loop are: while one lasts, nobody else is served.

A turn is what runs between two waits for input and output.  Counted is the CPU time of the loop's thread, not the time
on the wall: a machine that gives the processor to others makes turns late, but only our own work makes them long.

The cost is one hook of Trio's a turn, below a microsecond: asking for a thread's CPU time is a system call, at which
the kernel also settles whose turn it is, so it is asked only when two milliseconds have passed on the wall, within
which no turn can have been longer.  A turn may seem longer than it was by what ran within two milliseconds before it;
it never seems shorter.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import pairwise

import trio

logger = logging.getLogger(__name__)

UPPER_MS = (2, 5, 10, 20, 50, 100)
"""Upper edges of the counts, milliseconds; one more count is for what is longer."""
LONG_MS = 10
"""From here on a turn is told in the log."""
LOOK_SECONDS = UPPER_MS[0] / 1000
"""Least time between two looks at the thread's clock: what passes between them belongs to the first count."""
QUIET_SECONDS = 60.0
"""Least time between two lines of the log."""


class LoopTurns(trio.abc.Instrument):
    """Counts of turns by length, once `run` runs.

    `wall_seconds` tells the time on the wall from any beginning, `thread_seconds` the calling thread's CPU time.
    """

    __slots__ = (
        "_counts", "_last_seconds", "_longest_ms", "_look_at", "_said_at", "_thread_seconds", "_turns", "_unsaid",
        "_unsaid_longest_ms", "_wall_seconds",
    )  # fmt: skip

    def __init__(self, wall_seconds: Callable[[], float], thread_seconds: Callable[[], float]) -> None:
        self._wall_seconds = wall_seconds
        self._thread_seconds = thread_seconds
        self._look_at = self._last_seconds = 0.0
        self._turns = 0
        self._counts = [0] * len(UPPER_MS)
        self._longest_ms = 0.0
        self._unsaid = 0
        self._unsaid_longest_ms = 0.0
        self._said_at: float | None = None

    async def run(self) -> None:
        """Count the turns of the running loop until cancelled."""
        self._last_seconds = self._thread_seconds()
        self._look_at = self._wall_seconds()
        trio.lowlevel.add_instrument(self)
        try:
            await trio.sleep_forever()
        finally:
            trio.lowlevel.remove_instrument(self)

    def before_io_wait(self, timeout: float) -> None:
        """A turn ends (Trio calls this)."""
        self._turns += 1
        now = self._wall_seconds()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_SECONDS
        seconds = self._thread_seconds()
        took_ms, self._last_seconds = (seconds - self._last_seconds) * 1000, seconds
        if took_ms >= UPPER_MS[0]:
            self._count(took_ms)

    def _count(self, took_ms: float) -> None:
        self._longest_ms = max(self._longest_ms, took_ms)
        self._counts[sum(took_ms >= edge for edge in UPPER_MS) - 1] += 1
        if took_ms < LONG_MS:
            return
        self._unsaid += 1
        self._unsaid_longest_ms = max(self._unsaid_longest_ms, took_ms)
        now = trio.current_time()
        if self._said_at is None or now - self._said_at >= QUIET_SECONDS:
            logger.info(
                "turns of the event loop with %d ms or more of CPU: %d, the longest %.1f ms; others waited meanwhile",
                LONG_MS, self._unsaid, self._unsaid_longest_ms,
            )  # fmt: skip
            self._unsaid, self._unsaid_longest_ms, self._said_at = 0, 0.0, now

    def running_stats(self) -> dict[str, str]:
        """The counts since the start, as texts in the form of RocketMQ's own distribution of append times."""
        edges = [f"{low}~{high}ms" for low, high in pairwise(UPPER_MS)]
        names = [f"<{UPPER_MS[0]}ms", *edges, f">={UPPER_MS[-1]}ms"]
        counts = [self._turns - sum(self._counts), *self._counts]
        return {
            "loopTurnCpuDistribution": " ".join(f"[{name}]:{count}" for name, count in zip(names, counts, strict=True)),
            "loopTurnCpuLongestMs": f"{self._longest_ms:.1f}",
        }
