"""The server's side of one connection, whatever its transport: dispatch, replies, writing, and the error boundary.

A transport reads a chunk, turns it into commands and calls `_handle`; the replies of the whole chunk come back as one
list and leave in one write.  Handlers run right there, in the reading task.  Only a `Later` becomes a task, in the
nursery of its session, so it ends with the connection; those that a service tells (`Later.begin`, `Later.hold`) need
none.

Writing: exactly one task writes at a time (`_writing`).  The reading task writes its replies itself when nothing is
queued, on plain TCP without a turn for others between (`plain_socket.py`); what it cannot hand to the system at once,
and everything that other tasks produce meanwhile, is queued and leaves in joined writes by one task that ends when the
queue is empty.  An idle connection is one task.

Bounds (see `limits`): with more than `outgoing_bytes_pause` unwritten, or with requests in flight - they wait for the
disk - of more than `in_flight_bytes_pause` or half of `requests_in_flight_max`, nothing further is read, so that the
peer's own writes come to a stop; with more than `outgoing_bytes_max`, or when the peer takes no byte for
`write_stall_seconds`, the connection is dropped.  Only requests over `requests_in_flight_max` that came in one read are
answered SYSTEM_BUSY unhandled: clients give up on that answer.

A write only notes its time: the listener's watch, armed by the first write it does not know of, compares it - a cancel
scope for every write would cost as much as the write.

This is the one place that catches `Exception`: a defect in a handler costs its request SYSTEM_ERROR and a traceback in
the log, never the connection or its neighbours.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import trio

from trio_rmq import limits
from trio_rmq.errors import ConnectionLostError, ProtocolError, RequestError
from trio_rmq.remoting.address import format_address
from trio_rmq.remoting.handlers import Answer, BatchHandler, Flush, GiveUp, HandlerTable, Later, Reply, Resume
from trio_rmq.remoting.in_flight import InFlight
from trio_rmq.remoting.outgoing import next_write
from trio_rmq.remoting.plain_socket import SessionSocket
from trio_rmq.remoting.request_table import RequestTable
from trio_rmq.remoting.settings import RemotingSettings
from trio_rmq.wire.command import FLAG_ONEWAY, FLAG_RESPONSE, Command
from trio_rmq.wire.ids import Host, pack_host

SYSTEM_ERROR = 1
SYSTEM_BUSY = 2
REQUEST_CODE_NOT_SUPPORTED = 3

logger = logging.getLogger("trio_rmq.remoting")

SessionCallback = Callable[["Session"], None]


class Session(ABC):
    """One accepted connection.  Handlers get it with each request, and may keep it until `on_close` tells its end.

    `peer` and `local_address` are "ip:port"; `peer_host` is the peer's address bytes (4 or 16) and port; `transport`
    says how commands travel; `closed` turns true, for good, when the connection is lost or dropped.
    """

    transport: Literal["tcp", "websocket"]

    __slots__ = (
        "__weakref__",
        "_handlers",
        "_held",
        "_in_flight",
        "_nursery",
        "_on_close",
        "_on_open",
        "_outgoing",
        "_outgoing_bytes",
        "_requests",
        "_resume_reading",
        "_sending_bytes",
        "_sending_since",
        "_settings",
        "_socket",
        "_watch_writes",
        "_writing",
        "closed",
        "last_activity",
        "local_address",
        "peer",
        "peer_host",
    )

    def __init__(
        self,
        socket: SessionSocket,
        handlers: HandlerTable,
        settings: RemotingSettings,
        *,
        on_open: SessionCallback | None = None,
        on_close: SessionCallback | None = None,
    ) -> None:
        host, port = socket.getpeername()[:2]
        local_host, local_port = socket.getsockname()[:2]
        self.peer: str = format_address(host, port)
        self.peer_host: Host = pack_host(host, port)
        self.local_address: str = format_address(local_host, local_port)
        self.closed = False
        self.last_activity: float = trio.current_time()
        self._socket = socket
        self._handlers = handlers
        self._settings = settings
        self._on_open = on_open
        self._on_close = on_close
        self._requests = RequestTable(self.peer, limits.CLIENT_REQUESTS_MAX)
        self._in_flight = InFlight(settings)
        self._held: dict[Later, GiveUp | None] = {}
        self._outgoing: deque[bytes] = deque()
        self._outgoing_bytes = 0
        self._writing = False
        self._resume_reading: trio.Event | None = None
        self._nursery: trio.Nursery | None = None
        self._sending_since = math.inf
        self._sending_bytes = 0
        self._watch_writes: SessionCallback | None = None

    def __repr__(self) -> str:
        return f"<{self.transport} session with {self.peer}{' (closed)' if self.closed else ''}>"

    # --- for handlers and services ---------------------------------------------------------------------------------

    def send_nowait(self, command: Command) -> bool:
        """Queue the one-way `command` for the peer and return at once; it leaves with the next write.

        Gives it an opaque and the one-way flag.  False, and nothing is sent, when the connection is closed.  A peer
        that leaves more than `outgoing_bytes_max` unread is dropped here.
        """
        if self.closed:
            return False
        command.opaque = self._requests.next_opaque()
        command.flag |= FLAG_ONEWAY
        self._post([command])
        return not self.closed

    @property
    def unwritten_bytes(self) -> int:
        """Bytes that wait to be written: much of it means that the peer does not read."""
        return self._outgoing_bytes

    async def request(self, command: Command, timeout_seconds: float) -> Command:
        """Ask the peer, and return its response, whatever its code.

        RequestTimeoutError without an answer in time, ConnectionLostError when the connection ends first,
        TooManyRequestsError over the bound of the request table.  Cancelled, it leaves nothing behind.
        """
        pending = self._requests.open((command,))
        try:
            self._post([command])
            (answer,) = await pending.wait(timeout_seconds)
        finally:
            pending.discard()
        if isinstance(answer, Command):
            return answer
        raise answer

    def close(self, reason: str = "closed by the server") -> None:
        """Drop the connection now: its tasks are cancelled, what is unwritten is lost, and `reason` is logged."""
        if not self.closed:
            self.closed = True
            logger.info("%s connection with %s: %s", self.transport, self.peer, reason)
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    # --- the life of the connection, for the listener --------------------------------------------------------------

    async def run(self) -> None:
        """Serve the connection until it ends; on return it is closed and `on_close` was called, also when cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                try:
                    if self._on_open is not None:
                        self._on_open(self)
                    await self._serve()
                    await self._wait_written()
                    nursery.cancel_scope.cancel()
                finally:
                    self.closed = True  # before the nursery takes no more tasks: other sessions' ends may tell this one
        except* Exception as group:  # noqa: BLE001 - the session boundary: a defect ends this connection and no other
            self._log_defect(group)
        finally:
            for give_up in [give_up for give_up in self._held.values() if give_up is not None]:
                give_up()
            self._requests.fail_all(ConnectionLostError(f"the connection with {self.peer} closed", address=self.peer))
            self._socket.close()
            if self._on_close is not None:
                try:
                    self._on_close(self)
                except Exception:
                    logger.exception("connection with %s: error while cleaning up after it", self.peer)

    def watch_writes(self, watch: SessionCallback) -> None:
        """Call `watch(self)`, once, at the next write; it is to ask `stalled_at` in due time."""
        self._watch_writes = watch

    def stalled_at(self) -> float:
        """When the write that waits now has waited too long; infinity when none waits."""
        return self._sending_since + self._settings.write_stall_seconds

    def drop_stalled(self) -> None:
        """Drop the connection: its peer takes nothing."""
        seconds = self._settings.write_stall_seconds
        self.close(f"dropped, it read nothing for {seconds:g} s with {self._sending_bytes} bytes due")

    async def send_some(self, data: bytes | bytearray | memoryview) -> int:
        """Send what the system takes of `data`, at least one byte; returns how many.  Watched: see the module."""
        self._sending_since = trio.current_time()
        self._sending_bytes = len(data)
        if self._watch_writes is not None:
            watch, self._watch_writes = self._watch_writes, None
            watch(self)
        sent = await self._socket.send(data)
        self._sending_since = math.inf
        self.last_activity = trio.current_time()
        return sent

    def _log_defect(self, group: BaseExceptionGroup[Exception]) -> None:
        """Log what ended the connection and should not have."""
        logger.error("connection with %s: dropped by an error in the server", self.peer, exc_info=group)

    @abstractmethod
    async def _serve(self) -> None:
        """Read and answer until the peer ends the stream or has to be refused."""

    @abstractmethod
    def _encode(self, replies: Sequence[Reply]) -> list[bytes]:
        """`replies`, at least one, as the bytes of one write - of several where the transport bounds them."""

    @abstractmethod
    async def _send(self, payload: bytes) -> int:
        """Send some of `payload` by `send_some`, and return how much; OSError or trio's stream errors when lost."""

    def _send_now(self, payload: bytes) -> int:
        """Send what the system takes of `payload` without giving other tasks a turn; 0 where that is not possible."""
        return 0

    # --- dispatch --------------------------------------------------------------------------------------------------

    def _handle(self, commands: Sequence[Command]) -> list[Reply]:
        """Dispatch the commands of one chunk in order; returns the replies that can leave now."""
        replies: list[Reply] = []
        single = self._handlers.single
        index, count = 0, len(commands)
        while index < count:
            command = commands[index]
            index += 1
            if command.flag & FLAG_RESPONSE:
                self._requests.resolve(command)
                continue
            code = command.code
            handler = single.get(code)
            if handler is None:
                batch_handler = self._handlers.batch.get(code)
                if batch_handler is None:
                    if not command.flag & FLAG_ONEWAY:
                        replies.append(
                            command.reply(REQUEST_CODE_NOT_SUPPORTED, remark=f"request code {code} is not supported")
                        )
                    continue
                start = index - 1
                while index < count and commands[index].code == code and not commands[index].flag & FLAG_RESPONSE:
                    index += 1
                self._handle_run(batch_handler, commands[start:index], replies)
                continue
            if self._in_flight.requests >= self._settings.requests_in_flight_max:
                self._refuse((command,), replies)
                continue
            try:
                reply = handler(self, command)
            except Exception as error:  # noqa: BLE001 - the session boundary
                reply = self._failure_reply(command, error)
            if reply is None:
                continue
            if isinstance(reply, Later):
                self._start_later(reply, (command,))
            elif not command.flag & FLAG_ONEWAY:
                replies.append(reply)
        return replies

    def _handle_run(self, handler: BatchHandler, run: Sequence[Command], replies: list[Reply]) -> None:
        if self._in_flight.requests >= self._settings.requests_in_flight_max:
            self._refuse(run, replies)
            return
        try:
            answers = handler(self, run)
        except Exception as error:  # noqa: BLE001 - the session boundary
            self._fail_run(run, error, replies)
            return
        laters = [answer for answer in answers if isinstance(answer, Later)]
        if not laters:
            replies += answers  # type: ignore[arg-type] # none of them is a Later
        else:
            replies += [answer for answer in answers if not isinstance(answer, Later)]
            answered = {answer.opaque for answer in answers if isinstance(answer, Command)}
            unanswered = [command for command in run if command.opaque not in answered]
            for later in laters:
                self._start_later(later, later.answers or unanswered)

    def _fail_run(self, run: Sequence[Command], error: Exception, replies: list[Reply]) -> None:
        first = self._failure_reply(run[0], error)
        replies.extend(
            command.reply(first.code, remark=first.remark) for command in run if not command.flag & FLAG_ONEWAY
        )

    def _failure_reply(self, command: Command, error: Exception) -> Command:
        if isinstance(error, (RequestError, ProtocolError)):
            return command.reply(error.response_code, remark=str(error))
        logger.error("request %d from %s failed in its handler", command.code, self.peer, exc_info=error)
        return command.reply(SYSTEM_ERROR, remark=f"{type(error).__name__}: {error}")

    def _refuse(self, run: Sequence[Command], replies: list[Reply]) -> None:
        limit = self._settings.requests_in_flight_max
        remark = f"[OVERLOAD] this connection has {self._in_flight.requests} unanswered requests; the limit is {limit}"
        replies.extend(command.reply(SYSTEM_BUSY, remark=remark) for command in run if not command.flag & FLAG_ONEWAY)

    # --- answers that wait -----------------------------------------------------------------------------------------

    def _start_later(self, later: Later, answers: Sequence[Command]) -> None:
        assert self._nursery is not None  # noqa: S101 - handlers run inside the session's nursery
        size = 0
        if not later.held:
            size = sum([len(command.body) for command in answers])
            self._in_flight.add(len(answers), size)
        if later.hold is not None:
            self._hold(later, later.hold, answers)
        elif later.begin is None or later.held:
            self._nursery.start_soon(self._run_later, later, answers, size)
        else:
            later.begin(partial(self._settle, answers, size))

    def _settle(self, answers: Sequence[Command], size: int, replies: Sequence[Reply]) -> None:
        """Answer what was begun without a task.  Called by a service, which a defect here must not reach."""
        self._in_flight.remove(len(answers), size)
        if replies and not self.closed:
            self._enqueue(self._encode_safely(replies))
            self._flush()

    def _hold(self, later: Later, hold: Callable[[Resume], GiveUp], answers: Sequence[Command]) -> None:
        self._held[later] = None
        give_up = hold(partial(self._resume, later, answers))
        if later in self._held:
            self._held[later] = give_up

    def _resume(self, later: Later, answers: Sequence[Command], answer: Answer) -> Flush:
        """Answer what was held, with the next `_flush`.  Called as `_settle` is."""
        del self._held[later]
        if self.closed:
            return self._flush
        replies: list[Reply] = []
        try:
            outcome = answer()
            if isinstance(outcome, Later):
                self._start_later(outcome, answers)
            else:
                replies += outcome
        except Exception as error:  # noqa: BLE001 - the session boundary
            self._fail_run(answers, error, replies)
        if replies and not (len(answers) == 1 and answers[0].flag & FLAG_ONEWAY):
            self._enqueue(self._encode_safely(replies))
        return self._flush

    def _flush(self) -> None:
        """Send at once what is queued, or what the system takes of it; a task writes the rest."""
        if self._writing or not self._outgoing or self.closed:
            return
        payload = next_write(self._outgoing)
        try:
            sent = self._send_now(payload)
        except OSError as error:
            self.close(f"lost while writing: {error}")
            return
        except Exception as error:
            logger.error("connection with %s: dropped by an error in the server", self.peer, exc_info=error)
            self.close()
            return
        self._outgoing_bytes -= sent
        if sent:
            self.last_activity = trio.current_time()
        if sent < len(payload):
            self._outgoing.appendleft(payload[sent:])
        if self._outgoing:
            self._write_soon()

    async def _run_later(self, later: Later, answers: Sequence[Command], size: int) -> None:
        replies: list[Reply] = []
        try:
            replies.extend(await later.run())
        except Exception as error:  # noqa: BLE001 - the session boundary
            self._fail_run(answers, error, replies)
        finally:
            if not later.held:
                self._in_flight.remove(len(answers), size)
        if len(answers) == 1 and answers[0].flag & FLAG_ONEWAY:
            replies.clear()
        if not replies or self.closed:
            return
        self._enqueue(self._encode_safely(replies))
        if not self._writing:
            # Not one step later: others that were woken by the same event queue theirs during this write.
            self._writing = True
            await self._write_queue()

    # --- writing ---------------------------------------------------------------------------------------------------

    def _encode_safely(self, replies: Sequence[Reply]) -> list[bytes]:
        """`_encode`, with a reply that cannot be encoded (a defect in its handler) replaced by SYSTEM_ERROR."""
        try:
            return self._encode(replies)
        except Exception:  # noqa: BLE001 - the session boundary
            pieces: list[bytes] = []
            for reply in replies:
                try:
                    pieces += self._encode([reply])
                except Exception as error:  # noqa: BLE001 - the session boundary
                    if isinstance(reply, Command):
                        pieces += self._encode([self._failure_reply(reply, error)])
            return pieces

    def _post(self, commands: list[Command]) -> None:
        """Queue commands from outside the reading task, and see that a task writes them."""
        self._enqueue(self._encode(commands))
        self._write_soon()

    def _write_soon(self) -> None:
        """See that a task writes what is queued."""
        if not self._writing and self._nursery is not None and not self.closed:
            self._writing = True
            self._nursery.start_soon(self._write_queue)

    def _enqueue(self, pieces: Sequence[bytes]) -> None:
        self._outgoing.extend(pieces)
        self._outgoing_bytes += sum(map(len, pieces))
        if self._outgoing_bytes > self._settings.outgoing_bytes_max:
            self.close(f"dropped, it left {self._outgoing_bytes} bytes unread")

    async def _reply(self, replies: list[Reply]) -> None:
        """Write the replies of one chunk from the reading task; pause it while too much is unwritten."""
        pieces = self._encode_safely(replies)
        if self._writing:
            self._enqueue(pieces)
        else:
            self._writing = True
            payload = pieces[0]
            if len(pieces) > 1:
                self._enqueue(pieces[1:])
            sent = self._send_now(payload) or await self._send(payload)
            if sent < len(payload):
                rest = payload[sent:]
                self._outgoing.appendleft(rest)
                self._outgoing_bytes += len(rest)
            if self._outgoing:
                assert self._nursery is not None  # noqa: S101 - only called while serving
                self._nursery.start_soon(self._write_queue)
            else:
                self._writing = False
        if self._outgoing_bytes > self._settings.outgoing_bytes_pause:
            self._resume_reading = trio.Event()
            await self._resume_reading.wait()

    async def _write_queue(self) -> None:
        """Write until the queue is empty.  The caller has set `_writing`; nobody else writes until it is cleared."""
        try:
            while self._outgoing:
                payload = next_write(self._outgoing)
                size, position = len(payload), 0
                while position < size:
                    sent = await self._send(payload[position:] if position else payload)
                    position += sent
                    self._outgoing_bytes -= sent
                    if self._resume_reading is not None and (
                        self._outgoing_bytes <= self._settings.outgoing_bytes_pause // 2
                    ):
                        self._resume_reading.set()
                        self._resume_reading = None
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self.close(f"lost while writing: {error}")
            return
        self._writing = False

    async def _wait_written(self) -> None:
        """After the last command was read: let the replies that are queued leave."""
        if self._outgoing and not self._writing:
            self._writing = True
            await self._write_queue()
        while self._writing and self._outgoing_bytes:
            self._resume_reading = trio.Event()
            await self._resume_reading.wait()
