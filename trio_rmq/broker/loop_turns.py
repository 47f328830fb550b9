"""How long the turns of the event loop are: while one lasts, nobody else is served.

A turn is what runs between two waits for input and output.  Counted is the CPU time of the loop's thread, not the time
on the wall: a machine that gives the processor to others makes turns late, but only our own work makes them long.  The
cost is one hook of Trio's and one look at the thread's clock a turn, about a microsecond; a turn that serves a read of
64 requests pays it once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import pairwise

import trio

logger = logging.getLogger(__name__)

UPPER_MS = (1, 2, 5, 10, 20, 50, 100)
"""Upper edges of the counts, milliseconds; one more count is for what is longer."""
LONG_MS = 10
"""From here on a turn is told in the log."""
QUIET_SECONDS = 60.0
"""Least time between two lines of the log."""


class LoopTurns(trio.abc.Instrument):
    """Counts of turns by length, once `run` runs.  `thread_seconds` tells the CPU time of the calling thread."""

    def __init__(self, thread_seconds: Callable[[], float]) -> None:
        self._thread_seconds = thread_seconds
        self._last_seconds = 0.0
        self._short = 0
        self._counts = [0] * len(UPPER_MS)
        self._longest_ms = 0.0
        self._unsaid = 0
        self._unsaid_longest_ms = 0.0
        self._said_at: float | None = None

    async def run(self) -> None:
        """Count the turns of the running loop until cancelled."""
        self._last_seconds = self._thread_seconds()
        trio.lowlevel.add_instrument(self)
        try:
            await trio.sleep_forever()
        finally:
            trio.lowlevel.remove_instrument(self)

    def before_io_wait(self, timeout: float) -> None:
        """A turn ends (Trio calls this)."""
        now = self._thread_seconds()
        took, self._last_seconds = now - self._last_seconds, now
        if took < 0.001:
            self._short += 1
        else:
            self._count(took * 1000)

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
        counts = [self._short, *self._counts]
        return {
            "loopTurnCpuDistribution": " ".join(f"[{name}]:{count}" for name, count in zip(names, counts, strict=True)),
            "loopTurnCpuLongestMs": f"{self._longest_ms:.1f}",
        }
