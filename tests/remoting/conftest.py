"""Handlers for the tests of this room, and a server in a thread for clients of any backend."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest
import trio

from trio_rmq.errors import RequestError
from trio_rmq.remoting.handlers import GiveUp, HandlerTable, Later, Reply, Resume
from trio_rmq.remoting.listener import serve_remoting
from trio_rmq.remoting.session import Session
from trio_rmq.wire.command import Command

ECHO = 1
REFUSE = 2
CRASH = 3
HOLD = 4
BATCH_ECHO = 5
DROP = 6
ASK_BACK = 7
NOTIFY = 8
RELEASE = 9
BATCH_LATER = 10
LONG = 11
BEGIN_LATER = 12
HOLD_TASKLESS = 13
UNKNOWN = 4_000
CLIENT_CODE = 39


@dataclass
class Desk:
    """Handlers that show each behaviour of a session, and what they saw."""

    seen: list[Command] = field(default_factory=list)
    runs: list[int] = field(default_factory=list)
    opened: list[Session] = field(default_factory=list)
    closed: list[Session] = field(default_factory=list)
    begun: list[Callable[[], None]] = field(default_factory=list)
    resumes: list[Resume] = field(default_factory=list)
    given_up: int = 0
    held: int = 0
    release: trio.Event = field(default_factory=trio.Event)
    gone: trio.Event = field(default_factory=trio.Event)

    def on_close(self, session: Session) -> None:
        """Note the end of a session."""
        self.closed.append(session)
        self.gone.set()

    def table(self) -> HandlerTable:
        """The handlers by code."""
        table = HandlerTable()
        table.register(ECHO, self.echo)
        table.register(REFUSE, self.refuse)
        table.register(CRASH, self.crash)
        table.register(HOLD, self.hold)
        table.register_batch(BATCH_ECHO, self.batch_echo)
        table.register(DROP, self.drop)
        table.register(ASK_BACK, self.ask_back)
        table.register(NOTIFY, self.notify)
        table.register(RELEASE, self.release_held)
        table.register_batch(BATCH_LATER, self.batch_later)
        table.register(LONG, self.long)
        table.register_batch(BEGIN_LATER, self.begin_later)
        table.register(HOLD_TASKLESS, self.hold_taskless)
        return table

    def echo(self, session: Session, command: Command) -> Command:
        """The body comes back."""
        self.seen.append(command)
        return command.reply(body=bytes(command.body), remark=session.transport)

    def refuse(self, session: Session, command: Command) -> Command:
        """A refusal on purpose."""
        raise RequestError(13, "too long; shorten it")

    def crash(self, session: Session, command: Command) -> Command:
        """A defect."""
        raise LookupError("a defect")

    def hold(self, session: Session, command: Command) -> Later:
        """Answered when `release` is set; body `held` makes it a long poll."""

        async def run() -> Sequence[Command]:
            self.held += 1
            try:
                await self.release.wait()
            finally:
                self.held -= 1
            return [command.reply(body=b"released")]

        return Later(run, held=bytes(command.body) == b"held")

    def release_held(self, session: Session, command: Command) -> Command:
        """Let the held ones go."""
        self.release.set()
        return command.reply()

    def batch_echo(self, session: Session, run: Sequence[Command]) -> Sequence[Command]:
        """The bodies of a run come back."""
        self.runs.append(len(run))
        return [command.reply(body=bytes(command.body)) for command in run if not command.is_oneway]

    def batch_later(self, session: Session, run: Sequence[Command]) -> Sequence[Command | Later]:
        """The first is answered at once, the others in one Later, which crashes when a body says so."""

        async def rest() -> Sequence[Command]:
            await trio.lowlevel.checkpoint()
            if any(bytes(command.body) == b"crash" for command in run):
                raise RequestError(14, "the store failed")
            return [command.reply(remark="later") for command in run[1:]]

        self.runs.append(len(run))
        return [run[0].reply(remark="now"), Later(rest)]

    def begin_later(self, session: Session, run: Sequence[Command]) -> Sequence[Later]:
        """One Later for all, whose answers come when `settle` is called."""

        async def wait() -> Sequence[Command]:
            raise AssertionError("a task for what needs none")

        def begin(settle: Callable[[Sequence[Reply]], None]) -> None:
            answers: list[Reply] = [command.reply(body=bytes(command.body)) for command in run]
            self.begun.append(lambda: settle(answers))

        return [Later(wait, begin=begin)]

    def hold_taskless(self, session: Session, command: Command) -> Later:
        """A long poll without a task; `resumes` have it answered."""
        return self.held_again()

    def held_again(self) -> Later:
        """The same, for what an answer must still wait for."""

        def hold(resume: Resume) -> GiveUp:
            self.resumes.append(resume)
            return self._give_up

        return Later(hold=hold)

    def _give_up(self) -> None:
        self.given_up += 1

    def long(self, session: Session, command: Command) -> Command:
        """4 MiB come back."""
        return command.reply(body=bytes(command.body) * (4 * 1024 * 1024))

    def drop(self, session: Session, command: Command) -> None:
        """The connection goes, without an answer."""
        session.close("asked to")

    def ask_back(self, session: Session, command: Command) -> Later:
        """Ask the client for CLIENT_CODE with the same body, and answer what it answered."""

        async def run() -> Sequence[Command]:
            answer = await session.request(Command(CLIENT_CODE, body=bytes(command.body)), 5.0)
            return [command.reply(answer.code, body=bytes(answer.body), remark=answer.remark)]

        return Later(run)

    def notify(self, session: Session, command: Command) -> Command:
        """Send one one-way request to the client before the answer."""
        assert session.send_nowait(Command(CLIENT_CODE, body=b"notice"))
        return command.reply()


@pytest.fixture
def desk() -> Desk:
    """Handlers to serve with."""
    return Desk()


@dataclass
class ThreadServer:
    """A server in a thread of its own: its address, its handlers, and a way to run something in its loop."""

    address: str
    desk: Desk
    call: Callable[[Callable[[], object]], object]


@pytest.fixture
def thread_server(desk: Desk) -> Iterator[ThreadServer]:
    """A Trio server in another thread, so that clients of any backend can talk to it."""
    started: queue.Queue[tuple[str, trio.lowlevel.TrioToken, trio.CancelScope]] = queue.Queue()

    async def main() -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def serve(task_status: trio.TaskStatus[list[str]]) -> None:
                    await serve_remoting(
                        ["127.0.0.1:0"],
                        desk.table(),
                        on_open=desk.opened.append,
                        on_close=desk.on_close,
                        task_status=task_status,
                    )

                addresses: list[str] = await nursery.start(serve)
                started.put((addresses[0], trio.lowlevel.current_trio_token(), scope))

    thread = threading.Thread(target=trio.run, args=(main,), daemon=True)
    thread.start()
    address, token, scope = started.get(timeout=10)

    def call(function: Callable[[], object]) -> object:
        return trio.from_thread.run_sync(function, trio_token=token)

    try:
        yield ThreadServer(address, desk, call)
    finally:
        token.run_sync_soon(scope.cancel)
        thread.join(10)
        assert not thread.is_alive()
