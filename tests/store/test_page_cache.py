"""Reads of what is not in the page cache: told before they wait, fetched in a thread, the same answer afterwards."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_rmq.store import reading
from trio_rmq.store.disk import Disk
from trio_rmq.store.log_files import FileHandles, LogFiles
from trio_rmq.store.message_store import MessageStore
from trio_rmq.store.messages import GetResult, GetStatus
from trio_rmq.store.page_cache import BLOCK_BYTES, ColdReadError, PageCache
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.testing.stores import Place, new_message, stored
from trio_rmq.wire.record import decode_records

LOG = "store/commitlog/00000000000000000000"


@pytest.fixture(autouse=True)
def _nothing_is_recent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "RECENT_BYTES", 0)
    monkeypatch.setattr(reading, "RECENT_ENTRIES", 0)


async def get(store: MessageStore, offset: int = 0, **more: object) -> tuple[GetResult, int]:
    """A pull that waits for nothing, and how often the store had to be warmed for it."""
    trips = 0
    while True:
        try:
            return store.get_messages("T", 0, offset, max_count=32, wait=False, **more), trips  # type: ignore[arg-type]
        except ColdReadError as cold:
            assert trips < 10
            trips += 1
            await store.warm(cold)


@pytest.mark.trio
@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="this system cannot tell what is in its page cache")
async def test_the_real_disk_tells_what_is_cached(tmp_path: Path) -> None:
    disk, path = Disk(), tmp_path / "file"
    path.write_bytes(os.urandom(1 << 20))
    handle = disk.open(str(path))
    try:
        os.fsync(handle)
        assert disk.is_cached(handle, 1 << 20, 0)
        for _ in range(50):  # asking makes the kernel fetch, and a quick disk may be done at once
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            if not disk.is_cached(handle, 1 << 20, 0):
                break
        else:
            pytest.skip("the file system keeps its pages whatever it is told")
        await disk.read_ahead([(str(path), 0, 1 << 20), (f"{path}-gone", 0, 10)])
        assert disk.is_cached(handle, 1 << 20, 0)
        assert disk.is_cached(handle, 4096, 2 << 20)  # beyond its end there is nothing to wait for
    finally:
        disk.close(handle)


@pytest.mark.trio
async def test_a_cold_answer_is_told_of_and_comes_after_one_trip(twin: FaultyDisk) -> None:
    async with Place(twin, "store").open() as store:
        stored(store.append([new_message(b"%d" % number, queue_id=number % 2) for number in range(64)]))
        twin.cold.add(LOG)
        with pytest.raises(ColdReadError):
            store.get_messages("T", 0, 0, max_count=32, wait=False)
        warm, trips = await get(store)
        assert trips == 1
        assert [message.body for message in decode_records(warm.body)] == [b"%d" % number for number in range(0, 64, 2)]
        assert await get(store) == (warm, 0)  # the blocks are known to be cached now
        assert [block[0] for block in twin.read_ahead_blocks] == [LOG]
        assert store.get_messages("T", 0, 0, max_count=32) == warm


@pytest.mark.trio
async def test_what_was_read_between_the_records_of_others_serves_these(twin: FaultyDisk) -> None:
    async with Place(twin, "store").open() as store:
        stored(store.append([new_message(b"%d" % number, queue_id=number % 2) for number in range(40)]))
        store.get_messages("T", 0, 0, max_count=32)
        twin.cold.add(LOG)
        answer = store.get_messages("T", 1, 0, max_count=32, wait=False)  # from memory, else it were a ColdReadError
        assert [message.body for message in decode_records(answer.body)] == [
            b"%d" % number for number in range(1, 40, 2)
        ]
        stored(store.append([new_message(b"%d" % number, queue_id=number % 2) for number in range(40, 60)]))
        with pytest.raises(ColdReadError):  # of what came later nothing was kept
            store.get_messages("T", 1, 0, max_count=32, wait=False)
        answer = store.get_messages("T", 1, 0, max_count=32)
        assert [message.body for message in decode_records(answer.body)] == [
            b"%d" % number for number in range(1, 60, 2)
        ]


@pytest.mark.trio
async def test_a_cold_queue_file_is_told_of_too(twin: FaultyDisk) -> None:
    async with Place(twin, "store").open() as store:
        stored(store.append([new_message(b"%d" % number) for number in range(30)]))
        await store._queue_flusher.write_out()
        names = [f"store/consumequeue/T/0/{number * 400:020d}" for number in range(2)]
        twin.cold.update(names)
        answer, trips = await get(store, offset=5)
        assert (answer.status, answer.count, trips) == (GetStatus.FOUND, 25, 1)
        assert [block[0] for block in twin.read_ahead_blocks] == names[:1]


@pytest.mark.trio
async def test_a_filter_that_reads_records_warms_them(twin: FaultyDisk) -> None:
    async with Place(twin, "store").open() as store:
        stored(store.append([new_message(b"%d" % number + bytes(1000)) for number in range(60)]))
        twin.cold.update(store._log.files.path(start) for start in store._log.files.starts)
        answer, trips = await get(store, accept=lambda record: b"7" in record[88:90])
        assert [message.body[:2].rstrip(b"\0") for message in decode_records(answer.body)] == [
            b"7", b"17", b"27", b"37", b"47", b"57",
        ]  # fmt: skip
        assert trips == len(store._log.files.starts)


@pytest.mark.trio
async def test_what_was_written_lately_is_not_asked_for(twin: FaultyDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "RECENT_BYTES", 64 << 20)
    monkeypatch.setattr(reading, "RECENT_ENTRIES", 100)
    async with Place(twin, "store").open() as store:
        stored(store.append([new_message(b"%d" % number) for number in range(10)]))
        twin.cold.add(LOG)
        assert (await get(store))[1] == 0


@pytest.mark.trio
async def test_a_deleted_file_is_left_to_the_reader(twin: FaultyDisk) -> None:
    async with Place(twin, "store").open() as store:
        for number in range(60):
            stored(store.append([new_message(b"%d" % number + bytes(1000))]))
        store._handles.forget(LOG)
        twin.unlink(LOG)
        answer, trips = await get(store)
        assert (answer.status, trips) == (GetStatus.MESSAGE_WAS_REMOVING, 0)


class _ColdBlocks(FaultyDisk):
    """A disk on which single blocks are not cached; counts what it is asked."""

    def __init__(self, cold: set[tuple[str, int]]) -> None:
        super().__init__()
        self.cold_blocks = cold
        self.asked = 0

    def is_cached(self, handle: int, size: int, offset: int) -> bool:
        self.asked += 1
        assert offset % BLOCK_BYTES == 0
        return (self._path_of(self._handles[handle]), offset // BLOCK_BYTES) not in self.cold_blocks


SIZE = 3 * BLOCK_BYTES + 1000


def three_files(cold: set[int]) -> tuple[PageCache, LogFiles, _ColdBlocks]:
    """Three files of four blocks each, the last of which is short; `cold` numbers blocks through all files."""
    disk = _ColdBlocks({(f"log/{number // 4 * SIZE:020d}", number % 4) for number in cold})
    disk.make_directories("log")
    handles = FileHandles(disk, 10)
    files = LogFiles(disk, handles, "log", SIZE, set())
    for number in range(3):
        files.append_file(number * SIZE)
    return PageCache(disk, handles), files, disk


HALF = BLOCK_BYTES // 2


@given(
    cold=st.sets(st.integers(0, 11)),
    places=st.lists(
        st.tuples(st.integers(0, 3 * SIZE // HALF).map(lambda half: half * HALF), st.sampled_from([1, HALF, 3 * HALF])),
        max_size=30,
    ),
)
def test_a_place_counts_as_cached_only_when_all_its_blocks_are(cold: set[int], places: list[tuple[int, int]]) -> None:
    cache, files, _ = three_files(cold)
    for offset, size in places:
        first, at = divmod(offset, SIZE)
        last = min(at + size, SIZE) - 1  # what is in the next file is for its own look
        blocks = {first * 4 + number for number in range(at // BLOCK_BYTES, last // BLOCK_BYTES + 1)}
        if first < 3 and blocks & cold:
            with pytest.raises(ColdReadError):
                cache.require_span(files, offset, size)
        else:
            cache.require_span(files, offset, size)


def test_neighbours_are_asked_for_once() -> None:
    cache, files, disk = three_files(set())
    for offset in range(0, 2 * BLOCK_BYTES, 1000):
        cache.require_span(files, SIZE + offset, 1000)
    assert disk.asked == 3
