"""A run's history as what a picture needs: when servers served, when faults lasted, rates and latencies over time."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from trio_rmq.testing.simulation.history import Event

BUCKETS = 160
"""Points of a line at most."""
BUCKET_SECONDS_MIN = 0.25


class Span(NamedTuple):
    """Something that lasted, in seconds of the run; `label` names it, `detail` says more."""

    lane: str
    begin: float
    end: float
    label: str
    detail: str = ""


class Series(NamedTuple):
    """All that is drawn of one run."""

    seconds: float
    begin: float
    """When workloads and faults began."""
    healed: float
    """When all faults had ended."""
    serving: list[Span]
    faults: list[Span]
    bucket_seconds: float
    acknowledged: list[float]
    """A second, by bucket."""
    not_acknowledged: list[float]
    consumed: list[float]
    latency_p50_ms: list[float | None]
    latency_p99_ms: list[float | None]
    latency_max_ms: list[float | None]


def make_series(events: list[Event], seconds: float) -> Series:
    """The series of a history that lasted `seconds`."""
    size = max(seconds / BUCKETS, BUCKET_SECONDS_MIN)
    count = int(seconds / size) + 1
    rates = {what: [0.0] * count for what in ("ok", "not", "consumed")}
    latencies: list[list[float]] = [[] for _ in range(count)]
    invoked: dict[str, int] = {}
    for event in events:
        bucket = min(int(event.time_us / 1e6 / size), count - 1)
        match event.what:
            case "invoke":
                invoked[event.value["id"]] = event.time_us
            case "ok":
                rates["ok"][bucket] += 1 / size
                latencies[bucket].append((event.time_us - invoked[event.value["id"]]) / 1000)
            case "info" | "refused":
                rates["not"][bucket] += 1 / size
            case "consumed":
                rates["consumed"][bucket] += 1 / size
    return Series(
        seconds,
        _time_of(events, "begin", 0.0),
        _time_of(events, "healed", seconds),
        _serving(events, seconds),
        _faults(events, seconds),
        size,
        rates["ok"],
        rates["not"],
        rates["consumed"],
        [_percentile(values, 0.5) for values in latencies],
        [_percentile(values, 0.99) for values in latencies],
        [max(values, default=None) for values in latencies],
    )


def _time_of(events: list[Event], what: str, otherwise: float) -> float:
    return next((event.time_us / 1e6 for event in events if event.what == what), otherwise)


def _percentile(values: list[float], share: float) -> float | None:
    if not values:
        return None
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


def _serving(events: list[Event], seconds: float) -> list[Span]:
    """From each `up` of a server to its end."""
    spans, since = [], dict[str, float]()
    for event in events:
        at = event.time_us / 1e6
        if event.what == "up":
            since[event.process] = at
        elif event.what in ("down", "ends") and event.process in since:
            status = event.value["status"]
            spans.append(Span(event.process, since.pop(event.process), at, "up", f"ended with status {status}"))
    spans += [Span(name, begin, seconds, "up", "until the end") for name, begin in since.items()]
    return sorted(spans)


def _faults(events: list[Event], seconds: float) -> list[Span]:
    """From each fault's begin to its end; what had no length gets none."""
    spans, open_ones = [], defaultdict[tuple[str, str], list[Event]](list)
    for event in events:
        if event.what == "fault":
            open_ones[event.value["do"], event.value["target"]].append(event)
        elif event.what == "fault over":
            begin = open_ones[event.value["do"], event.value["target"]].pop(0)
            spans.append(_fault_span(begin, event.time_us / 1e6))
    spans += [_fault_span(begin, seconds) for waiting in open_ones.values() for begin in waiting]
    return sorted(spans, key=lambda span: (span.lane, span.begin))


def _fault_span(begin: Event, end: float) -> Span:
    value = begin.value
    step = f", by {value['step_ms']} ms" if value["step_ms"] else ""
    what = f"{value['do']} {value['target']}"
    return Span(what, begin.time_us / 1e6, end, value["do"], what + step)
