"""The client's side of one connection, on anyio: the same under Trio and asyncio, over TCP or WebSocket.

Two tasks: one reads, resolves every answer of a chunk, and ends requests whose time is up; one writes, and joins all
that was queued meanwhile into one write.  A caller only enters its request in the table, queues its bytes - or, being
alone, sends what the system takes at once (`direct_socket.py`) - and waits: cancelling it never cuts a frame in half,
and leaves no entry behind.  The server's own requests run as tasks of the connection.

When the connection ends, whatever the reason, every waiting request gets ConnectionLostError at once.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Protocol

import anyio
import anyio.abc
import anyio.lowlevel

from trio_rmq import limits
from trio_rmq.errors import (
    ConnectionLostError,
    ProtocolError,
    RemotingError,
    RequestError,
    RequestTimeoutError,
    TooManyRequestsError,
)
from trio_rmq.remoting.direct_socket import READ_BYTES, DirectSocket, event_type
from trio_rmq.remoting.outgoing import next_write
from trio_rmq.remoting.request_table import RequestTable
from trio_rmq.wire.command import FLAG_ONEWAY, FLAG_RESPONSE, Command, SerializeType
from trio_rmq.wire.frame import FrameSplitter, encode_frame

RESOLVED_AT_ONCE = 32
"""After so many answers their callers run, and what they send next leaves, before more answers are handed out: so the
server works on the one while its client works on the other."""
CLOSE_SECONDS = 1.0
"""Longest polite closing of a transport; after it the socket is simply closed."""

SYSTEM_ERROR = 1
REQUEST_CODE_NOT_SUPPORTED = 3
TRANSPORT_ERRORS = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, OSError)
"""What a lost transport raises under either backend."""

logger = logging.getLogger("trio_rmq.remoting")

ClientHandler = Callable[["Connection", Command], Awaitable[Command | None]]
"""Answers a request of the server: its response, or None when nothing is sent.  May raise RequestError."""


class Channel(Protocol):
    """How commands travel: one implementation for each transport.  One task receives, one other sends."""

    serialize_type: SerializeType

    async def receive(self) -> list[Command]:
        """The commands of the next chunk, maybe none; TRANSPORT_ERRORS at its end, ProtocolError for bad bytes."""
        ...

    def encode(self, commands: list[Command]) -> list[bytes]:
        """`commands` as pieces, one unless the transport bounds it; those that fit JOINED_WRITE_BYTES may be joined."""
        ...

    async def send(self, payload: bytes) -> None:
        """Send joined encodings as one write."""
        ...

    def send_now(self, payload: bytes) -> int:
        """Send what can be sent of `payload` without waiting; how many bytes, 0 where that is not possible."""
        ...

    async def send_control(self) -> None:
        """Send what the transport itself owes the peer (a pong), if anything."""
        ...

    async def aclose(self) -> None:
        """Close, politely if that is quick."""
        ...

    on_control: Callable[[], None] | None
    """Called while receiving when `send_control` has something to send."""


class TcpChannel:
    """RocketMQ remoting frames over a byte stream; `serialize_type` is the header encoding of our requests.

    `direct` is the stream's socket, where the stream is nothing more than that.
    """

    def __init__(
        self,
        stream: anyio.abc.ByteStream,
        serialize_type: SerializeType = SerializeType.JSON,
        direct: DirectSocket | None = None,
    ) -> None:
        self.serialize_type = serialize_type
        self.on_control: Callable[[], None] | None = None
        self._stream = stream
        self._direct = direct
        self._receive = partial(stream.receive, READ_BYTES) if direct is None else direct.receive
        self._splitter = FrameSplitter()

    async def receive(self) -> list[Command]:
        """See Channel."""
        if self._splitter.failure is not None:
            raise self._splitter.failure
        return self._splitter.feed(await self._receive())

    def encode(self, commands: list[Command]) -> list[bytes]:
        """See Channel."""
        if len(commands) == 1:
            return [encode_frame(commands[0])]
        return [b"".join([encode_frame(command) for command in commands])]

    async def send(self, payload: bytes) -> None:
        """See Channel."""
        await self._stream.send(payload)

    def send_now(self, payload: bytes) -> int:
        """See Channel."""
        return 0 if self._direct is None else self._direct.send_now(payload)

    async def send_control(self) -> None:
        """Nothing: TCP has no frames of its own."""

    async def aclose(self) -> None:
        """See Channel."""
        if self._direct is not None:
            self._direct.close()
        await self._stream.aclose()


class Connection:
    """A connection to `address`.  Made by `open_connection` or by a RemotingClient, never directly."""

    def __init__(
        self, address: str, channel: Channel, handlers: Mapping[int, ClientHandler], *, name: str = ""
    ) -> None:
        self.address = address
        self.closed = False
        self.close_reason = ""
        self._name = name or address
        self._channel = channel
        self._handlers = handlers
        self._requests = RequestTable(address, limits.CLIENT_REQUESTS_MAX)
        self._outgoing: deque[bytes] = deque()
        self._outgoing_bytes = 0
        self._event_type = event_type()
        self._wake_writer = self._event_type()
        self._writer_woken = False
        self._below_pause: anyio.Event | None = None
        self._ended = anyio.Event()
        self._scope = anyio.CancelScope()
        self._group: anyio.abc.TaskGroup | None = None
        self._reads = 0
        self._reads_when_late = -1
        channel.on_control = self._wake

    def __repr__(self) -> str:
        return f"<connection to {self.address}{' (closed)' if self.closed else ''}>"

    async def request(
        self,
        command: Command,
        timeout_seconds: float = 3.0,
        now: float | None = None,
        *,
        at_once: bool = False,
        on_answer: Callable[[Command], None] | None = None,
    ) -> Command:
        """Send `command` and return the server's response, whatever its code.

        `now` is anyio's current time, from who knows it already: asking for it is a part of a request's cost.  What is
        much work for the server leaves better `at_once` than together with other tasks' requests: the server works on
        it while these are made, and the client on its answer while the server works on these.

        `on_answer` gets the response before this returns it, in the turn in which it was read, unless the request had
        ended by then; one that is cancelled in this very turn may have its answer taken.  A RocketMQError that it
        raises comes out here.

        RequestTimeoutError without an answer in time; ConnectionLostError when the connection ends first (either way
        the request may have been carried out); TooManyRequestsError when a local bound is reached and nothing was
        sent.  Cancelled, the request may still be carried out; its answer is dropped.
        """
        if self._outgoing_bytes > limits.OUTGOING_BYTES_PAUSE:
            timeout_seconds, now = await self._wait_below_pause(timeout_seconds), None
        requests = self._requests
        if now is None:
            now = anyio.current_time()
        waiting = requests.open_one(command, self._event_type(), now, timeout_seconds, on_answer)
        try:
            command.serialize_type = self._channel.serialize_type
            pieces = self._channel.encode([command])
            if (at_once or len(requests.entries) == 1) and not self._outgoing_bytes:
                sent = self._channel.send_now(pieces[0])
                pieces[:1] = [pieces[0][sent:]] if sent < len(pieces[0]) else ()
            if pieces:
                self._queue_pieces(pieces)
            await waiting.event.wait()
        except BaseException:
            requests.forget(command.opaque)
            raise
        answer = waiting.result
        if isinstance(answer, Command):
            return answer
        assert answer is not None  # noqa: S101 - the event is set with a result
        raise answer

    async def request_many(
        self, commands: Sequence[Command], timeout_seconds: float = 3.0
    ) -> list[Command | RemotingError]:
        """Send `commands` in one write and wait for all under one deadline.

        Returns, in their order, each one's response or the error it met (as for `request`).  Raises, with nothing
        sent, TooManyRequestsError, or ConnectionLostError when the connection had ended before.
        """
        if self._outgoing_bytes > limits.OUTGOING_BYTES_PAUSE:
            timeout_seconds = await self._wait_below_pause(timeout_seconds)
        pending = self._requests.open(commands)
        try:
            self._queue(commands if isinstance(commands, list) else list(commands))
            answers = await pending.wait(timeout_seconds)
            if isinstance(answers[-1], RequestTimeoutError):
                self._late()
            return answers
        finally:
            pending.discard()

    async def send_oneway(self, command: Command) -> None:
        """Queue `command` for the next write, waiting first while too much is queued already.

        Nothing tells whether it arrives.  ConnectionLostError when the connection has ended.
        """
        if self._outgoing_bytes > limits.OUTGOING_BYTES_PAUSE:
            await self._wait_below_pause(limits.WRITE_STALL_SECONDS)
        self.send_nowait(command)

    def send_nowait(self, command: Command) -> None:
        """Queue `command` one-way without waiting; TooManyRequestsError when OUTGOING_BYTES_MAX are queued."""
        if self.closed:
            raise self._lost()
        command.opaque = self._requests.next_opaque()
        command.flag |= FLAG_ONEWAY
        self._queue([command])

    def close(self, reason: str = "closed by the client") -> None:
        """End the connection: everything that waits on it fails now; `wait_closed` returns when it is gone."""
        self._mark_closed(reason)
        self._scope.cancel()

    async def wait_closed(self) -> None:
        """Return when the connection has ended, for whatever reason."""
        await self._ended.wait()

    # --- the two tasks ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve the connection until it ends; for whoever opened it."""
        try:
            with self._scope:
                async with anyio.create_task_group() as group:
                    self._group = group
                    group.start_soon(self._write)
                    await self._read()
                    self._scope.cancel()
        finally:
            self._mark_closed("closed by the client")
            with anyio.move_on_after(CLOSE_SECONDS, shield=True), suppress(*TRANSPORT_ERRORS):
                await self._channel.aclose()
            self._ended.set()

    async def _read(self) -> None:
        reason = "closed by the server"
        try:
            while True:
                with self._requests.until_due():
                    await self._receive()
                for _ in range(self._requests.end_late()):
                    self._late()
        except anyio.EndOfStream:
            pass
        except TRANSPORT_ERRORS as error:
            reason = f"lost: {error.__cause__ or error}"
        except ProtocolError as error:
            reason = f"the server sent no valid command: {error}"
            logger.warning("connection to %s: %s", self.address, reason)
        self._mark_closed(reason)

    async def _receive(self) -> None:
        """Hand out what comes.  It is cancelled while it waits for more, and never between what came together."""
        resolve = self._requests.resolve
        receive = self._channel.receive
        while True:
            commands = await receive()
            self._reads += 1
            for first in range(0, len(commands), RESOLVED_AT_ONCE):
                if first:
                    await anyio.lowlevel.cancel_shielded_checkpoint()
                for command in commands[first : first + RESOLVED_AT_ONCE]:
                    if command.flag & FLAG_RESPONSE:
                        resolve(command)
                    else:
                        self._handle(command)

    def _late(self) -> None:
        """A request got no answer in time.  The second one between which nothing at all came ends the connection.

        Its peer may be gone without a word (a lost NAT entry, a machine without power); a new connection tells.
        RocketMQ's clients close at the first one, whatever else came (clientCloseSocketIfTimeout).
        """
        if self._reads_when_late == self._reads:
            self.close("lost: requests got no answer, and nothing else came")
        self._reads_when_late = self._reads

    async def _write(self) -> None:
        outgoing = self._outgoing
        try:
            while True:
                await self._wake_writer.wait()
                self._wake_writer = self._event_type()
                self._writer_woken = False
                await self._channel.send_control()
                while outgoing:
                    payload = next_write(outgoing)
                    await self._channel.send(payload)
                    self._outgoing_bytes -= len(payload)
                    if self._below_pause is not None and self._outgoing_bytes <= limits.OUTGOING_BYTES_PAUSE:
                        self._below_pause.set()
                        self._below_pause = None
        except TRANSPORT_ERRORS as error:
            self._mark_closed(f"lost: {error.__cause__ or error}")
            self._scope.cancel()

    def _wake(self) -> None:
        self._writer_woken = True
        self._wake_writer.set()

    def _queue(self, commands: list[Command]) -> None:
        serialize_type = self._channel.serialize_type
        for command in commands:
            command.serialize_type = serialize_type
        self._queue_pieces(self._channel.encode(commands))

    def _queue_pieces(self, pieces: list[bytes]) -> None:
        size = len(pieces[0]) if len(pieces) == 1 else sum(map(len, pieces))
        if self._outgoing_bytes + size > limits.OUTGOING_BYTES_MAX:
            raise TooManyRequestsError(
                f"{self._outgoing_bytes} bytes already wait to be written to {self.address}", address=self.address
            )
        self._outgoing.extend(pieces)
        self._outgoing_bytes += size
        if not self._writer_woken:
            self._wake()

    async def _wait_below_pause(self, timeout_seconds: float) -> float:
        """Wait while too much is queued, at most the time given; returns what is left of it."""
        deadline = anyio.current_time() + timeout_seconds
        with anyio.CancelScope(deadline=deadline):
            while self._outgoing_bytes > limits.OUTGOING_BYTES_PAUSE and not self.closed:
                if self._below_pause is None:
                    self._below_pause = anyio.Event()
                await self._below_pause.wait()
            return deadline - anyio.current_time()
        raise TooManyRequestsError(
            f"{self._outgoing_bytes} bytes waited {timeout_seconds:g} s to be written to {self.address}",
            address=self.address,
        )

    # --- the server's requests -------------------------------------------------------------------------------------

    def _handle(self, command: Command) -> None:
        handler = self._handlers.get(command.code)
        if handler is not None:
            assert self._group is not None  # noqa: S101 - called inside the connection's task group
            self._group.start_soon(self._run_handler, handler, command)
        elif not command.flag & FLAG_ONEWAY:
            remark = f"request code {command.code} is not supported"
            self._answer(command, command.reply(REQUEST_CODE_NOT_SUPPORTED, remark=remark))

    async def _run_handler(self, handler: ClientHandler, command: Command) -> None:
        try:
            reply = await handler(self, command)
        except (RequestError, ProtocolError) as error:
            reply = command.reply(error.response_code, remark=str(error))
        except Exception as error:
            logger.exception("request %d from %s failed in its handler", command.code, self.address)
            reply = command.reply(SYSTEM_ERROR, remark=f"{type(error).__name__}: {error}")
        if reply is not None and not command.flag & FLAG_ONEWAY:
            self._answer(command, reply)

    def _answer(self, command: Command, reply: Command) -> None:
        try:
            self._queue_pieces(self._channel.encode([reply]))
        except TooManyRequestsError as error:
            logger.warning("request %d from %s was not answered: %s", command.code, self.address, error)

    # --- ending ----------------------------------------------------------------------------------------------------

    def _mark_closed(self, reason: str) -> None:
        if self.closed:
            return
        self.closed = True
        self.close_reason = reason
        logger.debug("connection to %s: %s", self.address, reason)
        self._requests.fail_all(self._lost())
        if self._below_pause is not None:
            self._below_pause.set()

    def _lost(self) -> ConnectionLostError:
        return ConnectionLostError(f"the connection to {self.address} ended: {self.close_reason}", address=self.address)


class ConnectionGroup:
    """A task group whose block's own errors come out bare, not wrapped in a group.

    A caller of `request` inside the block may so catch RequestTimeoutError as itself.  Leaving the block cancels the
    tasks and waits for them.
    """

    def __init__(self) -> None:
        self._group = anyio.create_task_group()

    async def __aenter__(self) -> anyio.abc.TaskGroup:
        return await self._group.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._group.cancel_scope.cancel()
        if isinstance(error, Exception):
            # The group would wrap it; without it the group just ends, and the error goes on by itself.
            await self._group.__aexit__(None, None, None)
        else:
            await self._group.__aexit__(kind, error, traceback)
