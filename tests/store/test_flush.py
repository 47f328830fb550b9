"""When written records become durable, visible and known to be so; and what a failing disk does to that."""

from __future__ import annotations

import errno
from functools import partial
from random import Random

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_rmq.errors import StoreFailedError
from trio_rmq.store import flush
from trio_rmq.store.message_store import MessageStore
from trio_rmq.store.messages import AppendStatus, GetStatus
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.testing.stores import FILE_SIZE, Place, new_message, stored
from trio_rmq.wire.record import decode_records

SYNC = {"flush_disk_type": "SYNC_FLUSH"}


async def send(store: MessageStore, body: bytes = b"x") -> int:
    [result] = stored(store.append([new_message(body)]))
    await store.wait_durable(result.physical_offset + result.size_bytes)
    return result.queue_offset


@pytest.mark.trio
async def test_sync_flush_waits_and_hides(autojump_clock: trio.testing.MockClock) -> None:
    place = Place(FaultyDisk(latency=lambda: 0.5), "store")
    async with place.open(**SYNC) as store:
        arrived: list[float] = []
        store.on_arrival = lambda *_: arrived.append(trio.current_time())
        began = trio.current_time()
        [result] = stored(store.append([new_message()]))
        assert store.max_offset("T", 0) == 0
        assert store.max_physical_offset == 0
        assert store.record_at(0) is None
        assert store.get_messages("T", 0, 0, max_count=1).status is GetStatus.NO_MESSAGE_IN_QUEUE
        await store.wait_durable(result.size_bytes)
        assert arrived == [trio.current_time()]
        assert trio.current_time() - began >= 0.5
        assert store.max_offset("T", 0) == 1
        assert store.record_at(0) is not None
        await store.wait_durable(result.size_bytes)


@pytest.mark.trio
async def test_group_commit_shares_one_sync(autojump_clock: trio.testing.MockClock) -> None:
    place = Place(FaultyDisk(latency=lambda: 0.1), "store")
    async with place.open(**SYNC) as store:
        await send(store)
        before, began = store.statistics().syncs, trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(send, store)
        assert store.statistics().syncs - before <= 2
        assert trio.current_time() - began < 0.5
        assert store.max_offset("T", 0) == 51


@pytest.mark.trio
async def test_who_comes_during_a_sync_waits_for_the_next(autojump_clock: trio.testing.MockClock) -> None:
    place = Place(FaultyDisk(latency=lambda: 1.0), "store")
    async with place.open(**SYNC) as store, trio.open_nursery() as nursery:
        await send(store)
        began = trio.current_time()
        done: list[tuple[int, float]] = []

        async def timed() -> None:
            offset = await send(store)
            done.append((offset, trio.current_time() - began))

        nursery.start_soon(timed)
        await trio.sleep(0.5)
        nursery.start_soon(timed)
        await trio.sleep(2.5)
        assert [(offset, round(seconds, 3)) for offset, seconds in done] == [(1, 1.0), (2, 2.0)]


@pytest.mark.trio
async def test_giving_up_waiting_changes_nothing(autojump_clock: trio.testing.MockClock) -> None:
    place = Place(FaultyDisk(latency=lambda: 1.0), "store")
    async with place.open(**SYNC) as store:
        with trio.move_on_after(0.1) as scope:
            await send(store)
        assert scope.cancelled_caught
        assert await send(store) == 1
        assert store.max_offset("T", 0) == 2


@pytest.mark.trio
async def test_sync_flush_survives_power_loss_over_file_ends(autojump_clock: trio.testing.MockClock) -> None:
    for seed in range(30):
        disk = FaultyDisk()
        rng = Random(seed)
        async with Place(disk, "store").open(**SYNC) as store:
            for n in range(rng.randint(1, 120)):
                await send(store, str(n).encode().ljust(700))
            stored(store.append([new_message(b"not waited for" * 50) for _ in range(rng.randint(0, 60))]))
            acked = n + 1
            later = disk.survivor_of_power_loss(rng)
        async with Place(later, "store").open(**SYNC) as store:
            assert store.max_offset("T", 0) >= acked
            got, offset = [], 0
            while (answer := store.get_messages("T", 0, offset, max_count=32)).status is GetStatus.FOUND:
                got += [record.body for record in decode_records(answer.body, check_crc=True)]
                offset = answer.next_begin_offset
            assert got[:acked] == [str(n).encode().ljust(700) for n in range(acked)]
            assert set(got[acked:]) <= {b"not waited for" * 50}
            assert await send(store) == len(got)


@pytest.mark.trio
async def test_async_flush_syncs_in_the_background(autojump_clock: trio.testing.MockClock) -> None:
    disk = FaultyDisk()
    async with Place(disk, "store").open(flush_consume_queue_least_pages=0) as store:
        stored(store.append([new_message(b"x" * 5000) for _ in range(5)]))
        assert store.max_offset("T", 0) == 5
        await store.wait_durable(10**9)
        assert store.statistics().synced_offset == 0
        await trio.sleep(0.6)
        assert store.statistics().synced_offset == store.max_physical_offset
        [result] = stored(store.append([new_message()]))  # less than four pages wait for the thorough interval
        await trio.sleep(5)
        assert store.statistics().synced_offset == result.physical_offset
        await trio.sleep(6)
        assert store.statistics().synced_offset == store.max_physical_offset
        syncs, operations = disk.syncs, disk.operations
        await trio.sleep(200)
        syncs, operations = disk.syncs - syncs, disk.operations - operations
        assert operations <= syncs + 4  # the queue files and the checkpoint, once


@pytest.mark.trio
async def test_an_idle_store_wakes_nobody(autojump_clock: trio.testing.MockClock) -> None:
    async with Place(FaultyDisk(), "store").open():
        await wait_all_tasks_blocked()
        before = trio.lowlevel.current_statistics().seconds_to_next_deadline
        assert before > 10**6


@pytest.mark.trio
async def test_entries_reach_their_files_in_groups(autojump_clock: trio.testing.MockClock) -> None:
    disk = FaultyDisk()
    place = Place(disk, "store")
    async with place.open(flush_consume_queue_least_pages=0) as store:
        for n in range(200):
            stored(store.append([new_message(queue_id=n % 2)]))
        assert store.statistics().queue_entries_unwritten == 200
        assert not place.exists("consumequeue")
        disk.trace.clear()
        await trio.sleep(1.5)
        assert store.statistics().queue_entries_unwritten == 0
        writes = [line for line in disk.trace if line.startswith("pwrite store/consumequeue")]
        assert len(writes) == 2 * 100 // 20
        assert store.get_messages("T", 1, 95, max_count=32).count == 5
        stored(store.append([new_message(queue_id=1) for _ in range(3)]))
        assert store.get_messages("T", 1, 95, max_count=32).count == 8
        assert not place.exists("checkpoint")
        await trio.sleep(70)
        times = [int.from_bytes(place.read("checkpoint")[at : at + 8], "big") for at in (0, 8, 16)]
        assert times[0] == times[1] == store.statistics().last_store_timestamp_ms
        assert times[2] == 0


@pytest.mark.trio
async def test_little_waits_for_the_thorough_interval(autojump_clock: trio.testing.MockClock) -> None:
    """Two pages of entries are written each second, less once a minute: a thousand slow queues cost little."""
    async with Place(FaultyDisk(), "store").open() as store:
        stored(store.append([new_message(queue_id=0) for _ in range(410)]))
        stored(store.append([new_message(queue_id=1) for _ in range(400)]))
        await trio.sleep(1.5)
        assert store.statistics().queue_entries_unwritten == 400
        await trio.sleep(60)
        assert store.statistics().queue_entries_unwritten == 0


@pytest.mark.trio
@pytest.mark.parametrize("settings", [SYNC, {}], ids=["sync", "async"])
async def test_a_failed_sync_is_final(settings: dict[str, object], autojump_clock: trio.testing.MockClock) -> None:
    disk = FaultyDisk()
    place = Place(disk, "store")
    async with place.open(**settings) as store:
        await send(store, b"a" * 5000)
        await trio.sleep(20)
        visible = store.max_offset("T", 0)
        disk.fail_next("fdatasync", errno.EIO)
        [result] = stored(store.append([new_message(b"b" * 20_000)]))
        if store.sync_flush:
            with pytest.raises(StoreFailedError, match="syncing the commit log failed"):
                await store.wait_durable(result.physical_offset + result.size_bytes)
            assert store.max_offset("T", 0) == visible
        await store.wait_failed()
        assert store.failure is not None
        assert store.statistics().failed
        [refused] = store.append([new_message()])
        assert refused.status is AppendStatus.SERVICE_NOT_AVAILABLE
        assert "Input/output error" in refused.remark
        assert store.get_messages("T", 0, 0, max_count=1).count == 1
        syncs = [line for line in disk.trace if "fdatasync store/commitlog" in line]
        await trio.sleep(100)
        if store.sync_flush:
            with pytest.raises(StoreFailedError):
                await store.wait_durable(result.physical_offset + result.size_bytes)
        assert [line for line in disk.trace if "fdatasync store/commitlog" in line] == syncs
    assert [line for line in disk.trace if "fdatasync store/commitlog" in line] == syncs
    assert place.exists("abort")
    later = Place(disk.survivor_of_power_loss(Random(1)), "store")
    async with later.open(**settings) as store:
        assert store.max_offset("T", 0) >= 1


@pytest.mark.trio
async def test_all_waiters_hear_of_a_failed_sync(autojump_clock: trio.testing.MockClock) -> None:
    disk = FaultyDisk(latency=lambda: 1.0)
    async with Place(disk, "store").open(**SYNC) as store:
        await send(store)
        disk.fail_next("fdatasync", errno.EIO)
        heard = []

        async def waiter(delay: float) -> None:
            await trio.sleep(delay)
            results = store.append([new_message()])
            if results[0].status is AppendStatus.PUT_OK:
                try:
                    await store.wait_durable(results[0].physical_offset + results[0].size_bytes)
                except StoreFailedError:
                    heard.append(delay)
            else:
                heard.append(delay)

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                for delay in (0.0, 0.0, 0.5):
                    nursery.start_soon(waiter, delay)
        assert heard == [0.0, 0.0, 0.5]


@pytest.mark.trio
@pytest.mark.parametrize("settings", [SYNC, {}], ids=["sync", "async"])
async def test_a_full_disk_is_an_answer(settings: dict[str, object], autojump_clock: trio.testing.MockClock) -> None:
    disk = FaultyDisk(capacity_bytes=60_000)
    place = Place(disk, "store")
    async with place.open(**settings) as store:
        kept = refused = 0
        for n in range(30):
            for result in store.append([new_message(str(n).encode() * 300) for _ in range(5)]):
                if result.status is AppendStatus.PUT_OK:
                    assert result.queue_offset == kept
                    kept += 1
                    await store.wait_durable(result.physical_offset + result.size_bytes)
                else:
                    assert result.status is AppendStatus.SERVICE_NOT_AVAILABLE
                    assert "No space left" in result.remark
                    assert "make room" in result.remark
                    refused += 1
        assert kept > 20
        assert refused > 20
        assert store.max_offset("T", 0) == kept
        end = store.max_physical_offset
        log = disk.read_file(f"store/commitlog/{end - end % FILE_SIZE:020d}")
        assert not any(log[end % FILE_SIZE :])
        disk.capacity_bytes = None
        assert await send(store, b"again") == kept
    later = Place(disk.survivor_of_kill(), "store")
    async with later.open(**settings) as store:
        assert store.max_offset("T", 0) == kept + 1


@pytest.mark.trio
async def test_a_full_disk_at_the_first_message() -> None:
    disk = FaultyDisk()
    async with Place(disk, "store").open() as store:
        for call in ("mkdir", "create", "truncate"):
            disk.fail_next(call, errno.ENOSPC)
            [result] = store.append([new_message()])
            assert result.status is AppendStatus.SERVICE_NOT_AVAILABLE
            assert store.max_offset("T", 0) == 0
        assert stored(store.append([new_message()]))[0].queue_offset == 0


@pytest.mark.trio
async def test_a_full_disk_at_a_file_end_keeps_what_fitted() -> None:
    disk = FaultyDisk()
    async with Place(disk, "store").open() as store:
        stored(store.append([new_message(b"x" * 20_000)]))
        disk.capacity_bytes = FILE_SIZE + 4096
        results = store.append([new_message(b"y" * 5_000) for _ in range(6)])
        assert [result.status is AppendStatus.PUT_OK for result in results] == [True, True, False, False, False, False]
        disk.capacity_bytes = None
        again = stored(store.append([new_message(b"z" * 5_000) for _ in range(6)]))
        assert [result.queue_offset for result in again] == [3, 4, 5, 6, 7, 8]
        assert again[0].physical_offset == FILE_SIZE
        assert store.get_messages("T", 0, 0, max_count=32).count == 9
    async with Place(disk.survivor_of_kill(), "store").open() as store:
        assert store.max_offset("T", 0) == 9


@pytest.mark.trio
async def test_short_writes_go_on() -> None:
    disk = FaultyDisk()
    async with Place(disk, "store").open() as store:
        for size in (1, 0, 100):
            disk.short_write_next(size)
            stored(store.append([new_message(b"x" * 500) for _ in range(3)]))
        answer = store.get_messages("T", 0, 0, max_count=32)
        assert [record.body for record in decode_records(answer.body, check_crc=True)] == [b"x" * 500] * 9


@pytest.mark.trio
async def test_a_failed_write_ends_the_store() -> None:
    disk = FaultyDisk()
    place = Place(disk, "store")
    async with place.open() as store:
        stored(store.append([new_message()]))
        disk.fail_next("pwrite", errno.EIO)
        [result] = store.append([new_message()])
        assert result.status is AppendStatus.SERVICE_NOT_AVAILABLE
        assert store.failure is not None
        await store.wait_failed()
        assert store.max_offset("T", 0) == 1
    async with place.open() as store:
        assert store.max_offset("T", 0) == 1


@pytest.mark.trio
async def test_queue_files_that_cannot_be_written_wait_in_memory(autojump_clock: trio.testing.MockClock) -> None:
    disk = FaultyDisk()
    place = Place(disk, "store")
    async with place.open(flush_consume_queue_least_pages=0) as store:
        stored(store.append([new_message() for _ in range(30)]))
        disk.fail_next("create", errno.ENOSPC)
        disk.fail_next("pwrite", errno.ENOSPC)
        await trio.sleep(1.5)
        assert store.statistics().queue_entries_unwritten == 30
        assert store.get_messages("T", 0, 0, max_count=32).count == 30
        await trio.sleep(3)
        assert store.statistics().queue_entries_unwritten == 0
        assert store.failure is None
    async with place.open() as store:
        assert (store.recovered and store.recovered.clean, store.max_offset("T", 0)) == (True, 30)


@pytest.mark.trio
async def test_a_failed_sync_of_queues_leaves_the_mark(autojump_clock: trio.testing.MockClock) -> None:
    disk = FaultyDisk()
    place = Place(disk, "store")
    async with place.open() as store:
        stored(store.append([new_message() for _ in range(30)]))
        await trio.sleep(20)
        disk.fail_next("fdatasync", errno.EIO)
        await trio.sleep(60)
        stored(store.append([new_message() for _ in range(30)]))
        assert store.failure is None
    assert place.exists("abort")
    async with Place(disk.survivor_of_power_loss(Random(3)), "store").open() as store:
        assert store.max_offset("T", 0) == 60


@pytest.mark.trio
async def test_closing_under_cancellation_still_syncs(autojump_clock: trio.testing.MockClock) -> None:
    disk = FaultyDisk(latency=lambda: 0.2)

    async def run(task_status: trio.TaskStatus[MessageStore]) -> None:
        async with Place(disk, "store").open(**SYNC) as store:
            task_status.started(store)
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        store = await nursery.start(run)
        nursery.start_soon(partial(send, store, b"y" * 100))
        await trio.sleep(0.1)  # the sync is under way
        nursery.cancel_scope.cancel()
    later = Place(disk.survivor_of_power_loss(Random(0)), "store")
    assert not later.exists("abort")
    async with later.open(**SYNC) as store:
        assert store.max_offset("T", 0) == 1


class _WatchedDisk(FaultyDisk):
    """Says in its trace what the kernel was asked to begin to write."""

    async def start_writing(self, handle: int, offset: int, size: int) -> None:
        self.trace.append(f"start_writing {self._path_of(self._handles[handle])} {offset} {size}")
        await super().start_writing(handle, offset, size)


@pytest.mark.trio
@pytest.mark.parametrize("settings", [SYNC, {}], ids=["sync", "async"])
async def test_writing_of_much_begins_before_it_is_synced(
    settings: dict[str, object], autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a sync has to give a place on the disk keeps appends out of the file; a little of it does not for long."""
    monkeypatch.setattr(flush, "_MUCH_BYTES", 20_000)
    disk = _WatchedDisk()
    async with Place(disk, "store").open(message_index_enable=False, **settings) as store:

        async def calls(size: int) -> tuple[list[str], int, int]:
            disk.trace.clear()
            begin = store.statistics().synced_offset
            stored(store.append([new_message(b"x" * 1000) for _ in range(size)]))
            await trio.sleep(11)
            end = store.statistics().synced_offset
            return (
                [line for line in disk.trace if line.startswith(("start_writing", "fdatasync store/commit"))],
                begin,
                end,
            )

        first, second = (f"store/commitlog/{start:020d}" for start in (0, FILE_SIZE))
        little, _, _ = await calls(5)
        assert little == [f"fdatasync {first}"]
        much, begin, end = await calls(20)
        assert much == [f"start_writing {first} {begin} {end - begin}", f"fdatasync {first}"]
        over, begin, end = await calls(20)  # goes on in the next file
        assert over == [
            f"start_writing {first} {begin} {FILE_SIZE - begin}",
            f"start_writing {second} 0 {end - FILE_SIZE}",
            f"fdatasync {first}",
            f"fdatasync {second}",
        ]


@pytest.mark.trio
async def test_what_is_appended_while_writing_begins_is_synced_later(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(FaultyDisk):
        async def start_writing(self, handle: int, offset: int, size: int) -> None:
            await trio.sleep(1)

    monkeypatch.setattr(flush, "_MUCH_BYTES", 5000)
    disk = Slow()
    async with Place(disk, "store").open(**SYNC) as store:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, store, b"x" * 6000)
            await trio.sleep(0.5)
            assert store.max_offset("T", 0) == 0
            await send(store)
        assert store.statistics().syncs >= 2
        left = disk.survivor_of_power_loss(Random(2))
    async with Place(left, "store").open(**SYNC) as store:
        assert store.max_offset("T", 0) == 2
