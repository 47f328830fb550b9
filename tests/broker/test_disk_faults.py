"""Disks that fail under a running broker: the promised answer, what goes on, what ends, and what is left."""

from __future__ import annotations

import errno

import pytest
import trio
from trio.testing import MockClock

from tests.broker.running import Client, one_broker
from trio_rmq.errors import StoreError, StoreFailedError
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.testing.stores import FILE_SIZE
from trio_rmq.wire.codes import ResponseCode
from trio_rmq.wire.record import decode_records

pytestmark = pytest.mark.trio

SYNC: dict[str, object] = {"flush_disk_type": "SYNC_FLUSH"}
ASYNC: dict[str, object] = {"flush_commit_log_least_pages": 0}
"""Synced half a second after a write."""

FIRST = "store/commitlog/00000000000000000000"
UNAVAILABLE = ResponseCode.SERVICE_NOT_AVAILABLE


async def bodies(client: Client, topic: str = "T") -> list[bytes]:
    """All bodies of queue 0, pulled to its end."""
    found: list[bytes] = []
    offset = 0
    while True:
        answer = await client.pull(topic, queue_offset=offset)
        if answer.code == ResponseCode.PULL_NOT_FOUND:
            return found
        assert answer.code in (0, ResponseCode.PULL_RETRY_IMMEDIATELY, ResponseCode.PULL_OFFSET_MOVED)
        found += [message.body for message in decode_records(answer.body, check_crc=True)]
        offset = int(answer.ext_fields()["nextBeginOffset"])


def fill_up(disk: FaultyDisk, free: int = 0) -> None:
    now, size = disk.space("store")
    disk.capacity_bytes = size - now + free


@pytest.mark.parametrize("settings", [SYNC, ASYNC], ids=["sync", "async"])
async def test_a_full_disk_is_14_and_the_service_goes_on_when_there_is_space(
    settings: dict[str, object], autojump_clock: MockClock
) -> None:
    disk = FaultyDisk()
    sent: list[bytes] = []
    async with one_broker(disk=disk, store={**settings, "disk_free_space_min_bytes": 0}) as (_, client):
        await client.create_topic()
        refused = 0
        for number in range(100):
            if number == 40:
                fill_up(disk, 3000)
            if number == 70:
                assert refused > 20
                disk.capacity_bytes = None
            body = f"{number}".encode().ljust(900)
            answer = await client.send(body)
            if answer.code == 0:
                assert answer.ext_fields()["queueOffset"] == str(len(sent))
                sent.append(body)
            else:
                refused += 1
                assert answer.code == UNAVAILABLE
                assert "the disk is full" in (answer.remark or "")
                assert 40 <= number < 70
        assert await bodies(client) == sent
        await trio.sleep(100)
        left = disk.survivor_of_kill()
    async with one_broker(disk=left) as (_, client):
        assert await bodies(client) == sent
        assert (await client.send()).ext_fields()["queueOffset"] == str(len(sent))


async def test_a_full_disk_does_not_stop_readers_nor_offsets(autojump_clock: MockClock) -> None:
    disk = FaultyDisk()
    async with one_broker(disk=disk) as (_, client):
        await client.create_topic()
        for _ in range(5):
            assert (await client.send()).code == 0
        fill_up(disk)
        await trio.sleep(20)
        answer = await client.send()
        assert answer.code == UNAVAILABLE
        assert "make room" in (answer.remark or "")
        assert len(await bodies(client)) == 5
        assert (await client.pull(queue_offset=5, commit_offset=5, sys_flag=5)).code == ResponseCode.PULL_NOT_FOUND
        disk.capacity_bytes = None
        await trio.sleep(20)
        assert (await client.send()).code == 0
    assert b"5" in disk.read_file("store/config/consumerOffset.json")


@pytest.mark.parametrize("settings", [SYNC, ASYNC], ids=["sync", "async"])
async def test_a_failed_sync_is_14_for_all_who_wait_and_ends_the_broker(
    settings: dict[str, object], autojump_clock: MockClock
) -> None:
    disk = FaultyDisk()
    codes: list[int] = []
    with pytest.RaisesGroup(
        pytest.RaisesExc(StoreFailedError, match="store/commitlog: syncing the commit log failed .* check the disk"),
        flatten_subgroups=True,
        allow_unwrapped=True,
    ):
        async with one_broker(disk=disk, store=settings) as (_, client):
            await client.create_topic()
            assert (await client.send(b"before")).code == 0
            await trio.sleep(30)
            disk.latency = lambda: 1.0
            disk.fail_next("fdatasync", errno.EIO)

            async def send() -> None:
                codes.append((await client.send(b"lost")).code)

            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(send)
            if settings is ASYNC:
                assert codes == [0] * 5  # asynchronous flush promises no more
                await trio.sleep(0.9)
                codes.clear()
            codes.append((await client.send(b"refused")).code)
            await trio.sleep(10)
    assert set(codes) == {int(UNAVAILABLE)}
    disk = disk.survivor_of_kill()
    async with one_broker(disk=disk, store=settings) as (_, client):
        found = await bodies(client)
        assert found[0] == b"before"
        assert b"refused" not in found
        assert (await client.send(b"after")).code == 0


async def test_a_short_write_is_continued(autojump_clock: MockClock) -> None:
    disk = FaultyDisk()
    async with one_broker(disk=disk) as (_, client):
        await client.create_topic()
        for size in (1, 90, 500):
            disk.short_write_next(size)
            assert (await client.send(b"%d" % size * 300)).code == 0
        assert await bodies(client) == [b"%d" % size * 300 for size in (1, 90, 500)]


async def test_a_disk_that_becomes_read_only_is_14_and_ends_the_broker(autojump_clock: MockClock) -> None:
    disk = FaultyDisk()
    codes: list[int] = []
    with pytest.RaisesGroup(
        pytest.RaisesExc(StoreFailedError, match="Read-only file system"), flatten_subgroups=True, allow_unwrapped=True
    ):
        async with one_broker(disk=disk) as (_, client):
            await client.create_topic()
            assert (await client.send(b"kept")).code == 0
            await trio.sleep(30)
            disk.read_only = True
            codes += [(await client.send()).code, (await client.send()).code]
            assert await bodies(client) == [b"kept"]
            await trio.sleep(10)
    assert codes == [UNAVAILABLE, UNAVAILABLE]
    disk = disk.survivor_of_kill()
    async with one_broker(disk=disk) as (_, client):
        assert await bodies(client) == [b"kept"]


async def test_a_read_only_folder_stops_the_start_with_a_sentence(autojump_clock: MockClock) -> None:
    disk = FaultyDisk()
    async with one_broker(disk=disk) as (_, client):
        await client.create_topic()
    disk.read_only = True
    with pytest.RaisesGroup(
        pytest.RaisesExc(StoreError, match="the store folder store cannot be used .* readable and writable"),
        flatten_subgroups=True,
        allow_unwrapped=True,
    ):
        async with one_broker(disk=disk):
            raise AssertionError("it started")


@pytest.mark.parametrize(
    "setting", [{"mapped_file_size_commit_log": 2 * FILE_SIZE}, {"mapped_file_size_consume_queue": 800}], ids=str
)
@pytest.mark.parametrize("clean", [True, False])
async def test_another_file_size_than_the_stores_stops_the_start_and_changes_nothing(
    setting: dict[str, object], clean: bool, autojump_clock: MockClock
) -> None:
    disk = FaultyDisk()
    async with one_broker(disk=disk) as (_, client):
        await client.create_topic()
        for _ in range(50):
            assert (await client.send(b"x" * 900)).code == 0
        await trio.sleep(100)  # little-used queues reach their files once a minute
        left = disk.survivor_of_kill()
    disk = disk if clean else left
    with pytest.RaisesGroup(
        pytest.RaisesExc(StoreError, match=r"has \d+ bytes, but mappedFileSize\w+ is \d+: set mappedFileSize"),
        flatten_subgroups=True,
        allow_unwrapped=True,
    ):
        async with one_broker(disk=disk, store=setting):
            raise AssertionError("it started")
    async with one_broker(disk=disk.survivor_of_kill()) as (_, client):
        assert len(await bodies(client)) == 50


async def test_an_old_log_file_deleted_under_a_broker_costs_its_messages_only(autojump_clock: MockClock) -> None:
    disk = FaultyDisk()
    async with one_broker(disk=disk) as (_, client):
        await client.create_topic()
        for number in range(120):
            assert (await client.send(b"%d" % number * 300)).code == 0
        everything = await bodies(client)
        await trio.sleep(100)
    async with one_broker(disk=disk) as (_, client):
        disk.unlink(FIRST)
        found = await bodies(client)
        assert 0 < len(found) < len(everything)
        assert found == everything[-len(found) :]
        assert (await client.send(b"more")).code == 0
        left = disk.survivor_of_kill()
    for again in (disk, left):
        async with one_broker(disk=again) as (_, client):
            assert await bodies(client) == [*found, b"more"]


@pytest.mark.parametrize("settings", [SYNC, ASYNC], ids=["sync", "async"])
async def test_the_log_file_in_use_deleted_under_a_broker_ends_it(
    settings: dict[str, object], autojump_clock: MockClock
) -> None:
    disk = FaultyDisk()
    codes: list[int] = []
    with pytest.RaisesGroup(
        pytest.RaisesExc(StoreFailedError, match="was deleted while in use"),
        flatten_subgroups=True,
        allow_unwrapped=True,
    ):
        async with one_broker(disk=disk, store=settings) as (_, client):
            await client.create_topic()
            assert (await client.send()).code == 0
            await trio.sleep(30)
            disk.unlink(FIRST)
            first = (await client.send()).code
            assert first == (UNAVAILABLE if settings is SYNC else 0)  # asynchronous flush learns of it at its next sync
            if settings is ASYNC:
                await trio.sleep(0.9)
            codes += [(await client.send()).code, (await client.send()).code]
            await trio.sleep(10)
    assert codes == [UNAVAILABLE, UNAVAILABLE]


async def test_a_damaged_body_is_1_with_its_place_where_pulls_check(autojump_clock: MockClock) -> None:
    disk = FaultyDisk()
    async with one_broker(disk=disk, store={"check_crc_on_pull": True}) as (_, client):
        await client.create_topic()
        for body in (b"first", b"second", b"third"):
            assert (await client.send(body)).code == 0
        disk.corrupt(FIRST, disk.read_file(FIRST).index(b"second"), b"S")
        answer = await client.pull("T", queue_offset=0)
        assert (answer.code, answer.ext_fields()["nextBeginOffset"]) == (0, "1")
        answer = await client.pull("T", queue_offset=1)
        assert answer.code == ResponseCode.SYSTEM_ERROR
        assert answer.remark is not None
        assert "offset 1 of T-0" in answer.remark
        assert [message.body for message in decode_records((await client.pull("T", queue_offset=2)).body)] == [b"third"]
