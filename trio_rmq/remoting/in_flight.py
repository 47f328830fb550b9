"""How much of one connection's work waits for the disk, and the bound above which nothing further is read from it."""

from __future__ import annotations

import trio

from trio_rmq.remoting.settings import RemotingSettings


class InFlight:
    """The requests whose answers wait, held ones aside, and the bytes of their bodies."""

    __slots__ = ("_fell", "_settings", "requests", "size_bytes")

    def __init__(self, settings: RemotingSettings) -> None:
        self._settings = settings
        self._fell: trio.Event | None = None
        self.requests = 0
        self.size_bytes = 0

    def add(self, requests: int, size_bytes: int) -> None:
        """So many more wait."""
        self.requests += requests
        self.size_bytes += size_bytes

    def remove(self, requests: int, size_bytes: int) -> None:
        """So many wait no more."""
        self.requests -= requests
        self.size_bytes -= size_bytes
        if self._fell is not None:
            self._fell.set()
            self._fell = None

    async def wait_for_room(self) -> None:
        """For the reading task, after each chunk: read on when no more than the bounds is in flight."""
        settings = self._settings
        while self.requests > settings.requests_in_flight_max // 2 or (
            self.requests and self.size_bytes > settings.in_flight_bytes_pause
        ):
            self._fell = trio.Event()
            await self._fell.wait()
