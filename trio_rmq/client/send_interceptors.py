"""What may stand around each try of a send: hooks that watch, and hooks that forbid.

An interceptor is an async function of the `Sending` and of `proceed`, which sends.  It returns what `proceed` returned,
may look at the result or the error, and forbids the send by raising a ClientError instead of calling `proceed`; that
ends the send, without further tries.  The first interceptor given is the outermost.
Source: RocketMQ SendMessageHook, CheckForbiddenHook.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trio_rmq.client.message import Message, SendResult
from trio_rmq.wire.groups import MessageQueue

if TYPE_CHECKING:
    from trio_rmq.client.outgoing import Outgoing


@dataclass(frozen=True, slots=True)
class Sending:
    """One try: whose, of what, to which queue at which address.

    `message` is what the user gave (a sequence for a batch), `outgoing` what leaves: its `properties` may still be
    added to (`trio_rmq.wire.properties.append_property`).
    """

    group: str
    message: Message | Sequence[Message]
    outgoing: Outgoing
    queue: MessageQueue
    address: str
    is_oneway: bool = False


Proceed = Callable[[], Awaitable[SendResult | None]]
"""Sends, or calls the next interceptor; None for a one-way send."""
SendInterceptor = Callable[[Sending, Proceed], Awaitable[SendResult | None]]


async def intercepted(interceptors: Sequence[SendInterceptor], sending: Sending, send: Proceed) -> SendResult | None:
    """`send` with the interceptors around it."""
    proceed = send
    for interceptor in reversed(interceptors):
        proceed = _around(interceptor, sending, proceed)
    return await proceed()


def _around(interceptor: SendInterceptor, sending: Sending, inner: Proceed) -> Proceed:
    async def proceed() -> SendResult | None:
        return await interceptor(sending, inner)

    return proceed
