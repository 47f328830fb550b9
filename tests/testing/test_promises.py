"""Each promise about delays, transactions and order, kept and broken, on histories made by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from trio_rmq.testing.simulation.checkers import Evidence, Problem, Stored, check
from trio_rmq.testing.simulation.history import Event
from trio_rmq.testing.simulation.promises import (
    Clock,
    Messages,
    broken_delays,
    broken_key_order,
    broken_orderly_calls,
    broken_transactions,
    seen_before_commit,
)

QUEUE = "Ordered/0"


class Run:
    """A history in the making: 100 ms a step."""

    def __init__(self, *, sync_flush: bool = True) -> None:
        self.events: list[Event] = []
        self.stored: list[Stored] = []
        self.sync_flush = sync_flush
        self.now_us = 0

    def note(self, process: str, what: str, after: float = 0.1, /, **value: object) -> None:
        self.now_us += round(after * 1e6)
        self.events.append(Event(self.now_us, process, what, value))

    def call(self, process: str, what: str, offset: int, after: float = 0.1) -> None:
        """A part of an orderly call for the message at this offset."""
        self.note(process, what, after, id=f"k0-{offset}", queue=QUEUE, offset=offset, kind="keyed")

    def messages(self) -> Messages:
        return Messages(self.evidence())

    def evidence(self) -> Evidence:
        return Evidence(self.events, self.stored, {}, self.sync_flush, 0.0, True)


# Delays ----------------------------------------------------------------------------------------------------------


def delayed(after: float, *, steps: Sequence[int] = ()) -> Run:
    """A message with a delay of a second that comes `after` seconds, the clock being set meanwhile."""
    run = Run()
    run.note("producer 0", "invoke", id="d0-0", kind="delays", delay_ms=1000)
    run.note("producer 0", "ok", id="d0-0", kind="delays")
    for step in steps:
        run.note("world", "clock step", 0.0, amount=step)
    run.note("consumer 0", "consumed", after - 0.1, id="d0-0", queue="Delayed/0", offset=0, kind="delays")
    return run


@pytest.mark.parametrize(
    ("after", "steps", "early"),
    [
        (1.0, [], False),
        (0.9, [], True),
        (0.2, [2000], False),
        (0.2, [-2000], True),
        (0.2, [-60_000, 2000], False),
        (0.2, [60_000, -60_000], False),
    ],
)
def test_a_delay_is_early_only_beyond_what_the_clock_was_set_forward(
    after: float, steps: list[int], early: bool
) -> None:
    run = delayed(after, steps=steps)
    assert bool([*broken_delays(run.messages(), Clock(run.events).rise_ms)]) is early


def lost(kind: str, **more: object) -> Run:
    """An acknowledged message that nobody has, after a power loss soon behind it."""
    run = Run()
    run.note("producer 0", "invoke", id="x", kind=kind, **more)
    run.note("producer 0", "ok", id="x", kind=kind)
    run.note("world", "power", crashed=True)
    return run


@pytest.mark.parametrize("sync_flush", [True, False])
def test_what_was_promised_and_is_gone_is_excused_by_a_power_loss_under_asynchronous_flush(sync_flush: bool) -> None:
    run, ended = lost("delays", delay_ms=1000), lost("transactions", end="asked commit")
    run.sync_flush = ended.sync_flush = sync_flush
    assert [*broken_delays(run.messages())] == ["x was acknowledged and never came"] * sync_flush
    gone = "x was committed, which the broker has to ask about, and was never visible"
    assert [*broken_transactions(ended.messages())] == [gone] * sync_flush
    assert run.messages().owed() == ended.messages().owed() == ["x"] * sync_flush


def test_nothing_is_owed_that_was_rolled_back_delivered_or_not_acknowledged() -> None:
    run = lost("transactions", end="rollback")
    assert run.messages().owed() == []
    assert delayed(1.0).messages().owed() == []
    del run.events[1]
    assert [*broken_transactions(run.messages())] == []


# Transactions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [True, False])
def test_what_was_rolled_back_and_is_visible_is_found(stored: bool) -> None:
    run = lost("transactions", end="asked rollback")
    if stored:
        run.stored.append(Stored("Transacted/0", 0, "x"))
    else:
        run.note("consumer 1", "consumed", id="x", queue="Transacted/0", offset=0, kind="transactions")
    assert [*broken_transactions(run.messages())] == ["x was rolled back and is visible"]


@pytest.mark.parametrize("decided_first", [True, False])
def test_what_is_visible_before_its_commit_is_found(decided_first: bool) -> None:
    run = Run()
    run.note("producer 0", "invoke", id="x", kind="transactions", end="commit")
    decided = {"id": "x", "state": "COMMIT"}
    if decided_first:
        run.note("producer 0", "decided", **decided)
    run.note("consumer 1", "consumed", id="x", queue="Transacted/0", offset=0, kind="transactions")
    if not decided_first:
        run.note("producer 0", "decided", **decided)
    assert [*seen_before_commit(run.messages())] == ["consumer 1 got x before it was committed"] * (not decided_first)


def test_what_is_stored_and_was_committed_by_nobody_is_found() -> None:
    run = lost("transactions", end="commit")
    run.stored.append(Stored("Transacted/0", 0, "x"))
    assert [*seen_before_commit(run.messages())] == ["x is stored for everybody, and nobody committed it"]


@pytest.mark.parametrize("acknowledged", [True, False])
def test_what_came_late_and_unpromised_as_the_run_ended_need_not_be_delivered(acknowledged: bool) -> None:
    run = Run()
    run.note("producer 0", "invoke", id="x", kind="delays", delay_ms=1000)
    run.note("producer 0", "ok" if acknowledged else "info", id="x", kind="delays")
    run.stored.append(Stored("Delayed/0", 0, "x"))
    skipped = Problem("skipped", "x at queue Delayed/0 offset 0 was never delivered")
    assert check(run.evidence()) == [skipped] * acknowledged


# Order -----------------------------------------------------------------------------------------------------------


def test_calls_again_and_by_the_next_owner_are_in_order() -> None:
    run = Run()
    run.call("consumer 0", "begun", 0)
    run.call("consumer 0", "failed", 0)
    run.call("consumer 0", "begun", 0)
    run.call("consumer 0", "consumed", 0)
    run.call("consumer 0", "begun", 1)
    run.call("consumer 0", "abandoned", 1)
    run.call("consumer 1", "begun", 0)
    run.call("consumer 1", "consumed", 0)
    run.call("consumer 1", "begun", 1)
    run.call("consumer 1", "consumed", 1)
    assert [*broken_orderly_calls(run.events)] == []


def test_a_later_message_before_an_earlier_one_was_consumed_is_found() -> None:
    run = Run()
    run.call("consumer 0", "begun", 0)
    run.call("consumer 0", "failed", 0)
    run.call("consumer 0", "begun", 1)
    assert [*broken_orderly_calls(run.events)] == [
        "consumer 0 was given k0-1 at Ordered/0 offset 1 before 0 was consumed"
    ]


@pytest.mark.parametrize(("after", "found"), [(33.0, 1), (20.0, 0)])
def test_a_second_call_beside_the_first_is_found_but_after_a_start_of_the_broker(after: float, found: int) -> None:
    run = Run()
    run.note("broker", "up")
    run.call("consumer 0", "begun", 0, after)
    run.call("consumer 1", "begun", 0)
    told = "consumer 1 was given k0-0 at Ordered/0 offset 0 while consumer 0 was at k0-0"
    assert [*broken_orderly_calls(run.events)] == [told] * found


@pytest.mark.parametrize("given_again", [False, True])
def test_first_deliveries_of_a_key_come_in_the_order_of_its_sends(given_again: bool) -> None:
    run = Run(sync_flush=False)
    if given_again:
        run.note("consumer 0", "consumed", id="k1-0", queue=QUEUE, offset=0, kind="keyed")
    for turn in range(2):
        run.note("producer 0", "invoke", id=f"k0-{turn}", kind="keyed", key="0/0", turn=turn)
        run.note("producer 0", "ok", id=f"k0-{turn}", kind="keyed", key="0/0", turn=turn, queue=QUEUE, offset=turn)
    for offset in (1, 0, 1):
        run.call("consumer 0", "consumed", offset)
    told = ["k0-0 of key 0/0 was delivered first after k0-1"]
    assert [*broken_key_order(run.messages())] == told * (not given_again)
