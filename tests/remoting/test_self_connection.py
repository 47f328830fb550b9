"""Connections that are none: one joined with itself, one that was reset before it was looked at."""

from __future__ import annotations

import socket
import struct

import anyio
import anyio.abc
import pytest
from anyio.abc import SocketAttribute

from trio_rmq.errors import ConnectError
from trio_rmq.remoting.client import open_connection

pytestmark = pytest.mark.anyio
RESET_AT_CLOSE = struct.pack("ii", 1, 0)


async def test_a_connection_with_itself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A free port of the ephemeral range can be joined with itself; the client takes that for nobody listening."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    connect = anyio.connect_tcp
    joined: list[anyio.abc.SocketStream] = []

    async def connect_with_itself(host: str, port: int) -> anyio.abc.SocketStream:
        """The kernel does this by chance only: a stream that says so stands in for it."""
        stream = await connect(host, port)
        joined.append(stream)
        attributes = dict(stream.extra_attributes)
        own = stream.extra(SocketAttribute.local_address)
        attributes[SocketAttribute.remote_address] = lambda: own
        monkeypatch.setattr(type(stream), "extra_attributes", property(lambda self: attributes))
        return stream

    monkeypatch.setattr(anyio, "connect_tcp", connect_with_itself)
    async with listener:
        address = f"127.0.0.1:{listener.extra(SocketAttribute.local_port)}"
        with pytest.raises(ConnectError, match="nobody listens there"):
            async with open_connection(address):
                pass
        monkeypatch.undo()
    with pytest.raises(anyio.ClosedResourceError):
        await joined[0].send(b"x")


async def test_a_connection_reset_at_once_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server killed just then resets what its kernel had accepted: that socket has no peer any more."""
    connect = anyio.connect_tcp
    with socket.create_server(("127.0.0.1", 0)) as server:

        async def connect_and_be_reset(host: str, port: int) -> anyio.abc.SocketStream:
            stream = await connect(host, port)
            accepted, _ = server.accept()
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
            accepted.close()
            with pytest.raises(OSError, match="not connected"):
                stream.extra(SocketAttribute.raw_socket).getpeername()
            return stream

        monkeypatch.setattr(anyio, "connect_tcp", connect_and_be_reset)
        with pytest.raises(ConnectError, match="it closed the connection"):
            async with open_connection(f"127.0.0.1:{server.getsockname()[1]}"):
                pass
