"""What a start says while it recovers: nothing when it is quick, then a line that goes again."""

from __future__ import annotations

import io
import logging

import pytest
import trio
from trio.testing import MockClock

from trio_rmq.cli.recovery_progress import RecoveryProgress
from trio_rmq.store.message_store import open_message_store
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.testing.stores import Place, new_message, small_config

pytestmark = pytest.mark.trio
MIB = 1024 * 1024


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


async def test_a_quick_recovery_says_nothing(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for stream in (Terminal(), io.StringIO()):
        with RecoveryProgress(stream) as progress:
            for done in range(10):
                progress(done, 10)
                await trio.sleep(0.09)
            progress(10, 10)
        assert (stream.getvalue(), caplog.text) == ("", "")


async def test_a_terminal_gets_a_line_that_goes_again(autojump_clock: MockClock) -> None:
    stream = Terminal()
    progress = RecoveryProgress(stream)
    progress(0, 200 * MIB)
    await trio.sleep(1)
    progress(100 * MIB, 200 * MIB)
    assert stream.getvalue() == f"\rrecovering the store [{'=' * 15}{' ' * 15}] 100 of at most 200 MiB\033[K"
    progress(200 * MIB, 200 * MIB)
    assert stream.getvalue().endswith("\r\033[K")


async def test_an_error_leaves_no_half_line(autojump_clock: MockClock) -> None:
    stream = Terminal()

    async def recover() -> None:
        with RecoveryProgress(stream) as progress:
            progress(0, 2)
            await trio.sleep(1)
            progress(1, 2)
            raise OSError("x")

    with pytest.raises(OSError, match="x"):
        await recover()
    assert stream.getvalue().endswith("\r\033[K")


async def test_a_log_gets_a_line_now_and_then(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    progress = RecoveryProgress(io.StringIO())
    for second in range(25):
        progress(second * MIB, 100 * MIB)
        await trio.sleep(1)
    assert [record.getMessage() for record in caplog.records] == [
        f"recovering the store: {second} of at most 100 MiB of log read" for second in (1, 11, 21)
    ]


async def test_a_recovery_reports_and_ends_full(twin: FaultyDisk, autojump_clock: MockClock) -> None:
    place = Place(twin, "store")
    async with place.open() as store:
        store.append([new_message(b"%d" % number) for number in range(5000)])
    place.crash()
    reports: list[tuple[int, int]] = []

    def report(done: int, total: int) -> None:
        reports.append((done, total))

    async with open_message_store(small_config("store"), disk=twin, progress=report):
        pass
    assert len(reports) == 3
    assert reports == sorted(reports)
    assert reports[-1][0] == reports[-1][1]


@pytest.fixture
def twin() -> FaultyDisk:
    """A faultless twin of a disk."""
    return FaultyDisk()
