"""Stands between a broker's sessions and its handlers: notes what is asked and answered, and carries out faults.

It gets in by `ServerHooks`, so the broker's own code runs unchanged.  Invariants: a request without a fault reaches its
handler as it came, in its place in the run; what is noted as answered has gone to the session; what is noted is
bounded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import trio

from trio_rmq.errors import ProtocolError, RequestError
from trio_rmq.remoting.handlers import BatchHandler, Handler, HandlerTable, Later, Reply
from trio_rmq.remoting.hooks import ServerHooks
from trio_rmq.remoting.session import Session
from trio_rmq.testing.faults import Delay, Disconnect, Drop, Duplicate, Fail, Fault, Injection
from trio_rmq.wire.codes import RequestCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.frame import decode_frame
from trio_rmq.wire.headers import NotifyConsumerIdsChangedRequestHeader
from trio_rmq.wire.heartbeat import decode_heartbeat

EXCHANGES_MAX = 10_000
EXCHANGES_MAX_BYTES = 256 * 1024 * 1024
"""Most requests that are noted, and most bytes of bodies in them; older ones are forgotten first."""

Answers = Sequence[Reply | Later]


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and its answer; `answer` is None for one-way requests and where `fault` lost it.

    Both are the broker's own objects: look at them only.
    """

    peer: str
    request: Command
    answer: Command | None
    fault: Fault | None

    @property
    def body_bytes(self) -> int:
        """Size of both bodies."""
        return len(self.request.body) + (0 if self.answer is None else len(self.answer.body))


class Interposer:
    """What stands around one broker's handlers; its `hooks` go to `serve_broker`."""

    def __init__(self) -> None:
        self.exchanges: deque[Exchange] = deque()
        """What was asked and answered, in the order of the answers."""
        self._noted_bytes = 0
        self.injections: list[Injection] = []
        """Faults that wait for requests; the first that takes one is carried out."""
        self.refusing = False
        """Whether new connections are closed at once."""
        self._sessions: dict[Session, None] = {}
        self._members: dict[str, dict[Session, None]] = {}
        self._changed = trio.Event()

    @property
    def hooks(self) -> ServerHooks:
        """What `serve_broker` is given."""
        return ServerHooks(wrap=self._wrap, on_open=self._opened)

    def changed(self) -> None:
        """Something happened that a test may wait for."""
        if not self._changed.is_set():
            self._changed.set()

    async def wait_until(self, predicate: Callable[[], object]) -> None:
        """Wait until `predicate()` is true; it is called again whenever something was answered or stored."""
        while not predicate():
            if self._changed.is_set():
                self._changed = trio.Event()
            await self._changed.wait()

    # Connections -------------------------------------------------------------------------------------------------

    def _opened(self, session: Session) -> None:
        if self.refusing:
            session.close("a test has the broker refuse connections")
            return
        _add(self._sessions, session)

    def disconnect(self) -> int:
        """Close every connection; how many there were."""
        open_sessions = [session for session in self._sessions if not session.closed]
        for session in open_sessions:
            session.close("a test had the broker drop its connections")
        return len(open_sessions)

    def rebalance(self, group: str) -> int:
        """Tell the members of a consumer group that it changed; how many connections were told."""
        told = [session for session in self._members.get(group, {}) if not session.closed]
        for session in told:
            header = NotifyConsumerIdsChangedRequestHeader(consumer_group=group)
            session.send_nowait(Command(RequestCode.NOTIFY_CONSUMER_IDS_CHANGED, header=header))
        return len(told)

    def _note_member(self, session: Session, request: Command) -> None:
        for data in decode_heartbeat(request.body).consumer_data_set:
            _add(self._members.setdefault(data.group_name, {}), session)

    # Handlers ----------------------------------------------------------------------------------------------------

    def _wrap(self, table: HandlerTable) -> HandlerTable:
        wrapped = HandlerTable()
        for code, handler in table.single.items():
            wrapped.register(code, partial(self._single, handler))
        for code, batch_handler in table.batch.items():
            wrapped.register_batch(code, partial(self._batch, batch_handler))
        return wrapped

    def _single(self, handler: Handler, session: Session, request: Command) -> Command | Later | None:
        if not self.injections and not session.closed:
            if request.code == RequestCode.HEART_BEAT:
                self._note_member(session, request)
            try:
                reply = handler(session, request)
            except (RequestError, ProtocolError) as error:  # answered as the session would
                reply = request.reply(error.response_code, remark=str(error))
            if request.is_oneway:
                self._keep(Exchange(session.peer, request, None, None))
            if isinstance(reply, Later):
                reply = _then(reply, partial(self._note, session, {request.opaque: request}, None))
            elif request.is_oneway:
                reply = None
            elif reply is not None:
                self._keep(Exchange(session.peer, request, reply, None))
            self.changed()
            return reply

        def handle() -> Answers:
            try:
                answer = handler(session, request)
            except (RequestError, ProtocolError) as error:  # answered as the session would
                answer = request.reply(error.response_code, remark=str(error))
            return [] if answer is None or (request.is_oneway and not isinstance(answer, Later)) else [answer]

        answers = self._answers(session, [request], handle)
        if not answers:
            return None
        (answer,) = answers
        assert not isinstance(answer, bytes)  # noqa: S101 - only batch handlers encode
        return answer

    def _batch(self, handler: BatchHandler, session: Session, requests: Sequence[Command]) -> Answers:
        """The run as it came where no fault is asked for; else each request by itself."""
        if not self.injections:
            return self._answers(session, requests, lambda: handler(session, requests))
        answers: list[Reply | Later] = []
        for request in requests:
            answers += self._answers(session, [request], partial(handler, session, [request]))
        return answers

    def _answers(self, session: Session, requests: Sequence[Command], handle: Callable[[], Answers]) -> Answers:
        if session.closed:
            return []
        first = requests[0]
        if first.code == RequestCode.HEART_BEAT:
            self._note_member(session, first)
        fault = next((injection.fault for injection in self.injections if injection.takes(first)), None)
        answers = handle() if fault is None else _faulty(fault, session, first, handle)
        for request in requests:
            if request.is_oneway or isinstance(fault, Drop | Disconnect):
                self._keep(Exchange(session.peer, request, None, fault))
        note = partial(self._note, session, {request.opaque: request for request in requests}, fault)
        note([answer for answer in answers if not isinstance(answer, Later)])
        return [_then(answer, note) if isinstance(answer, Later) else answer for answer in answers]

    def _note(
        self, session: Session, requests: dict[int, Command], fault: Fault | None, replies: Sequence[Reply]
    ) -> None:
        for reply in replies:
            answer = decode_frame(reply) if isinstance(reply, bytes) else reply
            self._keep(Exchange(session.peer, requests[answer.opaque], answer, fault))
        self.changed()

    def _keep(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)
        self._noted_bytes += exchange.body_bytes
        while len(self.exchanges) > EXCHANGES_MAX or self._noted_bytes > EXCHANGES_MAX_BYTES:
            self._noted_bytes -= self.exchanges.popleft().body_bytes


def _add(sessions: dict[Session, None], session: Session) -> None:
    """Put `session` among `sessions`, and take those away that have ended."""
    for known in [known for known in sessions if known.closed]:
        del sessions[known]
    sessions[session] = None


def _faulty(fault: Fault, session: Session, request: Command, handle: Callable[[], Answers]) -> Answers:
    """What is answered, at once or later, to a request that meets `fault`."""
    match fault:
        case Fail(code, remark):
            return [] if request.is_oneway else [request.reply(code, remark=remark)]
        case Delay(seconds):

            async def wait() -> Sequence[Reply]:
                await trio.sleep(seconds)
                return await _finished(handle())

            return [Later(wait, held=True, answers=[request])]
        case Duplicate():
            return [*handle(), *_silent(handle(), request)]
        case Drop(answer_only):
            return _silent(handle(), request) if answer_only else []
        case Disconnect(answer_only):

            def cut(replies: Iterable[Reply]) -> None:
                session.close("a test had the broker drop this connection")

            silent = _silent(handle(), request) if answer_only else []
            if not silent:
                cut(())
            return [_then(later, cut) for later in silent]


def _silent(answers: Answers, request: Command) -> list[Later]:
    """What of `answers` must still be waited for, with nothing to say in the end."""

    def silence(run: Callable[[], Awaitable[Sequence[Reply]]]) -> Later:
        async def wait() -> Sequence[Reply]:
            await run()
            return []

        return Later(wait, held=True, answers=[request])

    return [silence(answer.run) for answer in answers if isinstance(answer, Later)]


def _then(later: Later, note: Callable[[Sequence[Reply]], None]) -> Later:
    """`later`, with what it answers told to `note`."""
    run = later.run

    async def wait() -> Sequence[Reply]:
        replies = await run()
        note(replies)
        return replies

    return Later(wait, held=later.held, answers=later.answers)


async def _finished(answers: Answers) -> list[Reply]:
    replies: list[Reply] = []
    for answer in answers:
        if isinstance(answer, Later):
            replies += await answer.run()
        else:
            replies.append(answer)
    return replies
