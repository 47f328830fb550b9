"""What a lite pull consumer holds of one queue: pulled messages that wait, and how far they were handed out and done.

Plain, synchronous state.  Invariants: messages are handed out in order; done <= handed out <= pulled; the committable
offset never passes a message that was not acknowledged; a seek forgets all that was pulled, and what a pull brings that
began before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from trio_rmq.client.message import ReceivedMessage
from trio_rmq.wire.groups import MessageQueue


class LiteQueue:
    """Waiting messages of `queue`; offsets are queue offsets, sizes bytes of bodies."""

    def __init__(self, queue: MessageQueue, offset: int, *, count_max: int, size_max_bytes: int) -> None:
        self.queue = queue
        self.next_offset = offset
        """Where the next pull begins."""
        self.generation = 0
        """Grows with each seek; a pull of an earlier generation counts for nothing."""
        self.paused = False
        """Whether nothing is pulled and handed out for now."""
        self._count_max = count_max
        self._size_max_bytes = size_max_bytes
        self._waiting: deque[ReceivedMessage] = deque()
        self._size_bytes = 0
        self._handed = self._done = offset

    def pulled(self, messages: Sequence[ReceivedMessage], next_offset: int, *, generation: int) -> bool:
        """What a pull brought; whether there is something to hand out that was not before."""
        if generation != self.generation:
            return False
        self._waiting.extend(messages)
        self._size_bytes += sum(message.stored_body_size_bytes for message in messages)
        self.next_offset = next_offset
        return bool(messages) and not self.paused

    def take(self, count_max: int) -> list[ReceivedMessage]:
        """Hand out the next messages; none while paused."""
        if self.paused or not self._waiting:
            return []
        taken = [self._waiting.popleft() for _ in range(min(count_max, len(self._waiting)))]
        self._size_bytes -= sum(message.stored_body_size_bytes for message in taken)
        self._handed = taken[-1].queue_offset + 1
        return taken

    def acknowledge(self, before_offset: int | None = None) -> None:
        """All that was handed out is done; or what stands before that offset, never less than before."""
        self._done = self._handed if before_offset is None else max(self._done, min(before_offset, self._handed))

    def seek(self, offset: int) -> None:
        """Go on from `offset`, back or forth."""
        self.generation += 1
        self._waiting.clear()
        self._size_bytes = 0
        self.next_offset = self._handed = self._done = offset

    @property
    def is_full(self) -> bool:
        """Whether pulling must wait until messages are handed out."""
        return len(self._waiting) >= self._count_max or self._size_bytes >= self._size_max_bytes

    @property
    def commit_offset(self) -> int:
        """The first message that is not done; past those that the filter dropped."""
        if self._done < self._handed:
            return self._done
        return self._waiting[0].queue_offset if self._waiting else self.next_offset
