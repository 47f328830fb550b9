"""Nesting as shutdown order, also under cancellation.

Trio cancels a whole tree at once; a service that others need while they end must outlive them.  `serving_while` runs
one service beside a block: cancelled from outside, the block ends first - its `finally` parts may still use the
service - and only then is the service cancelled.  A service that fails cancels the block.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Protocol

import trio


class Service(Protocol):
    """An async function that says when it is ready and then runs until cancelled."""

    def __call__(self, *, task_status: trio.TaskStatus[Any]) -> Awaitable[None]: ...


@asynccontextmanager
async def serving_while(service: Service) -> AsyncIterator[Any]:
    """Run `service` for the block, which gets what the service says when it is ready."""
    async with trio.open_nursery() as nursery:
        lifetime = trio.CancelScope(shield=True)

        async def run(*, task_status: trio.TaskStatus[Any]) -> None:
            with lifetime:
                await service(task_status=task_status)

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
