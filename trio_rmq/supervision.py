"""Nesting as shutdown order, also under cancellation.

Trio cancels a whole tree at once; a service that others need while they end must outlive them.  `serving_while` runs
one service beside a block: cancelled from outside, the block ends first - its `finally` parts may still use the
service - and only then is the service cancelled.  A service that fails cancels the block; one that is cancelled before
it is ready ends at once, and no block is run.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Protocol

import trio


class Service(Protocol):
    """An async function that says when it is ready and then runs until cancelled."""

    def __call__(self, *, task_status: trio.TaskStatus[Any]) -> Awaitable[None]: ...


class _ShieldWhenReady:
    """A task status that shields the service once it is ready, unless it is cancelled by then."""

    def __init__(self, status: trio.TaskStatus[Any], lifetime: trio.CancelScope) -> None:
        self._status = status
        self._lifetime = lifetime

    def started(self, value: Any = None) -> None:
        self._status.started(value)
        # What waits for a cancelled start waits for the service's end: a shield would make that forever.
        self._lifetime.shield = trio.current_effective_deadline() > -math.inf


@asynccontextmanager
async def serving_while(service: Service) -> AsyncIterator[Any]:
    """Run `service` for the block, which gets what the service says when it is ready."""
    async with trio.open_nursery() as nursery:
        lifetime = trio.CancelScope()

        async def run(*, task_status: trio.TaskStatus[Any]) -> None:
            with lifetime:
                await service(task_status=_ShieldWhenReady(task_status, lifetime))

        try:
            yield await nursery.start(run)
        finally:
            lifetime.cancel()


def without_readiness(service: Callable[[], Awaitable[None]]) -> Service:
    """A service that is ready as soon as it begins."""

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await service()

    return run


@contextmanager
def lone_errors() -> Iterator[None]:
    """Take a single error out of the groups that nested nurseries put around it; groups of several pass as they are."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if isinstance(error, BaseExceptionGroup):
            raise
        raise error from None
