"""The clock of simulations jumps from deadline to deadline and carries out its timetable on the way, in order."""

from __future__ import annotations

import math

import pytest
import trio

from trio_rmq.testing.virtual_time import SimulatedClock, Timetable


def test_hours_pass_at_once_and_actions_run_in_order() -> None:
    clock = SimulatedClock()
    seen: list[tuple[float, str]] = []

    def note(name: str) -> None:
        seen.append((clock.current_time(), name))

    async def main() -> None:
        woken = trio.Event()
        clock.timetable.enter(20.0, lambda: note("late"))
        clock.timetable.enter(10.0, lambda: note("first"))
        clock.timetable.enter(10.0, lambda: note("second"))
        clock.timetable.enter(30.0, woken.set)
        await trio.sleep(15)
        note("slept")
        with trio.move_on_after(3600) as scope:
            await woken.wait()
        assert not scope.cancelled_caught
        note("woken")
        await trio.sleep(3600)
        note("hours")

    trio.run(main, clock=clock)
    assert seen == [
        (10.0, "first"),
        (10.0, "second"),
        (15.0, "slept"),
        (20.0, "late"),
        (30.0, "woken"),
        (3630.0, "hours"),
    ]


def test_what_an_action_enters_for_the_same_time_still_runs_and_time_never_goes_back() -> None:
    clock = SimulatedClock()
    seen: list[float] = []

    async def main() -> None:
        def again() -> None:
            clock.timetable.enter(1.0, lambda: seen.append(clock.current_time()))

        clock.timetable.enter(5.0, again)
        await trio.sleep(6)

    trio.run(main, clock=clock)
    assert seen == [5.0]


def test_a_thread_is_waited_for_in_real_time() -> None:
    async def main() -> int:
        return await trio.to_thread.run_sync(lambda: 5)

    assert trio.run(main, clock=SimulatedClock()) == 5


def test_an_empty_timetable_has_no_next_time() -> None:
    timetable = Timetable()
    assert timetable.next_time == math.inf
    timetable.enter(2.0, lambda: None)
    assert timetable.next_time == 2.0


@pytest.mark.parametrize("count", [1, 50])
def test_tasks_of_one_moment_all_run_before_the_next(count: int) -> None:
    order: list[float] = []

    async def sleep(seconds: float) -> None:
        await trio.sleep(seconds)
        order.append(seconds)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(count):
                nursery.start_soon(sleep, float(number % 5))

    trio.run(main, clock=SimulatedClock())
    assert order == sorted(order)
