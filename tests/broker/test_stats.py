"""Rates by topic, group and broker: what a minute, an hour and a day show, and that the past does not count."""

from __future__ import annotations

import json

import pytest
import trio
from trio.testing import MockClock

from tests.broker.running import Client, broker_in, one_broker
from tests.broker.test_progress import fill
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.testing.world import open_world
from trio_rmq.wire import headers
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.consumer_stats import BrokerStatsData, decode_stats_data
from trio_rmq.wire.stats import decode_consume_stats

pytestmark = pytest.mark.trio

NEVER = 10**9
QUIET_STORE: dict[str, object] = {"clean_resource_interval": NEVER}
"""Nothing but the samples wakes the broker, so that days of virtual time take little."""


async def view(client: Client, name: str, key: str) -> BrokerStatsData:
    header = headers.ViewBrokerStatsDataRequestHeader(stats_name=name, stats_key=key)
    answer = await client.ask(RequestCode.VIEW_BROKER_STATS_DATA, header)
    assert answer.code == 0, answer.remark
    return decode_stats_data(answer.body)


async def runtime(client: Client) -> dict[str, str]:
    table: dict[str, str] = json.loads((await client.ask(RequestCode.GET_BROKER_RUNTIME_INFO)).body)["table"]
    return table


async def test_puts_and_gets_show_in_their_windows(autojump_clock: MockClock) -> None:
    async with one_broker(store=QUIET_STORE, flush_consumer_offset_interval=NEVER) as (_, client):
        await client.create_topic("T", 2)
        await trio.sleep(15)
        await fill(client, 40)
        await fill(client, 20, queue_id=1)
        pulled = len((await client.pull(max_msg_nums=32)).body)
        await trio.sleep(10)
        put = await view(client, "TOPIC_PUT_NUMS", "T")
        assert (put.stats_minute.sum, put.stats_hour.sum, put.stats_day.sum) == (60, 60, 60)
        assert put.stats_minute.tps == pytest.approx(60 / 20, rel=0.1)
        size = await view(client, "TOPIC_PUT_SIZE", "T")
        assert size.stats_minute.avgpt == pytest.approx(pulled / 32, rel=0.02)
        got = await view(client, "GROUP_GET_NUMS", "T@cg")
        assert (got.stats_minute.sum, got.stats_minute.avgpt) == (32, 32)
        assert (await view(client, "GROUP_GET_SIZE", "T@cg")).stats_minute.sum == pulled
        assert (await view(client, "BROKER_PUT_NUMS", "DefaultCluster")).stats_minute.sum == 60
        assert (await view(client, "BROKER_GET_NUMS", "DefaultCluster")).stats_minute.sum == 32
        await trio.sleep(70)
        put = await view(client, "TOPIC_PUT_NUMS", "T")
        assert (put.stats_minute.sum, put.stats_minute.tps, put.stats_hour.sum) == (0, 0, 60)
        await trio.sleep(2 * 3600)
        put = await view(client, "TOPIC_PUT_NUMS", "T")
        assert (put.stats_hour.sum, put.stats_day.sum) == (0, 60)
        await trio.sleep(26 * 3600)
        assert (await view(client, "TOPIC_PUT_NUMS", "T")).stats_day.sum == 0


async def test_what_was_never_counted_is_1(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        await trio.sleep(30)
        header = headers.ViewBrokerStatsDataRequestHeader(stats_name="TOPIC_PUT_NUMS", stats_key="Nowhere")
        answer = await client.ask(RequestCode.VIEW_BROKER_STATS_DATA, header)
        assert answer.code == ResponseCode.SYSTEM_ERROR
        assert answer.remark == "The stats <TOPIC_PUT_NUMS> <Nowhere> not exist"


async def test_messages_from_before_the_start_are_no_rate(autojump_clock: MockClock) -> None:
    disk = FaultyDisk()
    async with open_world() as world:
        async with broker_in(world, disk=disk) as running, running.client() as client:
            await fill(client, 50)
        async with broker_in(world, disk=disk) as running, running.client() as client:
            await trio.sleep(20)
            await fill(client, 3)
            await trio.sleep(20)
            assert (await view(client, "TOPIC_PUT_NUMS", "T")).stats_day.sum == 3


async def test_the_brokers_own_rates_and_mornings(autojump_clock: MockClock) -> None:
    async with one_broker(store=QUIET_STORE, flush_consumer_offset_interval=NEVER) as (_, client):
        await trio.sleep(1)
        await fill(client, 120)
        await trio.sleep(12)
        ten, minute, ten_minutes = map(float, (await runtime(client))["putTps"].split())
        assert ten == minute == ten_minutes == pytest.approx(12, rel=0.1)
        await trio.sleep(30)
        ten, minute, ten_minutes = map(float, (await runtime(client))["putTps"].split())
        assert ten == 0
        assert minute == ten_minutes == pytest.approx(3, rel=0.1)
        await trio.sleep(24 * 3600)
        await fill(client, 5)
        table = await runtime(client)
        counts = [table[f"msgPutTotal{when}"] for when in ("YesterdayMorning", "TodayMorning", "TodayNow")]
        assert counts == ["0", "120", "125"]


async def test_a_groups_rate_stands_in_its_progress(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        await trio.sleep(15)
        await fill(client, 30)
        await client.pull(max_msg_nums=30)
        await trio.sleep(10)
        header = headers.GetConsumeStatsRequestHeader(consumer_group="cg", topic="T")
        told = decode_consume_stats((await client.ask(RequestCode.GET_CONSUME_STATS, header)).body)
        assert told.consume_tps == pytest.approx(1.5, rel=0.1)
