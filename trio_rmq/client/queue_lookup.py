"""A topic's queues with their masters' addresses, asked anew.

For readers and writers that choose queues themselves and have just lost a broker.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trio_rmq.client.route_cache import RouteCache
from trio_rmq.errors import RouteNotFoundError


@dataclass(frozen=True, slots=True, order=True)
class QueueAddress:
    """A queue and the address of its master."""

    broker_name: str
    queue_id: int
    address: str


async def queues_to_write(routes: RouteCache, topic: str) -> list[QueueAddress]:
    """The queues a producer may send to, in order; for a topic nobody knows those it will get when it is created.

    RouteNotFoundError when there are none; RemotingError when no name server answers and nothing is known.
    """
    route = await routes.refresh(topic, may_create=True)
    return _addressed(topic, [(queue.broker_name, queue.queue_id) for queue in route.write_queues], route.master)


async def queues_to_read(routes: RouteCache, topic: str) -> list[QueueAddress]:
    """The queues a consumer may read, in order; errors as of `queues_to_write`."""
    route = await routes.refresh(topic)
    return _addressed(topic, [(queue.broker_name, queue.queue_id) for queue in route.read_queues], route.master)


def _addressed(topic: str, queues: list[tuple[str, int]], master: Callable[[str], str | None]) -> list[QueueAddress]:
    found = [
        QueueAddress(broker_name, queue_id, address)
        for broker_name, queue_id in queues
        if (address := master(broker_name)) is not None
    ]
    if not found:
        raise RouteNotFoundError(f"no broker serves a queue of the topic {topic} now")
    return sorted(found)
