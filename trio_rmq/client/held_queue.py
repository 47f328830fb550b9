"""One queue that a push consumer holds: what was pulled of it, whether it may be consumed now, and who is at it.

Plain state.  Its pull task adds messages, its listener calls finish them, the rebalance alone decides that it is left.
Invariants: a queue that is being left begins no listener call; one that was let go (`state.dropped`) takes no result,
so that nothing it did is committed over what the next owner did.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import anyio

from trio_rmq.client.message import ReceivedMessage
from trio_rmq.client.process_queue import ProcessQueue
from trio_rmq.wire.groups import MessageQueue

RETRY_PREFIX = "%RETRY%"
"""Before a group's name: the topic of its messages that are to be consumed again."""


class HeldQueue:
    """`on_idle` is called when the last listener call ends while the queue is being left; times are monotonic."""

    __slots__ = (
        "_idle",
        "at_work",
        "calls",
        "changed",
        "is_retry",
        "last_consume",
        "last_pull",
        "leaving",
        "locked_at",
        "locked_until",
        "on_idle",
        "pulling",
        "queue",
        "room",
        "state",
        "waiting",
    )  # fmt: skip

    def __init__(self, queue: MessageQueue, offset: int, *, now: float, on_idle: Callable[[], None]) -> None:
        self.queue = queue
        self.is_retry = queue.topic.startswith(RETRY_PREFIX)
        """Whether its messages are of several topics, which failed before."""
        self.state = ProcessQueue(queue, offset)
        self.pulling = anyio.CancelScope()
        """Ends the pull task."""
        self.leaving = False
        """Whether the rebalance has begun to let it go: no more calls, no more pulls."""
        self.calls = 0
        """Listener calls at its messages now, giving back included."""
        self.on_idle = on_idle
        self.waiting: deque[ReceivedMessage] = deque()
        """Orderly: what the listener has not been given yet."""
        self.at_work: list[ReceivedMessage] = []
        """Orderly: what the listener is at."""
        self.locked_until = math.inf
        """Orderly: until when the queue's lock is surely ours."""
        self.locked_at = now
        self.changed = anyio.Event()
        """Set, and renewed, by `tell_changed`."""
        self.room: anyio.Event | None = None
        """Set by the pull task while it waits for messages to be finished."""
        self.last_pull = self.last_consume = now
        self._idle = anyio.Event()

    def leave(self) -> None:
        """Begin to let go: end the pull task, begin no calls."""
        self.leaving = True
        self.pulling.cancel()
        self.tell_changed()
        if not self.calls:
            self._idle.set()

    def let_go(self) -> None:
        """What calls that still run say counts no more."""
        self.state.dropped = True
        self.tell_changed()

    def tell_changed(self) -> None:
        """Wake who waits in `wait_changed`."""
        self.changed.set()
        self.changed = anyio.Event()

    async def wait_changed(self) -> None:
        """Wait until messages came, the lock was renewed, the queue is being left, or the consumer goes on."""
        await self.changed.wait()

    async def wait_idle(self) -> None:
        """After `leave`: wait until no listener call runs."""
        await self._idle.wait()

    def call_ended(self, now: float) -> None:
        """A listener call, and giving back after it, is over."""
        self.calls -= 1
        self.last_consume = now
        if self.leaving and not self.calls:
            self._idle.set()
            self.on_idle()

    def finished(self, messages: list[ReceivedMessage]) -> None:
        """These are done."""
        self.state.finished([message.queue_offset for message in messages])

    def is_locked(self, now: float) -> bool:
        """Whether its lock is surely ours now."""
        return now < self.locked_until
