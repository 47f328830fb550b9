"""The real disk, its twin and test brokers' disks answer alike."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import trio

from trio_rmq.errors import StoreError
from trio_rmq.store.disk import Disk
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.testing.memory_disk import MemoryDisk, UnsyncedDisk
from trio_rmq.testing.stores import Place


@pytest.fixture(params=["disk", "unsynced", "twin", "memory"])
def at(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Disk, str]:
    if request.param in ("disk", "unsynced"):
        return (Disk() if request.param == "disk" else UnsyncedDisk()), str(tmp_path)
    disk = FaultyDisk() if request.param == "twin" else MemoryDisk()
    disk.make_directories("folder")
    return disk, "folder"


@pytest.mark.trio
async def test_files(at: tuple[Disk, str]) -> None:
    disk, root = at
    path = f"{root}/file"
    with pytest.raises(FileNotFoundError):
        disk.open(path)
    handle = disk.open(path, create=True)
    disk.truncate(handle, 10_000)
    assert (disk.size(handle), disk.path_size(path)) == (10_000, 10_000)
    assert disk.pwrite(handle, b"abc", 5000) == 3
    assert disk.pwrite(handle, memoryview(b"def"), 5003) == 3
    assert disk.pread(handle, 8, 4999) == b"\0abcdef\0"
    assert disk.pread(handle, 100, 9_990) == bytes(10)
    assert disk.pread(handle, 100, 20_000) == b""
    extents = disk.data_extents(handle, 0, 10_000)
    assert any(start <= 5000 and end >= 5006 for start, end in extents)
    assert disk.data_extents(handle, 10_000, 10_000) == []
    disk.fdatasync(handle)
    await disk.sync([handle], directories=[root, f"{root}/gone"], paths=[path, f"{root}/gone"])
    other = disk.open(path)
    assert disk.pread(other, 3, 5000) == b"abc"
    disk.close(handle)
    disk.close(other)


def test_names(at: tuple[Disk, str]) -> None:
    disk, root = at
    assert disk.make_directories(f"{root}/a/b/c") == [f"{root}/a/b", f"{root}/a", root]
    assert disk.make_directories(f"{root}/a/b/c") == []
    assert disk.is_directory(f"{root}/a/b")
    disk.write_file(f"{root}/a/two", b"22")
    disk.write_file(f"{root}/a/one", b"long")
    disk.write_file(f"{root}/a/one", b"1")
    assert disk.list_directory(f"{root}/a") == ["b", "one", "two"]
    assert disk.list_directory(f"{root}/nothing") == []
    disk.rename(f"{root}/a/one", f"{root}/a/two")
    assert disk.read_file(f"{root}/a/two") == b"1"
    assert not disk.exists(f"{root}/a/one")
    assert not disk.is_directory(f"{root}/a/two")
    with pytest.raises(OSError, match=r"\[Errno"):
        disk.remove_directory(f"{root}/a")
    disk.unlink(f"{root}/a/two")
    with pytest.raises(FileNotFoundError):
        disk.unlink(f"{root}/a/two")
    disk.remove_directory(f"{root}/a/b/c")
    disk.sync_directory(f"{root}/a/b")
    for call in (disk.read_file, disk.path_size, disk.sync_directory):
        with pytest.raises(FileNotFoundError):
            call(f"{root}/nothing")
    free, total = disk.space(root)
    assert 0 < free <= total


def test_the_lock(at: tuple[Disk, str]) -> None:
    disk, root = at
    handle = disk.lock(f"{root}/lock")
    with pytest.raises(BlockingIOError):
        disk.lock(f"{root}/lock")
    disk.close(handle)
    assert disk.read_file(f"{root}/lock") == b"lock"
    disk.close(disk.lock(f"{root}/lock"))


@pytest.mark.parametrize("owner", ["ours", "java"])
def test_the_lock_holds_across_processes(tmp_path: Path, owner: str) -> None:
    """A Java broker locks bytes 0..1 with a POSIX lock, as lockf does."""
    path = str(tmp_path / "lock")
    take = (
        "from trio_rmq.store.disk import Disk; Disk().lock(sys.argv[1])"
        if owner == "ours"
        else "import fcntl; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX, 1, 0)"
    )
    program = f"import sys; {take}; print('locked', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        with pytest.raises(BlockingIOError):
            Disk().lock(path)
        process.communicate(b"")
    disk = Disk()
    disk.close(disk.lock(path))


def test_an_unwritable_folder_is_a_sentence(tmp_path: Path) -> None:
    """Root may write anywhere, so the folder's place is taken by a file."""
    (tmp_path / "file").write_bytes(b"")

    async def start() -> None:
        async with Place(Disk(), str(tmp_path / "file" / "store")).open():
            pytest.fail("opened")

    with pytest.raises(StoreError, match=r"store folder .* cannot be used .*must be readable and writable"):
        trio.run(start)


@pytest.mark.trio
async def test_a_file_that_lost_its_name_cannot_be_synced(at: tuple[Disk, str]) -> None:
    disk, root = at
    disk.make_directories(root)
    path = f"{root}/log"
    handle = disk.open(path, create=True)
    disk.pwrite(handle, b"x", 0)
    await disk.sync([handle], directories=[root])
    await disk.remove(path)
    assert not disk.exists(path)
    disk.pwrite(handle, b"y", 1)
    with pytest.raises(FileNotFoundError, match="deleted while in use"):
        await disk.sync([handle])
    disk.close(handle)
    await disk.remove(path)
    await disk.sync([], paths=[path])
