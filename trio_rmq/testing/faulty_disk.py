"""A file system in memory that fails the way real ones do: the twin of `store.disk.Disk` for tests and simulations.

The fault model, before the code:
- A *kill* keeps everything that was written (the kernel's page cache outlives the process).  `survivor_of_kill`.
- A *power loss* keeps what was synced.  Of what was written since, every 512-byte sector, every length change and
  every change of a folder's names may or may not have reached the disk, each on its own and in any order: torn
  records, holes, names before their data, data without their names.  `survivor_of_power_loss`.
- A sync that fails says so once; the data it should have synced is lost at the next power loss, while reads still show
  it and later syncs succeed (the kernel has marked the pages clean).  A new length is not data: it is still to come.
- A file may be deleted while it is open (`unlink`): writes go on, its sync says so.  The disk may become `read_only`.
- A write may be short, or meet a full disk (`capacity_bytes`), after having written a part.
- The process may die before or in the middle of any operation: `crash_at`.  From then on every call raises
  `SimulatedCrash`, clean-up code included.

Nothing here runs in a thread; `sync` takes `latency` seconds of the (virtual) clock, and what is written meanwhile is
not covered by it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Sequence
from random import Random

import trio

from trio_rmq.store.disk import DELETED, Data, Disk
from trio_rmq.testing.disk_files import SECTOR_BYTES, File, copied, resize
from trio_rmq.testing.disk_names import (
    MakeDirectory,
    NameChange,
    RemoveDirectory,
    RemoveName,
    Rename,
    SetName,
    is_child,
    redirected,
)

_CLEAN = (0, b"")
_ROOTS = frozenset({"", "/", "."})


class SimulatedCrash(BaseException):
    """The simulated machine is dead; no clean-up code of the program under test runs through it."""


class FaultyDisk(Disk):
    """The twin.  Faults are attributes and methods that a test sets; without any it is a perfect disk."""

    def __init__(self, *, capacity_bytes: int | None = None, latency: Callable[[], float] | None = None) -> None:
        self.capacity_bytes = capacity_bytes
        """Sectors that may be written in all, in bytes; None for no end."""
        self.latency = latency
        """Seconds that the next `sync` takes; None for none."""
        self.operations = 0
        """Changing calls so far: what `crash_at` counts."""
        self.trace: list[str] = []
        """Name and path of every changing call, in order."""
        self.crash_at: int | None = None
        """The number of the changing call (from 1) in which the process dies."""
        self.crash_rng: Random | None = None
        """When set, the call that dies does a part of its work, chosen by it; else none of it."""
        self.dead = False
        self.read_only = False
        """Whether every changing call fails, as on a file system that was remounted after an error."""
        self.cold: set[str] = set()
        """Paths of which nothing is in the page cache, whatever is read ahead."""
        self.read_ahead_blocks: list[tuple[str, int, int]] = []
        """What was read ahead, in order."""
        self.syncs = 0
        self._directories: set[str] = set(_ROOTS)
        self._durable_directories: set[str] = set(self._directories)
        self._names: dict[str, File] = {}
        self._durable_names: dict[str, File] = {}
        self._pending_names: dict[str, list[NameChange]] = {}
        self._handles: dict[int, File] = {}
        self._locked: dict[int, str] = {}
        self._next_handle = 3
        self._failures: dict[str, list[int]] = {}
        self._short_writes: list[int] = []

    def fail_next(self, call: str, error_number: int = errno.EIO, *, times: int = 1) -> None:
        """The next `times` calls of the method `call` raise OSError with `error_number`."""
        self._failures.setdefault(call, []).extend([error_number] * times)

    def short_write_next(self, size: int) -> None:
        """The next write writes only `size` bytes and says so."""
        self._short_writes.append(size)

    def corrupt(self, path: str, offset: int, data: bytes) -> None:
        """Change stored bytes behind everybody's back."""
        file = self._file(path)
        for content in (file.live, file.durable):
            content[offset : offset + len(data)] = data

    def survivor_of_kill(self) -> FaultyDisk:
        """The disk that the next process finds after this one was killed: all that was written, nothing locked."""
        other = self._successor()
        other._directories = set(self._directories)
        other._durable_directories = set(self._durable_directories)
        copies: dict[File, File] = {}
        other._names = {path: copied(file, copies) for path, file in self._names.items()}
        other._durable_names = {path: copied(file, copies) for path, file in self._durable_names.items()}
        # Name changes that were not synced stay so: they are redone on the copy, by path.
        other._pending_names = {
            directory: [redirected(change, lambda file: copied(file, copies)) for change in changes]
            for directory, changes in self._pending_names.items()
        }
        return other

    def survivor_of_power_loss(self, rng: Random) -> FaultyDisk:
        """The disk after power was lost now; `rng` chooses what of the unsynced survives."""
        chance = rng.choice((0.0, 0.1, 0.5, 0.9, 1.0))

        def keep() -> bool:
            return rng.random() < chance

        names = dict(self._durable_names)
        directories = set(self._durable_directories)
        for changes in self._pending_names.values():
            for change in changes:
                if keep():
                    change(names, directories)
        for folder in sorted(directories):  # a folder whose parent's listing does not have it cannot be reached
            if folder not in _ROOTS and folder.rpartition("/")[0] not in directories:
                directories.discard(folder)
        other = self._successor()
        other._directories = directories
        other._durable_directories = set(directories)
        survivors: dict[int, File] = {}
        for path, file in names.items():
            if path.rpartition("/")[0] in directories:
                other._names[path] = survivors.setdefault(id(file), file.survivor(keep))
        other._durable_names = dict(other._names)
        return other

    def _successor(self) -> FaultyDisk:
        return FaultyDisk(capacity_bytes=self.capacity_bytes, latency=self.latency)

    def _look(self, call: str) -> None:
        if self.dead:
            raise SimulatedCrash
        failures = self._failures.get(call)
        if failures:
            number = failures.pop(0)
            raise OSError(number, os.strerror(number))

    def _change(self, call: str, path: str) -> bool:
        """Count a changing call; True when the process dies in it, and a part of it may still happen."""
        if self.dead:
            raise SimulatedCrash
        self.operations += 1
        self.trace.append(f"{call} {path}")
        if self.operations == self.crash_at:
            self.dead = True
            if self.crash_rng is None:
                raise SimulatedCrash
            return True
        if self.read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        self._look(call)
        return False

    def _file(self, path: str) -> File:
        try:
            return self._names[path]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None

    def _has_name(self, file: File) -> bool:
        return any(named is file for named in self._names.values())

    def _path_of(self, file: File) -> str:
        return next((path for path, named in self._names.items() if named is file), "?")

    def _note_name(self, directory: str, change: NameChange) -> None:
        change(self._names, self._directories)
        self._pending_names.setdefault(directory, []).append(change)

    def open(self, path: str, *, create: bool = False) -> int:
        self._look("open")
        file = self._names.get(path)
        if file is None:
            folder = path.rpartition("/")[0]
            if not create or folder not in self._directories:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            if self._change("create", path):
                raise SimulatedCrash
            file = File()
            self._note_name(folder, SetName(path, file))
        handle = self._next_handle
        self._next_handle += 1
        self._handles[handle] = file
        return handle

    def close(self, handle: int) -> None:
        if self.dead:
            raise SimulatedCrash
        del self._handles[handle]
        self._locked.pop(handle, None)

    def pread(self, handle: int, size: int, offset: int) -> bytes:
        self._look("pread")
        return bytes(self._handles[handle].live[offset : offset + size])

    def is_cached(self, handle: int, size: int, offset: int) -> bool:
        return self._path_of(self._handles[handle]) not in self.cold

    async def start_writing(self, handle: int, offset: int, size: int) -> None:
        """Nothing: of what is not synced, anything may be on the disk anyway."""
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def write(self, handle: int, data: Data, offset: int) -> None:
        await trio.lowlevel.checkpoint()
        self._write(handle, data, offset)

    async def read_ahead(self, blocks: Sequence[tuple[str, int, int]]) -> None:
        await trio.sleep(self.latency() if self.latency is not None else 0)
        self.read_ahead_blocks += blocks

    def pwrite(self, handle: int, data: Data, offset: int) -> int:
        file = self._handles[handle]
        dying = self._change("pwrite", self._path_of(file))
        content = bytes(data)
        if dying and self.crash_rng is not None:
            self._store(file, offset, content[: self.crash_rng.randint(0, len(content))])
            raise SimulatedCrash
        if self._short_writes:
            content = content[: self._short_writes.pop(0)]
        room = self._room(file, offset, len(content))
        if room < len(content):
            if room <= 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            content = content[:room]
        self._store(file, offset, content)
        return len(content)

    def _room(self, file: File, offset: int, size: int) -> int:
        """How many of `size` bytes from `offset` fit on the disk."""
        if self.capacity_bytes is None or not size:
            return size
        files = {id(named): named for named in self._names.values()}
        free = self.capacity_bytes // SECTOR_BYTES - sum(len(named.allocated) for named in files.values())
        for sector in range(offset // SECTOR_BYTES, (offset + size - 1) // SECTOR_BYTES + 1):
            if sector not in file.allocated:
                if free <= 0:
                    return max(0, sector * SECTOR_BYTES - offset)
                free -= 1
        return size

    def _store(self, file: File, offset: int, content: bytes) -> None:
        if not content:
            return
        end = offset + len(content)
        if len(file.live) < end:
            resize(file.live, end)
            file.pending.append(end)
        file.live[offset:end] = content
        file.pending.append((offset, content))
        file.allocated.update(range(offset // SECTOR_BYTES, (end - 1) // SECTOR_BYTES + 1))

    def fdatasync(self, handle: int) -> None:
        self._finish_sync(self._handles[handle], self._begin_sync(self._handles[handle]))

    def _begin_sync(self, file: File) -> int:
        """How many changes, since the file was made, the sync that begins now covers."""
        if self.dead:
            raise SimulatedCrash
        try:
            if self._change("fdatasync", self._path_of(file)):
                raise SimulatedCrash
        except OSError:
            file.pending = [change if isinstance(change, int) else _CLEAN for change in file.pending]
            raise
        return file.done + len(file.pending)

    def _finish_sync(self, file: File, covered: int) -> None:
        self.syncs += 1
        count = max(0, covered - file.done)  # another sync may have done more meanwhile
        file.done += count
        for change in file.pending[:count]:
            if isinstance(change, int):
                resize(file.durable, change)
            else:
                offset, data = change
                file.durable[offset : offset + len(data)] = data
        del file.pending[:count]

    def truncate(self, handle: int, size: int) -> None:
        file = self._handles[handle]
        if self._change("truncate", self._path_of(file)):
            raise SimulatedCrash
        resize(file.live, size)
        file.pending.append(size)
        last = (size - 1) // SECTOR_BYTES
        file.allocated = {sector for sector in file.allocated if sector <= last}

    def size(self, handle: int) -> int:
        self._look("size")
        return len(self._handles[handle].live)

    def data_extents(self, handle: int, start: int, end: int) -> list[tuple[int, int]]:
        self._look("data_extents")
        end = min(end, len(self._handles[handle].live))
        return [(start, end)] if start < end else []

    def make_directories(self, path: str) -> list[str]:
        missing: list[str] = []
        current = path
        while current not in self._directories:
            missing.append(current)
            current = current.rpartition("/")[0]
        for folder in reversed(missing):
            if self._change("mkdir", folder):
                raise SimulatedCrash
            self._note_name(folder.rpartition("/")[0], MakeDirectory(folder))
        return [folder.rpartition("/")[0] for folder in missing]

    def list_directory(self, path: str) -> list[str]:
        self._look("list_directory")
        prefix = f"{path}/"
        entries = {*self._names, *self._directories}
        return sorted(entry[len(prefix) :] for entry in entries if is_child(entry, prefix))

    def exists(self, path: str) -> bool:
        self._look("exists")
        return path in self._names or path in self._directories

    def is_directory(self, path: str) -> bool:
        self._look("is_directory")
        return path in self._directories

    def folder_device(self, path: str) -> int | None:
        return 0 if path in self._directories else None

    def path_size(self, path: str) -> int:
        self._look("path_size")
        return len(self._file(path).live)

    def modified_ms(self, path: str) -> int:
        self._look("modified_ms")
        return self._file(path).modified_ms

    def set_modified_ms(self, path: str, time_ms: int) -> None:
        file = self._file(path)
        if self._change("set_modified_ms", path):
            raise SimulatedCrash
        file.modified_ms = time_ms

    def rename(self, source: str, target: str) -> None:
        file = self._file(source)
        if self._change("rename", target):
            raise SimulatedCrash
        self._note_name(target.rpartition("/")[0], Rename(source, target, file))

    def unlink(self, path: str) -> None:
        self._file(path)
        if self._change("unlink", path):
            raise SimulatedCrash
        self._note_name(path.rpartition("/")[0], RemoveName(path))

    async def remove(self, path: str) -> None:
        await trio.lowlevel.checkpoint()
        if path in self._names:
            self.unlink(path)

    def remove_directory(self, path: str) -> None:
        if self.list_directory(path):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)
        if self._change("rmdir", path):
            raise SimulatedCrash
        self._note_name(path.rpartition("/")[0], RemoveDirectory(path))

    def sync_directory(self, path: str) -> None:
        if path not in self._directories:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if self._change("sync_directory", path):
            raise SimulatedCrash
        self.syncs += 1
        for change in self._pending_names.pop(path, []):
            change(self._durable_names, self._durable_directories)

    def read_file(self, path: str) -> bytes:
        self._look("read_file")
        return bytes(self._file(path).live)

    def write_file(self, path: str, data: Data) -> None:
        handle = self.open(path, create=True)
        self.truncate(handle, 0)
        done = 0
        while done < len(data):
            done += self.pwrite(handle, memoryview(data)[done:], done)
        self.fdatasync(handle)
        self.close(handle)

    def space(self, path: str) -> tuple[int, int]:
        self._look("space")
        capacity = 2**40 if self.capacity_bytes is None else self.capacity_bytes
        files = {id(named): named for named in self._names.values()}
        used = sum(len(named.allocated) for named in files.values()) * SECTOR_BYTES
        return max(0, capacity - used), capacity

    def lock(self, path: str) -> int:
        self._look("lock")
        if path in self._locked.values():
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), path)
        handle = self.open(path, create=True)
        self._locked[handle] = path
        self.pwrite(handle, b"lock", 0)
        return handle

    def lock_shared(self, path: str) -> int:
        self._look("lock_shared")
        if path in self._locked.values():
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), path)
        handle = self.open(path)
        self._locked[handle] = path
        return handle

    def is_locked(self, path: str) -> bool:
        self._look("is_locked")
        return path in self._locked.values()

    async def sync(self, handles: Sequence[int], *, directories: Iterable[str] = (), paths: Iterable[str] = ()) -> None:
        await trio.lowlevel.checkpoint()
        with trio.CancelScope(shield=True):
            files = [self._handles[handle] for handle in handles]
            files += [self._names[path] for path in paths if path in self._names]
            for number, file in enumerate(files):
                covered = self._begin_sync(file)
                if number < len(handles) and not self._has_name(file):
                    raise FileNotFoundError(errno.ENOENT, DELETED)
                if self.latency is not None:
                    await trio.sleep(self.latency())
                if self.dead:
                    raise SimulatedCrash
                self._finish_sync(file, covered)
            for directory in directories:
                if directory in self._directories:
                    self.sync_directory(directory)

    def open_file_system(self, path: str) -> int | None:
        handle = self._next_handle
        self._next_handle += 1
        self._handles[handle] = File()
        return handle

    async def sync_file_system(self, handle: int) -> bool:
        """One file after another, then one folder after another: in between anything may end it."""
        await trio.lowlevel.checkpoint()
        with trio.CancelScope(shield=True):
            for file in dict.fromkeys([file for file in self._names.values() if file.pending]):
                covered = self._begin_sync(file)
                if self.latency is not None:
                    await trio.sleep(self.latency())
                if self.dead:
                    raise SimulatedCrash
                self._finish_sync(file, covered)
            for directory in sorted(self._pending_names):
                if directory in self._directories:
                    self.sync_directory(directory)
        return True
