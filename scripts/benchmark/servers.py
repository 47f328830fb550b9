"""The processes that are measured: our standalone server, and the floor."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmark.load import BenchmarkError, process_cpu_seconds, process_resident_mb

START_SECONDS = 20.0


@dataclass
class MeasuredServer:
    """A running process, the address of what it serves, and the moment it was started (perf_counter)."""

    process: subprocess.Popen[str]
    address: str
    started: float
    name_server: str = ""

    def cpu_seconds(self) -> float:
        """CPU time since its start."""
        return process_cpu_seconds(self.process.pid)

    def resident_mb(self) -> float:
        """Resident memory now."""
        return process_resident_mb(self.process.pid)


def free_port_pair() -> tuple[int, int]:
    """Two free loopback ports."""
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        return first.getsockname()[1], second.getsockname()[1]


@contextmanager
def our_server(*overrides: str, folder: str | None = None) -> Iterator[MeasuredServer]:
    """A standalone server on a fresh store, ready; `address` is the broker's."""
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
                "--port", str(port), "--namesrv-port", str(namesrv_port), "fastPortEnable=false", *overrides,
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
            _stop(process)
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
            _stop(process)
            process.stdout.close()


def _stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
