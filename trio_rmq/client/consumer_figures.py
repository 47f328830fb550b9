"""How a push consumer does, by topic: counts, and their rates over the last minute.

Counting is plain addition; `sample`, called now and then, keeps what the counts were, and rates are differences to
that.  Source of the figures' meaning: RocketMQ ConsumerStatsManager.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import TypeVar

from trio_rmq.wire.running import ConsumeStatus

T = TypeVar("T")

MINUTE_SECONDS = 60.0
HOUR_SECONDS = 3600.0


@dataclass(slots=True)
class TopicCounts:
    """All since the start: pulls that brought messages, listener calls, and their times in seconds."""

    pulls: int = 0
    pulled: int = 0
    pull_seconds: float = 0.0
    calls: int = 0
    call_seconds: float = 0.0
    consumed: int = 0
    failed: int = 0


class TopicFigures:
    """One topic's counts and samples of them."""

    def __init__(self, now: float) -> None:
        self.counts = TopicCounts()
        self._minute: deque[tuple[float, TopicCounts]] = deque([(now, TopicCounts())])
        self._hour: deque[tuple[float, int]] = deque([(now, 0)])

    def sample(self, now: float) -> None:
        """Keep the counts of now; once every few seconds."""
        _forget(self._minute, now - MINUTE_SECONDS)
        self._minute.append((now, replace(self.counts)))
        if now - self._hour[-1][0] >= MINUTE_SECONDS:
            _forget(self._hour, now - HOUR_SECONDS)
            self._hour.append((now, self.counts.failed))

    def status(self, now: float) -> ConsumeStatus:
        """The figures as RocketMQ's tools want them."""
        since, before = next((kept for kept in self._minute if kept[0] >= now - MINUTE_SECONDS), self._minute[-1])
        seconds = max(now - since, 1.0)
        counts = self.counts
        pulls, calls = counts.pulls - before.pulls, counts.calls - before.calls
        return ConsumeStatus(
            pull_rt=1000 * (counts.pull_seconds - before.pull_seconds) / pulls if pulls else 0.0,
            pull_tps=(counts.pulled - before.pulled) / seconds,
            consume_rt=1000 * (counts.call_seconds - before.call_seconds) / calls if calls else 0.0,
            consume_ok_tps=(counts.consumed - before.consumed) / seconds,
            consume_failed_tps=(counts.failed - before.failed) / seconds,
            consume_failed_msgs=counts.failed - self._hour[0][1],
        )


def _forget(kept: deque[tuple[float, T]], before: float) -> None:
    """Drop what is older, but for one."""
    while len(kept) > 1 and kept[1][0] <= before:
        kept.popleft()


class ConsumerFigures:
    """The figures of each topic, made when first asked for."""

    def __init__(self) -> None:
        self._topics: dict[str, TopicFigures] = {}

    def of(self, topic: str, now: float) -> TopicFigures:
        """A topic's figures."""
        figures = self._topics.get(topic)
        if figures is None:
            figures = self._topics[topic] = TopicFigures(now)
        return figures

    def sample(self, now: float) -> None:
        """Keep all counts of now."""
        for figures in self._topics.values():
            figures.sample(now)
