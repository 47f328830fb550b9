"""Turns of the event loop, on a thread's clock that the test moves."""

from __future__ import annotations

import logging

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_rmq.broker.loop_turns import LoopTurns

pytestmark = pytest.mark.trio


class Thread:
    """A thread's CPU clock."""

    def __init__(self) -> None:
        self.seconds = 5.0

    def now(self) -> float:
        """As `time.thread_time`."""
        return self.seconds

    async def work(self, seconds: float) -> None:
        """A turn with so much CPU."""
        await wait_all_tasks_blocked()
        self.seconds += seconds
        await wait_all_tasks_blocked()


async def test_turns_are_counted_by_their_cpu_time(nursery: trio.Nursery) -> None:
    thread = Thread()
    turns = LoopTurns(thread.now)
    await thread.work(70)  # before anybody counts
    nursery.start_soon(turns.run)
    for seconds in (0.0015, 0.0025, 0.0099, 0.0101, 0.3):
        await thread.work(seconds)
    told = turns.running_stats()
    assert told["loopTurnCpuLongestMs"] == "300.0"
    name, *long = told["loopTurnCpuDistribution"].split(" ")
    assert name.startswith("[<1ms]:")
    assert long == [
        "[1~2ms]:1", "[2~5ms]:1", "[5~10ms]:1", "[10~20ms]:1", "[20~50ms]:0", "[50~100ms]:0", "[>=100ms]:1",
    ]  # fmt: skip


async def test_long_turns_are_said_once_a_minute(
    autojump_clock: MockClock, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    thread = Thread()
    turns = LoopTurns(thread.now)
    nursery.start_soon(turns.run)
    with caplog.at_level(logging.INFO):
        for seconds in (0.012, 0.030, 0.020, 0.009):
            await thread.work(seconds)
        assert [record.getMessage() for record in caplog.records] == [
            "turns of the event loop with 10 ms or more of CPU: 1, the longest 12.0 ms; others waited meanwhile"
        ]
        await trio.sleep(60)
        await thread.work(0.011)
    assert "CPU: 3, the longest 30.0 ms" in caplog.records[-1].getMessage()
    assert len(caplog.records) == 2


async def test_it_counts_no_more_once_cancelled(nursery: trio.Nursery) -> None:
    thread = Thread()
    turns = LoopTurns(thread.now)
    nursery.start_soon(turns.run)
    await thread.work(0.003)
    nursery.cancel_scope.cancel()
    with trio.CancelScope(shield=True):
        await trio.lowlevel.cancel_shielded_checkpoint()
        await wait_all_tasks_blocked()
        before = turns.running_stats()
        await thread.work(0.5)
    assert turns.running_stats() == before
