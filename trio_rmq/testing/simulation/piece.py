"""What a piece of the bug museum is made of: a defect's name, its double, and how it is planted from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

from trio_rmq.testing.simulation.plan import Plan

Plant = Callable[[], AbstractContextManager[None]]


class Piece(NamedTuple):
    """One exhibit."""

    name: str
    breach: str
    """Which invariant it breaks, and whose defect it is the double of; empty for an oddity."""
    sentence: str
    plant: Plant
    suits: Callable[[Plan], bool] = lambda plan: True
    """Whether a plan can show it at all: the others are not run."""
    seconds: float = 30.0
    """How long the plans' faults go on, unless `find` is told: longer where it takes several to show."""


def kinds_of_faults(plan: Plan) -> set[str]:
    """The kinds of faults that the plan has."""
    return {fault.kind for fault in plan.faults}


@contextmanager
def replaced(owner: Any, name: str, new: object) -> Iterator[None]:
    """`owner.name` is `new` within the block; AttributeError when `owner` itself has no such name."""
    if name not in vars(owner):
        raise AttributeError(f"{owner!r} has no {name} of its own: the museum's piece must follow the code")
    old = vars(owner)[name]
    setattr(owner, name, new)
    try:
        yield
    finally:
        setattr(owner, name, old)
