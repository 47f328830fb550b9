"""What a consumer holds of one queue: pulled messages that are not finished, and the offset it may commit.

Plain, synchronous state of one owner.  Invariant: the committable offset never passes an unfinished message, so what
was not processed is delivered again after a crash.  Source of the idea and limits: RocketMQ ProcessQueue.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop, heappush

from trio_rmq.wire.groups import MessageQueue


class ProcessQueue:
    """Unfinished messages of `queue`; offsets are queue offsets, sizes bytes."""

    def __init__(self, queue: MessageQueue, next_offset: int) -> None:
        self.queue = queue
        self.next_offset = next_offset
        """Where the next pull begins."""
        self.dropped = False
        """Whether the queue is no longer ours: nothing further is consumed or committed."""
        self._sizes: dict[int, int] = {}
        self._order: list[int] = []
        self._bytes = 0

    def pulled(self, messages: Iterable[tuple[int, int]], next_offset: int) -> None:
        """(offset, body size) of each message that will be consumed, and where the next pull begins."""
        for offset, size in messages:
            if offset not in self._sizes:
                self._sizes[offset] = size
                self._bytes += size
                heappush(self._order, offset)
        self.next_offset = next_offset

    def finished(self, offsets: Iterable[int]) -> None:
        """These messages were consumed, or given back to the broker."""
        for offset in offsets:
            self._bytes -= self._sizes.pop(offset, 0)
        while self._order and self._order[0] not in self._sizes:
            heappop(self._order)

    def moved(self, next_offset: int) -> None:
        """The broker says where the queue goes on; unfinished messages stay unfinished."""
        self.next_offset = next_offset

    @property
    def commit_offset(self) -> int:
        """The offset of the first unfinished message, or of the next pull when none is unfinished."""
        return self._order[0] if self._order else self.next_offset

    @property
    def count(self) -> int:
        """How many messages are unfinished."""
        return len(self._sizes)

    @property
    def size_bytes(self) -> int:
        """The bytes of their bodies."""
        return self._bytes

    @property
    def span(self) -> int:
        """How far the pulled messages reach beyond the first unfinished one."""
        return self.next_offset - self._order[0] if self._order else 0
