"""How a group's members share queues when the shares are even: the strategies that client and broker must agree on.

Plain functions of sorted queues and sorted client ids, so that every member, and a broker that is asked
(QUERY_ASSIGNMENT), comes to the same answer.  Source: RocketMQ AllocateMessageQueueAveragely and
AllocateMessageQueueAveragelyByCircle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Queue = TypeVar("Queue")


def share_averagely(client_id: str, queues: Sequence[Queue], client_ids: Sequence[str]) -> list[Queue]:
    """Consecutive queues, as many for each as for the others, the first members having one more when they must."""
    if client_id not in client_ids:
        return []
    index = client_ids.index(client_id)
    share, rest = divmod(len(queues), len(client_ids))
    start = index * share + min(index, rest)
    return list(queues[start : start + share + (1 if index < rest else 0)])


def share_by_circle(client_id: str, queues: Sequence[Queue], client_ids: Sequence[str]) -> list[Queue]:
    """One queue for each member in turn, as cards are dealt."""
    if client_id not in client_ids:
        return []
    return list(queues[client_ids.index(client_id) :: len(client_ids)])
