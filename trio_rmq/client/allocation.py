"""Which of a topic's queues each member of a group consumes: the same answer at every member, without talking.

Source: RocketMQ AllocateMessageQueueAveragely.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trio_rmq.wire.groups import MessageQueue

Allocation = Callable[[str, Sequence[MessageQueue], Sequence[str]], list[MessageQueue]]
"""(own client id, all queues in order, all client ids in order) -> own queues."""


def allocate_averagely(client_id: str, queues: Sequence[MessageQueue], client_ids: Sequence[str]) -> list[MessageQueue]:
    """Consecutive queues, as many for each as for the others, the first members having one more when they must."""
    if client_id not in client_ids:
        return []
    index = client_ids.index(client_id)
    share, rest = divmod(len(queues), len(client_ids))
    start = index * share + min(index, rest)
    return list(queues[start : start + share + (1 if index < rest else 0)])
