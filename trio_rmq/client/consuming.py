"""What concurrent and orderly consumption share: whom to call, within which bounds, and what is kept of each call."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import anyio
import anyio.abc
import anyio.lowlevel

from trio_rmq.client.consumer_figures import ConsumerFigures
from trio_rmq.client.flow_control import Room
from trio_rmq.client.held_queue import HeldQueue
from trio_rmq.client.listening import Listener, Outcome
from trio_rmq.client.message import ConsumeResult, ReceivedMessage
from trio_rmq.client.send_back import SendBack

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Delivery:
    """A consumer's settings and parts for calling listeners; `listeners` by topic, interceptors around them already.

    `open` is false while the consumer is suspended or closing: then no listener call begins.
    """

    group: str
    listeners: Mapping[str, Listener]
    send_back: SendBack
    room: Room
    figures: ConsumerFigures
    batch_size: int
    limiter: anyio.CapacityLimiter
    is_limiter_shared: bool
    broadcasting: bool
    max_reconsume_times: int | None
    consume_timeout_seconds: float | None
    local_retry_seconds: float
    suspend_seconds: float
    open: bool = True
    closing: anyio.Event = field(default_factory=anyio.Event)
    """Set when the consumer begins to close; ends pauses."""

    def listener(self, held: HeldQueue, message: ReceivedMessage) -> Listener | None:
        """Whom to call with a message; None when its topic was unsubscribed and the rebalance will let the queue go."""
        if held.is_retry:
            return self.listeners.get(message.full_topic, self._refuse)
        return self.listeners.get(held.queue.topic)

    async def _refuse(self, messages: Sequence[ReceivedMessage]) -> Outcome:
        logger.warning("group %s has no listener for %s: the message goes back", self.group, messages[0])
        return ConsumeResult.RECONSUME_LATER

    async def pause(self, seconds: float) -> None:
        """Wait so long, or until the consumer closes."""
        with anyio.move_on_after(seconds):
            await self.closing.wait()

    def count(self, topic: str, consumed: int, failed: int, seconds: float, now: float) -> None:
        """Enter a listener call in the figures."""
        counts = self.figures.of(topic, now).counts
        counts.calls += 1
        counts.call_seconds += seconds
        counts.consumed += consumed
        counts.failed += failed


def loop_clock() -> Callable[[], float]:
    """The running loop's own clock; `anyio.current_time` finds its way there anew for every reading, in twice the time.

    Nothing is imported for it: whose loop runs has been.  anyio names the loop since 4.11; before, its function serves.
    """
    current_token = getattr(anyio.lowlevel, "current_token", None)
    loop = None if current_token is None else current_token().native_token
    trio = sys.modules.get("trio")
    clock: Callable[[], float] = anyio.current_time
    if loop is not None and hasattr(loop, "time"):  # asyncio's
        clock = loop.time
    elif trio is not None and isinstance(loop, trio.lowlevel.TrioToken):
        clock = trio.lowlevel.current_clock().current_time
    return clock


def batches(held: HeldQueue, messages: Sequence[ReceivedMessage], size: int) -> Iterator[list[ReceivedMessage]]:
    """`messages` of a queue in calls of at most `size`; those of a retry queue are of several topics, a call of one."""
    batch: list[ReceivedMessage] = []
    for message in messages:
        if batch and (len(batch) == size or (held.is_retry and message.topic != batch[0].topic)):
            yield batch
            batch = []
        batch.append(message)
    if batch:
        yield batch


class Consuming(Protocol):
    """How pulled messages reach listeners."""

    def accept(self, held: HeldQueue, messages: list[ReceivedMessage]) -> None:
        """Messages of a queue, in order, entered in its state already."""
        ...

    def taken(self, held: HeldQueue) -> None:
        """A queue is ours from now on; comes before its messages."""
        ...

    def go_on(self) -> None:
        """`Delivery.open` was set again."""
        ...

    async def run(self) -> None:
        """What must run besides, until cancelled."""
        ...

    async def wait_calls_ended(self) -> None:
        """Wait until no listener call runs."""
        ...

    def describe(self) -> Sequence[str]:
        """A line for each listener call that runs now."""
        ...
