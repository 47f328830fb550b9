"""Held pulls: consumers that found nothing wait here until something arrives for them or their time is over.

A held pull is a task of its session that waits for one event; the store's arrival call sets the events of one queue's
waiters whose tag filter takes the message.  No scan, no polling.  Invariants: a pull is registered here exactly while
its task waits; the number of held pulls is bounded.  Source of the rules: RocketMQ PullRequestHoldService (4.9).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import trio

from trio_rmq.limits import HELD_PULLS_MAX


@dataclass(slots=True, eq=False)
class _Waiter:
    tags_codes: frozenset[int] | None
    arrived: trio.Event


class HeldPulls:
    """All held pulls of one broker."""

    def __init__(self, *, held_max: int = HELD_PULLS_MAX) -> None:
        self._waiters: dict[tuple[str, int], set[_Waiter]] = {}
        self.awaited: Collection[tuple[str, int]] = self._waiters
        """The queues, by topic and queue id, that pulls are held for."""
        self._held = 0
        self._held_max = held_max

    @property
    def held(self) -> int:
        """How many pulls are held now."""
        return self._held

    @property
    def full(self) -> bool:
        """Whether no further pull can be held; it is then answered at once."""
        return self._held >= self._held_max

    def arrived(self, topic: str, queue_id: int, max_offset: int, tags_code: int) -> None:
        """A message became visible: wake the pulls of its queue whose filter takes it (the store's on_arrival)."""
        waiters = self._waiters.get((topic, queue_id))
        if waiters:
            for waiter in waiters:
                if waiter.tags_codes is None or tags_code in waiter.tags_codes:
                    waiter.arrived.set()

    def wake_topic(self, topic: str) -> None:
        """Wake every pull of a topic that changed or went away, so that it is answered anew."""
        for (name, _), waiters in self._waiters.items():
            if name == topic:
                for waiter in waiters:
                    waiter.arrived.set()

    async def wait_arrival(
        self, topic: str, queue_id: int, tags_codes: frozenset[int] | None, timeout_seconds: float
    ) -> bool:
        """Wait until a message of the queue arrives that the filter takes; False when the time is over.

        Call it in the same step in which the queue was found empty.  Cancelled, it leaves nothing behind.
        """
        self._held += 1
        try:
            arrived = trio.Event()
            with trio.move_on_after(timeout_seconds), self._registered(_Waiter(tags_codes, arrived), topic, queue_id):
                await arrived.wait()
                return True
            return False
        finally:
            self._held -= 1

    async def wait_message(self, topic: str, *queue_ids: int) -> None:
        """Wait until a message arrives in one of the queues: a service of the broker waits, which counts as no pull.

        Call it in the same step in which the queues were found empty.  It may return without one.
        """
        arrived = trio.Event()
        with self.waking(arrived, topic, *queue_ids):
            await arrived.wait()

    def waking(self, event: trio.Event, topic: str, *queue_ids: int) -> AbstractContextManager[None]:
        """For the block, set `event` when a message arrives in one of the queues, as for `wait_message`."""
        return self._registered(_Waiter(None, event), topic, *queue_ids)

    @contextmanager
    def _registered(self, waiter: _Waiter, topic: str, *queue_ids: int) -> Iterator[None]:
        keys = [(topic, queue_id) for queue_id in queue_ids]
        for key in keys:
            self._waiters.setdefault(key, set()).add(waiter)
        try:
            yield
        finally:
            for key in keys:
                waiters = self._waiters[key]
                waiters.discard(waiter)
                if not waiters:
                    del self._waiters[key]
