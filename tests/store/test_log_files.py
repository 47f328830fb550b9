"""Handles stay few however many files there are; a pinned one stays open."""

from __future__ import annotations

import pytest

from trio_rmq.store import parts
from trio_rmq.store.disk import Disk
from trio_rmq.store.log_files import FileHandles, LogFiles
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.testing.stores import Place, new_message, stored


class CountingDisk(FaultyDisk):
    """Counts handles."""

    def open_handles(self) -> int:
        return len(self._handles)


def test_the_longest_unused_handle_is_closed() -> None:
    disk = CountingDisk()
    handles = FileHandles(disk, 3)
    for name in "abc":
        handles.get(name, create=True)
    pinned = handles.pin("a")
    assert handles.pin("a") == pinned
    for name in "defg":
        handles.get(name, create=True)
    assert (len(handles), disk.open_handles()) == (4, 4)
    assert handles.get("a") == pinned
    handles.unpin("a")
    assert handles.get("a") == pinned
    handles.unpin("a")
    assert (len(handles), disk.open_handles()) == (3, 3)
    handles.get("b")
    handles.forget("b")
    handles.forget("b")
    handles.unpin("b")
    assert disk.open_handles() == 2
    handles.close_all()
    assert (len(handles), disk.open_handles()) == (0, 0)


def test_zero_from_writes_only_where_it_must() -> None:
    disk = CountingDisk()
    files = LogFiles(disk, FileHandles(disk, 8), "log", 5000, set())
    files.append_file(0)
    files.append_file(5000)
    assert files.changed_directories == {"", "log"}
    assert not files.zero_from(5000)
    files.write(5100, b"abc")
    files.write(5990, b"d" * 30)
    disk.trace.clear()
    assert files.zero_from(6000)
    assert len(disk.trace) == 1
    assert files.read(5100, 3) == b"abc"
    assert files.read(5990, 40) == b"d" * 10 + bytes(30)
    assert not files.zero_from(6000)
    assert not files.zero_from(10_000)
    assert disk.path_size("log/00000000000000005000") == 5000


def test_outside_the_files_nothing_is_read(tmp_path: object) -> None:
    disk = Disk()
    files = LogFiles(disk, FileHandles(disk, 8), f"{tmp_path}/log", 4096, set())
    assert files.read(0, 10) == b""
    files.append_file(8192)
    assert (files.start, files.end) == (8192, 12288)
    assert files.read(8191, 10) == files.read(12288, 10) == b""
    assert files.read(12280, 100) == bytes(8)
    files.remove_from(0)
    assert files.starts == []


@pytest.mark.trio
async def test_thousands_of_queues_take_few_handles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "STORE_HANDLES_MAX", 20)
    disk = CountingDisk()
    place = Place(disk, "store")
    for life in range(2):
        async with place.open() as store:
            for n in range(300):
                stored(store.append([new_message(b"x" * 500, queue_id=n)]))
            for n in range(300):
                assert store.get_messages("T", n, life, max_count=1).count == 1
            assert disk.open_handles() <= 20 + 12
    assert disk.open_handles() == 0
