"""Each invariant, kept and broken, on histories made by hand; and the report about them."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from trio_rmq.testing.chaos.judge import TITLES, Judge, Observation, Progress, Verdict
from trio_rmq.testing.chaos.report import render
from trio_rmq.testing.chaos.runner import Result
from trio_rmq.testing.chaos.scenario import ClusterShape, Scenario
from trio_rmq.testing.simulation.checkers import Problem, Queue, Stored
from trio_rmq.testing.simulation.history import Event

QUEUE = "T/broker-a/0"


class Run:
    """A history in the making: a second a step, and what is found at the end."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.stored: list[Stored] = []
        self.progress: list[Progress] = []
        self.problems: list[Problem] = []
        self.converged = True
        self.now_us = 0

    def note(self, process: str, what: str, after: float = 1.0, /, **value: object) -> None:
        self.now_us += round(after * 1e6)
        self.events.append(Event(self.now_us, process, what, value))

    def send(self, name: str, *, kind: str = "plain", answer: str = "ok", store: bool = True, **more: object) -> None:
        """A message that is sent, answered, and, when it is kept, stored next in the queue."""
        offset = sum(1 for stored in self.stored if stored.queue_id == QUEUE)
        self.note("producer", "invoke", id=name, kind=kind, **more)
        place = {"broker": "broker-a", "queue": QUEUE, "offset": offset} if answer == "ok" else {"code": 14}
        self.note("producer", answer, id=name, **{"kind": kind, **place, **more} if answer == "ok" else place)
        if store:
            self.stored.append(Stored(QUEUE, offset, name))

    def consume(self, name: str, offset: int, *, kind: str = "plain", intact: bool = True, after: float = 1.0) -> None:
        self.note(
            "member", "consumed", after, id=name, queue=QUEUE, offset=offset, kind=kind, intact=intact
        )  # fmt: skip

    def fault(self, do: str = "kill", target: str = "broker-a") -> None:
        self.note("world", "fault", do=do, target=target, seconds=1.0, step_ms=0)
        self.note("world", "fault over", do=do, target=target)

    def judged(self, *, flush: str = "ASYNC_FLUSH", **bounds: float) -> dict[str, Verdict]:
        """The verdicts by invariant."""
        scenario = Scenario(name="made by hand", cluster=ClusterShape(flush=flush), **bounds)  # type: ignore[arg-type]  # a bound's field, and one of two words
        begins: dict[Queue, int] = {QUEUE: 0}
        seen = Observation(self.stored, begins, self.progress, self.problems, self.converged)
        verdicts = Judge(scenario, self.events, seen, 1.0).verdicts()
        assert [verdict.invariant for verdict in verdicts] == list(TITLES)
        return {verdict.invariant: verdict for verdict in verdicts}


def healthy() -> Run:
    """Three messages sent, stored and consumed, with a kill that was recovered from."""
    run = Run()
    run.note("broker-a", "up")
    for number in range(3):
        run.send(f"m{number}")
        run.consume(f"m{number}", number)
        if number == 1:
            run.fault()
    run.progress.append(Progress("group", QUEUE, 3, 3))
    return run


def test_a_healthy_run_keeps_all_that_it_exercises() -> None:
    states = {name: verdict.state for name, verdict in healthy().judged().items()}
    unused = {"batches", "transactions", "delays"}
    assert states == {name: "not exercised" if name in unused else "kept" for name in TITLES}


def lose(run: Run) -> None:
    run.send("gone", store=False)


def invent(run: Run) -> None:
    run.stored.append(Stored(QUEUE, 3, "nobody's"))
    run.consume("nobody's", 3)


def damage_a_body(run: Run) -> None:
    run.consume("m2", 2, intact=False)


def double(run: Run) -> None:
    run.stored.append(Stored(QUEUE, 3, "m2"))
    run.consume("m2", 3)


def leave_a_gap(run: Run) -> None:
    run.send("m3")
    run.stored[-1] = run.stored[-1]._replace(offset=5)


def skip(run: Run) -> None:
    run.send("m3")


def disorder(run: Run) -> None:
    run.stored[0], run.stored[1] = run.stored[0]._replace(name="m1"), run.stored[1]._replace(name="m0")


def disorder_a_key(run: Run) -> None:
    for turn in range(2):
        run.send(f"k{turn}", kind="keyed", key="1", turn=turn)
    run.consume("k1", 4, kind="keyed")
    run.consume("k0", 3, kind="keyed")


def tear_a_batch(run: Run) -> None:
    run.send("b0", kind="batches", batch="0/0")
    run.send("b1", kind="batches", batch="0/0", answer="info", store=False)
    run.consume("b0", 3, kind="batches")


def show_a_rollback(run: Run) -> None:
    run.send("t0", kind="transactions", end="rollback")


def forget_a_commit(run: Run) -> None:
    run.send("t0", kind="transactions", end="asked commit", store=False)


def deliver_early(run: Run) -> None:
    run.send("d0", kind="delays", delay_ms=3000)
    run.consume("d0", 3, kind="delays")


def deliver_late(run: Run) -> None:
    run.send("d0", kind="delays", delay_ms=3000)
    run.consume("d0", 3, kind="delays", after=30)


def forget_a_delayed(run: Run) -> None:
    run.send("d0", kind="delays", delay_ms=3000, store=False)


def run_ahead(run: Run) -> None:
    run.progress[0] = Progress("group", QUEUE, 7, 3)


def forget_progress(run: Run) -> None:
    run.progress[0] = Progress("group", QUEUE, None, 3)


def stay_away(run: Run) -> None:
    run.fault("stop")


def find_no_rest(run: Run) -> None:
    run.converged = False


def refuse_to_start(run: Run) -> None:
    run.note("broker-a", "fault failed", reason="broker-a was not ready")


def damage_files(run: Run) -> None:
    run.problems.append(Problem("damaged", "broker-a: log byte 0"))


BREACHES: list[tuple[Callable[[Run], None], str]] = [
    (lose, "lost"),
    (invent, "unexpected"),
    (damage_a_body, "unexpected"),
    (double, "duplicate"),
    (leave_a_gap, "offsets"),
    (disorder, "order"),
    (disorder_a_key, "order"),
    (skip, "delivered"),
    (tear_a_batch, "batches"),
    (show_a_rollback, "transactions"),
    (forget_a_commit, "transactions"),
    (deliver_early, "delays"),
    (deliver_late, "delays"),
    (forget_a_delayed, "delays"),
    (run_ahead, "progress"),
    (forget_progress, "progress"),
    (stay_away, "recovery"),
    (find_no_rest, "liveness"),
    (refuse_to_start, "store"),
    (damage_files, "store"),
]


@pytest.mark.parametrize(("breach", "invariant"), BREACHES)
def test_a_breach_is_found_with_evidence(breach: Callable[[Run], None], invariant: str) -> None:
    run = healthy()
    breach(run)
    verdict = run.judged()[invariant]
    assert verdict.state == "broken"
    assert verdict.evidence


@pytest.mark.parametrize("answer", ["info", "refused"])
@pytest.mark.parametrize("store", [True, False])
def test_a_send_without_an_acknowledgement_is_indeterminate(answer: str, store: bool) -> None:
    run = healthy()
    run.send("open", answer=answer, store=store)
    if store:
        run.consume("open", 3)
    assert not [verdict for verdict in run.judged().values() if verdict.state == "broken"]


@pytest.mark.parametrize(("flush", "state"), [("ASYNC_FLUSH", "kept"), ("SYNC_FLUSH", "broken")])
def test_what_a_mode_may_lose_with_the_power_is_no_alarm_and_what_it_may_not_is_one(flush: str, state: str) -> None:
    run = healthy()
    run.send("gone", store=False)
    run.note("broker-a", "power", crashed=True, unsynced=4)
    verdict = run.judged(flush=flush)["lost"]
    assert verdict.state == state
    assert ("1 gone that ASYNC_FLUSH may lose" in verdict.counted) == (state == "kept")


def test_a_wiped_broker_owes_nothing_from_before() -> None:
    run = healthy()
    run.send("gone", store=False)
    run.note("broker-a", "wiped")
    run.stored.clear()
    run.progress[:] = [Progress("group", QUEUE, 1, 1)]
    run.send("new")
    assert not [verdict for verdict in run.judged().values() if verdict.state == "broken"]


def test_a_wiped_broker_s_neighbour_owes_all() -> None:
    run = healthy()
    lose(run)
    run.note("broker-b", "wiped")
    assert run.judged()["lost"].state == "broken"


def test_recovery_counts_from_the_start_of_the_process_and_has_a_bound() -> None:
    run = healthy()
    run.note("world", "fault", do="kill", target="broker-a", seconds=60.0, step_ms=0)
    run.note("broker-a", "starts", 60)
    run.note("broker-a", "up", 4)
    run.note("world", "fault over", 0, do="kill", target="broker-a")
    run.send("m3")
    run.consume("m3", 3)
    run.progress[:] = [Progress("group", QUEUE, 4, 4)]
    assert run.judged(recovery_seconds=6.5)["recovery"].state == "kept"
    assert run.judged(recovery_seconds=5.5)["recovery"].state == "broken"


def test_a_delay_is_not_late_while_a_fault_lasts() -> None:
    run = healthy()
    run.send("d0", kind="delays", delay_ms=1000)
    run.note("world", "fault", do="kill", target="broker-a", seconds=60.0, step_ms=0)
    run.note("world", "fault over", 60, do="kill", target="broker-a")
    run.consume("d0", 3, kind="delays")
    run.send("m4")
    run.consume("m4", 4)
    run.progress[:] = [Progress("group", QUEUE, 5, 5)]
    assert run.judged()["delays"].state == "kept"


# -- the report ----------------------------------------------------------------------------------------------------


def result(run: Run, system: str) -> Result:
    verdicts = list(run.judged().values())
    return Result(
        "made <by> hand", "about & about", system, 7, ["   1.00 s  kill broker-a"], ["power: not for a JVM"],
        verdicts, run.events, run.now_us / 1e6, {"broker-a: error fdatasync": 3},
    )  # fmt: skip


def test_the_report_is_one_file_with_both_systems_side_by_side_and_the_evidence() -> None:
    broken = healthy()
    lose(broken)
    page = render([result(healthy(), "trio-rmq"), result(broken, "Apache 4.9.7")])
    assert "1 of 2 runs broke a promise" in page
    assert "<th>trio-rmq</th><th>Apache 4.9.7</th>" in page
    assert "gone was acknowledged at queue T/broker-a/0 offset 3 and is not stored" in page
    assert "made &lt;by&gt; hand" in page
    assert "power: not for a JVM" in page
    assert page.count("<svg ") == 2
    assert not re.findall(r"""(?:src|href)=["'](?!#)|url\(|@import""", page), "nothing is fetched from elsewhere"


def test_the_picture_has_bars_for_servers_and_faults_and_a_line_for_each_figure() -> None:
    page = render([result(healthy(), "trio-rmq")])
    assert 'class="serving"><title>1.00 s to ' in page
    assert 'class="fault"><title>8.00 s to 9.00 s: kill broker-a' in page
    for line in ("acknowledged", "refused", "consumed", "median", "p99", "maximum"):
        assert f"line {line}" in page


def test_a_run_in_which_nothing_happened_can_be_drawn() -> None:
    run = Run()
    run.note("world", "end", converged=True)
    assert "<svg " in render([result(run, "trio-rmq")])
