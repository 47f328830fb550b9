"""How far a group is behind in each queue of its topics."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from trio_rmq.client import group_calls
from trio_rmq.client.queue_offsets import QueueOffsets
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.wire.groups import MessageQueue


@dataclass(frozen=True, slots=True)
class QueueLag:
    """A queue's first offset, the one its next message will have, and what the group committed (None: nothing yet)."""

    first: int
    after: int
    committed: int | None

    @property
    def count(self) -> int:
        """How many offsets the group has still to consume; all that are kept, when it committed nothing."""
        return self.after - max(self.first, self.committed or 0)


async def group_lag(
    remoting: RemotingClient, offsets: QueueOffsets, group: str, topics: Iterable[str]
) -> dict[MessageQueue, QueueLag]:
    """The lag in every queue of the topics, by what brokers know; three questions a queue.

    RouteNotFoundError, RemotingError or ResponseError when one cannot say.
    """
    lags: dict[MessageQueue, QueueLag] = {}
    for topic in sorted(topics):
        for queue in await offsets.queues(topic):
            address = await offsets.address(queue)
            committed = await group_calls.committed_offset(remoting, address, group, queue)
            first = await group_calls.min_offset(remoting, address, queue)
            lags[queue] = QueueLag(first, await group_calls.max_offset(remoting, address, queue), committed)
    return lags
