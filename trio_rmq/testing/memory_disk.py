"""Disks for brokers that live as long as a test: in memory, or in a folder that nobody syncs; both can be filled.

Unlike `faulty_disk` these are no models of what a crash leaves: they are fast, take memory or space only as it is
written, and start no thread, so that a broker begins and ends within milliseconds and leaves nothing behind.

Invariants: *synced* means no more than *written* here; while a disk is `full`, nothing is written where only zeros
stand (a real disk would have to give space for it), and what is there already can be written over.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Sequence

import trio

from trio_rmq.store.disk import DELETED, Data, Disk

PAGE_BYTES = 16 * 1024
"""What a file of a MemoryDisk takes at a time."""
CAPACITY_BYTES = 4 * 1024**3
"""Size of a MemoryDisk that nobody gave another: as on any disk, old files go before it is full."""


class UnsyncedDisk(Disk):
    """The real file system without syncs and threads, for tests that look at a broker's files; can be filled."""

    def __init__(self) -> None:
        self.full = False
        """Whether there is no room left; may be set and cleared at any time."""

    def pwrite(self, handle: int, data: Data, offset: int) -> int:
        self._check_room(handle, len(data), offset)
        return super().pwrite(handle, data, offset)

    def _check_room(self, handle: int, size: int, offset: int) -> None:
        if self.full and not self.pread(handle, size, offset).strip(b"\0"):
            raise _error(errno.ENOSPC)

    def write_file(self, path: str, data: Data) -> None:
        handle = self.open(path, create=True)
        try:
            self.truncate(handle, 0)
            self._write(handle, data, 0)
        finally:
            self.close(handle)

    def space(self, path: str) -> tuple[int, int]:
        free_bytes, size_bytes = super().space(path)
        return (0 if self.full else free_bytes), size_bytes

    def is_cached(self, handle: int, size: int, offset: int) -> bool:
        return True

    def fdatasync(self, handle: int) -> None:
        """Nothing: what was written is there for as long as a test needs it."""

    def sync_directory(self, path: str) -> None:
        """Nothing, but FileNotFoundError when there is no such folder."""
        if not self.is_directory(path):
            raise _error(errno.ENOENT, path)

    async def sync(self, handles: Sequence[int], *, directories: Iterable[str] = (), paths: Iterable[str] = ()) -> None:
        await trio.lowlevel.cancel_shielded_checkpoint()
        for handle in handles:
            if not self._has_name(handle):
                raise FileNotFoundError(errno.ENOENT, DELETED)

    def open_file_system(self, path: str) -> int | None:
        """None: nobody syncs."""
        return None

    def _has_name(self, handle: int) -> bool:
        return os.fstat(handle).st_nlink > 0

    async def start_writing(self, handle: int, offset: int, size: int) -> None:
        """Nothing: nobody syncs."""
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def write(self, handle: int, data: Data, offset: int) -> None:
        await trio.lowlevel.cancel_shielded_checkpoint()
        self._write(handle, data, offset)

    async def remove(self, path: str) -> None:
        await trio.lowlevel.cancel_shielded_checkpoint()
        self._remove(path)


class _File:
    """One file's pages by number; a page that is missing holds zeros."""

    __slots__ = ("modified_ms", "pages", "size")

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {}
        self.size = 0
        self.modified_ms = 0


class MemoryDisk(UnsyncedDisk, Disk):
    """Files in memory, at most `capacity_bytes` of them, counted in pages; what was never written takes nothing."""

    def __init__(self, *, capacity_bytes: int = CAPACITY_BYTES) -> None:
        super().__init__()
        self._capacity_bytes = capacity_bytes
        self._directories: set[str] = {"", "/", "."}
        self._names: dict[str, _File] = {}
        self._handles: dict[int, _File] = {}
        self._next_handle = 3
        self._locked: dict[int, tuple[str, bool]] = {}

    # Files -------------------------------------------------------------------------------------------------------

    def open(self, path: str, *, create: bool = False) -> int:
        file = self._names.get(path)
        if file is None:
            if not create or path.rpartition("/")[0] not in self._directories:
                raise _error(errno.ENOENT, path)
            file = self._names[path] = _File()
        handle = self._next_handle
        self._next_handle += 1
        self._handles[handle] = file
        return handle

    def close(self, handle: int) -> None:
        del self._handles[handle]
        self._locked.pop(handle, None)

    def pread(self, handle: int, size: int, offset: int) -> bytes:
        return _read(self._handles[handle], size, offset)

    def pwrite(self, handle: int, data: Data, offset: int) -> int:
        self._check_room(handle, len(data), offset)
        file = self._handles[handle]
        view = memoryview(data)
        done = 0
        for number, start, end in _pages(offset, len(data)):
            page = file.pages.get(number)
            if page is None:
                if self._used_bytes() + PAGE_BYTES > self._capacity_bytes:
                    if not done:
                        raise _error(errno.ENOSPC)
                    break
                page = file.pages[number] = bytearray(PAGE_BYTES)
            page[start:end] = view[done : done + end - start]
            done += end - start
        file.size = max(file.size, offset + done)
        return done

    def truncate(self, handle: int, size: int) -> None:
        file = self._handles[handle]
        if size < file.size:
            last = (size - 1) // PAGE_BYTES
            for number in [number for number in file.pages if number > last]:
                del file.pages[number]
            if last in file.pages:
                kept = size - last * PAGE_BYTES
                file.pages[last][kept:] = bytes(PAGE_BYTES - kept)
        file.size = size

    def size(self, handle: int) -> int:
        return self._handles[handle].size

    def data_extents(self, handle: int, start: int, end: int) -> list[tuple[int, int]]:
        file = self._handles[handle]
        extents: list[tuple[int, int]] = []
        for number in sorted(file.pages):
            low = max(start, number * PAGE_BYTES)
            high = min(end, file.size, (number + 1) * PAGE_BYTES)
            if low >= high:
                continue
            if extents and extents[-1][1] == low:
                low = extents.pop()[0]
            extents.append((low, high))
        return extents

    # Names -------------------------------------------------------------------------------------------------------

    def make_directories(self, path: str) -> list[str]:
        changed = []
        while path not in self._directories:
            self._directories.add(path)
            path = path.rpartition("/")[0]
            changed.append(path)
        return changed

    def list_directory(self, path: str) -> list[str]:
        prefix = f"{path}/"
        names = [name[len(prefix) :] for name in (*self._names, *self._directories) if name.startswith(prefix)]
        return sorted(name for name in names if name and "/" not in name)

    def exists(self, path: str) -> bool:
        return path in self._names or path in self._directories

    def is_directory(self, path: str) -> bool:
        return path in self._directories

    def folder_device(self, path: str) -> int | None:
        return 0 if path in self._directories else None

    def path_size(self, path: str) -> int:
        return self._file(path).size

    def modified_ms(self, path: str) -> int:
        return self._file(path).modified_ms

    def set_modified_ms(self, path: str, time_ms: int) -> None:
        self._file(path).modified_ms = time_ms

    def rename(self, source: str, target: str) -> None:
        self._names[target] = self._file(source)
        del self._names[source]

    def unlink(self, path: str) -> None:
        self._file(path)
        del self._names[path]

    def remove_directory(self, path: str) -> None:
        if self.list_directory(path):
            raise _error(errno.ENOTEMPTY, path)
        self._directories.remove(path)

    def read_file(self, path: str) -> bytes:
        file = self._file(path)
        return _read(file, file.size, 0)

    # Space and locks ---------------------------------------------------------------------------------------------

    def space(self, path: str) -> tuple[int, int]:
        free_bytes = max(0, self._capacity_bytes - self._used_bytes())
        return (0 if self.full else free_bytes), self._capacity_bytes

    def lock(self, path: str) -> int:
        if any(locked == path for locked, _ in self._locked.values()):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), path)
        handle = self.open(path, create=True)
        self._locked[handle] = (path, True)
        self.pwrite(handle, b"lock", 0)
        return handle

    def lock_shared(self, path: str) -> int:
        if (path, True) in self._locked.values():
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), path)
        handle = self.open(path)
        self._locked[handle] = (path, False)
        return handle

    def is_locked(self, path: str) -> bool:
        return (path, True) in self._locked.values()

    def _has_name(self, handle: int) -> bool:
        file = self._handles[handle]
        return any(named is file for named in self._names.values())

    def _file(self, path: str) -> _File:
        file = self._names.get(path)
        if file is None:
            raise _error(errno.ENOENT, path)
        return file

    def _used_bytes(self) -> int:
        return PAGE_BYTES * sum([len(file.pages) for file in self._names.values()])


def _pages(offset: int, size: int) -> Iterator[tuple[int, int, int]]:
    """(page number, start and end within it) of each page that `size` bytes from `offset` touch, in order."""
    end = offset + size
    while offset < end:
        number, start = divmod(offset, PAGE_BYTES)
        stop = min(PAGE_BYTES, start + end - offset)
        yield number, start, stop
        offset += stop - start


def _read(file: _File, size: int, offset: int) -> bytes:
    size = max(0, min(size, file.size - offset))
    parts: list[bytes | bytearray] = []
    for number, start, end in _pages(offset, size):
        page = file.pages.get(number)
        parts.append(bytes(end - start) if page is None else page[start:end])
    return b"".join(parts)


def _error(number: int, path: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), path)
