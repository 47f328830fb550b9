"""Drops brokers that fell silent.

One task; it sleeps until the first broker could have expired, though no longer than the scan interval (a broker that
registers in between may ask for a shorter time), and without brokers until one registers.
"""

from __future__ import annotations

import logging
import math

import trio

from trio_rmq.namesrv.routes import RouteTable

logger = logging.getLogger(__name__)


class LivenessScan:
    """The scan of one route table; intervals in seconds."""

    def __init__(self, routes: RouteTable, *, interval_seconds: float) -> None:
        self._routes = routes
        self._interval_seconds = interval_seconds
        self._registered = trio.Event()

    def broker_registered(self) -> None:
        """A broker registered: there may be something to watch."""
        self._registered.set()

    async def run(self) -> None:
        """Drop silent brokers for ever.  Cancelled, it leaves the table as the last look left it."""
        while True:
            expiry = self._routes.next_expiry()
            if math.isinf(expiry):
                self._registered = trio.Event()
                await self._registered.wait()
                continue
            await trio.sleep_until(min(expiry, trio.current_time() + self._interval_seconds))
            for address in self._routes.remove_expired(trio.current_time()):
                logger.warning("broker %s was silent for too long and is dropped", address)
