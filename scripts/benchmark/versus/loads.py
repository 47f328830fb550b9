"""The rows that set ours beside Apache's: one load each, on fresh servers of both in turn.

The first contender of a comparison is ours, the second Apache's, so that a ratio above 1 is more than Apache.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from benchmark.load import BenchmarkError
from benchmark.report import Comparison, Goal, Report
from benchmark.runs import Plan, send_units, warm_topic
from benchmark.servers import MeasuredServer, our_server
from benchmark.versus.apache import SERVER_VERSION, apache_servers
from benchmark.versus.java_client import Figures, fill, run_java_load
from trio_rmq.errors import RocketMQError

OURS = "trio-rmq"
APACHE = f"Apache {SERVER_VERSION}"
IDLE_SECONDS = 2.0
"""From a server's first acknowledged send to the look at its memory."""

Servers = Callable[..., AbstractContextManager[MeasuredServer]]
CONTENDERS: dict[str, Servers] = {OURS: our_server, APACHE: apache_servers}


@dataclass(frozen=True)
class Terms:
    """What all rows of one call share."""

    rounds: int
    seconds: int
    warm_seconds: int
    queues: int
    backlog: int
    folder: str | None
    rate: int | None
    """Messages a second of the row `half-rate`; None: half of Apache's top rate, measured in this call."""


@dataclass(frozen=True)
class Load:
    """One row: what runs on a server, the settings both servers get, and the ratios to reach."""

    key: str
    title: str
    measure: Callable[[MeasuredServer, Terms], Figures]
    throughput: float | None = None
    p99: float | None = None
    cpu: float | None = None
    settings: tuple[str, ...] = ()


def _sync(threads: int, size: int, batch: int = 1) -> Callable[[MeasuredServer, Terms], Figures]:
    def measure(server: MeasuredServer, terms: Terms) -> Figures:
        words = (terms.queues, terms.warm_seconds, terms.seconds, threads, size, batch)
        return run_java_load(server, "sync", *words)

    return measure


def _async(window: int, size: int) -> Callable[[MeasuredServer, Terms], Figures]:
    def measure(server: MeasuredServer, terms: Terms) -> Figures:
        return run_java_load(server, "async", terms.queues, terms.warm_seconds, terms.seconds, window, size)

    return measure


def _drain(server: MeasuredServer, terms: Terms) -> Figures:
    fill(server, terms.queues, terms.backlog, 1024)
    figures = run_java_load(server, "drain", terms.backlog)
    return {name: value for name, value in figures.items() if name not in ("p50_us", "p99_us", "p999_us", "max_us")}


def _flow(server: MeasuredServer, terms: Terms) -> Figures:
    words = (terms.queues, terms.warm_seconds, terms.seconds, 64, 1024, terms.rate)
    return run_java_load(server, "flow", *words)


def _idle(server: MeasuredServer, terms: Terms) -> Figures:
    """From the start of the first process to the first acknowledged send, then the memory of a server at rest."""
    plan = Plan("send", "tcp", "JSON", 10, 1, 1, 1, 1, 1, None, floor=False)
    warm_topic(server, plan, send_units(plan))
    figures = {"ready_seconds": time.perf_counter() - server.started}
    time.sleep(IDLE_SECONDS)
    return {**figures, "resident_mb": server.resident_mb(), "anonymous_mb": server.anonymous_mb()}


def measure_threads(threads: int) -> Callable[[MeasuredServer, Terms], Figures]:
    """The row `threads64` on a running server, with so many threads."""
    return _sync(threads, 1024)


HALF_RATE = "half-rate"
LOADS = (
    Load("threads64", "64 threads, 1 KB", measure_threads(64), 1.5, 0.4, 0.45),
    Load("thread1", "one thread, 1 KB", _sync(1, 1024), 1.2, 0.9, 0.75),
    Load("async1k", "async, 256 in flight, 1 KB", _async(256, 1024), 1.05, 0.8, 0.95),
    Load("async10", "async, 256 in flight, 10 B", _async(256, 10), 1.05, 0.8, 0.95),
    Load("batch", "batches of 32 x 10 B, 16 threads", _sync(16, 10, 32), 0.8, 1.0, 1.2),
    Load("backlog", "backlog of 1 KB, a push consumer", _drain, 1.0, None, 1.0),
    Load(HALF_RATE, "half of Apache's top rate, end to end", _flow, None, 0.5, 0.6),
    Load("sync-flush", "SYNC_FLUSH, 64 threads, 1 KB", _sync(64, 1024), 1.3, 0.7, 0.6, ("flushDiskType=SYNC_FLUSH",)),
    Load("idle", "idle", _idle),
)


def run_loads(report: Report, chosen: list[str], terms: Terms, done: Callable[[], None]) -> None:
    """The rows in `chosen` into `report`, with their goals; `done` is called after each."""
    for load in LOADS:
        if load.key not in chosen:
            continue
        with measuring(report, load.key, done):
            if load.key == HALF_RATE and terms.rate is None:
                terms = _with_half_rate(report, terms)
            comparison = compare(load.key, load.title, terms, {
                name: _measured(servers, load, terms) for name, servers in CONTENDERS.items()
            })  # fmt: skip
            report.comparisons.append(comparison)
            report.goals += _goals(load, comparison)


@contextmanager
def measuring(report: Report, key: str, done: Callable[[], None]) -> Iterator[None]:
    """A row: what keeps it from being measured is noted, and the rows behind it are measured all the same."""
    try:
        yield
    except (BenchmarkError, RocketMQError, OSError, subprocess.SubprocessError) as error:
        report.failures.append(f"{key}: {error}")
        print(f"{key} could not be measured: {error}", file=sys.stderr, flush=True)
    done()


def _measured(servers: Servers, load: Load, terms: Terms) -> Callable[[], Figures]:
    def run() -> Figures:
        with servers(*load.settings, folder=terms.folder) as server:
            return load.measure(server, terms)

    return run


def compare(key: str, title: str, terms: Terms, contenders: dict[str, Callable[[], Figures]]) -> Comparison:
    """Each contender once a round, every other round in the opposite order."""
    comparison = Comparison(key, title, {name: [] for name in contenders})
    for number in range(terms.rounds):
        for name in reversed(contenders) if number % 2 else contenders:
            print(f"{title}: round {number + 1} of {terms.rounds}, {name}", file=sys.stderr, flush=True)
            comparison.runs[name].append(contenders[name]())
    return comparison


def _with_half_rate(report: Report, terms: Terms) -> Terms:
    """`terms` with half of what Apache reached in row `threads64`, which is run once when it was not asked for."""
    top = next(
        (row.median(APACHE, "messages_per_second") for row in report.comparisons if row.key == "threads64"), None
    )
    if top is None:
        print("64 threads, 1 KB: once, for half of its rate", file=sys.stderr, flush=True)
        top = _measured(apache_servers, LOADS[0], terms)()["messages_per_second"]
    return Terms(
        terms.rounds, terms.seconds, terms.warm_seconds, terms.queues, terms.backlog, terms.folder, int(top / 2)
    )


def _goals(load: Load, comparison: Comparison) -> list[Goal]:
    wanted = [
        ("messages/s", "messages_per_second", ">=", load.throughput),
        ("p99", "p99_us", "<=", load.p99),
        ("CPU a message", "cpu_us_per_message", "<=", load.cpu),
    ]
    if load.key == "idle":
        wanted = [("resident memory", "resident_mb", "<=", 0.1), ("time to ready", "ready_seconds", "<=", 0.125)]
    goals = []
    for what, figure, relation, bar in wanted:
        ratio = comparison.ratio(figure)
        if bar is not None and ratio is not None:
            goals.append(Goal(f"{load.title}: {what}, of Apache's", ratio, relation, bar))
    return goals
