"""What a run must not show: the promises, read from the history and from what the broker's disk holds at the end.

The lattice of durability.  A process that was killed, or that ended by itself, loses nothing that was acknowledged or
consumed.  A power loss loses nothing of that under SYNC_FLUSH; under ASYNC_FLUSH it may lose what was stored shortly
before - no longer than the flush service lets pass, nothing being synced while no broker runs - and then its queue
offsets are given again.  A send without an answer is indeterminate: stored once or not at all.  A refused send may be
stored as well (its sync failed), once.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from trio_rmq.testing.simulation.history import Event

FLUSH_SECONDS = 2.0
"""Longest wait of a written record for the asynchronous flush to begin, with the plan's settings."""

LATER_KINDS = frozenset({"delays", "transactions"})

Queue = int | str
"""How a history names a queue: its id, or, where there are several topics or brokers, a text."""


class Problem(NamedTuple):
    """A promise that was not kept."""

    kind: str
    sentence: str


class Stored(NamedTuple):
    """A message that the broker has at the end."""

    queue_id: Queue
    offset: int
    name: str


class Evidence(NamedTuple):
    """What the checkers look at."""

    events: list[Event]
    stored: list[Stored]
    """By queue and offset."""
    queue_begins: dict[Queue, int]
    """Queue id -> first offset."""
    sync_flush: bool
    worst_sync_seconds: float
    converged: bool


def check(evidence: Evidence) -> list[Problem]:
    """All broken promises, the same ones in the same order for the same run."""
    return _Check(evidence).run()


class PowerLoss(NamedTuple):
    """A machine of a broker lost its power."""

    since_us: int
    """Since when nothing was synced: before the loss where the broker had died already."""
    time_us: int


def power_losses(events: list[Event]) -> list[PowerLoss]:
    """When brokers lost power."""
    losses: list[PowerLoss] = []
    down_since: dict[str, int] = {}
    for event in events:
        machine = "broker" if event.process == "world" else event.process  # a fault's victim, or who tells of itself
        if event.what == "up":
            down_since.pop(machine, None)
        elif event.what in ("down", "power") or (event.what == "kill" and event.value.get("crashed")):
            since = down_since.setdefault(machine, event.time_us)
            if event.what == "power":
                losses.append(PowerLoss(since, event.time_us))
    return losses


def may_be_lost(evidence: Evidence, losses: list[PowerLoss], begin_us: int, end_us: int) -> bool:
    """Whether one of the power losses may have taken what was written between the two times."""
    if evidence.sync_flush:
        return False
    window = round((FLUSH_SECONDS + 3 * evidence.worst_sync_seconds) * 1e6)
    return any(begin_us <= loss.time_us and loss.since_us <= end_us + window for loss in losses)


class _Check:
    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.problems: list[Problem] = []
        self.invoked: dict[str, int] = {}
        self.acknowledged: dict[str, tuple[Queue, int, int]] = {}
        """Name -> queue, offset, time of the answer."""
        self.later: set[str] = set()
        """Messages that are stored in their queue some time after their send, if they are: by no answer's place."""
        self.promised: set[str] = set()
        """Those of them that were acknowledged."""
        self.consumed: dict[tuple[Queue, int], list[tuple[str, int]]] = {}
        self.power_losses = power_losses(evidence.events)
        for event in evidence.events:
            value = event.value
            if event.what == "invoke":
                self.invoked[value["id"]] = event.time_us
                if value.get("kind") in LATER_KINDS:
                    self.later.add(value["id"])
            elif event.what == "ok" and value["id"] in self.later:
                self.promised.add(value["id"])
            elif event.what == "ok":
                self.acknowledged[value["id"]] = (value["queue"], value["offset"], event.time_us)
            elif event.what == "consumed":
                place = (value["queue"], value["offset"])
                self.consumed.setdefault(place, []).append((value["id"], event.time_us))
        self.at = {(stored.queue_id, stored.offset): stored.name for stored in evidence.stored}
        self.place = {stored.name: (stored.queue_id, stored.offset) for stored in evidence.stored}

    def may_be_lost(self, begin_us: int, end_us: int) -> bool:
        """Whether a power loss may have taken what was written between the two times."""
        return may_be_lost(self.evidence, self.power_losses, begin_us, end_us)

    def tell(self, kind: str, sentence: str) -> None:
        self.problems.append(Problem(kind, sentence))

    def run(self) -> list[Problem]:
        for event in self.evidence.events:
            if event.what == "refuses to start":
                self.tell("corrupt", f"{event.process}: {event.value['reason']}")
            elif event.what == "changed":
                self.tell("changed", f"{event.process} got {event.value}")
            elif event.what == "raises":
                self.tell("raised", f"{event.process}: {event.value['reason']}")
        self._lost()
        self._unexpected()
        self._duplicates()
        self._offsets()
        self._order()
        self._delivered()
        if not self.evidence.converged:
            self.tell("liveness", "after all faults had ended the cluster did not come to rest in time")
        return self.problems

    def _lost(self) -> None:
        for name, (queue, offset, time) in self.acknowledged.items():
            if name not in self.place and not self.may_be_lost(self.invoked[name], time):
                self.tell("lost", f"{name} was acknowledged at queue {queue} offset {offset} and is not stored")

    def _unexpected(self) -> None:
        for stored in self.evidence.stored:
            if stored.name not in self.invoked:
                self.tell("unexpected", f"queue {stored.queue_id} offset {stored.offset} holds {stored.name[:40]!r}")
        for (queue, offset), seen in self.consumed.items():
            for name, _ in seen:
                if name not in self.invoked:
                    self.tell("unexpected", f"queue {queue} offset {offset} gave {name[:40]!r}, which nobody sent")

    def _duplicates(self) -> None:
        for name, count in Counter(stored.name for stored in self.evidence.stored).items():
            if count > 1:
                self.tell("duplicate", f"{name} was sent once and is stored {count} times")

    def _offsets(self) -> None:
        """A place shows one message for ever, and no place is left out."""
        for name, (queue, offset, _) in self.acknowledged.items():
            place = self.place.get(name)
            if place is not None and place != (queue, offset):
                self.tell("offset", f"{name} was acknowledged at queue {queue} offset {offset} and stands at {place}")
        for (queue, offset), seen in self.consumed.items():
            for name, time in seen:
                if self.at.get((queue, offset)) != name and not self.may_be_lost(self.invoked.get(name, 0), time):
                    held = self.at.get((queue, offset), "nothing")
                    self.tell("offset", f"queue {queue} offset {offset} gave {name} and holds {held}")
        ends: dict[Queue, int] = dict(self.evidence.queue_begins)
        for stored in self.evidence.stored:
            expected = ends.get(stored.queue_id, 0)
            if stored.offset != expected:
                self.tell("gap", f"queue {stored.queue_id} goes from {expected} to {stored.offset}")
            ends[stored.queue_id] = stored.offset + 1

    def _order(self) -> None:
        """What was acknowledged before another send began stands before it."""
        newest: dict[Queue, tuple[int, str]] = {}
        answered = sorted((time, name) for name, (_, _, time) in self.acknowledged.items())
        position = 0
        for name in sorted(self.acknowledged, key=lambda name: (self.invoked[name], name)):
            while position < len(answered) and answered[position][0] < self.invoked[name]:
                earlier = answered[position][1]
                position += 1
                place = self.place.get(earlier)
                if place is not None and place[1] >= newest.get(place[0], (-1, ""))[0]:
                    newest[place[0]] = (place[1], earlier)
            place = self.place.get(name)
            if place is not None and place[1] < newest.get(place[0], (-1, ""))[0]:
                before = newest[place[0]][1]
                self.tell("order", f"{name} stands before {before}, which was acknowledged before {name} was sent")

    def _delivered(self) -> None:
        if not self.evidence.converged:
            return
        names = {place: {name for name, _ in seen} for place, seen in self.consumed.items()}
        unpromised = self.later - self.promised
        for stored in self.evidence.stored:
            place = (stored.queue_id, stored.offset)
            if stored.name in unpromised:
                continue  # it may have come as the run ended
            if stored.name not in names.get(place, ()) and not self._was_given_again(place):
                self.tell("skipped", f"{stored.name} at queue {place[0]} offset {place[1]} was never delivered")

    def _was_given_again(self, place: tuple[Queue, int]) -> bool:
        """Whether offsets of the queue at or after `place` were consumed and lost: the group may stand beyond them."""
        return not self.evidence.sync_flush and any(
            queue == place[0] and offset >= place[1] and any(self.at.get((queue, offset)) != name for name, _ in seen)
            for (queue, offset), seen in self.consumed.items()
        )
