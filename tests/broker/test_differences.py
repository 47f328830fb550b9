"""Where the broker knowingly does otherwise than Apache's (protocol/differences.md) and no other file holds it."""

from __future__ import annotations

import pytest
from trio.testing import MockClock

from tests.broker.running import one_broker
from trio_rmq.wire.codes import RequestCode, ResponseCode

pytestmark = pytest.mark.trio


@pytest.mark.parametrize("group", ["a b", "grüppe", "x" * 256])
async def test_groups_made_on_first_use_have_legal_names(group: str, autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        await client.create_topic("T")
        answer = await client.beat("c1", group)
        assert answer.code != 0
        assert answer.remark
        assert (await client.pull("T", consumer_group=group)).code != 0
        groups = (await client.ask(RequestCode.GET_ALL_SUBSCRIPTIONGROUP_CONFIG)).body
        assert group.encode() not in groups


async def test_an_offset_that_moved_leaves_no_record(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        await client.create_topic("T")
        await client.send(b"one")
        assert (await client.pull("T", queue_offset=10**6)).code == ResponseCode.PULL_OFFSET_MOVED
        assert len(await client.stored("T")) == 1
        moved = await client.pull("OFFSET_MOVED_EVENT")
        assert moved.code != 0, "no event was stored"


async def test_an_unknown_code_sent_one_way_is_not_answered(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        await client.tell(4321)
        answer = await client.ask(4322)
        assert answer.code == ResponseCode.REQUEST_CODE_NOT_SUPPORTED
        assert "4322" in (answer.remark or ""), "the first answer on the connection is the second request's"


async def test_a_topic_made_by_a_send_is_told_of(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    async with one_broker() as (_, client):
        await client.send(b"one", "Fresh")
        await client.send(b"two", "Fresh")
    told = [record.message for record in caplog.records if "Fresh" in record.message and record.levelname == "WARNING"]
    assert len(told) == 1
    assert "this broker only" in told[0]
