"""`--peer redis,nats`: what a Python program would otherwise send through, each by its own client, beside ours.

The servers are Debian's packages; redis-py and nats-py live in an environment of their own in the cache, so that this
package does not depend on them.  Each run has a fresh server on an empty folder; AOF is synced every second, as Redis
recommends; JetStream stores in files, with its own defaults.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmark.consumers import drain
from benchmark.load import BenchmarkError
from benchmark.producer import ProducerPlan, run_blocking_producer, run_producer
from benchmark.report import Comparison, Goal, Report
from benchmark.servers import free_port_pair, stop_process
from benchmark.versus.environment import python_environment
from benchmark.versus.java_client import Figures
from benchmark.versus.loads import OURS, Terms, compare, measuring
from trio_rmq.client import AutoBatch

PEERS = ("redis", "nats")
READ_MESSAGES = 100_000
WINDOW = 64
UP_SECONDS = 10.0
CLIENT_SECONDS = 300

ROWS = (
    ("window", f"Python client, {WINDOW} in flight, 1 KB", 1.0, PEERS),
    ("packed", "Python client, 64 to a call, 1 KB", None, ("redis",)),
    ("one", "Python client, one at a time, 1 KB", 0.9, PEERS),
    ("turns", "Python client on an event loop, one at a time, 1 KB", 0.9, ("nats",)),
    ("read", "Python client, reads with offsets committed, 1 KB", 2.0, ("nats",)),
)
"""(what, title, the ratio to reach, of the best of which peers); `packed` is Redis' pipelines beside our auto-batching,
which no bar is about.  `one` is each system's quickest way, without an event loop where there is one: ours and Redis'
clients that block; `turns` is the same on a loop."""
ABLE = {"packed": ("redis",), "turns": ("nats",)}
"""By which peers; a row that is not here, by all."""


def run_peers(report: Report, peers: list[str], terms: Terms, done: Callable[[], None]) -> None:
    """Rows for these peers into `report`; goals only where all peers that a goal speaks of were measured."""
    if not peers:
        return
    python = python_environment()
    for what, title, wanted, of in ROWS:
        contenders = {OURS: _ours(what, terms)}
        able = [peer for peer in peers if peer in ABLE.get(what, PEERS)]
        if not able:
            continue
        contenders |= {peer: _peer(python, peer, what, terms) for peer in able}
        with measuring(report, f"peer-{what}", done):
            comparison = compare(f"peer-{what}", title, terms, contenders)
            report.comparisons.append(comparison)
            if wanted is not None and set(of) <= set(peers):
                report.goals.append(Goal(f"{title}: of {' or '.join(of)}", _lead(comparison, of), ">=", wanted))


def _lead(comparison: Comparison, of: tuple[str, ...]) -> float:
    ours = comparison.median(OURS, "messages_per_second") or 0.0
    return ours / max(comparison.median(peer, "messages_per_second") or 0.0 for peer in of)


def _ours(what: str, terms: Terms) -> Callable[[], Figures]:
    def run() -> Figures:
        if what == "read":
            return {"messages_per_second": drain("trio", 1024, READ_MESSAGES).messages_per_second}
        if what == "one":
            row = run_blocking_producer(1024, terms.seconds)
        else:
            tasks = {"window": WINDOW, "packed": 2 * WINDOW, "turns": 1}[what]
            auto_batch = AutoBatch(count=WINDOW) if what == "packed" else None
            row = run_producer(ProducerPlan("trio", 1024, tasks, terms.seconds, auto_batch=auto_batch))
        return {
            "messages_per_second": row.messages_per_second,
            "p50_us": row.latency_p50_us,
            "p99_us": row.latency_p99_us,
        }

    return run


def _peer(python: Path, peer: str, what: str, terms: Terms) -> Callable[[], Figures]:
    def run() -> Figures:
        with _server(peer, terms.folder) as port:
            words = (peer, port, "one" if what == "turns" else what, terms.seconds, terms.seconds / 5, READ_MESSAGES)
            done = subprocess.run(
                [str(python), str(Path(__file__).with_name("peer_client.py")), *map(str, words)],
                capture_output=True, text=True, timeout=CLIENT_SECONDS, check=False,
            )  # fmt: skip
        if done.returncode:
            raise BenchmarkError(f"the client of {peer} failed: {done.stderr[-2000:]}")
        told: Figures = json.loads(done.stdout)
        return told

    return run


@contextmanager
def _server(peer: str, folder: str | None) -> Iterator[int]:
    """The peer's server on a free port, ready; the port."""
    port, _ = free_port_pair()
    with tempfile.TemporaryDirectory(prefix=f"{peer}-bench-", dir=folder) as scratch:
        command = {
            "redis": [
                _program("redis-server"), "--bind", "127.0.0.1", "--port", str(port), "--dir", scratch,
                "--appendonly", "yes", "--appendfsync", "everysec", "--save", "",
            ],
            "nats": [_program("nats-server"), "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", scratch],
        }[peer]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)
        try:
            _await_port(port, peer)
            yield port
        finally:
            stop_process(process)


def _await_port(port: int, peer: str) -> None:
    until = time.perf_counter() + UP_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            if time.perf_counter() > until:
                raise BenchmarkError(f"{peer} did not listen within {UP_SECONDS:.0f} s") from None
            time.sleep(0.05)
        else:
            return


def _program(name: str) -> str:
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin")
    if path is None:
        raise BenchmarkError(f"{name} is not installed; on Debian: apt-get install --no-install-recommends {name}")
    return path
