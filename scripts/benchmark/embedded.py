"""`scripts/bench embedded`: brokers inside tests - when the first is ready, and what hundreds of tests cost.

Each figure is a process of its own, so that nothing is warm.  A test opens a producer, sends a message to a new topic,
opens a consumer of a new group, and receives it; pytest's own time counts, from the first test's start to the end, but
not what it does before: of a new version of the package it compiles every module, once.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmark.load import BenchmarkError
from benchmark.report import Goal, Report

READY_MS_MAX = 50.0
SUITE_SECONDS_MAX = 10.0
SUITE_TESTS = 500
STARTS = 7
WAIT_SECONDS = 600

READY = """
import time
import trio
from trio_rmq.testing import broker

async def main():
    async with broker():
        print((time.perf_counter() - begun) * 1000)

begun = time.perf_counter()
trio.run(main)
"""

SUITE = """
import time
from pathlib import Path

import pytest
from trio_rmq.client import LitePullConsumer, Message, Producer

@pytest.fixture(scope="session", autouse=True)
def stopwatch():
    begun = time.perf_counter()
    yield
    Path("seconds").write_text(str(time.perf_counter() - begun))

@pytest.mark.trio
@pytest.mark.parametrize("number", range({tests}))
async def test_send_and_receive(rocketmq, number):
    async with Producer(name_servers=rocketmq.name_server, group="shop") as producer:
        await producer.send(Message("Orders", b"hello"))
    async with LitePullConsumer("warehouse", name_servers=rocketmq.name_server) as consumer:
        await consumer.subscribe("Orders")
        async for message in consumer:
            assert message.body == b"hello"
            break
"""


def run_embedded(report: Report, *, tests: int) -> None:
    """Both figures, as goals."""
    ready_ms = statistics.median(float(_output([sys.executable, "-c", READY])) for _ in range(STARTS))
    report.goals.append(
        Goal(f"ms from import to a ready broker (median of {STARTS} processes)", ready_ms, "<=", READY_MS_MAX)
    )
    with TemporaryDirectory(prefix="bench-embedded-") as folder:
        (Path(folder) / "pytest.ini").touch()
        (Path(folder) / "test_many.py").write_text(SUITE.format(tests=tests))
        said = _output([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", folder], folder)
        if f"{tests} passed in " not in said:
            raise BenchmarkError(f"not every test passed: {said[-500:]}")
        seconds = float((Path(folder) / "seconds").read_text())
    wanted = SUITE_SECONDS_MAX * tests / SUITE_TESTS
    report.goals.append(Goal(f"s for {tests} tests, a broker in memory for each", seconds, "<=", wanted))


def _output(command: list[str], folder: str | None = None) -> str:
    # Modules are compiled once, as they are for everybody who did not ask for something else.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    ran = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False
    )
    if ran.returncode:
        raise BenchmarkError(f"{command[1:3]} ended with {ran.returncode}: {(ran.stdout + ran.stderr)[-500:]}")
    return ran.stdout
