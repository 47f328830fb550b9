"""What pull consumers ask of a topic's queues: which there are, where their brokers are, their first and next offsets.

No state of its own but the route cache given.
"""

from __future__ import annotations

from trio_rmq.client import group_calls
from trio_rmq.client.pull_calls import offset_at_time
from trio_rmq.client.route_cache import RouteCache
from trio_rmq.errors import RemotingError
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.wire.groups import MessageQueue


class QueueOffsets:
    """Questions about queues; each raises RouteNotFoundError, RemotingError or ResponseError when it has no answer."""

    def __init__(self, remoting: RemotingClient, routes: RouteCache) -> None:
        self._remoting = remoting
        self._routes = routes

    async def queues(self, topic: str) -> list[MessageQueue]:
        """The topic's queues that can be read, in the order that all members of a group share."""
        return sorted((await self._routes.route(topic)).read_queues, key=lambda queue: queue.sort_key)

    def known_address(self, queue: MessageQueue, now: float) -> str | None:
        """The address of the queue's broker by a route that is still fresh at anyio's time `now`; else None: ask."""
        route = self._routes.fresh(queue.topic, now)
        return None if route is None else route.master(queue.broker_name)

    async def address(self, queue: MessageQueue) -> str:
        """The address of the queue's broker, asked anew when the route known has none."""
        address = (await self._routes.route(queue.topic)).master(queue.broker_name)
        if address is None:
            address = (await self._routes.refresh(queue.topic)).master(queue.broker_name)
        if address is None:
            raise RemotingError(f"broker {queue.broker_name} has no master now")
        return address

    async def min_offset(self, queue: MessageQueue) -> int:
        """The offset of the first message still kept."""
        return await group_calls.min_offset(self._remoting, await self.address(queue), queue)

    async def max_offset(self, queue: MessageQueue) -> int:
        """The offset that the next message will have."""
        return await group_calls.max_offset(self._remoting, await self.address(queue), queue)

    async def offset_for_timestamp(self, queue: MessageQueue, timestamp_ms: int) -> int:
        """The offset of the first message stored at or after the time (milliseconds since 1970), else the next one."""
        return await offset_at_time(self._remoting, await self.address(queue), queue, timestamp_ms)
