"""Queue locks of ordered consumption: one client of a group consumes a queue at a time.

Invariants: a lock belongs to one client id of one group and ends LOCK_SECONDS after its last refresh; a client gets
what is free, expired or its own.  Kept in memory only, as RocketMQ does: after a restart the first to ask has it.
Source: RocketMQ RebalanceLockManager.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from trio_rmq.wire.groups import MessageQueue

logger = logging.getLogger(__name__)

LOCK_SECONDS = 60.0
"""Life of a lock without a refresh; clients refresh every 20 s."""


class QueueLocks:
    """All queue locks of one broker; times are seconds of the monotonic clock."""

    def __init__(self) -> None:
        self._locks: dict[str, dict[MessageQueue, tuple[str, float]]] = {}

    def lock(self, group: str, client_id: str, queues: Iterable[MessageQueue], *, now: float) -> list[MessageQueue]:
        """Take or refresh locks; returns the queues that the client holds now."""
        held = self._locks.setdefault(group, {})
        mine: list[MessageQueue] = []
        for queue in queues:
            owner, until = held.get(queue, ("", now))
            if owner != client_id and until > now:
                continue
            if owner and owner != client_id:
                logger.warning(
                    "group %s: the lock on %s expired with %s and goes to %s", group, queue, owner, client_id
                )
            held[queue] = (client_id, now + LOCK_SECONDS)
            mine.append(queue)
        if not held:
            del self._locks[group]
        return mine

    def unlock(self, group: str, client_id: str, queues: Iterable[MessageQueue]) -> None:
        """Give locks back; those of others stay."""
        held = self._locks.get(group)
        if held is None:
            return
        for queue in queues:
            if held.get(queue, ("", 0.0))[0] == client_id:
                del held[queue]
        if not held:
            del self._locks[group]
