"""Answers that are begun without a task (`Later.begin`): a service tells them, as a store does after a sync."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
import trio.testing

from tests.remoting.conftest import BEGIN_LATER, ECHO, Desk
from tests.remoting.raw import RawClient, connect, start_server
from trio_rmq.remoting.settings import RemotingSettings
from trio_rmq.wire.command import Command

pytestmark = pytest.mark.trio


async def open_client(nursery: trio.Nursery, desk: Desk, settings: RemotingSettings) -> RawClient:
    """A server with the desk's handlers, and one connection to it."""
    return await connect(nursery, await start_server(nursery, desk.table(), settings=settings, on_close=desk.on_close))


async def begin(desk: Desk, client: RawClient, *commands: Command) -> Callable[[], None]:
    await client.send(*commands)
    while not desk.begun:
        await trio.testing.wait_all_tasks_blocked(0.01)
    return desk.begun.pop()


async def test_they_come_when_they_are_told(nursery: trio.Nursery, desk: Desk) -> None:
    client = await open_client(nursery, desk, RemotingSettings())
    commands = [Command(BEGIN_LATER, opaque=number, body=b"%d" % number) for number in (1, 2)]
    told = await begin(desk, client, *commands)
    await client.send(Command(ECHO, opaque=3))
    assert (await client.receive()).opaque == 3
    told()
    answers = [await client.receive(), await client.receive()]
    assert [(answer.opaque, bytes(answer.body)) for answer in answers] == [(1, b"1"), (2, b"2")]


async def test_they_count_as_in_flight_until_then(nursery: trio.Nursery, desk: Desk) -> None:
    client = await open_client(nursery, desk, RemotingSettings(requests_in_flight_max=2))
    told = await begin(desk, client, Command(BEGIN_LATER, opaque=1), Command(BEGIN_LATER, opaque=2))
    await client.send(Command(ECHO, opaque=3))  # more than half of the bound: not read
    await trio.testing.wait_all_tasks_blocked(0.05)
    assert desk.seen == []
    told()
    assert [(await client.receive()).opaque for _ in range(3)] == [1, 2, 3]


async def test_more_than_the_system_takes_at_once_is_written_by_a_task(nursery: trio.Nursery, desk: Desk) -> None:
    client = await open_client(nursery, desk, RemotingSettings())
    body = bytes(range(256)) * (16 * 1024)
    told = await begin(desk, client, Command(BEGIN_LATER, opaque=1, body=body))
    told()
    answer = await client.receive()
    assert bytes(answer.body) == body
    await client.send(Command(ECHO, opaque=2))
    assert (await client.receive()).opaque == 2


async def test_told_after_the_connection_went_they_reach_nobody(nursery: trio.Nursery, desk: Desk) -> None:
    client = await open_client(nursery, desk, RemotingSettings())
    told = await begin(desk, client, Command(BEGIN_LATER, opaque=1))
    await client.stream.aclose()
    with trio.fail_after(5):
        while not desk.closed:
            await trio.testing.wait_all_tasks_blocked(0.01)
    told()
    other = await open_client(nursery, desk, RemotingSettings())
    await other.send(Command(ECHO, opaque=2))
    assert (await other.receive()).opaque == 2
