"""The processes that are measured: our standalone server, and the floor (Apache's are in `versus/apache.py`)."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmark.load import (
    BenchmarkError,
    child_processes,
    process_anonymous_mb,
    process_cpu_seconds,
    process_resident_mb,
)

START_SECONDS = 20.0


@dataclass
class MeasuredServer:
    """A running process, the address of what it serves, and the moment it was started (perf_counter).

    `others` are processes that belong to it; children of any count as well.  `on_begin` is called when a load's
    measured time begins.
    """

    process: subprocess.Popen[str]
    address: str
    started: float
    name_server: str = ""
    others: tuple[subprocess.Popen[str], ...] = ()
    on_begin: Callable[[], None] = lambda: None

    def _process_ids(self) -> list[int]:
        found = [process.pid for process in (self.process, *self.others)]
        for process_id in found:  # grows meanwhile
            found += child_processes(process_id)
        return found

    def cpu_seconds(self) -> float:
        """CPU time since its start."""
        return sum(process_cpu_seconds(process_id) for process_id in self._process_ids())

    def resident_mb(self) -> float:
        """Resident memory now."""
        return sum(process_resident_mb(process_id) for process_id in self._process_ids())

    def anonymous_mb(self) -> float:
        """Resident memory now that is no file's: neither code nor a log file mapped into memory."""
        return sum(process_anonymous_mb(process_id) for process_id in self._process_ids())


def free_port_pair() -> tuple[int, int]:
    """Two free loopback ports."""
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        return first.getsockname()[1], second.getsockname()[1]


@contextmanager
def our_server(*overrides: str, folder: str | None = None, options: Sequence[str] = ()) -> Iterator[MeasuredServer]:
    """A standalone server on a fresh store, ready; `address` is the broker's (the first one's, with several)."""
    scratch = Path(tempfile.mkdtemp(prefix="trio-rmq-bench-", dir=folder))
    port, namesrv_port = free_port_pair()
    ready_path = scratch / "ready"
    environment = {**os.environ, "NOTIFY_SOCKET": str(ready_path)}
    environment.pop("PYTHONPATH", None)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, (scratch / "log").open("w") as log:
        ready.bind(str(ready_path))
        ready.settimeout(START_SECONDS)
        started = time.perf_counter()
        process = subprocess.Popen(
            [
                str(Path(sys.executable).parent / "trio-rmq"), "standalone", "--store", str(scratch / "store"),
                "--port", str(port), "--namesrv-port", str(namesrv_port), *options, "fastPortEnable=false", *overrides,
            ],
            stdout=log, stderr=subprocess.STDOUT, text=True, env=environment,
        )  # fmt: skip
        try:
            try:
                while b"READY=1" not in ready.recv(4096):
                    pass
            except TimeoutError:
                raise BenchmarkError(f"the server was not ready: {(scratch / 'log').read_text()[-2000:]}") from None
            yield MeasuredServer(process, f"127.0.0.1:{port}", started, f"127.0.0.1:{namesrv_port}")
        finally:
            stop_process(process)
            shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def floor_server(answer: bytes) -> Iterator[MeasuredServer]:
    """The floor, answering every frame with `answer`."""
    with tempfile.NamedTemporaryFile(prefix="trio-rmq-bench-") as file:
        file.write(answer)
        file.flush()
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmark.floor", file.name], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        try:
            yield MeasuredServer(process, process.stdout.readline().strip(), started)
        finally:
            stop_process(process)
            process.stdout.close()


def stop_process(process: subprocess.Popen[str]) -> None:
    """SIGTERM, and SIGKILL for what still runs 20 s later."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
