"""The request table: who gets an answer, and that no entry outlives its wait."""

from __future__ import annotations

import anyio
import pytest

from trio_rmq.errors import ConnectionLostError, RemotingError, RequestTimeoutError, TooManyRequestsError
from trio_rmq.remoting.request_table import OPAQUE_MAX, RequestTable
from trio_rmq.wire.command import Command

pytestmark = pytest.mark.anyio


def response(opaque: int, code: int = 0) -> Command:
    """A response to the request with `opaque`."""
    return Command(code, flag=1, opaque=opaque)


async def test_answers_come_back_in_the_order_of_the_requests() -> None:
    table = RequestTable("peer:1", 10)
    requests = [Command(1) for _ in range(3)]
    pending = table.open(requests)
    opaques = [request.opaque for request in requests]
    assert len(set(opaques)) == 3

    for opaque in reversed(opaques):
        table.resolve(response(opaque, code=opaque))
    answers = await pending.wait(1.0)

    assert [answer.code for answer in answers if isinstance(answer, Command)] == opaques
    assert len(table) == 0


async def test_an_answer_wakes_the_one_that_waits() -> None:
    table = RequestTable("peer:1", 10)
    request = Command(1)
    pending = table.open([request])
    answers: list[Command | RemotingError] = []

    async def wait() -> None:
        answers.extend(await pending.wait(60.0))

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        table.resolve(response(request.opaque))
    assert isinstance(answers[0], Command)
    assert len(table) == 0


async def test_without_an_answer_each_gets_a_timeout_and_a_late_one_is_dropped() -> None:
    table = RequestTable("peer:1", 10)
    requests = [Command(1), Command(1)]
    pending = table.open(requests)
    table.resolve(response(requests[0].opaque))

    first, second = await pending.wait(0)

    assert isinstance(first, Command)
    assert isinstance(second, RequestTimeoutError)
    assert second.address == "peer:1"
    assert len(table) == 0
    table.resolve(response(requests[1].opaque))  # late: nobody waits, nothing happens


async def test_a_cancelled_wait_leaves_no_entry() -> None:
    table = RequestTable("peer:1", 10)
    pending = table.open([Command(1), Command(1)])

    async with anyio.create_task_group() as group:
        group.start_soon(pending.wait, 60.0)
        await anyio.wait_all_tasks_blocked()
        assert len(table) == 2
        group.cancel_scope.cancel()

    assert len(table) == 0


async def test_a_lost_connection_fails_all_that_wait_and_all_that_come() -> None:
    table = RequestTable("peer:1", 10)
    pendings = [table.open([Command(1)]) for _ in range(3)]
    results: list[Command | RemotingError] = []

    async def wait(index: int) -> None:
        results.extend(await pendings[index].wait(60.0))

    async with anyio.create_task_group() as group:
        for index in range(3):
            group.start_soon(wait, index)
        await anyio.wait_all_tasks_blocked()
        table.fail_all(ConnectionLostError("lost", address="peer:1"))

    assert [type(result) for result in results] == [ConnectionLostError] * 3
    assert len({id(result) for result in results}) == 3, "each task raises an error of its own"
    assert len(table) == 0
    with pytest.raises(ConnectionLostError):
        table.open([Command(1)])


async def test_the_bound_is_checked_before_anything_is_entered() -> None:
    table = RequestTable("peer:1", 2)
    table.open([Command(1)])
    with pytest.raises(TooManyRequestsError, match="limit is 2"):
        table.open([Command(1), Command(1)])
    assert len(table) == 1


async def test_the_opaque_counter_wraps_and_steps_over_requests_that_still_wait() -> None:
    table = RequestTable("peer:1", 10)
    old = Command(1)
    table.open([old])
    assert old.opaque == 1
    table._next_opaque = OPAQUE_MAX - 1

    run = [Command(1), Command(1)]
    table.open(run)

    assert [command.opaque for command in run] == [2, 3]


async def test_discarding_forgets_only_what_has_no_answer() -> None:
    table = RequestTable("peer:1", 10)
    pending = table.open([Command(1), Command(1)])
    table.resolve(response(pending.first_opaque))
    pending.discard()
    assert len(table) == 0
