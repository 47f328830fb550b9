"""The one place that reads the wall clock.

Durations and deadlines never come from here: they come from `trio.current_time()` (servers) or `anyio.current_time()`
(clients), so that a virtual clock moves them.  Wall-clock milliseconds, which records and headers carry, come from
`wall_ms()` alone; a simulation replaces it for the tasks below one nursery with `use_wall_clock`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar


def _system_wall_ms() -> int:
    return time.time_ns() // 1_000_000


_wall_clock: ContextVar[Callable[[], int]] = ContextVar("trio_rmq_wall_clock", default=_system_wall_ms)


def wall_ms() -> int:
    """Milliseconds since 1970 on this node's wall clock, which may be stepped in either direction at any time."""
    return _wall_clock.get()()


@contextmanager
def use_wall_clock(source: Callable[[], int]) -> Iterator[None]:
    """Within the block, and in every task started below it, `wall_ms()` returns `source()`."""
    token = _wall_clock.set(source)
    try:
        yield
    finally:
        _wall_clock.reset(token)
