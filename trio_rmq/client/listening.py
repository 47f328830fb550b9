"""Listeners: what a push consumer calls with its messages, what they may answer, and what may stand around them.

A listener is an async function of the messages of one queue.  Interceptors wrap each call, the first given outermost;
a blocking function becomes a listener by `in_thread`.  What a listener raises is the user's and never ends a consumer:
it is logged and counts as RECONSUME_LATER.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import anyio
import anyio.to_thread

from trio_rmq.client.message import ConsumeLater, ConsumeResult, ReceivedMessage
from trio_rmq.errors import ClientError
from trio_rmq.wire.groups import MessageQueue

logger = logging.getLogger(__name__)

A = TypeVar("A")
T = TypeVar("T")

Outcome = ConsumeResult | ConsumeLater | None
"""None and SUCCESS: all messages are done.  The others, and an exception: they come again."""
Listener = Callable[[Sequence[ReceivedMessage]], Awaitable[Outcome]]
"""Consumes messages of one queue, at least one, at most the consumer's `batch_size`."""
BlockingListener = Callable[[Sequence[ReceivedMessage]], Outcome]


@dataclass(frozen=True, slots=True)
class Consumption:
    """One listener call: whose, of which queue, with what."""

    group: str
    queue: MessageQueue
    messages: Sequence[ReceivedMessage]


Proceed = Callable[[], Awaitable[Outcome]]
"""Calls the listener, or the next interceptor around it."""
Interceptor = Callable[[Consumption, Proceed], Awaitable[Outcome]]
"""Stands around each listener call; returns the outcome, its own or what `proceed` returned."""


def intercepted(listener: Listener, interceptors: Sequence[Interceptor], group: str) -> Listener:
    """`listener` with the interceptors around it."""
    for interceptor in reversed(interceptors):
        listener = _around(interceptor, listener, group)
    return listener


async def guarded(work: Awaitable[T]) -> T:
    """What `work`, which calls listeners, brings; a cancellation that a listener makes up comes out as ClientError."""
    try:
        return await work
    except BaseException as error:
        if isinstance(error, Exception) or anyio.get_current_task().has_pending_cancellation():
            raise
        if not isinstance(error, anyio.get_cancelled_exc_class()):
            raise
        # asyncio: it waited for something that was cancelled. Passed on, that would end the consumer in silence.
        raise ClientError("the listener was cancelled, though nobody cancelled the consumer") from error


def _around(interceptor: Interceptor, listener: Listener, group: str) -> Listener:
    async def call(messages: Sequence[ReceivedMessage]) -> Outcome:
        async def proceed() -> Outcome:
            return await listener(messages)

        return await interceptor(Consumption(group, messages[0].queue, messages), proceed)

    return call


def in_thread(
    listener: Callable[[A], T], *, limiter: anyio.CapacityLimiter | None = None
) -> Callable[[A], Awaitable[T]]:
    """A listener that runs a blocking function in a worker thread, of which `limiter` bounds the number.

    A call that is cancelled - it took too long, or the consumer closes - is left to end by itself: nothing can stop a
    thread.  Its messages count as not consumed, and its thread stays counted until it ends.
    """

    async def call(argument: A) -> T:
        return await anyio.to_thread.run_sync(listener, argument, abandon_on_cancel=True, limiter=limiter)

    return call


def later_of(outcome: Outcome) -> ConsumeLater | None:
    """How the messages come again; None when all are done.  ClientError for what no listener may return."""
    if outcome is None or outcome is ConsumeResult.SUCCESS:
        return None
    if isinstance(outcome, ConsumeLater):
        return outcome
    if isinstance(outcome, ConsumeResult):
        return ConsumeLater()
    raise ClientError(f"a listener returned {outcome!r}: return None, a ConsumeResult or a ConsumeLater")


def log_failure(group: str, messages: Sequence[ReceivedMessage], error: Exception) -> None:
    """Say in the log that the listener raised."""
    logger.error("the listener of group %s failed on %s", group, messages[0], exc_info=error)


async def heard(
    group: str, listener: Listener, messages: Sequence[ReceivedMessage]
) -> tuple[Outcome, Exception | None]:
    """What the listener returned, or what it raised; a cancellation passes."""
    try:
        return await guarded(listener(messages)), None
    except Exception as error:  # noqa: BLE001 - whatever a listener raises is the user's
        log_failure(group, messages, error)
        return None, error
