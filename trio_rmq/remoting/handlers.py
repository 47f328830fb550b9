"""What a request handler is, and the table that finds one by request code.

A handler is a plain function that answers at once, or says that it must wait by returning a `Later`.  A batch handler
takes a run of consecutive requests of one code that arrived in one read, so that their work (one write to the log) and
their replies leave together.  Handlers get parts, never the server.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import trio

from trio_rmq.wire.command import Command

if TYPE_CHECKING:
    from trio_rmq.remoting.session import Session


Reply = Command | bytes
"""A response, or its whole frame where the handler has it encoded already (never for a WebSocket session)."""


Answer = Callable[[], "Sequence[Reply] | Later"]
"""Makes the replies of a held request, or says what they must still wait for; raises as a handler does."""

Flush = Callable[[], None]
"""Has what was resumed leave; who resumes many of one session calls it once."""

Resume = Callable[[Answer], Flush]
"""Called once, from the event loop, when a held request is to be answered; has `Answer` called, and never raises."""

GiveUp = Callable[[], None]
"""Called when nobody waits any more; does nothing after `Resume`."""


class Later:
    """An answer that must wait: `run` becomes a task of the session's nursery and returns the replies to write.

    `held` requests (long polls) do not count against the connection's requests in flight.  Cancelled when the
    connection closes.  `answers` names the requests it answers; only a batch handler that returns several `Later`
    for one run need give it, so that a failing `run` is answered for the right ones.

    Two kinds need no task.  With `begin` a session calls it instead of `run`, with what is to be called with the
    replies, once and from the event loop, maybe at once.  With `hold`, in place of `run`, it is held, and a session
    calls it with a `Resume`, which may be called at once, and gives up by what it returns.  Neither may raise.
    """

    __slots__ = ("answers", "begin", "held", "hold", "run")

    def __init__(
        self,
        run: Callable[[], Awaitable[Sequence[Reply]]] | None = None,
        *,
        held: bool = False,
        answers: Sequence[Command] = (),
        begin: Callable[[Callable[[Sequence[Reply]], None]], None] | None = None,
        hold: Callable[[Resume], GiveUp] | None = None,
    ) -> None:
        self.run = run if run is not None else self._run_held
        self.begin = begin
        self.hold = hold
        self.held = held or hold is not None
        self.answers = answers

    async def _run_held(self) -> Sequence[Reply]:
        """`hold` as a task.  Cancelled, it gives up."""
        assert self.hold is not None  # noqa: S101 - else there is `run`
        resumed = trio.Event()
        answers: list[Answer] = []

        def resume(answer: Answer) -> Flush:
            answers.append(answer)
            resumed.set()
            return _nothing

        give_up = self.hold(resume)
        try:
            await resumed.wait()
        finally:
            give_up()
        outcome = answers[0]()
        return await outcome.run() if isinstance(outcome, Later) else outcome


def _nothing() -> None:
    return


Handler = Callable[["Session", Command], "Command | Later | None"]
"""Answers one request: the response, a `Later`, or None when nothing is sent.  May raise RequestError/ProtocolError."""

BatchHandler = Callable[["Session", Sequence[Command]], "Sequence[Reply | Later]"]
"""Answers a run of requests of one code; leaves out replies to one-way requests; raises only what fails them all."""


class HandlerTable:
    """Handlers by request code; an unknown code is answered REQUEST_CODE_NOT_SUPPORTED by the session."""

    def __init__(self) -> None:
        self.single: dict[int, Handler] = {}
        self.batch: dict[int, BatchHandler] = {}

    def _check_free(self, code: int) -> None:
        if code in self.single or code in self.batch:
            raise ValueError(f"request code {code} has a handler already")

    def register(self, code: int, handler: Handler) -> None:
        """`handler` answers requests with `code`; a code has one handler."""
        self._check_free(code)
        self.single[code] = handler

    def register_batch(self, code: int, handler: BatchHandler) -> None:
        """`handler` answers runs of requests with `code`; a code has one handler."""
        self._check_free(code)
        self.batch[code] = handler
