"""Deadlines and the half queue's bookkeeping against plain models; what a million of each takes."""

from __future__ import annotations

import tracemalloc
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from trio_rmq.broker.deadlines import Deadlines
from trio_rmq.broker.half_queue import HalfQueue

START_MS = 1_700_000_000_000


@given(st.lists(st.tuples(st.sampled_from(["add", "take"]), st.integers(0, 20_000), st.integers(0, 100)), max_size=60))
def test_what_is_due_comes_in_order(steps: list[tuple[str, int, int]]) -> None:
    deadlines, model, now = Deadlines(), list[tuple[int, int]](), START_MS
    for what, time_ms, number in steps:
        if what == "add":
            due_ms = START_MS + time_ms
            deadlines.add(due_ms, number)
            model.append((due_ms, number))
        else:
            now = max(now, START_MS + time_ms)
            due = sorted(entry for entry in model if entry[0] <= now)[: number or 1]
            assert deadlines.first_due(now) == (due[0][0] if due else None)
            assert deadlines.take(now, number or 1) == due
            for entry in due:
                model.remove(entry)
        assert len(deadlines) == len(model)
        next_ms = deadlines.next_ms(now)
        assert (next_ms is None) == (not model)
        if next_ms is not None:
            assert next_ms <= min(model)[0]  # it may be early, never late


def test_the_far_ones_are_forgotten_first() -> None:
    deadlines, rng = Deadlines(), Random(3)
    dues = sorted(START_MS + rng.randrange(1_000_000) for _ in range(1000))
    for number, due_ms in enumerate(dues):
        deadlines.add(due_ms, number)
    horizon_ms = deadlines.drop_far(400)
    assert horizon_ms is not None
    left = deadlines.take(START_MS + 2_000_000, 1000)
    assert [due_ms for due_ms, _ in left] == [due_ms for due_ms in dues if due_ms < horizon_ms]
    assert 350 < len(left) <= 400


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40)), max_size=80), st.integers(0, 20))
def test_open_half_messages(steps: list[tuple[bool, int]], base: int) -> None:
    half, end = HalfQueue(base, 0), base
    open_places: dict[int, int] = {}  # origin -> place
    for begins, which in steps:
        if begins or not open_places:
            open_places[end] = end
            end += 1
            continue
        origin = sorted(open_places)[which % len(open_places)]
        place = open_places[origin]
        assert half.place_of(origin, origin) == half.place_of(origin, place) == place
        if which % 2:
            half.end(place, origin)
            del open_places[origin]
            assert half.place_of(origin, place) is None
        else:
            half.move(origin, place, end)
            open_places[origin] = end
            end += 1
        assert half.base == min(open_places.values(), default=end)
        assert half.open_from_base(end, 1000) == sorted(open_places.values())


def test_a_million_take_little_memory() -> None:
    tracemalloc.start()
    try:
        deadlines, rng = Deadlines(), Random(1)
        for number in range(50_000):
            deadlines.add(START_MS + rng.randrange(3 * 86_400_000), number)
        assert tracemalloc.get_traced_memory()[0] < 15_000_000
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        half = HalfQueue(0, 0)
        for number in range(1, 1_000_000, 500):
            half.end_place(number)
        assert tracemalloc.get_traced_memory()[0] - before < 300_000
    finally:
        tracemalloc.stop()
