"""What no peer should send: each costs its own connection at most, with a logged reason, and no other one notices."""

from __future__ import annotations

import struct

import pytest
import trio

from tests.remoting.conftest import ECHO, Desk
from tests.remoting.raw import connect, start_server
from trio_rmq.limits import FRAME_SIZE_MAX_BYTES
from trio_rmq.wire.command import Command
from trio_rmq.wire.frame import encode_frame

pytestmark = pytest.mark.trio


def frame(header_word: int, rest: bytes, *, length: int | None = None) -> bytes:
    """A frame with any words one likes."""
    return struct.pack(">iI", 4 + len(rest) if length is None else length, header_word) + rest


BAD = {
    "length 0": frame(0, b"", length=0),
    "length 3": frame(0, b"", length=3),
    "negative length": frame(0, b"", length=-1),
    "oversized": frame(0, b"", length=FRAME_SIZE_MAX_BYTES + 1),
    "text of another protocol": b"POST / HTTP/1.1\r\nHost: example\r\n\r\n",
    "zeros": bytes(64),
    "header longer than its frame": frame(0x00FF_FFFF, b"{}"),
    "unknown serialize type": frame(0x0700_0002, b"{}"),
    "header that is no JSON": frame(5, b"hello"),
    "header that is no object": frame(2, b"[]"),
    "header that is no text": frame(4, b"\xff\xfe\xfd\xfc"),
    "binary header cut short": frame(0x0100_0005, b"\x00\x01\x00\x00\x01"),
    "deep header": frame(200_000, b"[" * 200_000),
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
async def test_bad_bytes_end_their_connection_only(
    data: bytes, nursery: trio.Nursery, desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    address = await start_server(nursery, desk.table(), on_close=desk.on_close)
    bystander = await connect(nursery, address)
    await bystander.send(Command(ECHO, opaque=1))
    await bystander.receive()

    offender = await connect(nursery, address)
    await offender.stream.send_all(data)
    assert await offender.closed_by_server()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "closed, " in caplog.text

    await bystander.send(Command(ECHO, opaque=2))
    assert (await bystander.receive()).opaque == 2


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
async def test_what_came_before_the_bad_bytes_is_answered(data: bytes, nursery: trio.Nursery, desk: Desk) -> None:
    client = await connect(nursery, await start_server(nursery, desk.table()))
    await client.stream.send_all(encode_frame(Command(ECHO, opaque=1)))
    assert (await client.receive()).opaque == 1
    await client.stream.send_all(encode_frame(Command(ECHO, opaque=2)) + data)
    assert (await client.receive()).opaque == 2
    assert await client.closed_by_server()


async def test_a_frame_cut_short_by_the_end_is_dropped(nursery: trio.Nursery, desk: Desk) -> None:
    client = await connect(nursery, await start_server(nursery, desk.table()))
    await client.stream.send_all(encode_frame(Command(ECHO, opaque=1)) + encode_frame(Command(ECHO, opaque=2))[:-1])
    await client.stream.send_eof()
    assert (await client.receive()).opaque == 1
    assert await client.closed_by_server()
    assert len(desk.seen) == 1


async def test_a_tls_handshake_is_refused_with_a_reason(
    nursery: trio.Nursery, desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    client = await connect(nursery, await start_server(nursery, desk.table()))
    await client.stream.send_all(b"\x16")
    assert await client.closed_by_server()
    assert "TLS is not enabled" in caplog.text


async def test_a_response_nobody_asked_for_is_ignored(nursery: trio.Nursery, desk: Desk) -> None:
    client = await connect(nursery, await start_server(nursery, desk.table()))
    await client.send(Command(0, flag=1, opaque=77), Command(ECHO, opaque=1))
    assert (await client.receive()).opaque == 1
