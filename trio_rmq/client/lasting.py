"""A remoting client that outlives the cancellation of the block it serves.

A cancelled consumer still has to commit its progress and say goodbye; a RemotingClient opened in its own block would
lose its connections with the cancellation.  So it runs in a task of its own, shielded, and ends when told.
"""

from __future__ import annotations

from types import TracebackType

import anyio

from trio_rmq.remoting.client import RemotingClient
from trio_rmq.remoting.connection import ConnectionGroup


class LastingRemoting:
    """Runs `remoting` from entering to leaving, whatever happens to the block; errors of the block come out bare."""

    def __init__(self, remoting: RemotingClient) -> None:
        self._remoting = remoting
        self._group = ConnectionGroup()
        self._lifetime = anyio.CancelScope(shield=True)
        self._opened = anyio.Event()

    async def __aenter__(self) -> LastingRemoting:
        group = await self._group.__aenter__()
        # Not by `start`: Trio never takes over a shielded task whose starter was cancelled meanwhile.
        group.start_soon(self._run)
        with anyio.CancelScope(shield=True):  # it waits for nothing but its turn
            await self._opened.wait()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lifetime.cancel()
        await self._group.__aexit__(kind, error, traceback)

    async def _run(self) -> None:
        with self._lifetime:
            async with self._remoting:
                self._opened.set()
                await anyio.sleep_forever()
