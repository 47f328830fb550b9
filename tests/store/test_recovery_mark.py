"""Starts after a crash that begin at the checkpoint's mark, and marks that are not to be believed."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.store.test_recovery import check, fill
from trio_rmq.store import flush
from trio_rmq.store.checkpoint import Checkpoint, Mark
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.testing.stores import FILE_SIZE, Place, new_message, stored

pytestmark = pytest.mark.trio
COUNT = 20


def mark_in(place: Place) -> Mark | None:
    checkpoint = Checkpoint(place.disk, f"{place.root}/checkpoint")
    checkpoint.load()
    return checkpoint.mark


async def recovered_from(place: Place) -> int:
    """Where the start after a crash began to read; all messages must be there."""
    async with place.open() as store:
        assert store.recovered is not None
        assert not store.recovered.clean
        return store.recovered.start_offset


async def test_only_what_follows_the_mark_is_read(place: Place) -> None:
    await fill(place, COUNT)
    mark = mark_in(place)
    assert mark is not None
    assert mark.entries == COUNT
    place.crash(marked=True)
    assert await recovered_from(place) == mark.physical_offset > 0
    await check(place, COUNT)


async def test_what_was_written_after_the_mark_comes_back(place: Place) -> None:
    await fill(place, COUNT)
    marked = place.read("checkpoint")
    queue = place.read("consumequeue/T/0/00000000000000000000")
    await fill(place, 5, start=COUNT)
    place.write("checkpoint", marked)
    place.write("consumequeue/T/0/00000000000000000000", queue)
    place.crash(marked=True)
    mark = mark_in(place)
    assert mark is not None
    assert await recovered_from(place) == mark.physical_offset
    await check(place, COUNT + 5)


async def test_a_mark_of_another_log_is_not_believed(place: Place) -> None:
    await fill(place, COUNT)
    mark = mark_in(place)
    assert mark is not None
    name = f"commitlog/{mark.physical_offset - mark.physical_offset % FILE_SIZE:020d}"
    last = place.read(name)[mark.physical_offset % FILE_SIZE - 1]
    place.write(name, bytes([last ^ 1]), mark.physical_offset % FILE_SIZE - 1)
    place.crash(marked=True)
    assert await recovered_from(place) < mark.physical_offset


async def test_queues_that_were_removed_by_hand_are_made_again(place: Place) -> None:
    await fill(place, COUNT)
    for path in place.disk.list_directory(f"{place.root}/consumequeue/T/0"):
        place.disk.unlink(f"{place.root}/consumequeue/T/0/{path}")
    place.crash(marked=True)
    await check(place, COUNT)


@pytest.mark.parametrize("at", [256, 264, 275, 284, 287])
async def test_a_damaged_mark_is_none(place: Place, at: int) -> None:
    await fill(place, COUNT)
    place.write("checkpoint", bytes([place.read("checkpoint")[at] ^ 0x40]), at)
    assert mark_in(place) is None
    place.crash(marked=True)
    await check(place, COUNT)


async def test_the_mark_stays_where_the_log_is_synced(twin: FaultyDisk, autojump_clock: trio.testing.MockClock) -> None:
    place = Place(twin, "store")
    later = 10**9
    async with place.open(flush_interval_commit_log=later, flush_commit_log_thorough_interval=later) as store:
        [first] = stored(store.append([new_message()]))
        assert await store._queue_flusher.sync()
        assert mark_in(place) is None
        await store._log_flusher.sync()
        stored(store.append([new_message()]))
        assert await store._queue_flusher.sync()
        mark = mark_in(place)
        assert mark is not None
        assert (mark.physical_offset, mark.entries) == (first.size_bytes, 1)


async def test_a_deleted_topic_moves_the_count(twin: FaultyDisk, autojump_clock: trio.testing.MockClock) -> None:
    place = Place(twin, "store")
    async with place.open() as store:
        stored(store.append([new_message(), new_message(topic="U"), new_message()]))
        await trio.sleep(20)
        await store.delete_topic("T")
        stored(store.append([new_message(topic="U")]))
        await trio.sleep(100)
        mark = mark_in(place)
        assert mark is not None
        assert mark.entries == 2
        survivor = Place(twin.survivor_of_kill(), "store")
    assert await recovered_from(survivor) == mark.physical_offset
    async with survivor.open() as store:
        assert store.max_offset("U", 0) == 2
        assert store.max_offset("T", 0) == 0


async def test_much_log_behind_the_mark_moves_it_early(
    twin: FaultyDisk, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(twin, "store")
    monkeypatch.setattr(flush, "_UNMARKED_BYTES_MAX", 3000)
    async with place.open() as store:
        stored(store.append([new_message(b"x" * 1000)]))
        await trio.sleep(5)
        assert mark_in(place) is None
        stored(store.append([new_message(b"x" * 1000), new_message(b"x" * 1000)]))
        await trio.sleep(15)  # the log is synced
        stored(store.append([new_message()]))
        await trio.sleep(2)
        mark = mark_in(place)
        assert mark is not None
        assert mark.entries >= 3


async def test_many_entries_behind_the_mark_move_it_early(
    twin: FaultyDisk, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(twin, "store")
    monkeypatch.setattr(flush, "_UNMARKED_ENTRIES_MAX", 100)
    async with place.open(flush_commit_log_least_pages=0) as store:
        for count, is_marked in ((90, False), (20, True), (80, False), (80, True)):
            before = mark_in(place)
            stored(store.append([new_message() for _ in range(count)]))
            await trio.sleep(1.1)  # the log is synced
            stored(store.append([new_message(topic="U")]))
            await trio.sleep(1.1)
            assert (mark_in(place) != before) == is_marked


async def test_a_mark_that_is_taken_back_is_gone_on_disk(place: Place) -> None:
    """A rebuild takes it back: entries that it had no time to write are no longer those that the mark counted."""
    await fill(place, COUNT)
    checkpoint = Checkpoint(place.disk, f"{place.root}/checkpoint")
    checkpoint.load()
    assert checkpoint.mark is not None
    checkpoint.mark = None
    checkpoint.write()
    assert mark_in(place) is None
    assert not any(place.read("checkpoint")[256:])


async def test_the_longs_of_other_versions_stay(place: Place) -> None:
    place.disk.make_directories(place.root)
    place.write("checkpoint", bytes(range(40)).ljust(4096, b"\0"))
    await fill(place, COUNT)
    assert place.read("checkpoint")[24:40] == bytes(range(24, 40))
    assert mark_in(place) is not None
