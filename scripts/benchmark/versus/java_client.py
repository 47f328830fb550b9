"""One run of `java/Load.java` against a running server: its figures, and the server's CPU for the measured time."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

from benchmark.load import BenchmarkError
from benchmark.servers import MeasuredServer
from benchmark.versus.apache import client_class_path
from trio_rmq.testing.apache_java import JAVA_OPENS

CLIENT_JVM = ("-server", "-Xms1g", "-Xmx1g", "-XX:+UseG1GC", "-Drocketmq.serialize.type=ROCKETMQ")
LIMIT_SECONDS = 400.0

Figures = dict[str, float]
"""What one run gave: `messages_per_second`, `p50_us`, `p99_us`, `p999_us`, `max_us`, `cpu_us_per_message`,
`resident_mb`, `anonymous_mb`, `errors`; a row may have others."""


def run_java_load(server: MeasuredServer, kind: str, *words: object) -> Figures:
    """Run it to its end; BenchmarkError when it fails, stalls, or when a send in a thousand or more was refused."""
    scratch = tempfile.mkdtemp(prefix="versus-client-")
    command = [
        "java", *JAVA_OPENS, *CLIENT_JVM, f"-Duser.home={scratch}", f"-Drocketmq.client.logRoot={scratch}",
        "-Drocketmq.client.logLevel=WARN", "-cp", client_class_path(), "Load", kind, server.name_server,
        *map(str, words),
    ]  # fmt: skip
    complaints = Path(scratch) / "stderr"
    with complaints.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    watchdog = threading.Timer(LIMIT_SECONDS, process.kill)
    watchdog.start()
    before = after = 0.0
    told: dict[str, float | str] | None = None
    others: list[str] = []
    try:
        for line in process.stdout:
            if line.startswith("BEGIN"):
                before = server.cpu_seconds()
                server.on_begin()
            elif line.startswith("END "):
                after = server.cpu_seconds()
                told = json.loads(line.removeprefix("END "))
            else:
                others.append(line)
        process.wait(30)
        complaint = complaints.read_text()[-2000:]
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
        shutil.rmtree(scratch, ignore_errors=True)
    if process.returncode or told is None:
        raise BenchmarkError(f"the Java load {kind} failed: {''.join(others)[-1000:]} {complaint}")
    return _figures(server, kind, told, after - before)


def _figures(server: MeasuredServer, kind: str, told: dict[str, float | str], cpu_seconds: float) -> Figures:
    first_error = told.pop("first_error", "")
    figures: Figures = {name: float(value) for name, value in told.items()}
    messages = figures.pop("messages", 0.0)
    if figures["errors"] > messages / 1000:
        raise BenchmarkError(f"the Java load {kind}: {figures['errors']:.0f} errors; the first: {first_error}")
    if kind != "fill" and not messages:
        raise BenchmarkError(f"the Java load {kind} moved nothing")
    if messages:
        figures["messages_per_second"] = messages / figures.pop("seconds")
        figures["cpu_us_per_message"] = cpu_seconds / messages * 1e6
    figures["resident_mb"], figures["anonymous_mb"] = server.resident_mb(), server.anonymous_mb()
    return figures


def fill(server: MeasuredServer, queues: int, count: int, size: int) -> None:
    """Put a backlog of `count` messages into the topic."""
    run_java_load(server, "fill", queues, count, size)
