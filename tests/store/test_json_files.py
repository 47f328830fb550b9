"""Metadata files: whole after any crash, the previous content at hand, nothing written twice."""

from __future__ import annotations

import errno
import json
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
import trio

from trio_rmq.errors import StoreError
from trio_rmq.store.json_files import ConfigFile
from trio_rmq.testing.faulty_disk import FaultyDisk, SimulatedCrash

PATH = "store/config/topics.json"


@pytest.mark.trio
async def test_save_and_load(tmp_path: Path) -> None:
    path = str(tmp_path / "deep" / "config" / "topics.json")
    file = ConfigFile(path)
    assert file.load(json.loads) is None
    assert await file.save(b'{"a": 1}')
    assert not await file.save(b'{"a": 1}')
    assert file.save_now(b'{"a": 2}')
    assert not file.save_now(b'{"a": 2}')
    other = ConfigFile(path)
    assert other.load(json.loads) == {"a": 2}
    assert not await other.save(b'{"a": 2}')
    assert sorted(entry.name for entry in (tmp_path / "deep" / "config").iterdir()) == [
        "topics.json",
        "topics.json.bak",
    ]
    assert (tmp_path / "deep" / "config" / "topics.json.bak").read_bytes() == b'{"a": 1}'


@pytest.mark.trio
@pytest.mark.parametrize("broken", [b"", b"\0\0\0\0", b"{", b"[1,"])
async def test_a_broken_file_falls_back(broken: bytes, caplog: pytest.LogCaptureFixture) -> None:
    disk = FaultyDisk()
    file = ConfigFile(PATH, disk=disk)
    await file.save(b"[1]")
    await file.save(b"[2]")
    disk.write_file(PATH, broken)
    again = ConfigFile(PATH, disk=disk)
    assert again.load(json.loads) == [1]
    assert "previous content" in caplog.text
    assert await again.save(b"[1]")
    assert ConfigFile(PATH, disk=disk).load(json.loads) == [1]


@pytest.mark.trio
async def test_two_broken_files_are_named() -> None:
    disk = FaultyDisk()
    file = ConfigFile(PATH, disk=disk)
    await file.save(b"[1]")
    await file.save(b"[2]")
    disk.write_file(PATH, b"{")
    disk.write_file(f"{PATH}.bak", b"")
    with pytest.raises(StoreError, match=r"topics.json cannot be used.*topics.json.bak cannot be used.*mend"):
        ConfigFile(PATH, disk=disk).load(json.loads)


@pytest.mark.trio
async def test_a_failed_save_keeps_the_old_content() -> None:
    disk = FaultyDisk()
    file = ConfigFile(PATH, disk=disk)
    await file.save(b"[1]")
    for call, number in (("pwrite", errno.ENOSPC), ("fdatasync", errno.EIO)):
        disk.fail_next(call, number)
        with pytest.raises(OSError, match=r"\[Errno"):
            await file.save(b"[2]")
        assert ConfigFile(PATH, disk=disk).load(json.loads) == [1]
    assert await file.save(b"[2]")
    assert ConfigFile(PATH, disk=disk).load(json.loads) == [2]


@pytest.mark.trio
async def test_after_a_failed_sync_the_next_save_writes_anew() -> None:
    """What a kernel could not sync it shows as clean: syncing it once more succeeds and saves nothing."""
    disk = FaultyDisk()
    for changed in disk.make_directories(PATH.rpartition("/")[0]):
        disk.sync_directory(changed)
    handle = disk.open(PATH, create=True)
    disk.pwrite(handle, b"[1]", 0)  # by a process that was killed before its sync
    disk.close(handle)
    file = ConfigFile(PATH, disk=disk)
    assert file.load(json.loads) == [1]
    disk.fail_next("fdatasync", errno.EIO)
    with pytest.raises(OSError, match=r"\[Errno"):
        await file.save(b"[1]")
    await file.save(b"[1]")
    for seed in range(20):
        assert ConfigFile(PATH, disk=disk.survivor_of_power_loss(Random(seed))).load(json.loads) == [1]


@pytest.mark.trio
async def test_after_a_failed_sync_of_the_folder_the_old_content_is_written_again() -> None:
    disk = FaultyDisk()
    file = ConfigFile(PATH, disk=disk)
    await file.save(b"[1]")
    disk.fail_next("sync_directory", errno.EIO)
    with pytest.raises(OSError, match=r"\[Errno"):
        await file.save(b"[2]")
    assert ConfigFile(PATH, disk=disk).load(json.loads) == [2]
    assert await file.save(b"[1]")
    assert ConfigFile(PATH, disk=disk).load(json.loads) == [1]


def test_power_loss_at_every_call() -> None:
    async def save(disk: FaultyDisk, told: list[int]) -> None:
        file = ConfigFile(PATH, disk=disk)
        for number in range(1, 5):
            await file.save(b"[%d]" % number)
            told.append(number)

    for seed in range(30):
        for point in range(1, 40):
            rng = Random(f"{seed}/{point}")
            disk = FaultyDisk()
            disk.crash_at, disk.crash_rng = point, rng
            told: list[int] = []
            with suppress(SimulatedCrash):
                trio.run(save, disk, told)
            for later in (disk.survivor_of_kill(), disk.survivor_of_power_loss(rng)):
                found = ConfigFile(PATH, disk=later).load(json.loads)
                last = told[-1] if told else 0
                assert (found or [0])[0] in (last, last + 1)


@pytest.mark.trio
async def test_saves_follow_one_another_and_finish(autojump_clock: trio.testing.MockClock) -> None:
    disk = FaultyDisk(latency=lambda: 1.0)
    file = ConfigFile(PATH, disk=disk)
    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(file.save, b"[%d]" % number)
    with trio.move_on_after(0.5):
        await file.save(b"[9]")
    assert ConfigFile(PATH, disk=disk.survivor_of_power_loss(Random(1))).load(json.loads) == [9]
