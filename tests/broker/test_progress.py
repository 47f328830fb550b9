"""What a broker tells tools of groups' progress, and what it copies for them."""

from __future__ import annotations

import json

import pytest
import trio
from trio.testing import MockClock

from tests.broker.running import BROKER_NAME, Client, one_broker
from trio_rmq.wire import headers
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.consumer_stats import decode_corrections, decode_queue_entries, decode_time_spans
from trio_rmq.wire.groups import MessageQueue, decode_group_names
from trio_rmq.wire.stats import OffsetWrapper, decode_consume_stats

pytestmark = pytest.mark.trio

LONG_MAX = 2**63 - 1


async def commit(client: Client, group: str, offset: int, topic: str = "T", queue_id: int = 0) -> None:
    header = headers.UpdateConsumerOffsetRequestHeader(
        consumer_group=group, topic=topic, queue_id=queue_id, commit_offset=offset
    )
    assert (await client.ask(RequestCode.UPDATE_CONSUMER_OFFSET, header)).code == 0


async def fill(client: Client, count: int, topic: str = "T", queue_id: int = 0) -> None:
    for number in range(count):
        assert (await client.send(b"%d" % number, topic, queue_id=queue_id)).code == 0


async def stats(client: Client, **fields: str) -> dict[tuple[str, int], tuple[int, int]]:
    """(broker's offset, consumed offset) by topic and queue."""
    header = headers.GetConsumeStatsRequestHeader(**{"consumer_group": "cg", **fields})
    answer = await client.ask(RequestCode.GET_CONSUME_STATS, header)
    assert answer.code == 0
    table = decode_consume_stats(answer.body).offset_table
    assert {queue.broker_name for queue in table} <= {BROKER_NAME}
    return {
        (queue.topic, queue.queue_id): (offset.broker_offset, offset.consumer_offset) for queue, offset in table.items()
    }


async def test_a_groups_progress_by_topic_and_queue(autojump_clock: MockClock) -> None:
    async with one_broker() as (running, client):
        await client.create_topic("T", 2)
        await client.create_topic("U", 1)
        await fill(client, 5)
        await fill(client, 2, "U")
        await commit(client, "cg", 3)
        await commit(client, "cg", 1, "U")
        await commit(client, "cg", 1, "Gone")
        everything = {("T", 0): (5, 3), ("T", 1): (0, 0), ("U", 0): (2, 1)}
        assert await stats(client) == everything
        assert await stats(client, topic="U") == {("U", 0): (2, 1)}
        assert await stats(client, topic_list="U;T") == everything
        assert await stats(client, consumer_group="other") == {}
        header = headers.GetConsumeStatsRequestHeader(consumer_group="cg", topic="T")
        told = decode_consume_stats((await client.ask(RequestCode.GET_CONSUME_STATS, header)).body).offset_table
        first = told[MessageQueue(topic="T", broker_name=BROKER_NAME, queue_id=0)]
        assert isinstance(first, OffsetWrapper)
        assert 0 <= running.world.wall_ms() - first.last_timestamp < 1000
        await client.beat("c1", topics={"U": "*"})
        assert await stats(client) == {("U", 0): (2, 1)}, "a connected group's forsaken topics do not count"


async def test_who_consumes_a_topic_and_what_a_group_consumes(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        await client.create_topic()
        await commit(client, "absent", 0)
        await client.beat("c1", "present", topics={"T": "a || b"})
        answer = await client.ask(
            RequestCode.QUERY_TOPIC_CONSUME_BY_WHO, headers.QueryTopicConsumeByWhoRequestHeader(topic="T")
        )
        assert decode_group_names(answer.body).group_list == ["absent", "present"]
        answer = await client.ask(
            RequestCode.QUERY_TOPICS_BY_CONSUMER, headers.QueryTopicsByConsumerRequestHeader(group="absent")
        )
        assert json.loads(answer.body)["topicList"] == ["T"]
        for group, found in (("present", True), ("absent", False)):
            header = headers.QuerySubscriptionByConsumerRequestHeader(group=group, topic="T")
            body = json.loads((await client.ask(RequestCode.QUERY_SUBSCRIPTION_BY_CONSUMER, header)).body)
            assert (body.get("subscriptionData", {}).get("subString") == "a || b") is found


async def test_time_spans(autojump_clock: MockClock) -> None:
    async with one_broker() as (running, client):
        await client.create_topic("T", 2)
        start = running.world.wall_ms()
        await fill(client, 1)
        await trio.sleep(60)
        await fill(client, 1)
        await trio.sleep(60)
        await fill(client, 1)
        await commit(client, "cg", 1)
        header = headers.QueryConsumeTimeSpanRequestHeader(topic="T", group="cg")
        answer = await client.ask(RequestCode.QUERY_CONSUME_TIME_SPAN, header)
        first, empty = decode_time_spans(answer.body).consume_time_span_set
        times = (first.min_time_stamp, first.consume_time_stamp, first.max_time_stamp, first.delay_time)
        rounded = [round(time / 60_000) for time in (times[0] - start, times[1] - start, times[2] - start, times[3])]
        assert rounded == [0, 0, 2, 1]
        assert (empty.message_queue.queue_id, empty.min_time_stamp, empty.max_time_stamp, empty.delay_time) == (
            1, -1, -1, 0,
        )  # fmt: skip
        header = headers.QueryConsumeTimeSpanRequestHeader(topic="Nowhere", group="cg")
        answer = await client.ask(RequestCode.QUERY_CONSUME_TIME_SPAN, header)
        assert answer.code == ResponseCode.TOPIC_NOT_EXIST


async def test_correction_is_the_lowest_offset_of_the_others(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        await client.create_topic("T", 3)
        for queue_id in range(3):
            await fill(client, 9, queue_id=queue_id)
        for group, offsets in {"a": (4, 5), "b": (6, 2), "mine": (3, 7), "none": (0, 0)}.items():
            for queue_id, offset in enumerate(offsets):
                await commit(client, group, offset, queue_id=queue_id)

        async def ask(left_out: str | None) -> dict[int, int]:
            header = headers.QueryCorrectionOffsetHeader(filter_groups=left_out, compare_group="mine", topic="T")
            return decode_corrections(
                (await client.ask(RequestCode.QUERY_CORRECTION_OFFSET, header)).body
            ).correction_offsets

        assert await ask(None) == {0: 0, 1: 0}
        assert await ask("none,mine") == {0: LONG_MAX, 1: 2}
        assert await ask("none,mine") == {0: LONG_MAX, 1: 2}, "asking changes nothing"


async def test_cloned_offsets(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        await client.create_topic("T", 1)
        await client.create_topic("U", 1)
        await fill(client, 5)
        await fill(client, 5, "U")
        await commit(client, "source", 3)
        await commit(client, "source", 4, "U")
        header = headers.CloneGroupOffsetRequestHeader(src_group="source", dest_group="cg", topic="T", offline=True)
        assert (await client.ask(RequestCode.CLONE_GROUP_OFFSET, header)).code == 0
        assert await stats(client) == {("T", 0): (5, 3)}
        await client.beat("c1", "source", topics={"T": "*"})
        header = headers.CloneGroupOffsetRequestHeader(src_group="source", dest_group="cg")
        assert (await client.ask(RequestCode.CLONE_GROUP_OFFSET, header)).code == 0
        assert await stats(client) == {("T", 0): (5, 3)}, "an unsubscribed topic is left out unless offline"
        header = headers.CloneGroupOffsetRequestHeader(src_group="source", dest_group="cg", offline=True)
        assert (await client.ask(RequestCode.CLONE_GROUP_OFFSET, header)).code == 0
        assert await stats(client) == {("T", 0): (5, 3), ("U", 0): (5, 4)}
        await commit(client, "cg", 5)
        assert await stats(client, consumer_group="source") == {("T", 0): (5, 3)}, "the clone goes its own way"


async def test_the_lag_of_the_whole_broker(autojump_clock: MockClock) -> None:
    async with one_broker() as (running, client):
        await client.create_topic("T", 1)
        await fill(client, 7)
        await client.beat("c1")
        await commit(client, "cg", 3)
        answer = await client.ask(RequestCode.GET_BROKER_CONSUME_STATS, headers.GetConsumeStatsInBrokerHeader())
        assert b'"totalDiff":4' in answer.body
        assert f'"brokerAddr":"{running.ready.address}"'.encode() in answer.body
        assert b'"brokerOffset":7,"consumerOffset":3' in answer.body
        ordered = headers.GetConsumeStatsInBrokerHeader(is_order=True)
        assert b'"totalDiff":0' in (await client.ask(RequestCode.GET_BROKER_CONSUME_STATS, ordered)).body


async def test_queue_entries_and_the_filter_that_reads_them(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        await client.create_topic()
        await fill(client, 5)

        async def ask(**fields: object) -> tuple[int, str | None, bytes]:
            values: dict[str, object] = {"topic": "T", "queue_id": 0, "index": 0, "count": 10, **fields}
            header = headers.QueryConsumeQueueRequestHeader(**values)  # type: ignore[arg-type]  # fields of the header
            answer = await client.ask(RequestCode.QUERY_CONSUME_QUEUE, header)
            return answer.code, answer.remark, answer.body

        code, _, body = await ask(index=2)
        told = decode_queue_entries(body)
        assert (code, told.min_queue_index, told.max_queue_index) == (0, 0, 5)
        assert told.queue_data is not None
        assert len(told.queue_data) == 3
        assert told.queue_data[1].physic_offset == told.queue_data[0].physic_offset + told.queue_data[0].physic_size
        assert len(json.loads((await ask(count=2))[2])["queueData"]) == 2
        assert (await ask(topic="Nowhere"))[:2] == (ResponseCode.SYSTEM_ERROR, "0@Nowhere is not exist!")
        assert (await ask(index=5))[:2] == (0, "Index 5 of 0@T is not exist!")
        assert json.loads((await ask(consumer_group="cg"))[2])["filterData"] == "cg@T is not online!"
        await client.beat("c1", topics={"T": "x"})
        told = decode_queue_entries((await ask(consumer_group="cg"))[2])
        assert told.subscription_data is not None
        assert (told.subscription_data.sub_string, told.filter_data) == ("x", "null")
