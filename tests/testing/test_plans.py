"""Plans go to JSON and back, wrong ones are named, and a plan that breaks a promise is made as small as it goes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from trio_rmq.testing.simulation.plan import RATES, Plan, decode_plan, encode_plan, make_plan
from trio_rmq.testing.simulation.runner import run_plan
from trio_rmq.testing.simulation.shrinking import shrink, until

KEPT = sorted((Path(__file__).parent / "plans").glob("*.json"))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**40))
def test_a_plan_goes_to_json_and_back(seed: int) -> None:
    plan = make_plan(seed, 20.0)
    content = encode_plan(plan)
    assert decode_plan(content) == plan
    assert encode_plan(make_plan(seed, 20.0)) == content
    assert len(content.splitlines()) == 6 + len(plan.faults) + len(plan.sends)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('"kind":"power"', '"kind":"flood"', "no fault is called 'flood'"),
        ('"target":"producer 0"', '"target":"printer"', "no machine is called 'printer'"),
        ('"queue_id":1', '"queue_id":4', "no queue below 4"),
        ('"split_chance"', '"split"', "split"),
        ('"kind":"keyed"', '"kind":"rumour"', "no kind of message is called 'rumour'"),
        ('"end":"commit"', '"end":"never"', "needs an end of commit, "),
    ],
)
def test_a_wrong_plan_is_named(old: str, new: str, named: str) -> None:
    content = encode_plan(make_plan(1, 60.0)).decode()
    assert old in content
    with pytest.raises(ValueError, match=named):
        decode_plan(content.replace(old, new).encode())


def test_a_plan_is_shrunk_to_what_breaks_the_promise() -> None:
    """Two faults in their order and one send under one of three seeds: nothing else is left."""
    plan = make_plan(11, 60.0)
    first, second = plan.faults[3], plan.faults[5]
    send = plan.sends[400]

    def breaks(plan: Plan) -> bool:
        places = [(fault.at, fault.kind) for fault in plan.faults]
        wanted = [(first.at, first.kind), (second.at, second.kind)]
        return [place for place in places if place in wanted] == wanted and send in plan.sends and plan.seed % 3 == 2

    assert breaks(plan)
    shrunk = shrink(plan, breaks, runs_max=1000, schedules=3)
    assert [fault.at for fault in shrunk.plan.faults] == [first.at, second.at]
    assert shrunk.plan.sends == [send]
    assert shrunk.plan.options.seconds < max(second.at, send.at) + 1
    assert (shrunk.plan.options.split_chance, shrunk.plan.options.last) == (0.0, "stop")
    assert breaks(shrunk.plan)


def test_shrinking_ends_when_its_runs_are_spent() -> None:
    plan = make_plan(2, 60.0)
    tried: list[Plan] = []

    def breaks(plan: Plan) -> bool:
        tried.append(plan)
        return True

    shrunk = shrink(plan, breaks, runs_max=2)
    assert shrunk.runs == len(tried) == 2
    assert shrunk.plan == tried[-1]


def test_what_is_left_out_of_a_plan_leaves_the_rest_as_it_was() -> None:
    plan = make_plan(5, 60.0)
    half = until(plan, 30.0)
    assert half.faults == [fault for fault in plan.faults if fault.at < 30.0]
    assert replace(half.options, seconds=60.0) == plan.options


def test_each_kind_of_message_has_a_stream_of_its_own_and_some_seeds_are_without_it() -> None:
    plans = [make_plan(seed, 20.0) for seed in range(30)]
    for kind in RATES:
        with_it = [plan for plan in plans if kind in plan.options.rates]
        assert 0 < len(with_it) < len(plans)
        assert all(any(send.kind == kind for send in plan.sends) for plan in with_it)
    assert all(len(plan.sends) > 19 * 18 for plan in plans)


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_a_kept_plan_breaks_no_promise(path: Path) -> None:
    """Each was once the smallest that broke one, with a defect since mended or with a piece of the museum."""
    plan = decode_plan(path.read_bytes())
    assert run_plan(plan).problems == []
