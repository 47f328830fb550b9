"""Accepts connections on one port for both transports, and ends the idle ones.

The first bytes tell the transport: `GET ` is a WebSocket upgrade, 0x16 a TLS handshake, anything else a frame length.
Within TLS they tell once more.
One task accepts per address, one watches for idle connections, one for writes that make no progress, and each
connection is one task while it is idle.

A watch holds a heap of (earliest time a connection can be due, connection).  It sleeps until the first of these; a
connection that was active since goes back with its new time.  So a read or write only stores the time, and a connection
costs a look per idle period, and one per stall time while it writes.  The heap keeps no closed connection's memory.
"""

from __future__ import annotations

import errno
import heapq
import logging
import math
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import trio

from trio_rmq.errors import ConfigError, ListenError
from trio_rmq.remoting.address import format_address, parse_address, system_reason
from trio_rmq.remoting.handlers import HandlerTable
from trio_rmq.remoting.plain_socket import SessionSocket, plain_socket
from trio_rmq.remoting.session import Session, SessionCallback
from trio_rmq.remoting.settings import DEFAULT_SETTINGS, RemotingSettings
from trio_rmq.remoting.tcp import TcpSession
from trio_rmq.remoting.tls import HANDSHAKE_BYTE, ServerTls

if TYPE_CHECKING:
    from trio_rmq.remoting.websocket import WebSocketSession

BACKLOG = 1024
FIRST_READ_BYTES = 64 * 1024
TELLING_BYTES = 4
"""How many bytes tell the transport: a frame length, or `GET `."""

ACCEPT_CAPACITY_ERRORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
ACCEPT_PAUSE_SECONDS = 0.1
"""Pause after the system refused a new socket: no event tells when one is free."""

logger = logging.getLogger("trio_rmq.remoting")


async def serve_remoting(
    addresses: Sequence[str],
    handlers: HandlerTable,
    *,
    settings: RemotingSettings = DEFAULT_SETTINGS,
    tls: ServerTls | None = None,
    on_open: SessionCallback | None = None,
    on_close: SessionCallback | None = None,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Listen on `addresses` ("host:port"; port 0 takes a free one) and serve until cancelled.

    `tls` says whether TLS connections are taken, and plain ones; without it only the latter.
    `task_status` gets the bound addresses, "ip:port", when every one listens.  `on_open(session)` is called before a
    session's first request, `on_close(session)` once after its last, both without waiting.  ListenError names an
    address that cannot be bound; then none is served.  Cancelled, it closes the listeners and drops every connection.
    """
    listeners = await _open_listeners(addresses)
    server = _Server(handlers, settings, tls, on_open, on_close)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.watch_idle)
        nursery.start_soon(server.watch_stalled)
        for listener in listeners:
            nursery.start_soon(server.accept, listener, nursery)
        task_status.started([_bound_address(listener) for listener in listeners])


async def _open_listeners(addresses: Sequence[str]) -> list[trio.SocketListener]:
    listeners: list[trio.SocketListener] = []
    try:
        for text in addresses:
            address = parse_address(text)
            try:
                opened = await trio.open_tcp_listeners(address.port, host=address.host, backlog=BACKLOG)
            except OSError as error:
                raise ListenError(f"cannot listen on {text}: {system_reason(error)}", address=text) from error
            if address.port == 0:
                # A name with several addresses would get as many different ports: one is what was asked for.
                for extra in opened[1:]:
                    extra.socket.close()
                del opened[1:]
            listeners.extend(opened)
    except BaseException:
        for listener in listeners:
            listener.socket.close()
        raise
    return listeners


def _bound_address(listener: trio.SocketListener) -> str:
    host, port = listener.socket.getsockname()[:2]
    return format_address(host, port)


def _refused(socket: trio.socket.SocketType, reason: str) -> None:
    try:
        host, port = socket.getpeername()[:2]
    except OSError:
        return  # it is gone already
    logger.warning("connection with %s: closed, %s", format_address(host, port), reason)


class _Watch:
    """Ends connections whose time has come.

    Invariant: what others add is never due before what is in the heap, so nothing has to cut the watcher's sleep short.
    """

    def __init__(
        self,
        due: Callable[[Session], float],
        drop: Callable[[Session], None],
        let_go: Callable[[Session], None],
    ) -> None:
        """`due` tells a session's time; one whose time is infinite leaves the watch by `let_go`."""
        self._due = due
        self._drop = drop
        self._let_go = let_go
        self._checks: list[tuple[float, int, weakref.ref[Session]]] = []
        self._number = 0
        self._first_check = trio.Event()

    def add(self, session: Session) -> None:
        """Look at this session when it is due."""
        self._number += 1
        heapq.heappush(self._checks, (self._due(session), self._number, weakref.ref(session)))
        self._first_check.set()

    async def run(self) -> None:
        """Watch for ever."""
        checks = self._checks
        while True:
            if not checks:
                self._first_check = trio.Event()
                await self._first_check.wait()
            await trio.sleep_until(checks[0][0])
            now = trio.current_time()
            while checks and checks[0][0] <= now:
                session = heapq.heappop(checks)[2]()
                if session is None or session.closed:
                    continue
                due = self._due(session)
                if due <= now:
                    self._drop(session)
                elif due == math.inf:
                    self._let_go(session)
                else:
                    self.add(session)


class _Server:
    """What the tasks of one `serve_remoting` share."""

    def __init__(
        self,
        handlers: HandlerTable,
        settings: RemotingSettings,
        tls: ServerTls | None,
        on_open: SessionCallback | None,
        on_close: SessionCallback | None,
    ) -> None:
        self._handlers = handlers
        self._settings = settings
        self._tls = tls
        self._on_open = on_open
        self._on_close = on_close
        self._connections = 0
        idle_seconds = settings.connection_idle_seconds
        self._idle = _Watch(
            lambda session: session.last_activity + idle_seconds,
            lambda session: session.close(f"idle for {idle_seconds:g} s"),
            lambda session: None,
        )
        self._stalled = _Watch(
            lambda session: session.stalled_at(),
            lambda session: session.drop_stalled(),
            lambda session: session.watch_writes(self._stalled.add),
        )

    async def accept(self, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        """Start a task for each connection, for ever; a system out of sockets is waited out."""
        async with listener:
            while True:
                try:
                    stream = await listener.accept()
                except OSError as error:
                    if error.errno not in ACCEPT_CAPACITY_ERRORS:
                        raise
                    logger.error("cannot accept connections: %s; trying again", system_reason(error))
                    await trio.sleep(ACCEPT_PAUSE_SECONDS)
                    continue
                if self._connections >= self._settings.connections_max:
                    logger.warning("refused a connection: %d are open, which is the limit", self._connections)
                    stream.socket.close()
                    continue
                self._connections += 1
                nursery.start_soon(self._serve_connection, stream.socket)

    async def _serve_connection(self, socket: trio.socket.SocketType) -> None:
        try:
            session = await self._open_session(socket)
            if session is not None:
                self._idle.add(session)
                session.watch_writes(self._stalled.add)
                await session.run()
        finally:
            self._connections -= 1
            socket.close()

    async def _open_session(self, socket: trio.socket.SocketType) -> Session | None:
        try:
            first = await self._first_bytes(socket)
            if not first:
                return None
            if first[0] != HANDSHAKE_BYTE:
                if self._tls is not None and not self._tls.takes_plain:
                    _refused(socket, "it is not TLS, which tlsServerMode=enforcing asks of everybody")
                    return None
                return self._session(plain_socket(socket), first)
            if self._tls is None or not self._tls.takes_tls:
                _refused(socket, "TLS is not enabled here")
                return None
            with trio.move_on_after(self._settings.handshake_seconds) as scope:
                secured = await self._tls.shake_hands(socket, first)
            if scope.cancelled_caught:
                _refused(socket, f"no TLS handshake within {self._settings.handshake_seconds:g} s")
                return None
            first = await self._first_bytes(secured)
            return self._session(secured, first) if first else None
        except ConfigError as error:
            _refused(socket, f"no TLS: {error}")
        except trio.BrokenResourceError as error:
            _refused(socket, f"its TLS broke: {error.__cause__ or error}")
        except OSError as error:
            logger.debug("a connection was lost before its first request: %s", error)
        return None

    async def _first_bytes(self, socket: SessionSocket) -> bytes:
        """So much that the transport can be told; nothing when the peer ends or is silent for too long."""
        first = b""
        with trio.move_on_after(self._settings.connection_idle_seconds):
            while len(first) < TELLING_BYTES and not first.startswith(bytes((HANDSHAKE_BYTE,))):
                data = await socket.recv(FIRST_READ_BYTES)
                if not data:
                    return b""
                first += data
            return first
        return b""

    def _session(self, socket: SessionSocket, first: bytes) -> Session:
        session_type: type[TcpSession | WebSocketSession] = TcpSession
        if first.startswith(b"GET "):
            # Here, because its libraries are a fifth of a server's start; the command line loads them afterwards.
            from trio_rmq.remoting.websocket import WebSocketSession

            session_type = WebSocketSession
        try:
            return session_type(
                socket, first, self._handlers, self._settings, on_open=self._on_open, on_close=self._on_close
            )
        except BaseException:
            socket.close()
            raise

    async def watch_idle(self) -> None:
        """Close the connections that were silent in both directions for the idle time."""
        await self._idle.run()

    async def watch_stalled(self) -> None:
        """Close the connections whose peers read nothing of what is written to them."""
        await self._stalled.run()


__all__ = ["RemotingSettings", "serve_remoting"]
