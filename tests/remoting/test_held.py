"""Long polls without a task (`Later.hold`): a service resumes them, as a broker does when a message arrives."""

from __future__ import annotations

from functools import partial

import pytest
import trio
import trio.testing

from tests.remoting.conftest import ECHO, HOLD_TASKLESS, Desk
from tests.remoting.raw import RawClient, connect, start_server
from trio_rmq.errors import RequestError
from trio_rmq.remoting.handlers import Later, Reply
from trio_rmq.remoting.settings import RemotingSettings
from trio_rmq.wire.command import FLAG_ONEWAY, Command

pytestmark = pytest.mark.trio


async def held(nursery: trio.Nursery, desk: Desk, *flags: int) -> RawClient:
    """A client whose requests 1, 2, ... are held."""
    address = await start_server(
        nursery, desk.table(), settings=RemotingSettings(requests_in_flight_max=1), on_close=desk.on_close
    )
    client = await connect(nursery, address)
    await client.send(*(Command(HOLD_TASKLESS, opaque=number, flag=flag) for number, flag in enumerate(flags, 1)))
    while len(desk.resumes) < len(flags):
        await trio.testing.wait_all_tasks_blocked(0.01)
    return client


def replies(opaque: int) -> list[Reply]:
    return [Command(HOLD_TASKLESS, opaque=opaque).reply(body=b"%d" % opaque)]


async def test_they_are_answered_when_they_are_resumed_and_count_against_nothing(
    nursery: trio.Nursery, desk: Desk
) -> None:
    client = await held(nursery, desk, 0, 0)
    await client.send(Command(ECHO, opaque=3))
    assert (await client.receive()).opaque == 3
    flushes = {resume(partial(replies, opaque)) for opaque, resume in enumerate(desk.resumes, 1)}
    assert len(flushes) == 1
    for flush in flushes:
        flush()
    assert [(await client.receive()).opaque for _ in range(2)] == [1, 2]
    assert desk.given_up == 0


async def test_what_the_answer_raises_is_told_as_if_a_handler_had_raised_it(nursery: trio.Nursery, desk: Desk) -> None:
    client = await held(nursery, desk, 0, 0)

    def refuse() -> list[Reply]:
        raise RequestError(14, "gone; look elsewhere")

    def crash() -> list[Reply]:
        raise LookupError("a defect")

    for resume, answer in zip(desk.resumes, (refuse, crash), strict=True):
        resume(answer)()
    first, second = await client.receive(), await client.receive()
    assert (first.opaque, first.code, first.remark) == (1, 14, "gone; look elsewhere")
    assert (second.opaque, second.code, second.remark) == (2, 1, "LookupError: a defect")


async def test_an_answer_may_wait_again_with_and_without_a_task(nursery: trio.Nursery, desk: Desk) -> None:
    client = await held(nursery, desk, 0, 0)

    async def in_a_task() -> list[Reply]:
        await trio.lowlevel.checkpoint()
        return replies(1)

    first, second = desk.resumes
    first(lambda: Later(in_a_task, held=True))()
    assert (await client.receive()).opaque == 1
    second(desk.held_again)()
    desk.resumes[-1](lambda: replies(2))()
    assert (await client.receive()).opaque == 2


async def test_one_way_ones_get_no_answer(nursery: trio.Nursery, desk: Desk) -> None:
    client = await held(nursery, desk, FLAG_ONEWAY)
    desk.resumes[0](lambda: replies(1))()
    await client.send(Command(ECHO, opaque=2))
    assert (await client.receive()).opaque == 2


async def test_those_whose_connection_ends_are_given_up_and_resuming_them_does_nothing(
    nursery: trio.Nursery, desk: Desk
) -> None:
    client = await held(nursery, desk, 0, 0)
    first, second = desk.resumes
    first(lambda: replies(1))()
    await client.stream.aclose()
    await desk.gone.wait()
    assert desk.given_up == 1

    def never() -> list[Reply]:
        raise AssertionError("nobody waits")

    second(never)()


async def test_a_task_may_wait_for_one_and_gives_it_up_when_cancelled(desk: Desk) -> None:
    answers: list[Reply] = []

    async def run() -> None:
        answers.extend(await desk.held_again().run())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await trio.testing.wait_all_tasks_blocked()
        desk.resumes[0](desk.held_again)()
        await trio.testing.wait_all_tasks_blocked()
        desk.resumes[1](lambda: replies(7))()
    assert [answer.opaque for answer in answers if isinstance(answer, Command)] == [7]
    given_up = desk.given_up
    with trio.move_on_after(0):
        await desk.held_again().run()
    assert desk.given_up == given_up + 1
