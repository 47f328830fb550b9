"""What the real disk does where a system or a file system lacks a call: each is taken away, or refuses to work."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trio_rmq.errors import StoreLockedError
from trio_rmq.store import disk as disk_module
from trio_rmq.store import flush
from trio_rmq.store.disk import Disk
from trio_rmq.store.messages import GetStatus
from trio_rmq.testing.stores import Place, new_message, stored

UNKNOWN = [errno.EINVAL, errno.EOPNOTSUPP]
Refuse = Callable[[int], None]


@pytest.fixture
def refuse_ofd(monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """Makes open-file-description locks answer so, which old and emulated kernels do."""
    real = fcntl.fcntl

    def refuse(number: int) -> None:
        def call(handle: int, command: int, argument: bytes) -> object:
            if command in (disk_module._OFD_SETLK, disk_module._OFD_GETLK):
                raise OSError(number, os.strerror(number))
            return real(handle, command, argument)

        monkeypatch.setattr(fcntl, "fcntl", call)

    return refuse


@contextmanager
def held_elsewhere(path: str, *, shared: bool = False) -> Iterator[None]:
    """Another process has the lock, of whichever kind this system has; its fallback meets ours and Java's."""
    take = "fcntl.LOCK_SH" if shared else "fcntl.LOCK_EX"
    program = (
        f"import fcntl, sys; f = open(sys.argv[1], 'r+b'); fcntl.lockf(f, {take}, 1, 0); print(); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-uc", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        try:
            yield
        finally:
            process.communicate(b"")


@pytest.mark.parametrize("number", [None, *UNKNOWN])
def test_file_description_locks(
    number: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuse_ofd: Refuse
) -> None:
    """Without the call, or where the kernel does not know it, the process-wide kind tells the same of others."""
    if number is None:
        monkeypatch.setattr(disk_module, "_OFD_SETLK", None)
        monkeypatch.setattr(disk_module, "_OFD_GETLK", None)
    else:
        refuse_ofd(number)
    disk, path = Disk(), str(tmp_path / "lock")
    handle = disk.lock(path)
    program = (
        "import sys; from trio_rmq.store.disk import Disk; "
        "print(Disk().is_locked(sys.argv[1])); Disk().lock(sys.argv[1])"
    )
    result = subprocess.run([sys.executable, "-c", program, path], capture_output=True, check=False)
    assert result.stdout == b"True\n"
    assert b"BlockingIOError" in result.stderr
    disk.close(handle)
    assert not disk.is_locked(path)
    with held_elsewhere(path):
        assert disk.is_locked(path)
        for take in (disk.lock, disk.lock_shared):
            with pytest.raises(BlockingIOError):
                take(path)
    with held_elsewhere(path, shared=True):
        assert not disk.is_locked(path)
        with pytest.raises(BlockingIOError):
            disk.lock(path)
        disk.close(disk.lock_shared(path))
    disk.close(disk.lock(path))


def test_a_lock_that_is_taken_may_also_be_told_as_a_lack_of_rights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """POSIX leaves the choice between EAGAIN and EACCES."""

    def taken(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    disk, path = Disk(), str(tmp_path / "lock")
    disk.close(disk.lock(path))
    monkeypatch.setattr(disk_module, "_OFD_SETLK", None)
    monkeypatch.setattr(disk_module, "_OFD_GETLK", None)
    monkeypatch.setattr(fcntl, "lockf", taken)
    for take in (disk.lock, disk.lock_shared):
        with pytest.raises(BlockingIOError):
            take(path)
    assert disk.is_locked(path)


def test_a_lock_that_fails_otherwise_is_no_fallback(tmp_path: Path, refuse_ofd: Refuse) -> None:
    refuse_ofd(errno.ENOLCK)
    disk, path = Disk(), str(tmp_path / "lock")
    Path(path).touch()
    for call in (disk.lock, disk.lock_shared, disk.is_locked):
        with pytest.raises(OSError, match="No locks available"):
            call(path)


@pytest.mark.parametrize("missing", ["flags", "file system"])
def test_seek_data(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk()
    handle = disk.open(str(tmp_path / "file"), create=True)
    disk.truncate(handle, 100_000)
    disk.pwrite(handle, b"x", 50_000)
    assert sum(end - start for start, end in disk.data_extents(handle, 0, 100_000)) < 100_000
    if missing == "flags":
        monkeypatch.delattr(os, "SEEK_DATA")
    else:

        def refuse(*_: object) -> int:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

        monkeypatch.setattr(os, "lseek", refuse)
    assert disk.data_extents(handle, 10, 100_000) == [(10, 100_000)]
    assert disk.data_extents(handle, 10, 10) == []
    disk.close(handle)


@pytest.mark.parametrize("missing", ["flag", "call", "file system"])
def test_reading_only_what_is_cached(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody can tell what is in the page cache, all counts as cached."""

    def refuse(*_: object) -> int:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    if missing == "flag":
        monkeypatch.delattr(os, "RWF_NOWAIT", raising=False)
    elif missing == "call":
        monkeypatch.delattr(os, "preadv", raising=False)
    else:
        monkeypatch.setattr(os, "preadv", refuse)
    disk, path = Disk(), tmp_path / "file"
    path.write_bytes(bytes(10))
    handle = disk.open(str(path))
    assert disk.is_cached(handle, 10, 0)
    disk.close(handle)


def syncs_of_all_kinds(disk: Disk, folder: Path) -> None:
    handle = disk.open(str(folder / "file"), create=True)
    disk.pwrite(handle, b"x", 0)
    disk.fdatasync(handle)
    disk.write_file(str(folder / "other"), b"y")
    disk.sync_directory(str(folder))
    disk.close(handle)


def noted(calls: list[str], name: str) -> Callable[..., None]:
    return lambda *_: calls.append(name)


def test_fdatasync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(disk_module, "_FULLFSYNC", None)
    monkeypatch.setattr(os, "fdatasync", noted(calls, "fdatasync"), raising=False)
    monkeypatch.setattr(os, "fsync", noted(calls, "fsync"))
    syncs_of_all_kinds(Disk(), tmp_path)
    assert calls == ["fdatasync", "fdatasync", "fsync"]
    calls.clear()
    monkeypatch.delattr(os, "fdatasync")
    syncs_of_all_kinds(Disk(), tmp_path)
    assert calls == ["fsync"] * 3


def test_where_fsync_leaves_bytes_in_the_drives_cache_the_full_sync_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    answer: list[OSError | None] = [None]

    def control(_: int, command: int) -> None:
        assert command == 51
        calls.append("full")
        if answer[0] is not None:
            raise answer[0]

    monkeypatch.setattr(disk_module, "_FULLFSYNC", 51)
    monkeypatch.setattr(fcntl, "fcntl", control)
    monkeypatch.setattr(os, "fsync", noted(calls, "fsync"))
    monkeypatch.delattr(os, "fdatasync", raising=False)
    syncs_of_all_kinds(Disk(), tmp_path)
    assert calls == ["full"] * 3
    calls.clear()
    answer[0] = OSError(errno.ENOTSUP, "a network file system")
    syncs_of_all_kinds(Disk(), tmp_path)
    assert calls == ["full", "fsync"] * 3
    answer[0] = OSError(errno.EIO, "lost")
    with pytest.raises(OSError, match="lost"):
        syncs_of_all_kinds(Disk(), tmp_path)


@pytest.mark.trio
async def test_sync_file_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing begins piece by piece, and never waits: to wait would take an error away from the sync."""
    calls: list[tuple[int, ...]] = []

    def note(*call: int) -> int:
        calls.append(call)
        return -1  # whatever it says, the sync will say it

    disk, mebi = Disk(), 1 << 20
    handle = disk.open(str(tmp_path / "file"), create=True)
    disk.pwrite(handle, b"x" * 3 * mebi, 0)
    await disk.start_writing(handle, 100, 2 * mebi)
    monkeypatch.setattr(disk_module, "_sync_file_range", note)
    await disk.start_writing(handle, 100, 2 * mebi + 5)
    assert calls == [(handle, 100, mebi, 2), (handle, 100 + mebi, mebi, 2), (handle, 100 + 2 * mebi, 5, 2)]
    monkeypatch.setattr(disk_module, "_sync_file_range", None)
    await disk.start_writing(handle, 0, mebi)
    assert len(calls) == 3
    assert disk.pread(handle, 4 * mebi, 0) == b"x" * 3 * mebi
    disk.close(handle)


@pytest.mark.trio
async def test_a_store_without_any_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes messages, survives a kill, serves them again, and keeps another process out."""
    for name in ("fdatasync", "preadv", "pwritev", "RWF_NOWAIT", "SEEK_DATA", "SEEK_HOLE", "O_DIRECTORY", "O_CLOEXEC"):
        monkeypatch.delattr(os, name, raising=False)
    for name in ("_OFD_SETLK", "_OFD_GETLK", "_sync_file_range"):
        monkeypatch.setattr(disk_module, name, None)
    monkeypatch.setattr(flush, "_MUCH_BYTES", 1000)
    place = Place(Disk(), str(tmp_path / "store"))
    async with place.open(flush_disk_type="SYNC_FLUSH") as store:
        results = stored(store.append([new_message(b"%d" % number * 300) for number in range(200)]))
        await store.wait_durable(results[-1].physical_offset + results[-1].size_bytes)
        assert store.statistics().syncs
    place.crash()
    with held_elsewhere(f"{place.root}/lock"), pytest.raises(StoreLockedError, match="in use"):
        async with place.open():
            pytest.fail("opened")
    async with place.open() as store:
        assert store.recovered is not None
        assert not store.recovered.clean
        assert store.max_offset("T", 0) == 200
        assert store.get_messages("T", 0, 100, max_count=5, wait=False).status is GetStatus.FOUND
