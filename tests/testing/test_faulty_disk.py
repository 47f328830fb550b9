"""The twin's faults are those it promises: what is synced stays, what is not may go in any part and order."""

from __future__ import annotations

import errno
from random import Random

import pytest
import trio
import trio.testing

from trio_rmq.testing.disk_files import SECTOR_BYTES
from trio_rmq.testing.faulty_disk import FaultyDisk, SimulatedCrash


def disk_with_file(content: bytes) -> FaultyDisk:
    disk = FaultyDisk()
    disk.make_directories("d")
    disk.write_file("d/f", content)
    for folder in ("", "d"):
        disk.sync_directory(folder)
    return disk


def test_synced_bytes_survive_and_others_go_by_sectors() -> None:
    before = bytes(8 * SECTOR_BYTES)
    disk = disk_with_file(before)
    handle = disk.open("d/f")
    disk.pwrite(handle, b"\1" * len(before), 0)
    seen = set()
    for seed in range(200):
        content = disk.survivor_of_power_loss(Random(seed)).read_file("d/f")
        assert len(content) == len(before)
        sectors = tuple(content[at] for at in range(0, len(content), SECTOR_BYTES))
        for at in range(0, len(content), SECTOR_BYTES):
            assert len(set(content[at : at + SECTOR_BYTES])) == 1
        seen.add(sectors)
    assert (0,) * 8 in seen
    assert (1,) * 8 in seen
    assert any(0 in sectors and 1 in sectors and sectors[0] == 0 for sectors in seen)
    assert disk.survivor_of_kill().read_file("d/f") == b"\1" * len(before)
    disk.fdatasync(handle)
    for seed in range(50):
        assert disk.survivor_of_power_loss(Random(seed)).read_file("d/f") == b"\1" * len(before)


def test_a_kill_does_not_make_anything_durable() -> None:
    disk = disk_with_file(b"old.")
    disk.pwrite(disk.open("d/f"), b"new.", 0)
    disk.close(disk.open("d/g", create=True))
    later = disk.survivor_of_kill()
    assert later.read_file("d/f") == b"new."
    contents = set()
    listings = set()
    for seed in range(50):
        survivor = later.survivor_of_power_loss(Random(seed))
        contents.add(survivor.read_file("d/f"))
        listings.add(tuple(survivor.list_directory("d")))
    assert contents == {b"old.", b"new."}
    assert listings == {("f",), ("f", "g")}


def test_a_rename_may_come_before_the_data() -> None:
    disk = disk_with_file(b"old.")
    handle = disk.open("d/tmp", create=True)
    disk.pwrite(handle, b"new.", 0)
    disk.rename("d/tmp", "d/f")
    found = {disk.survivor_of_power_loss(Random(seed)).read_file("d/f") for seed in range(200)}
    assert {b"old.", b"new.", b""} <= found
    disk.fdatasync(handle)
    found = {disk.survivor_of_power_loss(Random(seed)).read_file("d/f") for seed in range(200)}
    assert found == {b"old.", b"new."}


def test_a_failed_sync_drops_what_it_should_have_kept() -> None:
    disk = disk_with_file(b"old.")
    handle = disk.open("d/f")
    disk.pwrite(handle, b"new.", 0)
    disk.fail_next("fdatasync")
    with pytest.raises(OSError, match="Input/output"):
        disk.fdatasync(handle)
    assert disk.read_file("d/f") == b"new."
    disk.fdatasync(handle)
    assert disk.survivor_of_power_loss(Random(0)).read_file("d/f") == b"old."


def test_a_length_outlives_a_failed_sync_and_later_data_stand_where_they_were_written() -> None:
    disk = disk_with_file(b"")
    handle = disk.open("d/f")
    disk.truncate(handle, 8)
    disk.pwrite(handle, b"lost", 0)
    disk.fail_next("fdatasync")
    with pytest.raises(OSError, match="Input/output"):
        disk.fdatasync(handle)
    disk.pwrite(handle, b"kept", 4)
    disk.fdatasync(handle)
    assert disk.survivor_of_power_loss(Random(0)).read_file("d/f") == b"\0\0\0\0kept"


@pytest.mark.trio
async def test_of_two_syncs_at_once_neither_covers_what_came_later(autojump_clock: trio.testing.MockClock) -> None:
    """The one that ends last began first, when less was written."""
    latencies = [3.0, 1.0]
    disk = disk_with_file(b"....")
    disk.latency = lambda: latencies.pop(0)
    handle = disk.open("d/f")
    disk.pwrite(handle, b"a", 0)

    async def later() -> None:
        await trio.sleep(1)
        disk.pwrite(handle, b"b", 1)
        await disk.sync([handle])
        disk.pwrite(handle, b"c", 2)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(disk.sync, [handle])
        nursery.start_soon(later)
    found = {disk.survivor_of_power_loss(Random(seed)).read_file("d/f") for seed in range(200)}
    assert found == {b"ab..", b"abc."}


def test_a_full_disk() -> None:
    disk = disk_with_file(b"")
    disk.capacity_bytes = 4 * SECTOR_BYTES
    handle = disk.open("d/f")
    disk.truncate(handle, 100 * SECTOR_BYTES)
    assert disk.pwrite(handle, b"x" * 3 * SECTOR_BYTES, 0) == 3 * SECTOR_BYTES
    assert disk.pwrite(handle, b"x" * 3 * SECTOR_BYTES, 2 * SECTOR_BYTES) == 2 * SECTOR_BYTES
    with pytest.raises(OSError, match="No space") as caught:
        disk.pwrite(handle, b"x", 50 * SECTOR_BYTES)
    assert caught.value.errno == errno.ENOSPC
    assert disk.pwrite(handle, b"y" * SECTOR_BYTES, 0) == SECTOR_BYTES
    assert disk.space("d") == (0, 4 * SECTOR_BYTES)


def test_after_the_crash_nothing_works() -> None:
    disk = disk_with_file(b"old.")
    handle = disk.open("d/f")
    disk.crash_at = disk.operations + 2
    assert disk.pwrite(handle, b"a", 0) == 1
    with pytest.raises(SimulatedCrash):
        disk.pwrite(handle, b"b", 1)
    for call in (lambda: disk.pread(handle, 1, 0), lambda: disk.exists("d"), lambda: disk.close(handle)):
        with pytest.raises(SimulatedCrash):
            call()
    assert disk.survivor_of_kill().read_file("d/f") == b"ald."


def test_a_dying_write_may_be_half_done() -> None:
    found = set()
    for seed in range(50):
        disk = disk_with_file(b"old.")
        disk.crash_at, disk.crash_rng = disk.operations + 1, Random(seed)
        with pytest.raises(SimulatedCrash):
            disk.pwrite(disk.open("d/f"), b"new.", 0)
        found.add(disk.survivor_of_kill().read_file("d/f"))
    assert {b"old.", b"new."} < found


@pytest.mark.trio
async def test_a_sync_covers_only_what_was_written_before_it(autojump_clock: trio.testing.MockClock) -> None:
    disk = disk_with_file(b"....")
    disk.latency = lambda: 1.0
    handle = disk.open("d/f")
    disk.pwrite(handle, b"a", 0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(disk.sync, [handle])
        await trio.sleep(0.5)
        disk.pwrite(handle, b"b", 1)
    found = {disk.survivor_of_power_loss(Random(seed)).read_file("d/f") for seed in range(50)}
    assert found == {b"a...", b"ab.."}
