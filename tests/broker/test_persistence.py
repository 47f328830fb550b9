"""What a broker remembers over a restart, in order or killed: topics, groups, offsets, messages."""

from __future__ import annotations

import msgspec
import pytest
import trio
import trio.testing

from tests.broker.running import Client, Running, broker_in
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.testing.world import open_world
from trio_rmq.wire import headers
from trio_rmq.wire.codes import RequestCode, ResponseCode

pytestmark = pytest.mark.trio


async def fill(running: Running) -> None:
    """A topic of three queues, a group that gives up after 3 tries, two messages, and progress in one queue."""
    async with running.client() as client:
        await client.create_topic("Mine", queues=3)
        group = {"groupName": "cg", "retryMaxTimes": 3, "consumeBroadcastEnable": False}
        answer = await client.ask(RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, body=msgspec.json.encode(group))
        assert answer.code == 0
        for body in (b"one", b"two"):
            assert (await client.send(body, "Mine", queue_id=2)).code == 0
        await commit(client, 1)


async def commit(client: Client, offset: int) -> None:
    header = headers.UpdateConsumerOffsetRequestHeader(
        consumer_group="cg", topic="Mine", queue_id=2, commit_offset=offset
    )
    assert (await client.ask(RequestCode.UPDATE_CONSUMER_OFFSET, header)).code == 0


async def committed(client: Client) -> int:
    header = headers.QueryConsumerOffsetRequestHeader(consumer_group="cg", topic="Mine", queue_id=2)
    answer = await client.ask(RequestCode.QUERY_CONSUMER_OFFSET, header)
    assert answer.code == 0, answer.remark
    return int(answer.ext_fields()["offset"])


async def tables(client: Client) -> tuple[object, object]:
    """The topic Mine and the group cg, as tools see them."""
    topics = msgspec.json.decode((await client.ask(RequestCode.GET_ALL_TOPIC_CONFIG)).body)
    groups = msgspec.json.decode((await client.ask(RequestCode.GET_ALL_SUBSCRIPTIONGROUP_CONFIG)).body)
    return topics["topicConfigTable"].get("Mine"), groups["subscriptionGroupTable"].get("cg")


async def test_a_stop_in_order_forgets_nothing(autojump_clock: trio.testing.MockClock) -> None:
    disk = FaultyDisk()
    async with open_world() as world:
        async with broker_in(world, disk=disk) as running:
            await fill(running)
            async with running.client() as client:
                before = await tables(client)
        async with broker_in(world, disk=disk) as running, running.client() as client:
            assert await tables(client) == before
            assert isinstance(before[1], dict)
            assert before[1]["retryMaxTimes"] == 3
            assert await committed(client) == 1
            assert [message.body for message in await client.stored("Mine", 2)] == [b"one", b"two"]


async def test_a_kill_forgets_offsets_of_the_last_seconds_only(autojump_clock: trio.testing.MockClock) -> None:
    """Topics and groups are written as they change, offsets every 5 s, messages at once."""
    disk = FaultyDisk()
    async with open_world() as world:
        async with broker_in(world, disk=disk) as running:
            await fill(running)
            async with running.client() as client:
                before = await tables(client)
                await trio.sleep(6)
                await commit(client, 2)
                survivor = disk.survivor_of_kill()
        async with broker_in(world, disk=survivor) as running, running.client() as client:
            assert await tables(client) == before
            assert await committed(client) == 1, "a consumer gets at most some messages again"
            assert [message.body for message in await client.stored("Mine", 2)] == [b"one", b"two"]


async def test_a_deleted_topic_stays_deleted(autojump_clock: trio.testing.MockClock) -> None:
    disk = FaultyDisk()
    async with open_world() as world:
        async with broker_in(world, disk=disk) as running:
            await fill(running)
            async with running.client() as client:
                header = headers.DeleteTopicRequestHeader(topic="Mine")
                assert (await client.ask(RequestCode.DELETE_TOPIC_IN_BROKER, header)).code == 0
                survivor = disk.survivor_of_kill()
        for found in (disk, survivor):
            async with broker_in(world, disk=found) as running, running.client() as client:
                assert (await tables(client))[0] is None
                assert (await client.pull("Mine", queue_id=2)).code == ResponseCode.TOPIC_NOT_EXIST


async def test_a_broken_table_is_replaced_by_its_backup(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    disk = FaultyDisk()
    async with open_world() as world:
        async with broker_in(world, disk=disk) as running:
            await fill(running)
            async with running.client() as client:
                await client.create_topic("Later")
        disk.write_file("store/config/topics.json", b'{"topicConfigTable":{"Mi')
        async with broker_in(world, disk=disk) as running, running.client() as client:
            assert (await tables(client))[0] is not None
        assert "topics.json" in caplog.text


async def test_a_table_that_cannot_be_written_is_said_once_and_when_it_can_be_again(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    disk = FaultyDisk()
    async with open_world() as world, broker_in(world, disk=disk) as running:
        await fill(running)
        await trio.sleep(10)
        disk.capacity_bytes = 0
        async with running.client() as client:
            await commit(client, 2)
            await trio.sleep(60)
            assert caplog.text.count("consumerOffset.json cannot be written") == 1
            disk.capacity_bytes = None
            await trio.sleep(10)
            assert caplog.text.count("consumerOffset.json can be written again") == 1
        left = disk.survivor_of_kill()
    async with open_world() as world, broker_in(world, disk=left) as running, running.client() as client:
        assert await committed(client) == 2
