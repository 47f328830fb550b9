"""Offset requests: consumed offsets (14, 15), first and next (31, 30), by time (29), earliest store time (32)."""

from __future__ import annotations

import msgspec
import pytest
import trio
from trio.testing import MockClock

from tests.broker.running import Client, one_broker
from trio_rmq.broker.offsets import ConsumerOffsetTable
from trio_rmq.testing.world import START_WALL_MS
from trio_rmq.wire import headers
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command


async def query(client: Client, group: str = "cg", topic: str = "T", queue_id: int = 0) -> Command:
    header = headers.QueryConsumerOffsetRequestHeader(consumer_group=group, topic=topic, queue_id=queue_id)
    return await client.ask(RequestCode.QUERY_CONSUMER_OFFSET, header)


async def update(client: Client, offset: int, queue_id: int = 0) -> int:
    header = headers.UpdateConsumerOffsetRequestHeader(
        consumer_group="cg", topic="T", queue_id=queue_id, commit_offset=offset
    )
    return (await client.ask(RequestCode.UPDATE_CONSUMER_OFFSET, header)).code


async def number(client: Client, code: int, header: msgspec.Struct, field: str = "offset") -> int:
    answer = await client.ask(code, header)
    assert answer.code == 0
    return int(answer.ext_fields()[field])


@pytest.mark.trio
async def test_a_new_group_begins_at_zero_while_the_queue_still_has_its_first_message(
    autojump_clock: MockClock,
) -> None:
    async with one_broker() as (_, client):
        await client.create_topic()
        assert (await query(client)).ext_fields() == {"offset": "0"}
        await client.send()
        assert (await query(client)).ext_fields() == {"offset": "0"}


@pytest.mark.trio
async def test_an_offset_is_what_was_committed_last(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        await client.create_topic()
        for offset in (5, 9, 3):
            assert await update(client, offset) == 0
            assert (await query(client)).ext_fields() == {"offset": str(offset)}
        assert (await query(client, "other")).ext_fields() == {"offset": "0"}
        assert await update(client, -1) == ResponseCode.SYSTEM_ERROR
        assert (await query(client)).ext_fields() == {"offset": "3"}
        header = headers.UpdateConsumerOffsetRequestHeader(consumer_group="cg", topic="T", queue_id=1, commit_offset=8)
        await client.tell(RequestCode.UPDATE_CONSUMER_OFFSET, header)
        assert (await query(client, queue_id=1)).ext_fields() == {"offset": "8"}


@pytest.mark.trio
async def test_first_next_and_times_of_a_queue(autojump_clock: MockClock) -> None:
    async with one_broker() as (_running, client):
        await client.create_topic()
        queue = {"topic": "T", "queue_id": 0}
        first = headers.GetMinOffsetRequestHeader(**queue)  # type: ignore[arg-type]  # the values fit
        after = headers.GetMaxOffsetRequestHeader(**queue)  # type: ignore[arg-type]  # the values fit
        earliest = headers.GetEarliestMsgStoretimeRequestHeader(**queue)  # type: ignore[arg-type]  # the values fit
        assert await number(client, RequestCode.GET_MAX_OFFSET, after) == 0
        assert await number(client, RequestCode.GET_MIN_OFFSET, first) == 0
        assert await number(client, RequestCode.GET_EARLIEST_MSG_STORETIME, earliest, "timestamp") == -1
        times = []
        for _ in range(3):
            await trio.sleep(10)
            await client.send()
        times = [message.store_timestamp_ms for message in await client.stored()]
        assert times[0] >= START_WALL_MS + 10_000
        assert await number(client, RequestCode.GET_MAX_OFFSET, after) == 3
        assert await number(client, RequestCode.GET_MIN_OFFSET, first) == 0
        assert await number(client, RequestCode.GET_EARLIEST_MSG_STORETIME, earliest, "timestamp") == times[0]
        for time, offset in ((0, 0), (times[0], 0), (times[0] + 1, 1), (times[2], 2), (times[2] + 1, 3)):
            search = headers.SearchOffsetRequestHeader(topic="T", queue_id=0, timestamp=time)
            assert await number(client, RequestCode.SEARCH_OFFSET_BY_TIMESTAMP, search) == offset


@pytest.mark.trio
async def test_search_by_time_takes_the_first_of_equal_times(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        await client.create_topic()
        for _ in range(20):
            await client.send()
        times = [message.store_timestamp_ms for message in await client.stored()]
        search = headers.SearchOffsetRequestHeader(topic="T", queue_id=0, timestamp=times[10])
        assert await number(client, RequestCode.SEARCH_OFFSET_BY_TIMESTAMP, search) == times.index(times[10])


@pytest.mark.trio
async def test_a_deleted_topic_takes_the_groups_offsets_with_it(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        await client.create_topic()
        for _ in range(3):
            await client.send()
        await update(client, 3)
        deleted = await client.ask(RequestCode.DELETE_TOPIC_IN_BROKER, headers.DeleteTopicRequestHeader(topic="T"))
        assert deleted.code == 0
        await client.create_topic()
        assert (await query(client)).ext_fields() == {"offset": "0"}
        assert (await client.send()).ext_fields()["queueOffset"] == "0"


def test_the_table_survives_its_file_with_bare_queue_ids() -> None:
    table = ConsumerOffsetTable()
    assert table.commit("g", "T", 0, 5) is None
    assert table.commit("g", "T", 0, 4) == 5
    table.commit("h", "T@x", 11, 6)
    was_unsaved = table.unsaved
    assert was_unsaved
    content = table.encode()
    assert not table.unsaved
    assert b"0:4" in content.replace(b" ", b"")
    again = ConsumerOffsetTable()
    again.load(content)
    assert again.query("g", "T", 0) == 4
    assert again.query("h", "T@x", 11) == 6
    assert again.topics_of_group("h") == ["T@x"]
    assert again.groups_of_topic("T") == ["g"]
    again.remove_group("h")
    assert again.query("h", "T@x", 11) is None
    assert again.queues("g", "T") == {0: 4}
    assert again.unsaved
