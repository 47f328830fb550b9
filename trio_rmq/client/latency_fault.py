"""Staying away for a while from brokers that were slow or failed (`send_latency_fault_enable`).

How long follows from how long the last send took, by RocketMQ's two tables; a failure counts as 30 seconds.  Off by
default, as there: then only the message that failed avoids the broker.  Source: RocketMQ 4.9 MQFaultStrategy,
LatencyFaultToleranceImpl (5.x has shorter times, which the table given may have too).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FAILURE_SECONDS = 30.0
"""What a failed send counts as."""
LATENCY_TABLE = (
    (0.05, 0.0), (0.1, 0.0), (0.55, 30.0), (1.0, 60.0), (2.0, 120.0), (3.0, 180.0), (15.0, 600.0),
)  # fmt: skip
"""(a send took at least so many seconds, stay away for so many): latencyMax and notAvailableDuration of 4.9."""


@dataclass(slots=True)
class _Fault:
    latency_seconds: float
    since: float
    until: float


class LatencyFaults:
    """What is known of brokers' speed; times come as arguments, so nothing waits here."""

    def __init__(self, table: Sequence[tuple[float, float]] = LATENCY_TABLE) -> None:
        self._table = sorted(table, reverse=True)
        self._faults: dict[str, _Fault] = {}
        self._turn = 0

    def away_seconds(self, latency_seconds: float) -> float:
        """How long to stay away after a send that took so long."""
        return next((away for least, away in self._table if latency_seconds >= least), 0.0)

    def note(self, broker_name: str, latency_seconds: float, now: float, *, failed: bool) -> None:
        """A send to the broker ended `now`, after `latency_seconds`."""
        away = self.away_seconds(FAILURE_SECONDS if failed else latency_seconds)
        self._faults[broker_name] = _Fault(latency_seconds, now, now + away)

    def is_available(self, broker_name: str, now: float) -> bool:
        """Whether the broker may be used."""
        fault = self._faults.get(broker_name)
        return fault is None or now >= fault.until

    def least_bad(self, broker_names: Sequence[str], now: float) -> str | None:
        """When none is available: in turn one of the better half by latency; None when nothing is known of them."""
        known = [name for name in broker_names if name in self._faults]
        if not known:
            return None
        known.sort(key=lambda name: self._rank(name, now))
        self._turn += 1
        return known[self._turn % max(len(known) // 2, 1)]

    def _rank(self, name: str, now: float) -> tuple[bool, float, float]:
        fault = self._faults[name]
        return now < fault.until, fault.latency_seconds, fault.since
