"""Timers at the broker: never early, hardly late, kept through restarts, recalled, whatever the wall clock does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from tests.broker.running import BROKER, BROKER_NAME, Client, Running, broker_config, broker_in, one_broker
from trio_rmq.broker.deferring import RecallHandle, decode_recall_handle
from trio_rmq.broker.server import BrokerReady, serve_broker
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.testing.stores import small_config
from trio_rmq.testing.world import World, open_world
from trio_rmq.wire import headers
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.properties import parse_properties
from trio_rmq.wire.routes import decode_kv_table

pytestmark = pytest.mark.trio

DAY_MS = 86_400_000
TIMER = "rmq_sys_wheel_timer"


async def timed(client: Client, body: bytes = b"later", *, key: str = "K1", **properties: int) -> Command:
    """Send with the given TIMER_... properties."""
    text = "\x02".join([f"UNIQ_KEY\x01{key}", *(f"{name}\x01{value}" for name, value in properties.items())])
    return await client.send(body, properties=text)


async def recall(client: Client, handle: str, topic: str = "T") -> Command:
    header = headers.RecallMessageRequestHeader(producer_group="pg", topic=topic, recall_handle=handle)
    return await client.ask(RequestCode.RECALL_MESSAGE, header)


def handle_of(answer: Command) -> str:
    return answer.decode_header(headers.SendMessageResponseHeader).recall_handle or ""


async def delivered(client: Client, topic: str = "T") -> list[tuple[bytes, int]]:
    """(body, store time) of everything in queue 0."""
    return [(message.body, message.store_timestamp_ms) for message in await client.stored(topic)]


@pytest.mark.parametrize("name", ["TIMER_DELAY_MS", "TIMER_DELAY_SEC", "TIMER_DELIVER_MS"])
async def test_a_message_comes_at_its_time_to_the_millisecond(name: str, autojump_clock: MockClock) -> None:
    async with one_broker() as (running, client):
        now = running.world.wall_ms()
        value, due = {
            "TIMER_DELAY_MS": (1234, now + 1234),
            "TIMER_DELAY_SEC": (7, now + 7000),
            "TIMER_DELIVER_MS": (now + 4321, now + 4321),
        }[name]
        answer = await timed(client, **{name: value})  # type: ignore[arg-type]  # a name of the three
        header = answer.decode_header(headers.SendMessageResponseHeader)
        assert (answer.code, header.queue_id) == (0, 0)
        await trio.sleep((due - now) / 1000 - 0.02)
        assert await delivered(client) == []
        await trio.sleep(0.2)
        [(body, stored_ms)] = await delivered(client)
        assert body == b"later"
        assert due <= stored_ms <= due + 15  # the time that the request takes on its way comes on top
        [message] = await client.stored()
        properties = parse_properties(message.properties)
        assert (properties["REAL_TOPIC"], properties["REAL_QID"]) == ("T", "0")
        assert int(properties["TIMER_ENQUEUE_MS"]) <= now + 100
        assert int(properties["TIMER_DEQUEUE_MS"]) >= due
        assert int(properties["TIMER_OUT_MS"]) >= due
        assert properties[name] == str(value)


async def test_three_days_ahead(autojump_clock: MockClock) -> None:
    rare = 3_600_000  # what brokers do every few seconds would be most of three days' work
    async with one_broker(
        store={"clean_resource_interval": rare}, flush_consumer_offset_interval=rare, register_name_server_period=rare
    ) as (running, client):
        due = running.world.wall_ms() + 3 * DAY_MS
        assert (await timed(client, TIMER_DELIVER_MS=due)).code == 0
        await trio.sleep(3 * 86_400 - 1)
        async with running.client() as client:
            assert await delivered(client) == []
            await trio.sleep(2)
            [(_, stored_ms)] = await delivered(client)
        assert due <= stored_ms <= due + 100


async def test_many_come_in_the_order_of_their_times(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        delays = [900, 100, 500, 5000, 101, 100]
        for delay in delays:
            await timed(client, b"%d" % delay, TIMER_DELAY_MS=delay)
        await trio.sleep(10)
        assert [body for body, _ in await delivered(client)] == [b"100", b"101", b"100", b"500", b"900", b"5000"]


async def test_what_cannot_wait_is_refused_or_delivered_at_once(autojump_clock: MockClock) -> None:
    async with one_broker() as (running, client):
        now = running.world.wall_ms()
        for value in (now + 3 * DAY_MS + 1000, "soon"):
            answer = await timed(client, TIMER_DELIVER_MS=value)  # type: ignore[arg-type]  # also what is no number
            assert answer.code == ResponseCode.MESSAGE_ILLEGAL
            assert "timer message illegal" in (answer.remark or "")
        answer = await timed(client, TIMER_DELIVER_MS=now - 1000)
        assert (answer.code, handle_of(answer)) == (0, "")
        assert len(await delivered(client)) == 1
        answer = await client.send(properties="TIMER_DELAY_SEC\x015\x02TIMER_OUT_MS\x01123")  # was delivered once
        assert len(await delivered(client)) == 2
        assert (await client.send(topic=TIMER)).code == ResponseCode.NO_PERMISSION


async def test_switched_off_it_is_refused(autojump_clock: MockClock) -> None:
    async with one_broker(store={"timer_wheel_enable": False}) as (_, client):
        answer = await timed(client, TIMER_DELAY_MS=5)
        assert answer.code == ResponseCode.SYSTEM_ERROR
        assert "timerWheelEnable" in (answer.remark or "")


async def test_a_delay_level_counts_more_than_a_time(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        await client.send(b"x", properties="DELAY\x012\x02TIMER_DELAY_MS\x01100")
        await trio.sleep(4)
        assert await delivered(client) == []
        await trio.sleep(3)
        [properties] = await client.properties()
        assert "TIMER_DELAY_MS" not in properties


async def test_a_recalled_message_is_not_delivered(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        handles = [handle_of(await timed(client, key, key=key.decode(), TIMER_DELAY_MS=5000)) for key in (b"A", b"B")]
        answer = await client.ask(RequestCode.GET_BROKER_RUNTIME_INFO)
        assert decode_kv_table(answer.body).table["timerCongestNum"] == "2"
        handle = decode_recall_handle(handles[0])
        assert (handle.topic, handle.broker_name, handle.unique_key) == ("T", BROKER_NAME, "A")
        await trio.sleep(4.9)
        answer = await recall(client, handles[0])
        assert (answer.code, answer.decode_header(headers.RecallMessageResponseHeader).msg_id) == (0, "A")
        await trio.sleep(5)
        assert [body for body, _ in await delivered(client)] == [b"B"]
        answer = await recall(client, handles[1])
        assert (answer.code, answer.remark) == (ResponseCode.ILLEGAL_OPERATION, "recall failed, timestamp invalid")


async def test_recalls_that_cannot_be(autojump_clock: MockClock) -> None:
    async with one_broker() as (running, client):
        later = running.world.wall_ms() + 60_000
        await client.send()
        for topic, handle, code, remark in [
            ("T", "!!", ResponseCode.ILLEGAL_OPERATION, "recall handle is invalid"),
            ("T", "djIgVCBi", ResponseCode.ILLEGAL_OPERATION, "recall handle is invalid"),
            ("None", "x", ResponseCode.TOPIC_NOT_EXIST, "recall failed, the topic[None] not exist"),
            ("T", RecallHandle("U", BROKER_NAME, later, "K").encode(), 604, "recall failed, topic not match"),
            ("T", RecallHandle("T", "x", later, "K").encode(), 604, "recall failed, broker service not available"),
            (
                "T",
                RecallHandle("T", BROKER_NAME, later + 3 * DAY_MS, "K").encode(),
                604,
                "recall failed, timestamp invalid",
            ),
        ]:
            answer = await recall(client, handle, topic)
            assert (answer.code, answer.remark) == (code, remark)


async def test_a_restart_keeps_what_waits_and_what_was_recalled(autojump_clock: MockClock) -> None:
    disk = FaultyDisk()
    async with open_world() as world:
        async with broker_in(world, disk=disk) as running, running.client() as client:
            for key, delay in (("done", 1000), ("soon", 20_000), ("late", 90_000), ("gone", 30_000)):
                answer = await timed(client, key.encode(), key=key, TIMER_DELAY_MS=delay)
            assert (await recall(client, handle_of(answer))).code == 0
            await trio.sleep(2)
            assert [body for body, _ in await delivered(client)] == [b"done"]
        await trio.sleep(40)
        async with broker_in(world, disk=disk) as running, running.client() as client:
            await trio.sleep(0.1)
            assert [body for body, _ in await delivered(client)] == [b"done", b"soon"]
            await trio.sleep(100)
            assert [body for body, _ in await delivered(client)] == [b"done", b"soon", b"late"]
            assert (await timed(client, b"again", TIMER_DELAY_MS=10)).code == 0
            await trio.sleep(1)
            assert len(await delivered(client)) == 4


async def test_a_kill_after_the_delivery_delivers_nothing_again(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        async with broker_in(world) as running, running.client() as client:
            for delay in (1000, 1000, 1500, 60_000):
                await timed(client, b"%d" % delay, TIMER_DELAY_MS=delay)
            await trio.sleep(1.55)
            assert len(await delivered(client)) == 3
            left = running.disk.survivor_of_kill()
        async with broker_in(world, disk=left) as running, running.client() as client:
            await trio.sleep(70)
            assert [body for body, _ in await delivered(client)] == [b"1000", b"1000", b"1500", b"60000"]


async def test_a_restart_after_the_clock_was_set_back_delivers_nothing_again(autojump_clock: MockClock) -> None:
    offset = 0
    async with open_world() as world:
        disk = FaultyDisk()
        with world.node(BROKER, wall_offset_ms=lambda: offset):
            async with serving(world, disk) as client:
                for number in range(3):
                    await timed(client, b"before %d" % number, TIMER_DELAY_MS=1000 * (number + 1))
                await trio.sleep(5)
                offset = -4500  # what was due in these seconds was delivered
                await trio.sleep(0.2)
                await timed(client, b"after", TIMER_DELAY_MS=1000)
                await timed(client, b"late", TIMER_DELAY_MS=100_000)
                await trio.sleep(0.2)
            before = [b"before 0", b"before 1", b"before 2"]
            async with serving(world, disk) as client:
                await trio.sleep(0.1)
                assert [body for body, _ in await delivered(client)] == before
                await trio.sleep(100)
                assert [body for body, _ in await delivered(client)] == [*before, b"after", b"late"]
            async with serving(world, disk) as client:
                await trio.sleep(1)
                assert len(await delivered(client)) == 5


async def test_what_a_kill_left_delivered_is_not_repeated_after_the_next_one(autojump_clock: MockClock) -> None:
    """The clock was set back in between: what was delivered at the first start is due once more at the second."""
    offset, disk = 0, FaultyDisk()
    async with open_world() as world:
        with world.node(BROKER, wall_offset_ms=lambda: offset):
            async with serving(world, disk) as client:
                await timed(client, b"first", TIMER_DELAY_MS=1000)
                await trio.sleep(5)
                await timed(client, b"again", TIMER_DELAY_MS=2000)
                await trio.sleep(2.05)
                left = disk.survivor_of_kill()
                assert [body for body, _ in await delivered(client)] == [b"first", b"again"]
            offset = -60_000
            async with serving(world, left) as client:
                await timed(client, b"other", TIMER_DELAY_MS=1000)
                await timed(client, b"last", TIMER_DELAY_MS=70_000)
                await trio.sleep(12)
                left = left.survivor_of_kill()
            offset = 0
            async with serving(world, left) as client:
                await trio.sleep(30)
                assert [body for body, _ in await delivered(client)] == [b"first", b"again", b"other", b"last"]


@asynccontextmanager
async def serving(world: World, disk: FaultyDisk) -> AsyncIterator[Client]:
    """A broker of the node we are in."""
    async with trio.open_nursery() as nursery:
        serve = partial(serve_broker, broker_config(), small_config("store"), disk=disk)
        ready: BrokerReady = await nursery.start(serve)
        async with Running(world, ready, disk, nursery.cancel_scope).client() as client:
            yield client
        nursery.cancel_scope.cancel()


async def test_the_clock_set_back_delivers_nothing_early_and_set_forward_loses_nothing(
    autojump_clock: MockClock,
) -> None:
    offset = 0
    async with open_world() as world, trio.open_nursery() as nursery:
        disk = FaultyDisk()
        with world.node(BROKER, wall_offset_ms=lambda: offset):
            ready: BrokerReady = await nursery.start(
                partial(serve_broker, broker_config(), small_config("store"), disk=disk)
            )
        running = Running(world, ready, disk, nursery.cancel_scope)
        async with running.client() as client:
            due = world.wall_ms() + 60_000
            await timed(client, b"x", TIMER_DELIVER_MS=due)
            offset = -3_600_000
            await trio.sleep(100)
            assert await delivered(client) == []
            offset = 0
            await trio.sleep(61)
            assert [body for body, _ in await delivered(client)] == [b"x"]
            await timed(client, b"y", TIMER_DELIVER_MS=world.wall_ms() + 3_000_000)
            await timed(client, b"z", TIMER_DELIVER_MS=world.wall_ms() + 9_000_000)
            offset = 3_600_000
            await trio.sleep(61)
            assert [body for body, _ in await delivered(client)] == [b"x", b"y"]
            offset = 10_000_000
            await trio.sleep(61)
            assert [body for body, _ in await delivered(client)] == [b"x", b"y", b"z"]
        running.stop()
