"""The pytest plugin in suites of its own: the examples of docs/testing.md pass, in one process and in several workers.

Each suite also checks, at its end and in every worker, that nothing is left of its brokers.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples" / "testing"
WAIT_SECONDS = 300

NOTHING_LEFT = """
import gc, os, threading
import pytest

def held():
    gc.collect()
    threads = sorted(thread.name for thread in threading.enumerate())
    # more
    return threads, len(os.listdir("/proc/self/fd")), sorted(os.listdir())

@pytest.fixture(scope="session", autouse=True)
def nothing_is_left():
    before = held()
    yield
    assert held() == before
"""


TRIO_KEEPS = "threads = [name for name in threads if not name.startswith('Trio thread')]"
"""anyio runs Trio as a guest, which waits for input in a thread that Trio keeps for ten seconds, broker or not."""


def run_suite(folder: Path, *words: str, trio_by_anyio: bool = False) -> dict[str, int]:
    """How many tests of the suite in `folder` had each outcome; all of them passed, or this fails with its output."""
    (folder / "conftest.py").write_text(NOTHING_LEFT.replace("# more", TRIO_KEEPS if trio_by_anyio else ""))
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--strict-markers", *words]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    ran = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    summary = ran.stdout.strip().splitlines()[-1]
    counts = [part.split() for part in summary.partition(" in ")[0].split(", ")]
    return {outcome: int(count) for count, outcome in counts}


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "xdist"])
def test_the_examples_pass_and_leave_nothing(tmp_path: Path, workers: tuple[str, ...]) -> None:
    names = ["test_with_trio.py", "test_with_asyncio.py", "test_without_a_loop.py"]
    for name in ("shop.py", *names):
        shutil.copy(EXAMPLES / name, tmp_path)
    assert run_suite(tmp_path, *workers) == {"passed": 7}


def test_hours_pass_in_seconds(tmp_path: Path) -> None:
    for name in ("shop.py", "test_virtual_time.py"):
        shutil.copy(EXAMPLES / name, tmp_path)
    assert run_suite(tmp_path) == {"passed": 3}


ISOLATED = """
import pytest
from trio_rmq.client import Message, Producer

async def send_once(broker):
    assert broker.messages("Orders") == []
    async with Producer(name_servers=broker.name_server) as producer:
        await producer.send(Message("Orders", b"one"))
    assert len(broker.messages("Orders")) == 1

@pytest.mark.trio
@pytest.mark.parametrize("number", range(10))
async def test_in_trio(rocketmq, number):
    await send_once(rocketmq)

@pytest.mark.anyio
@pytest.mark.parametrize("number", range(5))
async def test_in_anyio(rocketmq, number):  # under asyncio and under Trio
    await send_once(rocketmq)

@pytest.mark.trio
async def test_two_in_one_test(rocketmq, rocketmq_thread):
    await send_once(rocketmq)
    await send_once(rocketmq_thread)
"""


def test_every_test_has_a_broker_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "test_isolated.py").write_text(ISOLATED)
    assert run_suite(tmp_path, "-n", "2", trio_by_anyio=True) == {"passed": 21}


MARKED = """
import pytest

@pytest.mark.rocketmq("brokerName=renamed", folder=True)
def test_settings_and_a_folder(rocketmq_thread, tmp_path):
    assert (tmp_path / "rocketmq" / "lock").exists()
    assert rocketmq_thread.parts.broker_name == "renamed"

@pytest.mark.trio
async def test_the_clock_may_be_given(virtual_rocketmq, mock_clock):
    import trio
    before = trio.current_time()
    mock_clock.jump(1000)
    assert trio.current_time() - before == 1000
"""


def test_markers_and_clocks(tmp_path: Path) -> None:
    (tmp_path / "test_marked.py").write_text(MARKED)
    assert run_suite(tmp_path) == {"passed": 2}


WRONG = """
import pytest

@pytest.mark.rocketmq(colour="red")
def test_a_marker_that_is_not_understood(rocketmq_thread):
    pass

@pytest.mark.rocketmq("listenPort=many")
def test_a_setting_that_is_none(rocketmq_thread):
    pass
"""


def test_wrong_wishes_are_errors_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "test_wrong.py").write_text(WRONG)
    with pytest.raises(AssertionError) as caught:
        run_suite(tmp_path)
    output = str(caught.value)
    assert "takes settings and folder=, not colour" in output
    assert "listenPort=many" in output
    assert "2 errors" in output


def test_a_suite_without_brokers_imports_nothing(tmp_path: Path) -> None:
    (tmp_path / "test_other.py").write_text(
        "import sys\n\ndef test_other():\n    assert 'trio_rmq.testing.embedded' not in sys.modules\n"
    )
    assert run_suite(tmp_path, "-p", "no:trio") == {"passed": 1}
