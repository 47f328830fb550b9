"""Runs `trio-rmq` as a process, and waits for a server by its readiness datagram."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

WAIT_SECONDS = 120
"""Only a hang takes so long: on a busy machine a start alone may take half a minute."""


def environment(**extra: str) -> dict[str, str]:
    """This process's environment without what would steer the command."""
    kept = {key: value for key, value in os.environ.items() if key not in ("NAMESRV_ADDR", "NOTIFY_SOCKET")}
    return kept | extra


def trio_rmq(*words: str, given: bytes = b"", cwd: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "trio_rmq.cli.main", *words],
        input=given, capture_output=True, timeout=WAIT_SECONDS, env=environment(), cwd=cwd, check=False,
    )  # fmt: skip


@dataclass
class RunningServer:
    """A server process that said READY=1."""

    process: subprocess.Popen[str]
    notices: socket.socket

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str, str]:
        """Send a signal and wait: (exit status, stdout, stderr)."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=WAIT_SECONDS)
        return self.process.returncode, out, err


@contextmanager
def running(scratch: Path, *words: str) -> Iterator[RunningServer]:
    """A server started with these words, ready; killed at the end if it still runs."""
    path = scratch / "notify"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
        notices.bind(str(path))
        notices.settimeout(WAIT_SECONDS)
        process = subprocess.Popen(
            [sys.executable, "-m", "trio_rmq.cli.main", *words],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment(NOTIFY_SOCKET=str(path)), cwd=scratch,
        )  # fmt: skip
        try:
            try:
                assert notices.recv(100) == b"READY=1"
            except TimeoutError:
                process.kill()
                pytest.fail(f"the server was not ready after {WAIT_SECONDS} s: {process.communicate()}")
            yield RunningServer(process, notices)
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()


def free_ports(count: int) -> list[int]:
    """Loopback ports that are free now, each with the one two below it."""
    found: Sequence[int] = []
    while len(found) < count:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
            try:
                socket.create_server(("127.0.0.1", port - 2)).close()
            except OSError:
                continue
        if all(abs(port - other) > 2 for other in found):
            found = [*found, port]
    return list(found)
