"""The one source of randomness, so that a simulation repeats from its seed.

`rng()` gives this node's generator: the operating system's entropy seeds the default one; a simulation sets its own for
the tasks below one nursery with `use_rng`.  Nothing here is for secrets.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_default_rng = random.Random()  # spreads load and makes ids; no secret comes from it
_rng: ContextVar[random.Random | None] = ContextVar("trio_rmq_rng", default=None)


def rng() -> random.Random:
    """The random generator of the node that the current task belongs to."""
    return _rng.get() or _default_rng


@contextmanager
def use_rng(source: random.Random) -> Iterator[None]:
    """Within the block, and in every task started below it, `rng()` returns `source`."""
    token = _rng.set(source)
    try:
        yield
    finally:
        _rng.reset(token)
