"""Old files and queues on a running broker: by age and by request, and what consumers are told; %LMQ% topics."""

from __future__ import annotations

from datetime import datetime

import pytest
import trio
from trio.testing import MockClock

from tests.broker.running import Client, one_broker
from trio_rmq.broker.handlers.cleanup import SPARED_TOPICS
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.testing.stores import FILE_SIZE, Place, new_message, stored
from trio_rmq.testing.world import START_WALL_MS
from trio_rmq.wire import headers
from trio_rmq.wire.codes import RequestCode, ResponseCode

pytestmark = pytest.mark.trio

HOUR = 3600.0
NEVER = f"{(datetime.fromtimestamp(START_WALL_MS / 1000).hour + 23) % 24:02d}"
"""An hour of the day that no test reaches."""


def log_files(disk: FaultyDisk) -> list[int]:
    return [int(name) // FILE_SIZE for name in disk.list_directory("store/commitlog")]


async def fill(client: Client, files: int, topic: str = "T") -> None:
    """Send until the log has that many files more, 31 messages a file."""
    for _ in range(files * 31):
        assert (await client.send(b"x" * 850, topic)).code == 0


async def offset(client: Client, group: str = "cg", topic: str = "T") -> tuple[int, str | None]:
    header = headers.QueryConsumerOffsetRequestHeader(consumer_group=group, topic=topic, queue_id=0)
    answer = await client.ask(RequestCode.QUERY_CONSUMER_OFFSET, header)
    return answer.code, answer.ext_fields().get("offset")


async def commit(client: Client, value: int, group: str = "cg", topic: str = "T") -> None:
    header = headers.UpdateConsumerOffsetRequestHeader(
        consumer_group=group, topic=topic, queue_id=0, commit_offset=value
    )
    assert (await client.ask(RequestCode.UPDATE_CONSUMER_OFFSET, header)).code == 0


@pytest.mark.parametrize("by_hand", [False, True])
async def test_a_slow_reader_is_moved_to_the_first_message_that_is_left(
    autojump_clock: MockClock, by_hand: bool
) -> None:
    disk = FaultyDisk()
    hour = NEVER if by_hand else f"{datetime.fromtimestamp(START_WALL_MS / 1000 + 3 * HOUR).hour}"
    async with one_broker(disk=disk, store={"delete_when": hour, "file_reserved_time": 1}) as (_, client):
        await client.create_topic()
        await fill(client, 4)
        answer = await client.pull(max_msg_nums=10)
        assert (answer.code, answer.ext_fields()["nextBeginOffset"]) == (0, "10")
        last = log_files(disk)[-1]
        assert last > 2
        await trio.sleep(3.5 * HOUR)
        if by_hand:
            assert len(log_files(disk)) == last + 1
            assert (await client.ask(RequestCode.DELETE_EXPIRED_COMMITLOG)).code == 0
            await trio.sleep(2)
        assert log_files(disk) == [last]
        answer = await client.pull(queue_offset=10)
        fields = answer.ext_fields()
        assert answer.code == ResponseCode.PULL_OFFSET_MOVED
        assert fields["nextBeginOffset"] == fields["minOffset"] != "0"
        first = int(fields["minOffset"])
        smallest = await client.ask(
            RequestCode.GET_MIN_OFFSET, headers.GetMinOffsetRequestHeader(topic="T", queue_id=0)
        )
        assert smallest.ext_fields()["offset"] == str(first)
        answer = await client.pull(queue_offset=first)
        assert answer.code == 0
        assert answer.ext_fields()["nextBeginOffset"] == answer.ext_fields()["maxOffset"] == str(4 * 31)


async def test_without_room_sends_are_14_until_there_is_room(autojump_clock: MockClock) -> None:
    disk = FaultyDisk()
    settings: dict[str, object] = {
        "disk_space_warning_level_ratio": 90,
        "clean_file_forcibly_enable": False,
        "delete_when": NEVER,
    }
    async with one_broker(disk=disk, store=settings) as (_, client):
        await client.create_topic()
        assert (await client.send()).code == 0
        free, size = disk.space("store")
        disk.capacity_bytes = (size - free) * 100 // 94
        await trio.sleep(11)
        answer = await client.send()
        assert answer.code == ResponseCode.SERVICE_NOT_AVAILABLE
        assert answer.remark is not None
        for word in ("store/commitlog", "diskSpaceWarningLevelRatio 90", "make room"):
            assert word in answer.remark
        assert len(await client.stored()) == 1
        disk.capacity_bytes = None
        await trio.sleep(11)
        assert (await client.send()).ext_fields()["queueOffset"] == "1"


async def test_cleaning_expired_queues_keeps_their_next_offset(autojump_clock: MockClock) -> None:
    disk = FaultyDisk()
    async with one_broker(disk=disk, store={"delete_when": NEVER, "file_reserved_time": 1}) as (_, client):
        await client.create_topic("Old")
        await client.create_topic("T")
        for _ in range(25):
            assert (await client.send(topic="Old")).code == 0
        await fill(client, 2)
        await trio.sleep(2 * HOUR)
        assert (await client.ask(RequestCode.CLEAN_EXPIRED_CONSUMEQUEUE)).code == 0
        assert len(disk.list_directory("store/consumequeue/Old/0")) == 2
        assert (await client.ask(RequestCode.DELETE_EXPIRED_COMMITLOG)).code == 0
        await trio.sleep(5)
        assert (await client.ask(RequestCode.CLEAN_EXPIRED_CONSUMEQUEUE)).code == 0
        assert len(disk.list_directory("store/consumequeue/Old/0")) == 1
        assert (await client.send(topic="Old")).ext_fields()["queueOffset"] == "25"


async def test_queues_that_no_topic_owns_go_and_others_stay(autojump_clock: MockClock) -> None:
    disk = FaultyDisk()
    spared = [*SPARED_TOPICS, "%LMQ%a"]
    store: dict[str, object] = {"enable_lmq": True}
    async with one_broker(disk=disk, store=store) as (_, client):
        await client.create_topic()
        assert (await client.send()).code == 0
    async with Place(disk, "store").open() as opened:  # no topic that clients may name: the broker does not restore it
        stored(opened.append([new_message(topic=name) for name in [*spared, "no.topic"]]))
    async with one_broker(disk=disk, store=store) as (_, client):
        await commit(client, 1, topic="no.topic")
        await commit(client, 1)
        assert (await client.ask(RequestCode.CLEAN_UNUSED_TOPIC)).code == 0
        assert set(disk.list_directory("store/consumequeue")) == {*spared, "T"}
        assert await offset(client) == (0, "1")
        assert await offset(client, topic="no.topic") == (0, "0")
        assert (await client.send()).ext_fields()["queueOffset"] == "1"
        assert (await client.ask(RequestCode.CLEAN_UNUSED_TOPIC)).code == 0


async def test_a_clean_up_of_queues_costs_no_message_that_waits(autojump_clock: MockClock) -> None:
    """Delayed, timed and half messages wait in queues of topics that nobody makes."""
    async with one_broker() as (_, client):
        await client.create_topic()
        assert (await client.send(b"delayed", properties="DELAY\x014")).code == 0
        assert (await client.send(b"timed", properties="TIMER_DELAY_SEC\x0160")).code == 0
        half = await client.send(b"half", properties="TRAN_MSG\x01true\x02PGROUP\x01pg", sys_flag=4)
        assert (await client.ask(RequestCode.CLEAN_UNUSED_TOPIC)).code == 0
        end = headers.EndTransactionRequestHeader(
            producer_group="pg",
            tran_state_table_offset=int(half.ext_fields()["queueOffset"]),
            commit_log_offset=int(half.ext_fields()["msgId"][16:], 16),
            commit_or_rollback=8,
            from_transaction_check=False,
            msg_id="",
            transaction_id="",
        )
        assert (await client.ask(RequestCode.END_TRANSACTION, end)).code == 0
        await trio.sleep(70)
        assert {message.body for message in await client.stored()} == {b"delayed", b"timed", b"half"}


@pytest.mark.parametrize("clean", [True, False])
async def test_a_deleted_topic_takes_its_queues_and_offsets_and_nothing_elses(
    autojump_clock: MockClock, clean: bool
) -> None:
    disk = FaultyDisk()
    async with one_broker(disk=disk) as (_, client):
        for topic in ("T", "Other"):
            await client.create_topic(topic)
            for _ in range(3):
                assert (await client.send(topic=topic)).code == 0
            await commit(client, 2, topic=topic)
        deleted = await client.ask(RequestCode.DELETE_TOPIC_IN_BROKER, headers.DeleteTopicRequestHeader(topic="T"))
        assert deleted.code == 0
        assert disk.list_directory("store/consumequeue") == ["Other"] or not disk.exists("store/consumequeue")
        assert (await client.pull("T")).code == ResponseCode.TOPIC_NOT_EXIST
        assert (
            await client.ask(RequestCode.DELETE_TOPIC_IN_BROKER, headers.DeleteTopicRequestHeader(topic="T"))
        ).code == 0
        left = disk if clean else disk.survivor_of_kill()
    async with one_broker(disk=left) as (_, client):
        assert (await client.pull("T")).code == ResponseCode.TOPIC_NOT_EXIST
        assert await offset(client, topic="Other") == (0, "2")
        assert len(await client.stored("Other")) == 3
        await client.create_topic("T")
        assert (await client.send()).ext_fields()["queueOffset"] == "0"
        assert await offset(client) == (0, "0")


# Light message queues ------------------------------------------------------------------------------------------------

LMQ: dict[str, object] = {"enable_lmq": True, "enable_multi_dispatch": True, "max_lmq_consume_queue_num": 3}


async def test_lmq_queues_are_read_and_committed_without_being_registered(autojump_clock: MockClock) -> None:
    disk = FaultyDisk()
    async with one_broker(disk=disk, store=LMQ, auto_create_subscription_group=False) as (_, client):
        await client.create_topic()
        for number in range(3):
            names = "INNER_MULTI_DISPATCH\x01%LMQ%a,%LMQ%b"
            assert (await client.send(b"%d" % number, properties=names)).code == 0
        for topic in ("%LMQ%a", "%LMQ%b"):
            answer = await client.pull(topic, consumer_group="%LMQ%reader")
            assert answer.code == 0
        await client.create_topic("%LMQ%a")
        await commit(client, 2, "%LMQ%reader", "%LMQ%a")
        await commit(client, 1, "TOOLS_CONSUMER", "T")
        answer = await client.send(properties="INNER_MULTI_DISPATCH\x01%LMQ%c,%LMQ%d")
        assert answer.code == ResponseCode.SYSTEM_ERROR
        assert "maxLmqConsumeQueueNum" in (answer.remark or "")
        answer = await client.send(properties="INNER_MULTI_DISPATCH\x01T")
        assert answer.code == ResponseCode.MESSAGE_ILLEGAL
        delete = headers.DeleteTopicRequestHeader(topic="%LMQ%b")
        assert (await client.ask(RequestCode.DELETE_TOPIC_IN_BROKER, delete)).code == 0
        answer = await client.pull("%LMQ%b", consumer_group="%LMQ%reader")
        assert answer.code == ResponseCode.PULL_NOT_FOUND or answer.body == b""
    saved = disk.read_file("store/config/lmqConsumerOffset.json").replace(b"\t", b"").replace(b"\n", b"")
    assert b'"lmqOffsetTable":{"%LMQ%a@%LMQ%reader":2}' in saved
    assert b'"offsetTable":{"T@TOOLS_CONSUMER":{0:1}}' in saved
    for name in ("topics.json", "subscriptionGroup.json"):
        path = f"store/config/{name}"
        assert not disk.exists(path) or b"%LMQ%" not in disk.read_file(path)
    async with one_broker(disk=disk, store=LMQ) as (_, client):
        assert await offset(client, "%LMQ%reader", "%LMQ%a") == (0, "2")
        assert await offset(client, "TOOLS_CONSUMER", "T") == (0, "1")


async def test_a_held_pull_of_a_light_queue_is_woken(autojump_clock: MockClock) -> None:
    async with one_broker(store=LMQ) as (running, client), running.client() as reader:
        await client.create_topic()
        bodies: list[bytes] = []
        began = trio.current_time()

        async def wait() -> None:
            answer = await reader.pull("%LMQ%a", consumer_group="%LMQ%reader", sys_flag=6)
            bodies.append(answer.body)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.sleep(1)
            assert (await client.send(b"woken", properties="INNER_MULTI_DISPATCH\x01%LMQ%a")).code == 0
        assert b"woken" in bodies[0]
        assert trio.current_time() - began < 2


async def test_offsets_of_before_count_where_lmq_is_switched_on(autojump_clock: MockClock) -> None:
    disk = FaultyDisk()
    async with one_broker(disk=disk) as (_, client):
        await client.create_topic()
        await commit(client, 7)
    async with one_broker(disk=disk, store=LMQ) as (_, client):
        assert await offset(client) == (0, "7")
        await commit(client, 8)
    async with one_broker(disk=disk, store=LMQ) as (_, client):
        assert await offset(client) == (0, "8")


async def test_without_lmq_such_topics_are_like_others(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        assert (await client.pull("%LMQ%a")).code == ResponseCode.TOPIC_NOT_EXIST
