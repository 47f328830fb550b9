"""How much a push consumer holds at most: a queue's and the whole consumer's unfinished messages.

A pull waits while a bound is passed, so each may be passed by one pull.  Source of the defaults: RocketMQ
DefaultMQPushConsumer (pullThresholdForQueue, pullThresholdSizeForQueue, consumeConcurrentlyMaxSpan).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import anyio

from trio_rmq.client.held_queue import HeldQueue
from trio_rmq.wire.groups import MessageQueue


@dataclass(frozen=True, slots=True)
class FlowControl:
    """Of one queue: unfinished messages, the bytes of their bodies, and how far their offsets span (not orderly).

    `total_count_max` and `total_size_max_bytes` bound all queues together; None leaves that to the queues' bounds.
    """

    count_max: int = 1000
    size_max_bytes: int = 100 * 1024 * 1024
    span_max: int = 2000
    total_count_max: int | None = None
    total_size_max_bytes: int | None = None


class Room:
    """Tells when there is room for another pull."""

    def __init__(self, bounds: FlowControl, held: Mapping[MessageQueue, HeldQueue], *, orderly: bool) -> None:
        self._bounds = bounds
        self._held = held
        self._orderly = orderly
        self.has_total = bounds.total_count_max is not None or bounds.total_size_max_bytes is not None
        """Whether a bound is shared: then what one queue finishes may make room for any other."""

    def reason(self, held: HeldQueue) -> str | None:
        """Which bound keeps a queue from being pulled now, None when there is room."""
        bounds, state = self._bounds, held.state
        if state.count > bounds.count_max:
            return f"{state.count} messages are unfinished"
        if state.size_bytes > bounds.size_max_bytes:
            return f"{state.size_bytes} bytes are unfinished"
        if not self._orderly and state.span > bounds.span_max:
            return f"unfinished messages span {state.span} offsets"
        if self.has_total:
            states = [other.state for other in self._held.values()]
            if bounds.total_count_max is not None and sum(one.count for one in states) >= bounds.total_count_max:
                return f"the consumer holds {bounds.total_count_max} messages"
            most = bounds.total_size_max_bytes
            if most is not None and sum(one.size_bytes for one in states) >= most:
                return f"the consumer holds {most} bytes"
        return None

    async def wait(self, held: HeldQueue) -> None:
        """Wait until a queue may be pulled."""
        try:
            while self.reason(held) is not None:
                held.room = anyio.Event()
                await held.room.wait()
        finally:
            held.room = None

    def finished(self, held: HeldQueue) -> None:
        """After messages of a queue were finished: wake the pulls that have room now."""
        if self.has_total:
            for other in self._held.values():
                self._wake(other)
        elif held.room is not None:
            self._wake(held)

    def _wake(self, held: HeldQueue) -> None:
        if held.room is not None and self.reason(held) is None:
            held.room.set()
