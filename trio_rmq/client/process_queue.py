"""What a consumer holds of one queue: pulled messages that are not finished, and the offset it may commit.

Plain, synchronous state of one owner.  Invariant: the committable offset never passes an unfinished message, so what
was not processed is delivered again after a crash.  Source of the idea and limits: RocketMQ ProcessQueue.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from trio_rmq.wire.groups import MessageQueue


class ProcessQueue:
    """Unfinished messages of `queue`; offsets are queue offsets, sizes bytes."""

    __slots__ = ("_sizes", "dropped", "next_offset", "queue", "size_bytes")

    def __init__(self, queue: MessageQueue, next_offset: int) -> None:
        self.queue = queue
        self.next_offset = next_offset
        """Where the next pull begins."""
        self.dropped = False
        """Whether the queue is no longer ours: nothing further is consumed or committed."""
        self.size_bytes = 0
        """The bytes of the unfinished messages' bodies."""
        self._sizes: dict[int, int] = {}  # in order of offsets, because pulls go forward

    def pulled(self, offsets: Sequence[int], sizes: Sequence[int], next_offset: int) -> None:
        """Offset and body size of each message that will be consumed, and where the next pull begins."""
        count = len(self._sizes) + len(offsets)
        self._sizes.update(zip(offsets, sizes, strict=True))
        self.size_bytes += sum(sizes)
        if len(self._sizes) != count:  # a broker sent some again
            self.size_bytes = sum(self._sizes.values())
        self.next_offset = next_offset

    def finished(self, offsets: Iterable[int]) -> None:
        """These messages were consumed, or given back to the broker."""
        for offset in offsets:
            self.size_bytes -= self._sizes.pop(offset, 0)

    def finished_one(self, offset: int) -> None:
        """`finished` for the usual one, without a list."""
        self.size_bytes -= self._sizes.pop(offset, 0)

    def moved(self, next_offset: int) -> None:
        """The broker says where the queue goes on; unfinished messages stay unfinished."""
        self.next_offset = next_offset

    @property
    def commit_offset(self) -> int:
        """The offset of the first unfinished message, or of the next pull when none is unfinished."""
        return next(iter(self._sizes), self.next_offset)

    @property
    def last_offset(self) -> int | None:
        """The offset of the last unfinished message."""
        return next(reversed(self._sizes), None)

    @property
    def count(self) -> int:
        """How many messages are unfinished."""
        return len(self._sizes)

    @property
    def span(self) -> int:
        """How far the pulled messages reach beyond the first unfinished one."""
        return self.next_offset - self.commit_offset if self._sizes else 0
