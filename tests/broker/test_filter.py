"""SQL92 filters at the broker: by heartbeat and by request, their codes, their file, retry topics, held pulls."""

from __future__ import annotations

import json
import logging

import msgspec
import pytest
import trio
from trio.testing import MockClock

from tests.broker.running import Client, broker_in, one_broker
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.testing.world import open_world
from trio_rmq.wire import headers
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.heartbeat import ConsumerData, HeartbeatData, SubscriptionData, build_subscription
from trio_rmq.wire.record import decode_records, record_properties
from trio_rmq.wire.sysflag import PULL_SUBSCRIPTION, PULL_SUSPEND

pytestmark = pytest.mark.trio


def bodies(answer: Command) -> list[bytes]:
    return [message.body for message in decode_records(answer.body)]


async def send(client: Client, body: bytes, topic: str = "T", **properties: str) -> None:
    text = "\x02".join(f"{name}\x01{value}" for name, value in properties.items())
    assert (await client.send(body, topic, properties=text)).code == 0


async def subscribe(
    client: Client, text: str, *, version: int = 1, topic: str = "T", kind: str = "SQL92", client_id: str = "c1"
) -> None:
    data = build_subscription(topic, text, expression_type=kind, sub_version=version)
    await beat(client, data, client_id=client_id)


async def beat(client: Client, *data: SubscriptionData, client_id: str = "c1") -> None:
    consumer = ConsumerData(group_name="cg", subscription_data_set=list(data))
    body = msgspec.json.encode(HeartbeatData(client_id=client_id, consumer_data_set=[consumer]))
    assert (await client.ask(RequestCode.HEART_BEAT, body=body)).code == 0


async def by_heartbeat(client: Client, version: int = 1, flags: int = 0, topic: str = "T", **fields: object) -> Command:
    return await client.pull(
        topic, sys_flag=flags, subscription=None, expression_type="SQL92", sub_version=version, **fields
    )


async def by_request(client: Client, text: str, kind: str = "SQL92", topic: str = "T", **fields: object) -> Command:
    return await client.pull(topic, subscription=text, expression_type=kind, **fields)


async def test_a_filter_in_the_request_picks_messages(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        for number in range(5):
            await send(client, b"%d" % number, a=str(number), colour="red" if number % 2 else "blue")
        answer = await by_request(client, "a > 1 AND colour = 'red'")
        assert (answer.code, bodies(answer)) == (0, [b"3"])
        assert answer.ext_fields()["nextBeginOffset"] == "5"
        nothing = await by_request(client, "a > 10")
        assert nothing.code == ResponseCode.PULL_RETRY_IMMEDIATELY
        assert nothing.ext_fields()["nextBeginOffset"] == "5"


async def test_a_property_that_cannot_be_compared_is_no_match(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        await send(client, b"text", a="no number")
        await send(client, b"number", a="7")
        await send(client, b"none", b="1")
        assert bodies(await by_request(client, "a >= 7")) == [b"number"]


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("a >", "SQL92", "parse the consumer's subscription failed: column 4"),
        ("", "SQL92", "must not be empty"),
        ("a > 1", "SQL93", "unknown type SQL93: use TAG or SQL92"),
    ],
)
async def test_a_filter_that_cannot_be_read_is_23(autojump_clock: MockClock, text: str, kind: str, words: str) -> None:
    async with one_broker() as (_, client):
        await send(client, b"x", a="1")
        answer = await by_request(client, text, kind)
        assert answer.code == ResponseCode.SUBSCRIPTION_PARSE_FAILED
        assert words in (answer.remark or "")


async def test_a_filter_of_the_heartbeat_needs_its_registration(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        await send(client, b"1", a="1")
        await send(client, b"2", a="2")
        assert (await by_heartbeat(client)).code == ResponseCode.SUBSCRIPTION_NOT_EXIST
        await subscribe(client, "a = 2")
        assert bodies(await by_heartbeat(client)) == [b"2"]
        assert (await by_heartbeat(client, version=2)).code == ResponseCode.SUBSCRIPTION_NOT_LATEST
        await subscribe(client, "a = 1", version=2)
        assert bodies(await by_heartbeat(client, version=2)) == [b"1"]


async def test_a_broken_filter_of_a_heartbeat_is_27(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        await send(client, b"1", a="1")
        await subscribe(client, "a = (")
        assert (await by_heartbeat(client)).code == ResponseCode.FILTER_DATA_NOT_EXIST
        await subscribe(client, "a = 1", version=2)
        assert bodies(await by_heartbeat(client)) == [b"1"]


async def test_a_registration_behind_the_subscription_is_28(autojump_clock: MockClock) -> None:
    """A newer subscription without an expression, which no client of ours sends, registers nothing."""
    async with one_broker() as (_, client):
        await send(client, b"1", a="1")
        await subscribe(client, "a = 1")
        await beat(client, SubscriptionData(topic="T", sub_string="", expression_type="SQL92", sub_version=5))
        assert (await by_heartbeat(client, version=5)).code == ResponseCode.FILTER_DATA_NOT_LATEST
        assert bodies(await by_heartbeat(client, version=1)) == [b"1"]


async def leave(client: Client) -> None:
    header = headers.UnregisterClientRequestHeader(client_id="c1", consumer_group="cg")
    assert (await client.ask(RequestCode.UNREGISTER_CLIENT, header)).code == 0


async def test_a_broker_that_serves_no_filters_says_so(autojump_clock: MockClock) -> None:
    async with one_broker(enable_property_filter=False) as (_, client):
        await send(client, b"1", a="1")
        answer = await by_request(client, "a = 1")
        assert answer.code == ResponseCode.SYSTEM_ERROR
        assert answer.remark is not None
        assert answer.remark.startswith("The broker does not support consumer to filter message by SQL92")
        assert (await check(client, "a = 1")).code == ResponseCode.SYSTEM_ERROR
        assert (await check(client, "a", "TAG")).code == 0
        await subscribe(client, "a = 1")
        assert (await by_heartbeat(client)).code == ResponseCode.SYSTEM_ERROR


async def check(client: Client, text: str, kind: str = "SQL92") -> Command:
    data = {"topic": "T", "subString": text, "expressionType": kind}
    body = json.dumps({"clientId": "c1", "group": "cg", "subscriptionData": data}).encode()
    return await client.ask(RequestCode.CHECK_CLIENT_CONFIG, body=body)


async def test_a_client_has_its_filter_checked_before_it_starts(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with one_broker() as (_, client):
        assert (await check(client, "a BETWEEN 1 AND 5 OR b IS NOT NULL")).code == 0
        refused = await check(client, "a BETWEEN 5 AND 1")
        assert refused.code == ResponseCode.SUBSCRIPTION_PARSE_FAILED
        assert "lower bound first" in (refused.remark or "")
        assert (await client.ask(RequestCode.CHECK_CLIENT_CONFIG, body=b"{}")).code == 0
        with caplog.at_level(logging.WARNING):
            assert (await check(client, "a = 1) OR b = 2")).code == 0
        assert "counts for nothing" in caplog.text


async def test_a_filter_outlives_its_consumers_and_the_broker(autojump_clock: MockClock) -> None:
    disk = FaultyDisk()
    async with open_world() as world:
        async with broker_in(world, disk=disk) as running, running.client() as client:
            await subscribe(client, "a = 1", version=7)
        kept = json.loads(disk.read_file("store/config/consumerFilter.json"))
        data = kept["filterDataByTopic"]["T"]["groupFilterData"]["cg"]
        assert (data["expression"], data["clientVersion"]) == ("a = 1", 7)
        async with broker_in(world, disk=disk) as running, running.client() as client:
            await send(client, b"1", a="1")
            await subscribe(client, "a = 1", version=7)
            assert bodies(await by_heartbeat(client, version=7)) == [b"1"]
            await trio.sleep(10)
            again = json.loads(disk.read_file("store/config/consumerFilter.json"))
            assert again["filterDataByTopic"]["T"]["groupFilterData"]["cg"]["deadTime"] == 0
            await leave(client)
            await trio.sleep(10)
            gone = json.loads(disk.read_file("store/config/consumerFilter.json"))
            assert gone["filterDataByTopic"]["T"]["groupFilterData"]["cg"]["dead"]


async def test_a_file_of_another_bloom_filter_counts_for_nothing(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    disk = FaultyDisk()
    async with open_world() as world:
        async with broker_in(world, disk=disk) as running, running.client() as client:
            await subscribe(client, "a = 1", version=7)
        async with (
            broker_in(world, disk=disk, expect_consumer_num_use_filter=64) as running,
            running.client() as client,
        ):
            assert "consumerFilter.json was written with another" in caplog.text
            await send(client, b"1", a="1")
            await subscribe(client, "a = 1", version=7)
            assert bodies(await by_heartbeat(client, version=7)) == [b"1"]


async def test_retry_topics_are_filtered_by_the_filter_of_the_messages_own_topic(autojump_clock: MockClock) -> None:
    async with one_broker(filter_support_retry=True) as (_, client):
        await beat(
            client,
            build_subscription("T", "a = 1", expression_type="SQL92", sub_version=1),
            build_subscription("%RETRY%cg", "a = 9", expression_type="SQL92", sub_version=1),
        )
        await send(client, b"one", "%RETRY%cg", a="1", RETRY_TOPIC="T")
        await send(client, b"nine", "%RETRY%cg", a="9", RETRY_TOPIC="T")
        await send(client, b"other", "%RETRY%cg", a="5", RETRY_TOPIC="Elsewhere")
        assert bodies(await by_heartbeat(client, topic="%RETRY%cg")) == [b"one", b"other"]
    async with one_broker() as (_, client):
        await beat(client, build_subscription("%RETRY%cg", "a = 9", expression_type="SQL92", sub_version=1))
        await send(client, b"one", "%RETRY%cg", a="1", RETRY_TOPIC="T")
        await send(client, b"nine", "%RETRY%cg", a="9", RETRY_TOPIC="T")
        assert bodies(await by_heartbeat(client, topic="%RETRY%cg")) == [b"nine"]


async def test_a_held_pull_wakes_only_for_what_its_filter_takes(autojump_clock: MockClock) -> None:
    async with one_broker() as (running, client), running.client() as sender:
        await send(sender, b"first", a="0")
        await subscribe(client, "a = 1")
        answers: list[tuple[float, Command]] = []

        async def pull() -> None:
            answer = await by_heartbeat(client, flags=PULL_SUSPEND, queue_offset=1, suspend_timeout_millis=20_000)
            answers.append((trio.current_time(), answer))

        async with trio.open_nursery() as nursery:
            begun = trio.current_time()
            nursery.start_soon(pull)
            for second in range(5):
                await trio.sleep(1)
                await send(sender, b"no %d" % second, a="2")
                assert not answers
            await trio.sleep(1)
            await send(sender, b"yes", a="1")
        when, answer = answers[0]
        assert 6 <= when - begun < 6.5
        assert (answer.code, bodies(answer), answer.ext_fields()["nextBeginOffset"]) == (0, [b"yes"], "7")


async def test_a_held_pull_without_a_match_ends_on_time_behind_what_it_passed(autojump_clock: MockClock) -> None:
    async with one_broker() as (running, client), running.client() as sender:
        await send(sender, b"first", a="0")
        begun = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def others() -> None:
                for _ in range(4):
                    await trio.sleep(1)
                    await send(sender, b"no", a="2")

            nursery.start_soon(others)
            answer = await by_request(
                client, "a = 1", sys_flag=PULL_SUSPEND | PULL_SUBSCRIPTION, queue_offset=1, suspend_timeout_millis=5000
            )
        assert 5 <= trio.current_time() - begun < 5.5
        assert answer.code == ResponseCode.PULL_NOT_FOUND
        assert answer.ext_fields()["nextBeginOffset"] == "5"


async def test_a_bit_map_beside_the_queue_spares_reading_records(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[bytes] = []

    def look(record: bytes) -> bytes:
        looked_at.append(record)
        return record_properties(record)

    monkeypatch.setattr("trio_rmq.broker.wanted.record_properties", look)
    store: dict[str, object] = {"enable_consume_queue_ext": True}
    async with one_broker(store=store, enable_calc_filter_bit_map=True) as (_, client):
        await send(client, b"before", a="1")
        await trio.sleep(1)
        await subscribe(client, "a = 1")
        await trio.sleep(1)
        for number in range(6):
            await send(client, b"%d" % number, a=str(number % 2))
        assert bodies(await by_heartbeat(client)) == [b"before", b"1", b"3", b"5"]
        assert len(looked_at) == 4, "the map proves of the three others that the filter is not true of them"
        assert bodies(await by_request(client, "a = 0")) == [b"0", b"2", b"4"]
        await trio.sleep(1)
        await subscribe(client, "a = 0", version=2)
        # Maps of before this expression do not know it, so those records are looked at.
        assert bodies(await by_heartbeat(client, version=2)) == [b"0", b"2", b"4"]
