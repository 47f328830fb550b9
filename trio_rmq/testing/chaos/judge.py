"""The verdict on a run: each invariant kept, broken, or not exercised, with the evidence.

Loss, duplicates, offsets, order and delivery are judged by the simulation's checkers, by the same lattice of
durability; here are those of the rest: batches, transactions, delays, progress, recovery, the store's files.  A send
without an answer is indeterminate everywhere.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from trio_rmq.testing.chaos.scenario import Scenario
from trio_rmq.testing.simulation.checkers import (
    Evidence,
    Problem,
    Queue,
    Stored,
    check,
    may_be_lost,
)
from trio_rmq.testing.simulation.history import Event
from trio_rmq.testing.simulation.promises import (
    Messages,
    broken_delays,
    broken_key_order,
    broken_transactions,
    is_commit,
)

EVIDENCE_MAX = 20
"""Sentences kept of one invariant; the rest is counted."""

TITLES = {
    "lost": "no acknowledged message is lost",
    "unexpected": "nothing is stored or delivered that nobody sent; bodies come whole",
    "duplicate": "nothing sent once is stored twice",
    "offsets": "queue offsets are unique, without gaps, and stay",
    "order": "messages keep their order, a key's at its consumer too",
    "delivered": "all that is stored is delivered",
    "batches": "a batch is stored whole and together, or not at all",
    "transactions": "committed ones are delivered, rolled back ones never",
    "delays": "delayed messages come not early, not late, and all",
    "progress": "a group's progress is kept, and never ahead of what is stored",
    "recovery": "a broker acknowledges again soon after a fault",
    "liveness": "after all faults the cluster comes to rest",
    "store": "servers start again; their files verify",
}
"""Every invariant, in the report's order."""

_SHARED = {
    "lost": "lost",
    "unexpected": "unexpected",
    "changed": "unexpected",
    "duplicate": "duplicate",
    "offset": "offsets",
    "gap": "offsets",
    "order": "order",
    "skipped": "delivered",
    "liveness": "liveness",
    "raised": "liveness",
    "corrupt": "store",
    "damaged": "store",
    "unreadable": "store",
}
"""The simulation's kinds of problems -> invariants here."""
_PLAIN_KINDS = frozenset({"plain", "keyed", "batches"})


class Progress(NamedTuple):
    """How far a group is in a queue at the end."""

    group: str
    queue: str
    committed: int | None
    end: int
    """The offset that the queue's next message would have."""


class Observation(NamedTuple):
    """What was found on the servers when all had come to rest."""

    stored: list[Stored]
    begins: dict[Queue, int]
    progress: list[Progress]
    problems: list[Problem]
    """What could not be read; damages of the files."""
    converged: bool


class Verdict(msgspec.Struct, frozen=True):
    """One invariant's: `kept`, `broken` or `not exercised`; what was looked at; the evidence, at most EVIDENCE_MAX."""

    invariant: str
    title: str
    state: str
    counted: str
    broken: int
    evidence: list[str]


class Judge:
    """Reads one run's history and observation; `verdicts` is its answer."""

    def __init__(self, scenario: Scenario, events: list[Event], seen: Observation, worst_sync_seconds: float) -> None:
        self.scenario = scenario
        self.everything = events
        self.events = events = _owed(events)
        self.seen = seen
        self.problems: dict[str, list[str]] = {name: [] for name in TITLES}
        self.counted: dict[str, str] = {}
        sync_flush = scenario.cluster.flush == "SYNC_FLUSH"
        self.messages = Messages(
            Evidence(events, seen.stored, seen.begins, sync_flush, worst_sync_seconds, seen.converged)
        )
        self.invoked, self.acknowledged = self.messages.invoked, self.messages.acknowledged
        self.consumed, self.stored = self.messages.consumed, self.messages.stored
        self.losses = self.messages.losses
        self.evidence = self.messages.evidence._replace(
            events=[event for event in events if self._is_plain(event)],
            stored=[
                stored
                for stored in seen.stored
                if self._kind(stored.name) in _PLAIN_KINDS or not self._kind(stored.name)
            ],
        )

    def _kind(self, name: str) -> str:
        event = self.invoked.get(name)
        return "" if event is None else str(event.value["kind"])

    def _is_plain(self, event: Event) -> bool:
        return event.value.get("kind", "plain") in _PLAIN_KINDS

    def verdicts(self) -> list[Verdict]:
        """All invariants', in order."""
        wiped = [event.process for event in self.events if event.what == "wiped"]
        for problem in [*self.seen.problems, *check(self.evidence)]:
            if problem.kind == "skipped" and any(f"/{broker}/" in problem.sentence for broker in wiped):
                continue  # a group that was further than the new queue goes on at its end, with Apache's broker too
            self.problems[_SHARED[problem.kind]].append(problem.sentence)
        self._count_plain()
        self.problems["order"] += broken_key_order(self.messages)
        self.problems["transactions"] += broken_transactions(self.messages)
        self.problems["delays"] += broken_delays(self.messages)
        for judge in (
            self._intact, self._batches, self._transactions, self._delays, self._progress, self._recovery, self._store
        ):  # fmt: skip
            judge()
        return [self._verdict(name) for name in TITLES]

    def _verdict(self, name: str) -> Verdict:
        found = self.problems[name]
        state = "broken" if found else "kept" if name in self.counted else "not exercised"
        return Verdict(name, TITLES[name], state, self.counted.get(name, ""), len(found), found[:EVIDENCE_MAX])

    # ---- plain ---------------------------------------------------------------------------------------------------

    def _count_plain(self) -> None:
        plain = [name for name in self.acknowledged if self._kind(name) in _PLAIN_KINDS]
        sent = sum(1 for name in self.invoked if self._kind(name) in _PLAIN_KINDS)
        open_ends = sent - len(plain) - sum(1 for event in self.events if event.what == "refused")
        stored = len(self.evidence.stored)
        if plain:
            lost = ""
            if self.losses and not self.evidence.sync_flush:
                missing = sum(1 for name in plain if not self.stored[name])
                lost = f"; {missing} gone that ASYNC_FLUSH may lose with the power"
            self.counted["lost"] = f"{len(plain)} acknowledged of {sent} sent, {open_ends} indeterminate{lost}"
            self.counted["duplicate"] = self.counted["offsets"] = f"{stored} stored"
            self.counted["order"] = f"{len(plain)} acknowledged"
        deliveries = sum(len(events) for events in self.consumed.values())
        if deliveries:
            self.counted["delivered"] = f"{len(self.consumed)} messages in {deliveries} deliveries"
            self.counted["unexpected"] = f"{stored} stored, {deliveries} deliveries"
        self.counted["liveness"] = f"within {self.scenario.settle_seconds:g} s after the last fault"

    def _intact(self) -> None:
        for name, events in self.consumed.items():
            if not all(event.value["intact"] for event in events):
                self.problems["unexpected"].append(f"{name} came with a body of another length")

    def _batches(self) -> None:
        batches: dict[str, list[str]] = {}
        for name, event in self.messages.of("batches").items():
            batches.setdefault(event.value["batch"], []).append(name)
        if not batches:
            return
        self.counted["batches"] = f"{len(batches)} batches"
        place = {stored.name: stored for stored in self.seen.stored}
        for batch, names in batches.items():
            found = [place[name] for name in names if name in place]
            if not found:
                continue
            offsets = [stored.offset for stored in found]
            together = offsets == list(range(offsets[0], offsets[0] + len(names)))
            if len(found) != len(names) or len({stored.queue_id for stored in found}) > 1 or not together:
                begin = self.invoked[names[0]].time_us
                if not may_be_lost(self.evidence, self.losses, begin, begin):
                    self.problems["batches"].append(f"of batch {batch} {len(found)} of {len(names)} are at {offsets}")

    # ---- transactions and delays ---------------------------------------------------------------------------------

    def _transactions(self) -> None:
        all_of = self.messages.of("transactions")
        if not all_of:
            return
        committed = [name for name in all_of if is_commit(all_of[name].value["end"])]
        acknowledged = [name for name in committed if name in self.acknowledged]
        twice = sum(1 for name in committed if self.stored[name] > 1)
        self.counted["transactions"] = (
            f"{len(all_of)} begun, {len(acknowledged)} acknowledged that commit, {twice} committed twice"
        )

    def _delays(self) -> None:
        all_of = self.messages.of("delays")
        if not all_of:
            return
        latest, twice = 0.0, sum(1 for name in all_of if self.stored[name] > 1)
        for name in all_of:
            events = self.consumed.get(name)
            if events is None:
                continue
            due_us = all_of[name].time_us + all_of[name].value["delay_ms"] * 1000
            late = (events[0].time_us - due_us - self._struck_us(due_us, events[0].time_us)) / 1e6
            latest = max(latest, late)
            if late > self.scenario.delay_late_seconds:
                self.problems["delays"].append(f"{name} came {late:.1f} s late")
        self.counted["delays"] = (
            f"{len(all_of)} sent, the latest {latest:.2f} s late beside faults, {twice} stored twice"
        )

    def _struck_us(self, begin_us: int, end_us: int) -> int:
        """How long between the two times a fault lasted."""
        spans, begins = [], {}
        for event in self.events:
            if event.what == "fault":
                begins[event.value["do"], event.value["target"]] = event.time_us
            elif event.what == "fault over":
                begin = begins.pop((event.value["do"], event.value["target"]))
                spans.append((max(begin, begin_us), min(event.time_us, end_us)))
        total, reached = 0, begin_us
        for begin, end in sorted(spans):
            total += max(0, end - max(begin, reached))
            reached = max(reached, end)
        return total

    # ---- progress, recovery, files -------------------------------------------------------------------------------

    def _progress(self) -> None:
        if self.seen.progress:
            self.counted["progress"] = f"{len(self.seen.progress)} queues"
        for group, queue, committed, end in self.seen.progress:
            if committed is not None and committed > end:
                self.problems["progress"].append(f"{group} stands at {committed} in {queue}, which ends at {end}")
            elif self.seen.begins.get(queue, 0) < end and (committed or 0) < end and self._all_consumed(queue):
                self.problems["progress"].append(f"{group} consumed {queue} up to {end} and stands at {committed}")

    def _all_consumed(self, queue: str) -> bool:
        names = [stored.name for stored in self.seen.stored if stored.queue_id == queue]
        return all(name in self.consumed for name in names)

    def _recovery(self) -> None:
        """From a fault's end, or the last start of its target within it, to the next acknowledgement."""
        worst, count = 0.0, 0
        started: dict[str, int] = {}
        for event in self.everything:
            if event.what == "starts":
                started[event.process] = event.time_us
            if event.what == "fault":
                started.pop(event.value["target"], None)
            if event.what != "fault over":
                continue
            target = event.value["target"].rpartition("->")[2]
            serves = {"what": "consumed" if event.value["target"].startswith("consumers") else "ok", "at": target}
            if not target.startswith("broker"):
                continue
            count += 1
            since_us = started.get(target, event.time_us)
            seconds = self._seconds_until(since_us, **serves)
            label = f"{event.value['do']} at {target} that ended at {event.time_us / 1e6:.1f} s"
            if seconds is None:
                self.problems["recovery"].append(f"after {label} it never served again")
                continue
            worst = max(worst, seconds)
            if seconds > self.scenario.recovery_seconds:
                self.problems["recovery"].append(f"after {label} it took {seconds:.1f} s to serve again")
        if count:
            self.counted["recovery"] = f"{plural(count, 'fault')}, the slowest recovery {worst:.2f} s"

    def _seconds_until(self, time_us: int, what: str, at: str) -> float | None:
        for event in self.everything:
            if event.time_us >= time_us and event.what == what and _is_at(event, at):
                return (event.time_us - time_us) / 1e6
        return None

    def _store(self) -> None:
        starts = sum(1 for event in self.events if event.what == "up")
        ends = [event for event in self.events if event.what == "ends"]
        by_itself = f", {len(ends)} ended by themselves" if ends else ""
        self.counted["store"] = f"{starts} starts{by_itself}"
        for event in self.events:
            if event.what == "fault failed":
                self.problems["store"].append(f"{event.process}: {event.value['reason']}")


def _owed(events: list[Event]) -> list[Event]:
    """All but what was acknowledged by, or consumed from, a broker that was wiped afterwards: it owes that no more."""
    wiped_us = {event.process: event.time_us for event in events if event.what == "wiped"}
    return [
        event
        for event in events
        if event.what not in ("ok", "consumed")
        or not any(event.time_us <= time_us and _is_at(event, broker) for broker, time_us in wiped_us.items())
    ]


def plural(count: int, word: str) -> str:
    """`1 fault`, `2 faults`."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _is_at(event: Event, broker: str) -> bool:
    value: dict[str, Any] = event.value
    return bool(value.get("broker") == broker or f"/{broker}/" in str(value.get("queue", "")))
