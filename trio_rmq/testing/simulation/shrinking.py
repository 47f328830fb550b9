"""Making a plan that breaks a promise as small as it goes: fewer faults, less time, fewer sends, plainer options.

Delta debugging.  Each step tries a smaller plan and keeps it when the same kind of promise still breaks; what breaks it
often hangs on which task runs first, so a smaller plan is tried under other seeds, too, and takes the one that breaks.
The order is that of the gain: first the time, because it makes all later tries cheaper, then faults, sends, options.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import NamedTuple, TypeVar

from msgspec.structs import replace

from trio_rmq.testing.simulation.plan import LINK_FAULTS, Fault, Plan, Send

T = TypeVar("T")
_AFTER_SECONDS = 1.0
"""Kept after the last fault or send."""


class Shrunk(NamedTuple):
    """The smallest plan that was found, and what it took."""

    plan: Plan
    runs: int


class _SpentError(Exception):
    """No run is left."""


def shrink(plan: Plan, breaks: Callable[[Plan], bool], *, runs_max: int = 500, schedules: int = 1) -> Shrunk:
    """Make `plan`, for which `breaks` is true, smaller; at most `runs_max` calls of `breaks`.

    `schedules` is under how many seeds besides its own a smaller plan is tried before it counts as one that keeps the
    promise.  The result breaks it, as `breaks` says.
    """
    return _Shrinking(plan, breaks, runs_max, schedules).run()


class _Shrinking:
    def __init__(self, plan: Plan, breaks: Callable[[Plan], bool], runs_max: int, schedules: int) -> None:
        self.plan = plan
        self.runs = 0
        self._breaks = breaks
        self._runs_max = runs_max
        self._schedules = schedules

    def run(self) -> Shrunk:
        try:
            before = None
            while self.plan != before:
                before = self.plan
                self._cut_time()
                self._reduce(self.plan.faults, lambda faults: replace(self.plan, faults=faults))
                self._reduce(self.plan.sends, lambda sends: replace(self.plan, sends=sends))
                self._make_plain()
        except _SpentError:
            pass
        return Shrunk(self.plan, self.runs)

    def _try(self, plan: Plan) -> bool:
        """Whether `plan`, under its seed or another, still breaks the promise; then it is the plan."""
        for seed in chain((plan.seed,), range(self._schedules)):
            if self.runs == self._runs_max:
                raise _SpentError
            self.runs += 1
            candidate = replace(plan, seed=seed)
            if self._breaks(candidate):
                self.plan = candidate
                return True
        return False

    def _cut_time(self) -> None:
        """End earlier: halve what is cut off until nothing more can be."""
        step = self.plan.options.seconds / 2
        while step >= _AFTER_SECONDS / 2:
            seconds = round(self.plan.options.seconds - step, 3)
            if seconds <= 0 or not self._try(until(self.plan, seconds)):
                step /= 2

    def _reduce(self, items: list[T], with_items: Callable[[list[T]], Plan]) -> None:
        """Leave out ever smaller parts of `items`."""
        parts = 1
        while items:
            size = -(-len(items) // parts)
            for start in range(0, len(items), size):
                fewer = items[:start] + items[start + size :]
                if self._try(with_items(fewer)):
                    items, parts = fewer, max(parts - 1, 1)
                    break
            else:
                if size == 1:
                    return
                parts = min(2 * parts, len(items))

    def _make_plain(self) -> None:
        """The plainest value of each option and each fault that still does."""
        kinds = sorted({fault.kind for fault in self.plan.faults})
        plainest: list[dict[str, object]] = [
            {"kinds": kinds},
            {"split_chance": 0.0},
            {"jitter_seconds": 0.0},
            {"latency_seconds": 0.0002},
            {"sync_seconds": 0.001},
            {"consume_seconds": 0.0},
            {"last": "stop"},
        ]
        for changes in plainest:
            plainer = replace(self.plan.options, **changes)
            if plainer != self.plan.options:
                self._try(replace(self.plan, options=plainer))
        for index in range(len(self.plan.faults)):
            self._make_fault_plain(index)

    def _make_fault_plain(self, index: int) -> None:
        plainest: list[dict[str, object]] = [{"seconds": 0.0}, {"seed": 0}]
        if self.plan.faults[index].kind not in LINK_FAULTS:
            plainest.append({"target": ""})
        for changes in plainest:
            faults = [*self.plan.faults]
            faults[index] = replace(faults[index], **changes)
            if faults != self.plan.faults:
                self._try(replace(self.plan, faults=faults))


def until(plan: Plan, seconds: float) -> Plan:
    """The plan's first `seconds`."""

    def within(event: Fault | Send) -> bool:
        return event.at < seconds

    return replace(
        plan,
        options=replace(plan.options, seconds=seconds),
        faults=[fault for fault in plan.faults if within(fault)],
        sends=[send for send in plan.sends if within(send)],
    )
