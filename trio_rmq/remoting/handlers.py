"""What a request handler is, and the table that finds one by request code.

A handler is a plain function that answers at once, or says that it must wait by returning a `Later`.  A batch handler
takes a run of consecutive requests of one code that arrived in one read, so that their work (one write to the log) and
their replies leave together.  Handlers get parts, never the server.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from trio_rmq.wire.command import Command

if TYPE_CHECKING:
    from trio_rmq.remoting.session import Session


Reply = Command | bytes
"""A response, or its whole frame where the handler has it encoded already (never for a WebSocket session)."""


class Later:
    """An answer that must wait: `run` becomes a task of the session's nursery and returns the replies to write.

    `held` requests (long polls) do not count against the connection's requests in flight.  Cancelled when the
    connection closes.  `answers` names the requests it answers; only a batch handler that returns several `Later`
    for one run need give it, so that a failing `run` is answered for the right ones.

    `begin` gives the same answers without a task, where they are not held: a session calls it instead of `run`, with
    what is to be called with the replies, once and from the event loop, maybe at once.  It must not raise.
    """

    __slots__ = ("answers", "begin", "held", "run")

    def __init__(
        self,
        run: Callable[[], Awaitable[Sequence[Reply]]],
        *,
        held: bool = False,
        answers: Sequence[Command] = (),
        begin: Callable[[Callable[[Sequence[Reply]], None]], None] | None = None,
    ) -> None:
        self.run = run
        self.begin = begin
        self.held = held
        self.answers = answers


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
