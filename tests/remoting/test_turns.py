"""How often the event loop turns for a request on a connection of the system's: each turn is latency, and CPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trio.testing

from tests.remoting.conftest import ECHO, Desk
from trio_rmq.remoting.client import open_connection
from trio_rmq.remoting.connection import Connection
from trio_rmq.remoting.listener import serve_remoting
from trio_rmq.wire.command import Command

MIB = 1024 * 1024
REQUESTS = 20


class Steps(trio.abc.Instrument):
    """How often each task ran, by its function's name; a session's task has its connection's."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """One more."""
        self.counts[task.name.rpartition(".")[2]] += 1


@asynccontextmanager
async def counted(desk: Desk) -> AsyncIterator[tuple[Connection, Counter[str]]]:
    """A connection that has been used once, and the steps of tasks since."""
    async with trio.open_nursery() as nursery:
        (address,) = await nursery.start(serve_remoting, ["127.0.0.1:0"], desk.table())
        async with open_connection(address) as connection:
            await connection.request(Command(ECHO))
            await trio.testing.wait_all_tasks_blocked()
            steps = Steps()
            trio.lowlevel.add_instrument(steps)
            yield connection, steps.counts
            trio.lowlevel.remove_instrument(steps)
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_requests_one_at_a_time_take_one_step_of_the_session_and_none_of_the_writing_task(desk: Desk) -> None:
    async with counted(desk) as (connection, steps):
        for _ in range(REQUESTS):
            assert (await connection.request(Command(ECHO, body=b"x"))).body == b"x"
        await trio.testing.wait_all_tasks_blocked()
    assert steps["_serve_connection"] == REQUESTS
    assert steps["_read"] + steps["run"] == REQUESTS
    assert not steps["_write"]


@pytest.mark.trio
async def test_requests_that_are_to_leave_at_once_wait_for_no_other(desk: Desk) -> None:
    async with counted(desk) as (connection, steps):
        async with trio.open_nursery() as nursery:
            for _ in range(REQUESTS):
                nursery.start_soon(partial(connection.request, Command(ECHO), at_once=True))
        await trio.testing.wait_all_tasks_blocked()
    assert not steps["_write"]


@pytest.mark.trio
async def test_requests_of_several_tasks_share_a_write(desk: Desk) -> None:
    async with counted(desk) as (connection, steps):
        async with trio.open_nursery() as nursery:
            for _ in range(REQUESTS):
                nursery.start_soon(connection.request, Command(ECHO))
        await trio.testing.wait_all_tasks_blocked()
    assert 1 <= steps["_write"] <= 2
    assert len(desk.seen) == 1 + REQUESTS


@pytest.mark.trio
async def test_what_the_system_does_not_take_at_once_arrives_whole_and_in_order(desk: Desk) -> None:
    async with counted(desk) as (connection, steps):
        large = bytes(range(256)) * (3 * MIB // 256)
        async with trio.open_nursery() as nursery:
            answers: list[bytes] = []

            async def ask(body: bytes) -> None:
                answers.append(bytes((await connection.request(Command(ECHO, body=body), 30)).body))

            nursery.start_soon(ask, large)
            nursery.start_soon(ask, b"small")
        assert sorted(answers, key=len) == [b"small", large]
    assert steps["_write"]
