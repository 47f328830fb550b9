"""Records that wait in memory: who sees them when, what a kill costs, how much may wait, and what a bad disk does."""

from __future__ import annotations

import errno

import pytest
import trio
from trio.testing import MockClock

from trio_rmq.store import parts
from trio_rmq.store.message_store import MessageStore, open_message_store
from trio_rmq.store.messages import AppendStatus, GetStatus, NewMessage
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.testing.stores import FILE_SIZE, HOST, Place, new_message, small_config, stored
from trio_rmq.wire.record import decode_records

POOL = {"transient_store_pool_enable": True}


def bodies(store: MessageStore, topic: str = "T") -> list[bytes]:
    found: list[bytes] = []
    offset = store.min_offset(topic, 0)
    while (answer := store.get_messages(topic, 0, offset, max_count=32)).status is GetStatus.FOUND:
        found += [message.body for message in decode_records(answer.body, check_crc=True)]
        offset = answer.next_begin_offset
    return found


def numbered(begin: int, end: int, size: int = 0) -> list[NewMessage]:
    return [new_message(b"%d" % number + bytes(size)) for number in range(begin, end)]


def writes(disk: FaultyDisk) -> list[str]:
    """The writes to the log so far."""
    return [line for line in disk.trace if line.startswith("pwrite store/commitlog/")]


@pytest.mark.trio
async def test_a_message_is_seen_once_it_is_written(twin: FaultyDisk, autojump_clock: MockClock) -> None:
    async with Place(twin, "store").open(**POOL) as store:
        arrived: list[int] = []
        store.on_arrival = lambda topic, queue_id, offset, code: arrived.append(offset)
        stored(store.append(numbered(0, 3)))
        assert (writes(twin), arrived, bodies(store)) == ([], [], [])
        assert (store.max_offset("T", 0), store.max_physical_offset) == (0, 0)
        stored(store.append(numbered(3, 5)))
        await trio.sleep(0.5)
        assert (len(writes(twin)), arrived) == (1, [3, 3, 3, 5, 5])  # one write for both appends
        assert bodies(store) == [b"0", b"1", b"2", b"3", b"4"]
        assert store.max_physical_offset == store.statistics().max_physical_offset


@pytest.mark.trio
async def test_on_a_real_disk_writes_come_from_a_thread(place: Place) -> None:
    async with place.open(**POOL) as store:
        for begin in range(0, 300, 10):
            stored(store.append(numbered(begin, begin + 10, 700)))
        await store.sync()
        expected = [b"%d" % number + bytes(700) for number in range(300)]
        assert bodies(store) == expected
        assert len(store._log.files.starts) > 5
    async with place.open() as store:
        assert store.recovered is not None
        assert store.recovered.clean
        assert bodies(store) == expected


@pytest.mark.trio
async def test_a_stop_in_order_writes_everything(twin: FaultyDisk, autojump_clock: MockClock) -> None:
    place = Place(twin, "store")
    async with place.open(**POOL) as store:
        stored(store.append(numbered(0, 100)))
    async with place.open(**POOL) as store:
        assert len(bodies(store)) == 100


@pytest.mark.trio
@pytest.mark.parametrize("rest", [0, 0.3])
async def test_a_kill_loses_what_was_not_written_and_nothing_else(
    twin: FaultyDisk, autojump_clock: MockClock, rest: float
) -> None:
    async with Place(twin, "store").open(**POOL) as store:
        stored(store.append(numbered(0, 50)))
        await trio.sleep(5)
        stored(store.append(numbered(50, 60)))
        await trio.sleep(rest)
        survivor = twin.survivor_of_kill()
    async with Place(survivor, "store").open(**POOL) as store:
        assert len(bodies(store)) == (60 if rest else 50)
        stored(store.append(numbered(60, 61)))  # the next offset is the next of what is there
        await trio.sleep(1)
        assert bodies(store)[-1] == b"60"
        assert store.max_offset("T", 0) == (61 if rest else 51)


@pytest.mark.trio
async def test_the_sync_covers_only_what_is_written(twin: FaultyDisk, autojump_clock: MockClock) -> None:
    async with Place(twin, "store").open(**POOL, commit_interval_commit_log=60_000) as store:
        (first,) = stored(store.append(numbered(0, 1)))
        await store.sync()
        end = first.physical_offset + first.size_bytes
        assert store.statistics().synced_offset == end
        await trio.sleep(12)
        stored(store.append(numbered(1, 2)))
        await store._log_flusher.sync()
        await store._queue_flusher.sync()
        assert store.statistics().synced_offset == end
        mark = store._checkpoint.mark
        assert mark is not None
        assert (mark.physical_offset, mark.entries) == (end, 1)
        assert store._checkpoint.log_time_ms == first.store_timestamp_ms


@pytest.mark.trio
@pytest.mark.parametrize("fail_fast", [True, False])
async def test_what_waits_is_bounded(
    twin: FaultyDisk, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, fail_fast: bool
) -> None:
    monkeypatch.setattr(parts, "TRANSIENT_POOL_MAX_BYTES", 10_000)
    settings = {**POOL, "fast_fail_if_no_buffer_in_store_pool": fail_fast}
    async with Place(twin, "store").open(**settings) as store:
        results = [store.append(numbered(number, number + 1, 1000))[0] for number in range(30)]
        taken = [result for result in results if result.status is AppendStatus.PUT_OK]
        assert len(taken) == (9 if fail_fast else 30)
        assert sum(result.size_bytes for result in taken) > 9000
        if fail_fast:
            assert results[-1].status is AppendStatus.SERVICE_NOT_AVAILABLE
            assert "transientStorePoolSize" in results[-1].remark
            assert writes(twin) == []
        else:
            assert len(writes(twin)) >= 20
        await trio.sleep(1)
        assert len(bodies(store)) == len(taken)
        stored(store.append(numbered(30, 31)))  # there is room again
        await trio.sleep(1)
        assert bodies(store)[-1] == b"30"


def test_the_room_is_so_many_files_of_the_log_and_bounded() -> None:
    for settings, room in (
        ({"transient_store_pool_size": 2}, 2 * FILE_SIZE),
        ({"mapped_file_size_commit_log": 2**30}, 256 * 2**20),
    ):
        config = small_config("store", **POOL, **settings)
        assert parts.StoreParts(config, FaultyDisk(), HOST)._log._room_bytes == room  # type: ignore[attr-defined]


@pytest.mark.trio
async def test_a_full_disk_keeps_what_waits_and_refuses_more(autojump_clock: MockClock) -> None:
    disk = FaultyDisk(capacity_bytes=16_000)
    async with Place(disk, "store").open(**POOL, message_index_enable=False) as store:
        for number in range(20):
            stored(store.append(numbered(number, number + 1, 1000)))
        await trio.sleep(1)
        (refused,) = store.append(numbered(20, 21))
        assert refused.status is AppendStatus.SERVICE_NOT_AVAILABLE
        assert "make room" in refused.remark
        seen = len(bodies(store))
        disk.capacity_bytes = None
        await trio.sleep(1)
        assert seen < 20
        assert len(bodies(store)) == 20
        stored(store.append(numbered(20, 21)))
        await trio.sleep(1)
        assert store.max_offset("T", 0) == 21


@pytest.mark.trio
async def test_a_failed_write_is_final(twin: FaultyDisk, autojump_clock: MockClock) -> None:
    async with Place(twin, "store").open(**POOL) as store:
        stored(store.append(numbered(0, 1)))
        twin.fail_next("pwrite", errno.EIO)
        await store.wait_failed()
        (refused,) = store.append(numbered(1, 2))
        assert refused.status is AppendStatus.SERVICE_NOT_AVAILABLE
        before = len(writes(twin))
        await trio.sleep(5)
        assert len(writes(twin)) == before
        assert bodies(store) == []
    assert twin.exists("store/abort")


@pytest.mark.trio
async def test_a_short_write_goes_on(twin: FaultyDisk, autojump_clock: MockClock) -> None:
    async with Place(twin, "store").open(**POOL) as store:
        stored(store.append(numbered(0, 5)))
        twin.short_write_next(10)
        await trio.sleep(1)
        assert len(bodies(store)) == 5


@pytest.mark.trio
async def test_a_topic_deleted_and_made_again_stays_whole_over_a_kill(
    twin: FaultyDisk, autojump_clock: MockClock
) -> None:
    async with Place(twin, "store").open(**POOL) as store:
        stored(store.append(numbered(0, 5)))
        assert await store.delete_topic("T") == 1
        stored(store.append(numbered(5, 7)))
        await trio.sleep(1)
        survivor = twin.survivor_of_kill()
    async with Place(survivor, "store").open() as store:
        assert bodies(store) == [b"5", b"6"]


@pytest.mark.trio
@pytest.mark.parametrize("settings", [{"flush_disk_type": "SYNC_FLUSH"}, {"broker_role": "SLAVE"}])
async def test_with_a_stronger_promise_it_does_not_count(
    twin: FaultyDisk, autojump_clock: MockClock, settings: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    async with Place(twin, "store").open(**POOL, **settings) as store:
        assert "transientStorePoolEnable counts only" in caplog.text
        (result,) = stored(store.append(numbered(0, 1)))
        assert len(writes(twin)) == 1
        await store.wait_durable(result.physical_offset + result.size_bytes)
        assert bodies(store) == [b"0"]


@pytest.mark.trio
async def test_a_cancelled_store_writes_everything(twin: FaultyDisk, autojump_clock: MockClock) -> None:
    config = small_config("store", **POOL)
    with trio.CancelScope() as scope:
        async with open_message_store(config, disk=twin, store_host=HOST) as store:
            stored(store.append(numbered(0, 10)))
            scope.cancel()
            await trio.sleep_forever()
    async with Place(twin, "store").open() as store:
        assert len(bodies(store)) == 10
