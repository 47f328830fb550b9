"""A store with many queues: what writing them out costs the others, when the mark rises, and one sync for all files."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
import trio
from trio.testing import MockClock

from tests.store.test_recovery_mark import mark_in
from trio_rmq.store import consume_queues, flush
from trio_rmq.store import disk as disk_module
from trio_rmq.store.disk import Data, Disk
from trio_rmq.store.message_store import MessageStore
from trio_rmq.store.messages import NewMessage
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.testing.stores import Place, new_message, stored

pytestmark = pytest.mark.trio
MANY = 150


async def made(place: Place) -> Place:
    """A store that was stopped in order once, so that the checkpoint's name is on the disk."""
    async with place.open(mapped_file_size_consume_queue=60):
        pass
    return place


def one_each(queues: int) -> list[NewMessage]:
    return [new_message(queue_id=queue_id) for queue_id in range(queues)]


class CountingDisk(FaultyDisk):
    """Says by which calls queue files were synced."""

    def __init__(self) -> None:
        super().__init__()
        self.one_by_one = 0
        self.at_once = 0

    async def sync(self, handles: Sequence[int], *, directories: Iterable[str] = (), paths: Iterable[str] = ()) -> None:
        paths = [*paths]
        self.one_by_one += sum("consumequeue" in path for path in paths)
        await super().sync(handles, directories=directories, paths=paths)

    async def sync_file_system(self, handle: int) -> bool:
        self.at_once += 1
        return await super().sync_file_system(handle)


class SlowDisk(FaultyDisk):
    """Each write to a queue file takes a millisecond of the virtual clock."""

    def __init__(self, clock: MockClock) -> None:
        super().__init__()
        self._clock = clock
        self.queue_writes: list[float] = []

    def pwrite(self, handle: int, data: Data, offset: int) -> int:
        if "consumequeue" in self._path_of(self._handles[handle]):
            self._clock.jump(0.001)
            self.queue_writes.append(self._clock.current_time())
        return super().pwrite(handle, data, offset)


# The mark -------------------------------------------------------------------------------------------------------


async def test_the_mark_rises_though_all_queues_are_sent_to_meanwhile(twin: FaultyDisk) -> None:
    place = Place(twin, "store")
    async with place.open() as store, trio.open_nursery() as nursery:

        async def send() -> None:
            while True:
                stored(store.append(one_each(MANY)))
                await trio.lowlevel.checkpoint()

        stored(store.append(one_each(MANY)))
        nursery.start_soon(send)
        await store.sync()
        place_synced = store._log_flusher.synced_place
        assert await store._queue_flusher.sync()
        nursery.cancel_scope.cancel()
        mark = mark_in(place)
        assert mark is not None
        assert place_synced is not None
        assert (mark.physical_offset, mark.entries) == place_synced
        survivor = Place(twin.survivor_of_kill(), "store")
    async with survivor.open() as store:
        assert store.recovered is not None
        assert store.recovered.start_offset == mark.physical_offset


async def test_among_many_queues_it_rises_early_only_for_many_entries_to_each(
    twin: FaultyDisk, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flush, "_UNMARKED_ENTRIES_MAX", 100)
    place = Place(twin, "store")
    settings = {"flush_commit_log_least_pages": 0, "flush_consume_queue_least_pages": 1000}
    async with place.open(**settings) as store:
        for _ in range(flush._ENTRIES_A_QUEUE - 1):
            stored(store.append(one_each(MANY)))
        await trio.sleep(1.1)  # the log is synced
        stored(store.append([new_message()]))
        await trio.sleep(5)
        assert mark_in(place) is None
        stored(store.append(one_each(MANY)))
        await trio.sleep(1.1)
        stored(store.append([new_message()]))
        await trio.sleep(1.1)
        assert mark_in(place) is not None


async def test_it_rises_after_the_thorough_interval_in_any_case(twin: FaultyDisk, autojump_clock: MockClock) -> None:
    place = Place(twin, "store")
    async with place.open() as store:
        stored(store.append(one_each(MANY)))
        await trio.sleep(59)
        assert mark_in(place) is None
        await trio.sleep(5)
        mark = mark_in(place)
        assert mark is not None
        assert mark.entries == MANY


async def test_a_topic_that_is_being_deleted_keeps_the_mark_down(twin: FaultyDisk) -> None:
    """What waits for the deletion is not in files, whatever else is."""
    async with Place(twin, "store").open() as store:
        stored(store.append([new_message(), new_message(topic="U")]))
        await store.sync()
        store._queues._held.add("T")
        assert not await store._queue_flusher.sync()
        store._queues._held.discard("T")
        assert await store._queue_flusher.sync()


# Writing out ----------------------------------------------------------------------------------------------------


async def test_writing_out_many_takes_a_tenth_of_the_loop(autojump_clock: MockClock) -> None:
    disk = SlowDisk(autojump_clock)
    async with Place(disk, "store").open() as store:
        stored(store.append(one_each(MANY)))
        await trio.sleep(100)
        assert len(disk.queue_writes) == MANY
        took = disk.queue_writes[-1] - disk.queue_writes[0]
        assert took == pytest.approx(MANY * 0.001 * 10, rel=0.1)
        longest = max(later - earlier for earlier, later in pairwise(disk.queue_writes))
        assert longest <= 0.03, "after two milliseconds the others have their turns"


async def test_what_is_sent_to_much_is_written_while_all_others_are(autojump_clock: MockClock) -> None:
    disk = SlowDisk(autojump_clock)
    async with Place(disk, "store").open(flush_consume_queue_least_pages=1) as store:
        stored(store.append(one_each(5 * MANY)))
        await trio.sleep(62)
        hot = store._queues.table["T", 0]
        for _ in range(3):
            written = hot.written
            stored(store.append([new_message(queue_id=0) for _ in range(300)]))
            await trio.sleep(1.2)
            assert hot.written > written
            assert len(disk.queue_writes) < 5 * MANY


async def test_at_the_end_nobody_rests(autojump_clock: MockClock) -> None:
    disk = SlowDisk(autojump_clock)
    async with Place(disk, "store").open() as store:
        stored(store.append(one_each(MANY)))
    assert disk.queue_writes[-1] - disk.queue_writes[0] == pytest.approx((MANY - 1) * 0.001)


async def test_what_was_written_before_a_failure_is_synced(twin: FaultyDisk) -> None:
    """The queue's first file was written when there was no room for its second."""
    place = await made(Place(twin, "store"))
    async with place.open(mapped_file_size_consume_queue=60) as store:
        stored(store.append([new_message() for _ in range(3)]))
        await store.sync()
        real = twin.truncate

        def full(handle: int, size: int) -> None:
            if len(twin.list_directory("store/consumequeue/T/0")) > 1:
                raise OSError(errno.ENOSPC, "full")
            real(handle, size)

        stored(store.append([new_message() for _ in range(2)]))
        twin.truncate = full  # type: ignore[method-assign]
        assert not await store._queue_flusher.sync()
        twin.truncate = real  # type: ignore[method-assign]
        assert store.statistics().queue_entries_unwritten == 2
        await store.sync()
        assert await store._queue_flusher.sync()
        assert store.statistics().queue_entries_unwritten == 0
        survivor = Place(twin.survivor_of_power_loss(Random(1)), "store")
    async with survivor.open(mapped_file_size_consume_queue=60) as store:
        assert store.recovered is not None
        assert store.recovered.dispatched == 0
        assert store.max_offset("T", 0) == 5


# One sync for all -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("many", [True, False])
async def test_many_files_take_one_sync(many: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consume_queues, "_SYNCED_ONE_BY_ONE_MAX", 10 if many else 10_000)
    disk = CountingDisk()
    place = await made(Place(disk, "store"))
    async with place.open() as store:
        stored(store.append(one_each(MANY)))
        await store.sync()
        assert await store._queue_flusher.sync()
        assert (disk.at_once, disk.one_by_one) == ((1, 0) if many else (0, MANY))
        survivor = Place(disk.survivor_of_power_loss(Random(3)), "store")
    async with survivor.open() as store:
        assert store.recovered is not None
        assert store.recovered.dispatched == 0
        assert [store.max_offset("T", queue_id) for queue_id in range(MANY)] == [1] * MANY


async def test_folders_elsewhere_are_synced_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consume_queues, "_SYNCED_ONE_BY_ONE_MAX", 10)
    disk = CountingDisk()
    place = Place(disk, "store")
    async with place.open() as store:
        stored(store.append(one_each(MANY)))
    assert disk.at_once
    disk.at_once = 0
    real = disk.folder_device
    monkeypatch.setattr(disk, "folder_device", lambda path: 7 if path.endswith("/T/3") else real(path))
    async with place.open() as store:
        stored(store.append(one_each(MANY)))
    assert not disk.at_once
    assert disk.one_by_one == MANY


async def test_a_failed_sync_of_all_keeps_the_mark_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consume_queues, "_SYNCED_ONE_BY_ONE_MAX", 10)
    disk = CountingDisk()
    place = Place(disk, "store")
    async with place.open() as store:
        stored(store.append(one_each(MANY)))
        await store.sync()
        disk.fail_next("fdatasync")
        assert not await store._queue_flusher.sync()
        assert mark_in(place) is None
    async with place.open() as store:
        assert store.recovered is not None
        assert not store.recovered.clean
        assert [store.max_offset("T", queue_id) for queue_id in range(MANY)] == [1] * MANY


@pytest.mark.parametrize("loss", ["kill", "power"])
async def test_a_cancelled_sync_leaves_the_files_to_the_next(loss: str) -> None:
    disk = CountingDisk()
    place = await made(Place(disk, "store"))
    async with place.open() as store:
        stored(store.append(one_each(3)))
        await store._queue_flusher.write_out()
        with trio.CancelScope() as scope:
            scope.cancel()
            await store._queues.sync()
        assert scope.cancelled_caught
        await store.sync()
        assert await store._queue_flusher.sync()
        assert disk.one_by_one == 6
        survivor = disk.survivor_of_kill() if loss == "kill" else disk.survivor_of_power_loss(Random(5))
    async with Place(survivor, "store").open() as store:
        assert store.recovered is not None
        assert store.recovered.dispatched == 0


# The real call --------------------------------------------------------------------------------------------------


async def test_syncfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk()
    monkeypatch.setattr(disk_module, "_is_told_failures", lambda handle: True)
    handle = disk.open_file_system(str(tmp_path))
    assert handle is not None
    (tmp_path / "file").write_bytes(b"x")
    assert await disk.sync_file_system(handle)
    answers = [errno.ENOSYS, errno.EPERM, errno.EIO]

    def refuse(_: int) -> int:
        ctypes.set_errno(answers.pop(0))
        return -1

    monkeypatch.setattr(disk_module, "_syncfs", refuse)
    assert not await disk.sync_file_system(handle)
    assert not await disk.sync_file_system(handle)
    with pytest.raises(OSError, match="Input/output error"):
        await disk.sync_file_system(handle)
    monkeypatch.setattr(disk_module, "_syncfs", None)
    assert not await disk.sync_file_system(handle)
    disk.close(handle)


@pytest.mark.parametrize("lack", ["syncfs", "fstatfs", "kernel", "file system", "nothing"])
async def test_syncfs_is_believed_only_where_it_tells_all_failures(
    lack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kind_of(number: int) -> object:
        def answer(handle: int, room: ctypes.Array[ctypes.c_char]) -> int:
            ctypes.c_long.from_buffer(room).value = number
            return 0

        return answer

    def release(text: str) -> object:
        class System:
            release = text

        return System

    monkeypatch.setattr(disk_module, "_syncfs", None if lack == "syncfs" else lambda handle: 0)
    monkeypatch.setattr(disk_module, "_fstatfs", kind_of(0x6969 if lack == "file system" else 0xEF53))
    if lack == "fstatfs":
        monkeypatch.setattr(disk_module, "_fstatfs", None)
    monkeypatch.setattr(os, "uname", release("5.7.19-generic" if lack == "kernel" else "5.10.0-8-amd64"))
    disk = Disk()
    handle = disk.open_file_system(str(tmp_path))
    assert (handle is not None) == (lack == "nothing")
    if handle is not None:
        disk.close(handle)


@pytest.mark.parametrize("whole", [True, False])
async def test_a_real_store_with_many_queues(whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consume_queues, "_SYNCED_ONE_BY_ONE_MAX", 10)
    monkeypatch.setattr(disk_module, "_is_told_failures", lambda handle: whole)
    place = Place(Disk(), str(tmp_path / "store"))

    async def send(store: MessageStore) -> None:
        stored(store.append(one_each(MANY)))
        await store.sync()
        assert await store._queue_flusher.sync()

    for life in range(2):
        async with place.open() as store:
            await send(store)
            assert store.statistics().queue_entries_unwritten == 0
            assert store.max_offset("T", MANY - 1) == life + 1
