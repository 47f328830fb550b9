"""Turns of the event loop, on a thread's clock that the test moves."""

from __future__ import annotations

import logging

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_rmq.broker.loop_turns import LoopTurns

pytestmark = pytest.mark.trio


class Thread:
    """Clocks of a thread: the CPU it has taken, and the wall, on which others get time too."""

    def __init__(self) -> None:
        self.seconds = 5.0
        self.wall = 1000.0
        self.looks = 0

    def turns(self) -> LoopTurns:
        """Counts on these clocks."""
        return LoopTurns(lambda: self.wall, self._look)

    def _look(self) -> float:
        self.looks += 1
        return self.seconds

    async def work(self, seconds: float, *, waiting: float = 0.003) -> None:
        """A turn with so much CPU, after and before others without any."""
        await wait_all_tasks_blocked()
        self.seconds += seconds
        self.wall += seconds + waiting
        await wait_all_tasks_blocked()


async def test_turns_are_counted_by_their_cpu_time(nursery: trio.Nursery) -> None:
    thread = Thread()
    turns = thread.turns()
    await thread.work(70)  # before anybody counts
    nursery.start_soon(turns.run)
    for seconds in (0.0015, 0.0025, 0.0099, 0.0101, 0.3):
        await thread.work(seconds)
    told = turns.running_stats()
    assert told["loopTurnCpuLongestMs"] == "300.0"
    name, *long = told["loopTurnCpuDistribution"].split(" ")
    assert name.startswith("[<2ms]:")
    assert long == [
        "[2~5ms]:1", "[5~10ms]:1", "[10~20ms]:1", "[20~50ms]:0", "[50~100ms]:0", "[>=100ms]:1",
    ]  # fmt: skip


async def test_a_quick_turn_costs_no_look_at_the_threads_clock(nursery: trio.Nursery) -> None:
    thread = Thread()
    turns = thread.turns()
    nursery.start_soon(turns.run)
    await thread.work(0.0001)
    looks = thread.looks
    for _ in range(8):
        await thread.work(0.0001, waiting=0)
    assert thread.looks == looks
    await thread.work(0.012, waiting=0)  # with what ran unseen before it, within two milliseconds
    assert turns.running_stats()["loopTurnCpuLongestMs"] == "12.8"


async def test_long_turns_are_said_once_a_minute(
    autojump_clock: MockClock, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    thread = Thread()
    turns = thread.turns()
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
    turns = thread.turns()
    nursery.start_soon(turns.run)
    await thread.work(0.003)
    nursery.cancel_scope.cancel()
    with trio.CancelScope(shield=True):
        await trio.lowlevel.cancel_shielded_checkpoint()
        await wait_all_tasks_blocked()
        before = turns.running_stats()
        await thread.work(0.5)
    assert turns.running_stats() == before
