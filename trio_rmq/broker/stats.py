"""Rates by topic and by group, as RocketMQ's BrokerStatsManager names them, without a count on a message's way.

What was put is told by the entries of the queues, looked at every ten seconds (`store.put_counts`); what was got is one
addition a pull.  Windows are made of samples: the last minute of one every 10 s, the last hour of one every
10 min, the last day of one an hour.  Invariants: a sample never changes; an idle broker's samples are one and the same.
Source: RocketMQ BrokerStatsManager, StatsItem, BrokerStats, StoreStatsService (4.9).
"""

from __future__ import annotations

from collections import deque
from datetime import datetime
from typing import NamedTuple

import trio

from trio_rmq.clock import wall_ms
from trio_rmq.limits import STATS_KEYS_MAX
from trio_rmq.store.message_store import MessageStore
from trio_rmq.wire.consumer_stats import BrokerStatsData, BrokerStatsItem

TOPIC_PUT_NUMS = "TOPIC_PUT_NUMS"
TOPIC_PUT_SIZE = "TOPIC_PUT_SIZE"
GROUP_GET_NUMS = "GROUP_GET_NUMS"
GROUP_GET_SIZE = "GROUP_GET_SIZE"
SNDBCK_PUT_NUMS = "SNDBCK_PUT_NUMS"
BROKER_PUT_NUMS = "BROKER_PUT_NUMS"
BROKER_GET_NUMS = "BROKER_GET_NUMS"
"""Figures by name; keys are a topic, `topic@group`, or the cluster's name for the last two."""

SAMPLE_SECONDS = 10
SAMPLES_A_MINUTE, SAMPLES_AN_HOUR, SAMPLES_A_DAY = 7, 7, 25
"""Ends of six 10 s, of six 10 min and of 24 hours."""
TOTALS_KEPT = 61
"""Ends of the 10 s in ten minutes."""
_HOUR_EVERY, _DAY_EVERY = 60, 360
"""Samples between two of the hour's and two of the day's."""


class _Count(NamedTuple):
    value: int
    times: int


class _Totals(NamedTuple):
    time_ms: int
    appended: int
    found: int
    missed: int
    read: int


_Counts = dict[str, dict[str, _Count]]
"""Counts by figure and key, since the start."""


class _Sample(NamedTuple):
    time_ms: int
    counts: _Counts


class BrokerStats:
    """The figures of one broker; `run` takes the samples."""

    def __init__(self, store: MessageStore, cluster_name: str) -> None:
        self._store = store
        self._cluster_name = cluster_name
        self._got: dict[tuple[str, str], list[int]] = {}
        self._sent_back: dict[str, int] = {}
        self._totals: deque[_Totals] = deque(maxlen=TOTALS_KEPT)
        self._minute: deque[_Sample] = deque(maxlen=SAMPLES_A_MINUTE)
        self._hour: deque[_Sample] = deque(maxlen=SAMPLES_AN_HOUR)
        self._day: deque[_Sample] = deque(maxlen=SAMPLES_A_DAY)
        self._date = ""
        self.put_total_mornings = [0, 0]
        """Messages appended up to yesterday's and today's midnight, local time."""
        self.get_total_mornings = [0, 0]
        """Messages read up to yesterday's and today's midnight."""

    # -- counting -----------------------------------------------------------------------------------------------

    def count_get(self, topic: str, group: str, messages: int, size_bytes: int) -> None:
        """A pull of the group got this many messages."""
        counts = self._got.get((topic, group))
        if counts is None:
            if len(self._got) >= STATS_KEYS_MAX:
                return
            counts = self._got[topic, group] = [0, 0, 0]
        counts[0] += messages
        counts[1] += size_bytes
        counts[2] += 1

    def count_send_back(self, topic: str, group: str) -> None:
        """The group gave a message of the topic back."""
        key = f"{topic}@{group}"
        if key in self._sent_back or len(self._sent_back) < STATS_KEYS_MAX:
            self._sent_back[key] = self._sent_back.get(key, 0) + 1

    # -- sampling -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Take samples for ever."""
        number = 0
        next_time = trio.current_time()
        while True:
            await self._take(number)
            number += 1
            next_time += SAMPLE_SECONDS
            await trio.sleep_until(next_time)

    async def _take(self, number: int) -> None:
        statistics = self._store.statistics()
        before = self._totals[-1] if self._totals else None
        appended, read = statistics.messages_appended, statistics.messages_read
        if before is None or appended != before.appended:
            await self._store.put_counts.look()
        counts = self._minute[-1].counts if self._minute else {}
        if before is None or (appended, read) != (before.appended, before.read):
            counts = self._counts(appended, read)
        now_ms = wall_ms()
        self._totals.append(_Totals(now_ms, appended, statistics.reads_found, statistics.reads_missed, read))
        sample = _Sample(now_ms, counts)
        self._minute.append(sample)
        if number % _HOUR_EVERY == 0:
            self._hour.append(sample)
        if number % _DAY_EVERY == 0:
            self._day.append(sample)
        date = datetime.fromtimestamp(now_ms / 1000).astimezone().date().isoformat()
        if date != self._date:
            if self._date:
                self.put_total_mornings = [self.put_total_mornings[1], appended]
                self.get_total_mornings = [self.get_total_mornings[1], read]
            self._date = date

    def _counts(self, appended: int, read: int) -> _Counts:
        got = {f"{topic}@{group}": counts for (topic, group), counts in self._got.items()}
        put = self._store.put_counts.by_topic
        return {
            TOPIC_PUT_NUMS: {topic: _Count(messages, messages) for topic, (messages, _) in put.items()},
            TOPIC_PUT_SIZE: {topic: _Count(size, messages) for topic, (messages, size) in put.items()},
            GROUP_GET_NUMS: {key: _Count(messages, pulls) for key, (messages, _, pulls) in got.items()},
            GROUP_GET_SIZE: {key: _Count(size, pulls) for key, (_, size, pulls) in got.items()},
            SNDBCK_PUT_NUMS: {key: _Count(times, times) for key, times in self._sent_back.items()},
            BROKER_PUT_NUMS: {self._cluster_name: _Count(appended, appended)},
            BROKER_GET_NUMS: {self._cluster_name: _Count(read, read)},
        }

    # -- asking -------------------------------------------------------------------------------------------------

    def figures(self, name: str, key: str) -> BrokerStatsData | None:
        """A figure's last minute, hour and day, up to the last sample; None when nothing was ever counted for it."""
        if not self._minute or key not in self._minute[-1].counts.get(name, {}):
            return None
        last = self._minute[-1]
        return BrokerStatsData(
            stats_minute=_difference(self._minute[0], last, name, key),
            stats_hour=_difference(self._hour[0], last, name, key),
            stats_day=_difference(self._day[0], last, name, key),
        )

    def get_rate(self, group: str, topic: str) -> float:
        """Messages a second that the group got of the topic, over the last minute."""
        if not self._minute:
            return 0.0
        return _difference(self._minute[0], self._minute[-1], GROUP_GET_NUMS, f"{topic}@{group}").tps

    def rates(self, which: str) -> str:
        """Three rates a second - last 10 s, minute, 10 min - of `appended`, `found`, `missed`, `read` or `asked`."""
        last = self._totals[-1] if self._totals else None
        parts = []
        for samples in (1, 6, 60):
            first = self._totals[max(len(self._totals) - 1 - samples, 0)] if last is not None else None
            if first is None or last is None or last.time_ms <= first.time_ms:
                parts.append("0.0")
                continue
            if which == "asked":
                count = last.found + last.missed - first.found - first.missed
            else:
                count = getattr(last, which) - getattr(first, which)
            parts.append(f"{count * 1000 / (last.time_ms - first.time_ms):.1f}")
        return " ".join(parts)


def _difference(first: _Sample, last: _Sample, name: str, key: str) -> BrokerStatsItem:
    none = _Count(0, 0)
    begin = first.counts.get(name, {}).get(key, none)
    end = last.counts.get(name, {}).get(key, none)
    total, times = end.value - begin.value, end.times - begin.times
    elapsed_ms = last.time_ms - first.time_ms
    return BrokerStatsItem(
        sum=total,
        tps=total * 1000 / elapsed_ms if elapsed_ms > 0 else 0.0,
        avgpt=total / times if times else 0.0,
    )
