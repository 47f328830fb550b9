"""CONSUMER_SEND_MSG_BACK: what a consumer could not use comes again later, or goes to the group's dead letters."""

from __future__ import annotations

from random import Random

import pytest
import trio
from trio.testing import MockClock

from tests.broker.running import Client, one_broker
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.wire import headers
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.record import StoredMessage

pytestmark = pytest.mark.trio

RETRY, DEAD = "%RETRY%cg", "%DLQ%cg"


async def send_back(client: Client, message: StoredMessage | None, **fields: object) -> Command:
    values: dict[str, object] = {
        "offset": message and message.physical_offset,
        "group": "cg",
        "delay_level": 0,
        **fields,
    }
    header = headers.ConsumerSendMsgBackRequestHeader(**values)  # type: ignore[arg-type]  # the values are those of the fields
    return await client.ask(RequestCode.CONSUMER_SEND_MSG_BACK, header)


async def one_message(client: Client) -> StoredMessage:
    """A message of topic T, with a member of the group to consume it."""
    await client.create_topic()
    await client.beat("c1")
    assert (await client.send(b"x", properties="UNIQ_KEY\x01AA\x02TAGS\x01red\x02WAIT\x01true")).code == 0
    [message] = await client.stored()
    return message


async def test_the_first_retry_comes_after_ten_seconds_with_its_history(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        message = await one_message(client)
        assert (await send_back(client, message)).code == ResponseCode.SUCCESS
        await trio.sleep(9)
        assert not await client.stored(RETRY)
        await trio.sleep(1.1)
        [again] = await client.stored(RETRY)
        assert (again.body, again.reconsume_times, again.tags) == (b"x", 1, "red")
        properties = again.property_map()
        assert properties["RETRY_TOPIC"] == "T"
        assert properties["ORIGIN_MESSAGE_ID"] == message.offset_message_id
        assert (properties["DELAY"], properties["REAL_TOPIC"], properties["UNIQ_KEY"]) == ("3", RETRY, "AA")
        assert (await send_back(client, again)).code == ResponseCode.SUCCESS
        await trio.sleep(30.1)
        _, third = await client.stored(RETRY)
        assert third.reconsume_times == 2
        assert third.property_map()["ORIGIN_MESSAGE_ID"] == message.offset_message_id, "of the very first"
        assert third.property_map()["RETRY_TOPIC"] == "T"


async def test_the_listener_chooses_the_level(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        message = await one_message(client)
        assert (await send_back(client, message, delay_level=1)).code == ResponseCode.SUCCESS
        await trio.sleep(1.1)
        assert len(await client.stored(RETRY)) == 1


@pytest.mark.parametrize(
    "fields", [{"delay_level": -1}, {"max_reconsume_times": 0}], ids=["the listener says so", "too often"]
)
async def test_dead_letters(fields: dict[str, object], autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        message = await one_message(client)
        assert (await send_back(client, message, **fields)).code == ResponseCode.SUCCESS
        [dead] = await client.stored(DEAD)
        assert (dead.body, dead.reconsume_times) == (b"x", 1)
        assert dead.property_map()["RETRY_TOPIC"] == "T"
        await trio.sleep(8000)
        assert not await client.stored(RETRY)


async def test_the_groups_own_maximum_counts_for_old_clients(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        message = await one_message(client)
        for _ in range(16):
            assert (await send_back(client, message)).code == ResponseCode.SUCCESS
            await trio.sleep(7201)
            message = (await client.stored(RETRY))[-1]
        assert message.reconsume_times == 16
        assert (await send_back(client, message)).code == ResponseCode.SUCCESS
        await trio.sleep(7201)
        assert len(await client.stored(RETRY)) == 16
        assert len(await client.stored(DEAD)) == 1


async def test_what_cannot_be_sent_back_is_told(autojump_clock: MockClock) -> None:
    async with one_broker(auto_create_subscription_group=False) as (_, client):
        answer = await send_back(client, None, offset=0)
        assert answer.code == ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST
        assert "cg" in (answer.remark or "")
    async with one_broker() as (_, client):
        message = await one_message(client)
        for offset in (1, message.physical_offset + message.size_bytes, -1, 2**62):
            answer = await send_back(client, message, offset=offset)
            assert answer.code == ResponseCode.SYSTEM_ERROR
            assert str(offset) in (answer.remark or "")


async def test_a_plain_send_to_the_retry_topic_counts_its_retries(autojump_clock: MockClock) -> None:
    """What RocketMQ's client does when its broker takes nothing back."""
    async with one_broker() as (_, client):
        await one_message(client)
        for times in (1, 2):
            answer = await client.send(
                b"again",
                RETRY,
                properties="RETRY_TOPIC\x01T\x02DELAY\x013",
                reconsume_times=times,
                max_reconsume_times=2,
            )
            assert answer.code == ResponseCode.SUCCESS
        await trio.sleep(10.1)
        [again] = await client.stored(RETRY)
        assert again.reconsume_times == 1
        [dead] = await client.stored(DEAD)
        assert dead.reconsume_times == 2


@pytest.mark.parametrize("seed", range(8))
async def test_under_sync_flush_an_acknowledged_retry_survives_a_power_loss(
    seed: int, autojump_clock: MockClock
) -> None:
    settings: dict[str, object] = {"flush_disk_type": "SYNC_FLUSH"}
    disk = FaultyDisk(latency=lambda: 0.2)
    async with one_broker(disk=disk, store=settings) as (_, client):
        message = await one_message(client)
        began = trio.current_time()
        assert (await send_back(client, message)).code == ResponseCode.SUCCESS
        assert trio.current_time() - began >= 0.2, "answered after the sync"
        left = disk.survivor_of_power_loss(Random(seed))
    async with one_broker(disk=left, store=settings) as (_, client):
        await trio.sleep(11)
        [again] = await client.stored(RETRY)
        assert again.reconsume_times == 1
