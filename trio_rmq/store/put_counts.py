"""How many messages each topic got, and how large: told by its queues' entries, without a count on a message's way.

Whoever wants to know looks now and then.  What came since the last look mostly still waits in a queue's tail; of what
left it for the files meanwhile, the queue has kept the sum.  Invariant: each visible entry is counted once, by one
counter alone.
"""

from __future__ import annotations

import trio

from trio_rmq.store.consume_queue import ENTRY_SIZE_BYTES, sizes_in
from trio_rmq.store.consume_queues import ConsumeQueues
from trio_rmq.store.multi_dispatch import LMQ_PREFIX

_QUEUES_A_SLICE = 1000
"""Looked at before other tasks get their turn: about a millisecond where all have something new."""


class PutCounts:
    """The counts of one store's topics, as of the last `look`; light message queues hold no messages of their own."""

    def __init__(self, queues: ConsumeQueues) -> None:
        self._queues = queues
        self.by_topic: dict[str, list[int]] = {}
        """Messages, and bytes of their records."""

    def begin(self) -> None:
        """What is there now does not count; for whoever opens the store."""
        for queue in self._queues.table.values():
            queue.counted, queue.uncounted_bytes = queue.visible, 0

    async def look(self) -> None:
        """Count what became visible since the last look, or since `begin`."""
        queues = [*self._queues.table.values()]
        for first in range(0, len(queues), _QUEUES_A_SLICE):
            topic, messages, sizes = "", 0, 0
            parts: list[bytearray] = []
            for queue in queues[first : first + _QUEUES_A_SLICE]:
                counted, visible = queue.counted, queue.visible
                if counted == visible:
                    continue
                if queue.topic != topic:
                    self._add(topic, messages, sizes, parts)
                    topic, messages, sizes = queue.topic, 0, 0
                    parts.clear()
                written = queue.written
                begin = (counted - written) * ENTRY_SIZE_BYTES if counted > written else 0
                parts.append(queue.tail[begin : (visible - written) * ENTRY_SIZE_BYTES])
                messages += visible - counted
                sizes += queue.uncounted_bytes
                queue.counted, queue.uncounted_bytes = visible, 0
            self._add(topic, messages, sizes, parts)
            await trio.lowlevel.checkpoint()

    def _add(self, topic: str, messages: int, sizes: int, parts: list[bytearray]) -> None:
        if messages and not topic.startswith(LMQ_PREFIX):
            put = self.by_topic.setdefault(topic, [0, 0])
            put[0] += messages
            put[1] += sizes + sizes_in(b"".join(parts))
