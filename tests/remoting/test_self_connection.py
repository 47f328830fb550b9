"""A free port of the ephemeral range can be joined with itself; the client takes that for nobody listening."""

from __future__ import annotations

import anyio
import anyio.abc
import pytest
from anyio.abc import SocketAttribute

from trio_rmq.errors import ConnectError
from trio_rmq.remoting.client import open_connection

pytestmark = pytest.mark.anyio


async def test_a_connection_with_itself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
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
