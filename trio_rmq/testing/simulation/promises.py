"""What the kinds of messages promise beyond plain ones - delays, transactions, order - as sentences about broken ones.

The simulation and the chaos tier judge by the same rules, from the same form of history.  What a power loss may take
follows the lattice of `checkers`; a send without an answer is indeterminate, and owed to nobody.

Order, of the queues that an orderly group consumes.  At-least-once: calls may come again.  A call for a message begins
only when each earlier message of its queue was consumed, by a call that ended well, of whatever member.  And of a queue
one call runs at a time, but within LOCK_SECONDS after a start of the broker, whose locks go with its memory: then a
member may go on by its old lock beside the new owner.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from trio_rmq.testing.simulation.checkers import Evidence, Queue, may_be_lost, power_losses
from trio_rmq.testing.simulation.history import Event

EARLY_MS = 5
"""A delay's bound is in whole milliseconds of two clocks' reads: less early than this is not early."""
LOCK_SECONDS = 32.0
"""How long a member goes on by a lock that the broker has forgotten, and a call at the end of that."""


class Messages:
    """What became of each message, by its name, as `evidence` has it."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.events = evidence.events
        self.invoked: dict[str, Event] = {}
        self.acknowledged: dict[str, Event] = {}
        self.consumed: dict[str, list[Event]] = {}
        for event in evidence.events:
            if event.what == "invoke":
                self.invoked[event.value["id"]] = event
            elif event.what == "ok":
                self.acknowledged[event.value["id"]] = event
            elif event.what == "consumed":
                self.consumed.setdefault(event.value["id"], []).append(event)
        self.stored = Counter(stored.name for stored in evidence.stored)
        self.losses = power_losses(evidence.events)

    def of(self, kind: str) -> dict[str, Event]:
        """The sends of this kind."""
        return {name: event for name, event in self.invoked.items() if event.value.get("kind", "plain") == kind}

    def is_excused(self, name: str) -> bool:
        """Whether a power loss may have taken what the send's answer told of."""
        begin, end = self.invoked[name].time_us, self.acknowledged[name].time_us
        return may_be_lost(self.evidence, self.losses, begin, end)

    def is_gone(self, name: str) -> bool:
        """Whether an acknowledged message is neither stored nor was ever delivered, and nothing excuses that."""
        return not self.stored[name] and name not in self.consumed and not self.is_excused(name)

    def owed(self) -> list[str]:
        """Acknowledged delayed messages, and transactions that end in a commit, which nobody has consumed yet."""
        return [
            name
            for name in self.acknowledged
            if name not in self.consumed and self._will_be_visible(name) and not self.is_excused(name)
        ]

    def _will_be_visible(self, name: str) -> bool:
        value = self.invoked[name].value
        return value.get("kind") == "delays" or (value.get("kind") == "transactions" and is_commit(value["end"]))


def is_commit(end: str) -> bool:
    """Whether a transaction with this end becomes visible: told at once, or when the broker asks."""
    return end.endswith("commit")


# Delays ----------------------------------------------------------------------------------------------------------


def broken_delays(messages: Messages, clock_rise_ms: Callable[[int, int], int] = lambda begin, end: 0) -> Iterator[str]:
    """Acknowledged ones that never came, and ones that came early.

    `clock_rise_ms(begin_us, end_us)` is how far the broker's clock was set forward in that time: times of delivery are
    the wall clock's, so that much earlier is permitted.  A clock set back makes none early.
    """
    for name, sent in messages.of("delays").items():
        events = messages.consumed.get(name)
        if events is None:
            if name in messages.acknowledged and messages.is_gone(name):
                yield f"{name} was acknowledged and never came"
            continue
        delay_ms = sent.value["delay_ms"]
        came_us = events[0].time_us
        waited_ms = (came_us - sent.time_us) / 1000
        if waited_ms < delay_ms - EARLY_MS - clock_rise_ms(sent.time_us, came_us):
            yield f"{name} came after {waited_ms:.0f} ms instead of {delay_ms}"


class Clock:
    """How a broker's wall clock was set, from the `clock step` events of a simulation."""

    def __init__(self, events: list[Event]) -> None:
        self._steps = [(event.time_us, event.value["amount"]) for event in events if event.what == "clock step"]

    def rise_ms(self, begin_us: int, end_us: int) -> int:
        """The highest that the clock stood between the two times, compared with some moment before it between them."""
        above_lowest = highest = 0
        for time_us, amount_ms in self._steps:
            if begin_us <= time_us <= end_us:
                above_lowest = max(above_lowest + amount_ms, 0)
                highest = max(highest, above_lowest)
        return highest


# Transactions ----------------------------------------------------------------------------------------------------


def broken_transactions(messages: Messages) -> Iterator[str]:
    """Rolled back and visible, or committed - of itself or asked - and never visible."""
    all_of = messages.of("transactions")
    for name, sent in all_of.items():
        end = sent.value["end"]
        if not is_commit(end):
            if messages.stored[name] or name in messages.consumed:
                yield f"{name} was rolled back and is visible"
        elif name in messages.acknowledged and messages.is_gone(name):
            asked = ", which the broker has to ask about," if end.startswith("asked") else ""
            yield f"{name} was committed{asked} and was never visible"


def seen_before_commit(messages: Messages) -> Iterator[str]:
    """Transactions that were visible while nobody had said that they are committed."""
    all_of = messages.of("transactions")
    committed: set[str] = set()
    told: set[str] = set()
    for event in messages.events:
        name = event.value.get("id", "")
        if event.what == "decided" and event.value["state"] == "COMMIT":
            committed.add(name)
        elif event.what == "consumed" and name in all_of and name not in committed and name not in told:
            told.add(name)
            yield f"{event.process} got {name} before it was committed"
    for name in all_of:
        if messages.stored[name] and name not in committed:
            yield f"{name} is stored for everybody, and nobody committed it"


# Order -----------------------------------------------------------------------------------------------------------


def broken_key_order(messages: Messages) -> Iterator[str]:
    """First deliveries of a key's acknowledged messages that did not come in the order they were sent in.

    Where a power loss had offsets given again, the group may have been beyond them: they are left out.
    """
    again = {} if messages.evidence.sync_flush else _given_again(messages.events)
    newest: dict[str, tuple[int, str]] = {}
    seen: set[str] = set()
    for event in messages.events:
        name = event.value.get("id", "")
        if event.what != "consumed" or event.value.get("kind") != "keyed" or name in seen:
            continue
        seen.add(name)
        sent = messages.acknowledged.get(name)
        if sent is None:
            continue
        key, turn = sent.value["key"], sent.value["turn"]
        if sent.value["offset"] <= again.get(sent.value["queue"], -1):
            continue
        if turn < newest.get(key, (-1, ""))[0]:
            yield f"{name} of key {key} was delivered first after {newest[key][1]}"
        newest[key] = max(newest.get(key, (-1, "")), (turn, name))


def _given_again(events: list[Event]) -> dict[Queue, int]:
    """Queue -> highest offset at which more than one message was acknowledged or consumed."""
    first: dict[tuple[Queue, int], str] = {}
    again: dict[Queue, int] = {}
    for event in events:
        if event.what in ("ok", "consumed") and "offset" in event.value:
            queue, offset, name = event.value["queue"], event.value["offset"], event.value["id"]
            if first.setdefault((queue, offset), name) != name:
                again[queue] = max(again.get(queue, -1), offset)
    return again


def broken_orderly_calls(events: list[Event]) -> Iterator[str]:
    """Calls of an orderly group that began before an earlier message was consumed, or beside another one."""
    consumed: dict[Queue, set[int]] = {}
    complete: dict[Queue, int] = {}
    """Queue -> offset before which all was consumed."""
    running: dict[Queue, dict[str, str]] = {}
    """Queue -> process -> message of the calls that run."""
    forgotten_us = -round(LOCK_SECONDS * 1e6)
    for event in events:
        if event.what == "up" and event.process == "broker":
            forgotten_us = event.time_us
        queue = event.value.get("queue")
        if queue is None or event.value.get("kind") != "keyed":
            continue
        name, offset = event.value["id"], event.value.get("offset", -1)
        calls = running.setdefault(queue, {})
        if event.what == "begun":
            if offset > complete.get(queue, 0):
                missing = complete.get(queue, 0)
                yield f"{event.process} was given {name} at {queue} offset {offset} before {missing} was consumed"
            others = [f"{other} was at {at}" for other, at in calls.items() if other != event.process]
            if others and event.time_us - forgotten_us > LOCK_SECONDS * 1e6:
                yield f"{event.process} was given {name} at {queue} offset {offset} while {', '.join(others)}"
            calls[event.process] = name
        elif event.what in ("consumed", "failed", "abandoned"):
            calls.pop(event.process, None)
            if event.what == "consumed":
                done = consumed.setdefault(queue, set())
                done.add(offset)
                end = complete.get(queue, 0)
                while end in done:
                    done.discard(end)
                    end += 1
                complete[queue] = end
