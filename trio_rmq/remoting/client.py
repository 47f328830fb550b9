"""Connections to servers: one opened by hand, or a pool of them by address.  On anyio, so Trio and asyncio share it.

`RemotingClient` keeps one connection for each address.  Callers that need the same one while it is being made share the
attempt; the attempt belongs to the client, so cancelling a caller does not end it for the others.  A lost connection
leaves the pool at once, and the next request makes a new one: there is no reconnecting in the background.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from types import TracebackType

import anyio
import anyio.abc
from anyio.abc import SocketAttribute
from anyio.streams.tls import TLSStream

from trio_rmq import limits
from trio_rmq.errors import ConfigError, ConnectError, RemotingError
from trio_rmq.remoting.address import parse_address, system_reason
from trio_rmq.remoting.connection import (
    TRANSPORT_ERRORS,
    Channel,
    ClientHandler,
    Connection,
    ConnectionGroup,
    TcpChannel,
)
from trio_rmq.remoting.direct_socket import direct_socket
from trio_rmq.remoting.tls_context import verifying_context
from trio_rmq.wire.command import Command, SerializeType

logger = logging.getLogger("trio_rmq.remoting")


async def connect_channel(
    address: str,
    *,
    serialize_type: SerializeType = SerializeType.JSON,
    timeout_seconds: float = limits.CONNECT_SECONDS,
    ssl_context: ssl.SSLContext | None = None,
) -> Channel:
    """A connected transport to "host:port" or "ws[s]://host:port[/path]"; ConnectError says what was refused.

    With `ssl_context` every connection is TLS; a wss:// one without it trusts the system's authorities.
    """
    try:
        target = parse_address(address)
    except ConfigError as error:
        raise ConnectError(str(error), address=address) from error
    with anyio.move_on_after(timeout_seconds):
        try:
            stream = await anyio.connect_tcp(target.host, target.port)
        except OSError as error:
            raise ConnectError(f"cannot connect to {address}: {system_reason(error)}", address=address) from error
        peer = stream.extra(SocketAttribute.remote_address, None)
        if peer is None or peer == stream.extra(SocketAttribute.local_address):
            # None: it was reset already.  A port of the ephemeral range nobody listens on can be joined with itself.
            await anyio.aclose_forcefully(stream)
            reason = "it closed the connection" if peer is None else "nobody listens there"
            raise ConnectError(f"cannot connect to {address}: {reason}", address=address)
        secured: anyio.abc.ByteStream = stream
        context = verifying_context(ssl_context, use_tls=target.tls)
        if context is not None:
            secured = await _secure(stream, context, address, target.host)
        if target.path is None:
            return TcpChannel(secured, serialize_type, direct_socket(stream) if context is None else None)
        from trio_rmq.remoting.ws_client import shake_hands  # here: most programs do without its libraries

        try:
            return await shake_hands(secured, address=address, host=_host_header(address), path=target.path)
        except TRANSPORT_ERRORS as error:
            await anyio.aclose_forcefully(stream)
            raise ConnectError(f"{address} dropped the WebSocket handshake: {error}", address=address) from error
        except BaseException:
            await anyio.aclose_forcefully(stream)
            raise
    raise ConnectError(f"no connection to {address} within {timeout_seconds:g} s", address=address)


async def _secure(stream: anyio.abc.SocketStream, context: ssl.SSLContext, address: str, host: str) -> TLSStream:
    """TLS over `stream`, which is closed when that fails."""
    try:
        return await TLSStream.wrap(
            stream, server_side=False, hostname=host, ssl_context=context, standard_compatible=False
        )
    except ssl.SSLCertVerificationError as error:
        await anyio.aclose_forcefully(stream)
        raise ConnectError(
            f"{address} shows a certificate that is not trusted ({error.verify_message}): give an ssl_context that "
            "trusts it",
            address=address,
        ) from error
    except (*TRANSPORT_ERRORS, ssl.SSLError) as error:
        await anyio.aclose_forcefully(stream)
        raise ConnectError(
            f"no TLS with {address}: {system_reason(error) or 'it closed the connection'}", address=address
        ) from error
    except BaseException:
        await anyio.aclose_forcefully(stream)
        raise


def _host_header(address: str) -> str:
    return address.partition("://")[2].partition("/")[0]


@asynccontextmanager
async def open_connection(
    address: str,
    *,
    handlers: Mapping[int, ClientHandler] | None = None,
    serialize_type: SerializeType = SerializeType.JSON,
    connect_timeout_seconds: float = limits.CONNECT_SECONDS,
    ssl_context: ssl.SSLContext | None = None,
) -> AsyncIterator[Connection]:
    """One connection to `address`, closed when the block is left; ConnectError when it cannot be made.

    `handlers` answer the server's requests by code.  `serialize_type` is the header encoding over TCP, `ssl_context` as
    of `connect_channel`.
    """
    channel = await connect_channel(
        address,
        serialize_type=serialize_type,
        timeout_seconds=connect_timeout_seconds,
        ssl_context=ssl_context,
    )
    connection = Connection(address, channel, handlers or {})
    async with ConnectionGroup() as group:
        group.start_soon(connection.run)
        yield connection


class _Attempt:
    """A connection being made, and who waits for it."""

    __slots__ = ("connection", "done", "error")

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.connection: Connection | None = None
        self.error: RemotingError | None = None


class RemotingClient:
    """Requests to any address over pooled connections; an async context manager, whose end closes them all.

    `on_close(connection)` is called, without waiting, after a pooled connection has ended.  `ssl_context` makes every
    connection a TLS one; `use_tls` does so with a context that trusts the system's authorities.  The connections of a
    `lasting` client outlive a cancellation of its block, until the block has ended: for goodbyes, and last progress.
    """

    def __init__(
        self,
        *,
        serialize_type: SerializeType = SerializeType.JSON,
        connect_timeout_seconds: float = limits.CONNECT_SECONDS,
        on_close: Callable[[Connection], None] | None = None,
        ssl_context: ssl.SSLContext | None = None,
        use_tls: bool = False,
        lasting: bool = False,
    ) -> None:
        self._ssl_context = verifying_context(ssl_context, use_tls=use_tls)
        self._serialize_type = serialize_type
        self._connect_timeout_seconds = connect_timeout_seconds
        self._on_close = on_close
        self._lasting = lasting
        self._lives: set[anyio.CancelScope] = set()
        self._handlers: dict[int, ClientHandler] = {}
        self._connections: dict[str, Connection] = {}
        self._attempts: dict[str, _Attempt] = {}
        self._group: anyio.abc.TaskGroup | None = None
        self._group_manager: ConnectionGroup | None = None

    async def __aenter__(self) -> RemotingClient:
        self._group_manager = ConnectionGroup()
        self._group = await self._group_manager.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        manager, self._group_manager, self._group = self._group_manager, None, None
        assert manager is not None  # noqa: S101 - entered before it is left
        for life in self._lives:
            life.cancel()
        await manager.__aexit__(kind, error, traceback)

    def register(self, code: int, handler: ClientHandler) -> None:
        """`handler` answers the servers' requests with `code`, on every connection; one that exists is replaced."""
        self._handlers[code] = handler

    async def connection(self, address: str) -> Connection:
        """The open connection to `address`, made if there is none; ConnectError when it cannot be."""
        connection = self._connections.get(address)
        if connection is not None and not connection.closed:
            return connection
        attempt = self._attempts.get(address)
        if attempt is None:
            if self._group is None:
                raise ConnectError(f"cannot connect to {address}: this client is closed", address=address)
            attempt = self._attempts[address] = _Attempt()
            self._group.start_soon(self._run_connection, address, attempt)
        await attempt.done.wait()
        if attempt.connection is not None:
            return attempt.connection
        reason = str(attempt.error) if attempt.error is not None else f"connecting to {address} ended: client closed"
        raise ConnectError(reason, address=address)

    def connected(self, address: str) -> Connection | None:
        """The open connection to `address`; None when there is none yet."""
        connection = self._connections.get(address)
        return None if connection is None or connection.closed else connection

    async def request(
        self,
        address: str,
        command: Command,
        timeout_seconds: float = 3.0,
        now: float | None = None,
        *,
        at_once: bool = False,
        on_answer: Callable[[Command], None] | None = None,
    ) -> Command:
        """The response of the server at `address`; arguments and errors as of Connection.request, and ConnectError.

        ConnectError means that nothing was sent; `timeout_seconds` covers connecting too.
        """
        connection = self._connections.get(address)
        if connection is None or connection.closed:
            connection, timeout_seconds = await self._connection_within(address, timeout_seconds)
            now = None
        return await connection.request(command, timeout_seconds, now, at_once=at_once, on_answer=on_answer)

    async def request_many(
        self, address: str, commands: Sequence[Command], timeout_seconds: float = 3.0
    ) -> list[Command | RemotingError]:
        """Connection.request_many at `address`; ConnectError when nothing could be sent."""
        connection, timeout_seconds = await self._connection_within(address, timeout_seconds)
        return await connection.request_many(commands, timeout_seconds)

    async def request_oneway(self, address: str, command: Command, timeout_seconds: float = 3.0) -> None:
        """Connection.send_oneway at `address`; `timeout_seconds` bounds connecting."""
        connection, _ = await self._connection_within(address, timeout_seconds)
        await connection.send_oneway(command)

    def close_connection(self, address: str, reason: str = "closed by the client") -> None:
        """End the pooled connection to `address`, if there is one; the next request makes a new one."""
        connection = self._connections.get(address)
        if connection is not None:
            connection.close(reason)

    def open_addresses(self) -> list[str]:
        """The addresses that have an open connection now."""
        return [address for address, connection in self._connections.items() if not connection.closed]

    async def _connection_within(self, address: str, timeout_seconds: float) -> tuple[Connection, float]:
        """The connection, and what is left of the time."""
        connection = self._connections.get(address)
        if connection is not None and not connection.closed:
            return connection, timeout_seconds
        deadline = anyio.current_time() + timeout_seconds
        with anyio.CancelScope(deadline=deadline):
            connection = await self.connection(address)
            return connection, max(0.0, deadline - anyio.current_time())
        raise ConnectError(f"no connection to {address} within {timeout_seconds:g} s", address=address)

    async def _run_connection(self, address: str, attempt: _Attempt) -> None:
        # Shielded here and not by whoever starts it: a shield takes in only what begins inside.
        with anyio.CancelScope(shield=self._lasting) as life:
            self._lives.add(life)
            if self._group is None:
                life.cancel()  # the client was closed before this task had its first turn
            try:
                await self._serve_connection(address, attempt)
            finally:
                self._lives.discard(life)

    async def _serve_connection(self, address: str, attempt: _Attempt) -> None:
        try:
            channel = await connect_channel(
                address,
                serialize_type=self._serialize_type,
                timeout_seconds=self._connect_timeout_seconds,
                ssl_context=self._ssl_context,
            )
            connection = attempt.connection = Connection(address, channel, self._handlers)
            self._connections[address] = connection
        except ConnectError as error:
            attempt.error = error
            return
        finally:
            del self._attempts[address]
            attempt.done.set()
        try:
            await connection.run()
        finally:
            if self._connections.get(address) is connection:
                del self._connections[address]
            if self._on_close is not None:
                self._on_close(connection)


__all__ = ["ClientHandler", "Connection", "RemotingClient", "open_connection"]
