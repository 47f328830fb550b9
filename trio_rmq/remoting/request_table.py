"""Requests that wait for their answer on one connection: opaque -> who waits.

The table belongs to one connection, as does its opaque counter.  Its core is synchronous: `open` and `open_one` give
requests their opaques and enter them, `resolve` hands an answer to whoever waits, `fail_all` ends every wait when the
connection is lost.

Deadlines: requests opened together wait inside one cancel scope (`Pending.wait`).  Single ones (`open_one`), of which
a client has thousands a second, have no scope of their own, nor a task that waits for their time: whoever reads the
connection waits inside `until_due`, and ends what is due when that is over.  A request that is due earlier still only
moves the moment at which it is over: in steady traffic once a time-out, not once a request; what was answered
meanwhile is dropped when its time comes.

Invariant: an entry exists exactly while someone waits for it; answered, timed out, cancelled, failed or discarded, it
is gone.  A response nobody waits for (late, a second one, or made up) is dropped with a debug line.
Runs on anyio, so both halves of a connection share it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

import anyio

from trio_rmq.errors import RemotingError, RequestTimeoutError, RocketMQError, TooManyRequestsError

if TYPE_CHECKING:
    from trio_rmq.wire.command import Command

OPAQUE_MAX = 0x7FFF_FFFF
"""Largest opaque: a signed 32-bit number in both header encodings."""

DUE_SPARE = 1024
"""Answered requests left in the heap of deadlines, before those are dropped, besides as many as wait."""

logger = logging.getLogger("trio_rmq.remoting")


def _again(error: RemotingError) -> RemotingError:
    """A fresh copy of `error`: each task that raises one adds its own traceback to it."""
    return type(error)(str(error), address=error.address)


class Pending:
    """Requests opened together, waited for together."""

    __slots__ = ("_event", "_left", "_results", "_table", "first_opaque")

    def __init__(self, table: RequestTable, first_opaque: int, count: int) -> None:
        self._table = table
        self.first_opaque = first_opaque
        self._results: list[Command | RemotingError | None] = [None] * count
        self._left = count
        self._event: anyio.Event | None = None

    def _settle(self, opaque: int, result: Command | RemotingError) -> None:
        self._results[opaque - self.first_opaque] = result
        self._left -= 1
        if not self._left and self._event is not None:
            self._event.set()

    async def wait(self, timeout_seconds: float) -> list[Command | RemotingError]:
        """Each request's answer, or the error it met, in the order they were opened.

        A request without an answer after `timeout_seconds` gets RequestTimeoutError, one whose connection closed
        ConnectionLostError.  Cancelled, it leaves no entry behind; an answer that comes later is dropped.
        """
        try:
            if self._left:
                self._event = anyio.Event()
                with anyio.CancelScope(deadline=anyio.current_time() + timeout_seconds):
                    await self._event.wait()
        finally:
            self.discard()
        late = self._table._late
        return [late(timeout_seconds) if result is None else result for result in self._results]

    def discard(self) -> None:
        """Forget the requests that have no answer yet: they were not sent, or nobody wants the answer."""
        if self._left:
            entries = self._table.entries
            for index, result in enumerate(self._results):
                if result is None:
                    entries.pop(self.first_opaque + index, None)
            self._left = 0


class Waiting:
    """One request, waited for by one task: `event` is set once `result` is there.

    An answer goes to `on_answer` first, in the turn in which it was read; what that raises becomes the result.
    """

    __slots__ = ("event", "on_answer", "result", "timeout_seconds")

    def __init__(
        self, event: anyio.Event, timeout_seconds: float, on_answer: Callable[[Command], None] | None = None
    ) -> None:
        self.event = event
        self.timeout_seconds = timeout_seconds
        self.on_answer = on_answer
        self.result: Command | RocketMQError | None = None

    def _settle(self, opaque: int, result: Command | RocketMQError) -> None:
        if self.on_answer is not None and not isinstance(result, RocketMQError):
            try:
                self.on_answer(result)
            except RocketMQError as error:
                result = error
        self.result = result
        self.event.set()


class RequestTable:
    """The waiting requests of one connection to `address`, at most `limit` of them."""

    __slots__ = ("_due", "_failure", "_next_opaque", "_sleep", "_sleeps_until", "address", "entries", "limit")

    def __init__(self, address: str, limit: int) -> None:
        self.address = address
        self.limit = limit
        self.entries: dict[int, Pending | Waiting] = {}
        self._next_opaque = 1
        self._failure: RemotingError | None = None
        self._due: list[tuple[float, int]] = []
        self._sleeps_until = -math.inf
        self._sleep: anyio.CancelScope | None = None

    def __len__(self) -> int:
        return len(self.entries)

    def open(self, requests: Sequence[Command]) -> Pending:
        """Give `requests` consecutive opaques and enter them; send them, then `wait`, or `discard`.

        TooManyRequestsError when that would pass the limit; the connection's error when it is lost already.
        """
        if self._failure is not None:
            raise _again(self._failure)
        count = len(requests)
        entries = self.entries
        if len(entries) + count > self.limit:
            raise self._too_many()
        opaque = self._free_run(count)
        self._next_opaque = opaque + count
        pending = Pending(self, opaque, count)
        for request in requests:
            request.opaque = opaque
            entries[opaque] = pending
            opaque += 1
        return pending

    def open_one(
        self,
        request: Command,
        event: anyio.Event,
        now: float,
        timeout_seconds: float,
        on_answer: Callable[[Command], None] | None = None,
    ) -> Waiting:
        """Enter `request`, due `timeout_seconds` after `now`; send it, then wait for `event`, or `forget` it.

        `event` is a fresh one.  Needs somebody who waits in `until_due`.  Errors as of `open`.
        """
        if self._failure is not None:
            raise _again(self._failure)
        entries = self.entries
        if len(entries) >= self.limit:
            raise self._too_many()
        opaque = self._next_opaque
        if opaque in entries or opaque >= OPAQUE_MAX:
            opaque = self._free_run(1)
        self._next_opaque = opaque + 1
        request.opaque = opaque
        waiting = entries[opaque] = Waiting(event, timeout_seconds, on_answer)
        due = self._due
        if len(due) > 2 * len(entries) + DUE_SPARE:
            due[:] = [item for item in due if item[1] in entries]
            heapify(due)
        deadline = now + timeout_seconds
        heappush(due, (deadline, opaque))
        if deadline < self._sleeps_until:
            self._sleeps_until = deadline
            if self._sleep is not None:
                self._sleep.deadline = deadline
        return waiting

    def forget(self, opaque: int) -> None:
        """Drop the entry, if it is there still: the request was not sent, or nobody wants the answer."""
        self.entries.pop(opaque, None)

    def until_due(self) -> anyio.CancelScope:
        """A scope to read in, which is cancelled when the first single request is due; then comes `end_late`."""
        due, entries = self._due, self.entries
        while due and due[0][1] not in entries:
            heappop(due)
        self._sleeps_until = due[0][0] if due else math.inf
        self._sleep = anyio.CancelScope(deadline=self._sleeps_until)
        return self._sleep

    def end_late(self) -> int:
        """End each single request that is due with RequestTimeoutError; how many there were."""
        due, now, count = self._due, anyio.current_time(), 0
        while due and due[0][0] <= now:
            _, opaque = heappop(due)
            waiting = self.entries.pop(opaque, None)
            if isinstance(waiting, Waiting):
                waiting._settle(opaque, self._late(waiting.timeout_seconds))
                count += 1
        return count

    def _late(self, timeout_seconds: float) -> RequestTimeoutError:
        return RequestTimeoutError(
            f"{self.address or 'peer'} gave no answer within {timeout_seconds:.3g} s", address=self.address
        )

    def _too_many(self) -> TooManyRequestsError:
        peer = self.address or "the peer"
        return TooManyRequestsError(
            f"{len(self.entries)} requests already wait for {peer}, and the limit is {self.limit}", address=self.address
        )

    def next_opaque(self) -> int:
        """An opaque for a one-way request, which is not entered."""
        opaque = self._free_run(1)
        self._next_opaque = opaque + 1
        return opaque

    def _free_run(self, count: int) -> int:
        """The start of `count` unused opaques: the counter wraps, and may come round to a very old request."""
        opaque = self._next_opaque
        entries = self.entries
        while True:
            if opaque + count > OPAQUE_MAX:
                opaque = 1
            if not entries:
                return opaque
            taken = opaque
            while taken < opaque + count and taken not in entries:
                taken += 1
            if taken == opaque + count:
                return opaque
            opaque = taken + 1

    def resolve(self, response: Command) -> None:
        """Hand `response` to whoever waits for it."""
        pending = self.entries.pop(response.opaque, None)
        if pending is None:
            logger.debug(
                "%s: dropped a response (code %d) to request %d that nobody waits for",
                self.address,
                response.code,
                response.opaque,
            )
            return
        pending._settle(response.opaque, response)

    def fail_all(self, error: RemotingError) -> None:
        """End every wait with `error`, and every later `open` too: the connection is gone."""
        if self._failure is None:
            self._failure = error
        entries = self.entries
        while entries:
            opaque, pending = entries.popitem()
            pending._settle(opaque, _again(error))
