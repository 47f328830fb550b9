"""`scripts/bench delay`: messages with a delay level, due together and one by one.

The server has a level for each second up to a minute, so that what is sent over many seconds can be due within one.
"""

from __future__ import annotations

import time

from benchmark.report import Report
from benchmark.waiting import FILL_SECONDS, Waiting, measure_burst, measure_lateness, measure_send_rate
from trio_rmq.wire.properties import parse_properties
from trio_rmq.wire.record import StoredMessage


def run_delay(report: Report, *, seconds: float) -> None:
    """The burst beside plain sends, and lateness on an idle broker; `seconds` is for the plain sends."""
    measure_burst(report, _DELAYED, measure_send_rate(seconds))
    measure_lateness(report, _DELAYED, "an idle broker", 50.0)


def _properties(due_ms: int) -> str:
    """Level n waits n seconds: this is the longest that is not due later, hence due within a second before `due_ms`."""
    remaining_seconds = (due_ms - int(time.time() * 1000)) // 1000
    return f"\x02DELAY\x01{max(1, remaining_seconds)}"


def _due_ms(record: StoredMessage) -> int:
    """Counted from its birth, a little before the broker counts from: it tells rather more lateness than less."""
    return record.born_timestamp_ms + 1000 * int(parse_properties(record.properties)["DELAY"])


_DELAYED = Waiting(
    "delayed messages",
    _properties,
    _due_ms,
    (f"messageDelayLevel={' '.join(f'{level}s' for level in range(1, FILL_SECONDS + 2))}",),
)
