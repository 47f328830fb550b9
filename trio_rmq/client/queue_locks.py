"""The locks of an orderly consumer's queues: asked of each queue's broker, renewed, given back.

Owner of `owned`, the queues whose lock was got and not given back, is the rebalance; the renewal only reads it.
Invariant: a queue is consumed only while its lock is surely ours, which is LOCK_SECONDS from the moment a granted
request was made; the broker keeps it for longer.  Source: RocketMQ RebalanceImpl, ProcessQueue.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import anyio

from trio_rmq.client import group_calls
from trio_rmq.client.queue_offsets import QueueOffsets
from trio_rmq.errors import ProtocolError, RemotingError, ResponseError, RouteNotFoundError
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.wire.groups import MessageQueue

logger = logging.getLogger(__name__)

RENEW_SECONDS = 20.0
LOCK_SECONDS = 30.0
"""How long a granted lock counts here; the broker lets it expire after 60 s."""


class QueueLocks:
    """Locks of one member of `group`."""

    def __init__(self, remoting: RemotingClient, offsets: QueueOffsets, group: str, client_id: str) -> None:
        self.owned: set[MessageQueue] = set()
        self._remoting = remoting
        self._offsets = offsets
        self._group = group
        self._client_id = client_id

    async def lock(self, queues: Iterable[MessageQueue]) -> dict[MessageQueue, float]:
        """Ask for locks, or renew them: of each queue until when it is ours; 0 when another has it.

        A queue whose broker did not answer is missing.
        """
        granted: dict[MessageQueue, float] = {}
        for address, asked in (await self._by_broker(queues)).items():
            until = anyio.current_time() + LOCK_SECONDS
            self.owned.update(asked)  # before it is sent: a cancelled request may have been granted
            try:
                mine = await group_calls.lock_queues(self._remoting, address, self._group, self._client_id, asked)
            except (RemotingError, ResponseError, ProtocolError) as error:
                logger.warning("group %s: %d queues of %s are not locked: %s", self._group, len(asked), address, error)
                continue
            self.owned -= set(asked) - mine
            granted.update({queue: until if queue in mine else 0.0 for queue in asked})
        return granted

    async def unlock(self, queues: Iterable[MessageQueue]) -> None:
        """Give locks back; a broker that does not answer lets them expire."""
        for address, asked in (await self._by_broker(self.owned & set(queues))).items():
            try:
                await group_calls.unlock_queues(self._remoting, address, self._group, self._client_id, asked)
            except (RemotingError, ResponseError) as error:
                logger.warning("group %s: %d queues stay locked for a while: %s", self._group, len(asked), error)
            self.owned -= set(asked)

    async def unlock_all(self) -> None:
        """Give all locks back."""
        await self.unlock(list(self.owned))

    async def _by_broker(self, queues: Iterable[MessageQueue]) -> dict[str, list[MessageQueue]]:
        by_broker: dict[str, list[MessageQueue]] = {}
        for queue in sorted(queues, key=lambda queue: queue.sort_key):
            try:
                by_broker.setdefault(await self._offsets.address(queue), []).append(queue)
            except (RemotingError, RouteNotFoundError) as error:
                logger.warning("group %s: the lock of %s cannot be asked for: %s", self._group, queue, error)
        return by_broker
