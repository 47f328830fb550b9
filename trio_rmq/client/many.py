"""Many messages of one caller: each ends for itself, and one wait is enough for all that are gathered.

What auto-batching takes has no task of its own: the caller adds all, then looks at each batch once.  What it does not
take, and everything without it, is sent by a few tasks in turn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence

import anyio
import anyio.lowlevel

from trio_rmq.client.auto_batch import AutoBatcher, Gathering
from trio_rmq.client.message import Message, SendResult
from trio_rmq.errors import ClientError
from trio_rmq.wire.groups import MessageQueue

SENDS_AT_ONCE = 256
"""Messages of one `send_many` that are under way at a time, without those in batches."""
BATCHES_AT_ONCE = 16
"""Batches that one `send_many` filled and that are under way at a time."""
ADDED_AT_ONCE = 1000
"""After so many messages other tasks have a turn, even if they filled no batch."""

Outcome = SendResult | ClientError
"""What became of a message: its result, or the error that `send` would have raised."""
SendOne = Callable[[Message], Awaitable[SendResult]]
Choose = Callable[[Message], Awaitable[MessageQueue]]


async def send_singly(
    numbered: Iterable[tuple[int, Message]], send: SendOne, at_once: int, outcomes: dict[int, Outcome]
) -> None:
    """Send each message, at most `at_once` at a time, and note under its number what became of it."""
    waiting = iter(numbered)

    async def send_some() -> None:
        for number, message in waiting:
            try:
                outcomes[number] = await send(message)
            except ClientError as error:
                outcomes[number] = error

    async with anyio.create_task_group() as group:
        for _ in range(at_once):
            group.start_soon(send_some)


class GatheredSends:
    """The messages of one caller that a batcher took."""

    def __init__(self, batcher: AutoBatcher, outcomes: dict[int, Outcome]) -> None:
        self._batcher = batcher
        self._outcomes = outcomes
        self._places: list[tuple[int, Gathering, int]] = []

    async def add(
        self, messages: Sequence[Message], queue: MessageQueue | None, choose: Choose, *, chooses: bool
    ) -> list[tuple[int, Message]]:
        """Add the messages to batches; those that belong in none, with their numbers.

        Without `queue`, `choose` says each one's if `chooses` or if it has a sharding key; else queues take turns.
        Waits while BATCHES_AT_ONCE that were filled here are under way.
        """
        add, places, outcomes = self._batcher.add, self._places, self._outcomes
        others: list[tuple[int, Message]] = []
        filled: deque[Gathering] = deque()
        for number, message in enumerate(messages):
            try:
                if queue is None and (chooses or message.sharding_key is not None):
                    added = add(message, await choose(message))
                else:
                    added = add(message, queue)
            except ClientError as error:
                outcomes[number] = error
                continue
            if added is None:
                others.append((number, message))
                continue
            gathering, place = added
            places.append((number, gathering, place))
            if gathering.is_closed:
                filled.append(gathering)
                if len(filled) >= BATCHES_AT_ONCE:
                    await filled.popleft().done.wait()
                else:
                    await anyio.lowlevel.checkpoint()
            elif not len(places) % ADDED_AT_ONCE:
                await anyio.lowlevel.checkpoint()
        return others

    async def wait(self) -> None:
        """Return when it is noted of each what became of it."""
        outcomes = self._outcomes
        seen: Gathering | None = None
        for number, gathering, place in self._places:
            if gathering is not seen:
                await gathering.done.wait()
                seen = gathering
            try:
                outcomes[number] = gathering.result(place)
            except ClientError as error:
                outcomes[number] = error
