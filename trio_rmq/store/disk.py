"""The only user of the file system: every call the store and the metadata files make goes through a `Disk`.

Each method is one system call or a few that belong together, and says what it promises: *written* survives the death of
this process, *synced* survives a power loss.  `testing.faulty_disk` is a twin with the same methods in memory, so
nothing outside this file may open, list, lock or sync a file.  All blocking work is named as such; the `async` methods
move it to a thread.  Errors are OSError, untouched.

Fallbacks where a system, or its file system, lacks a call (tests/store/test_disk_fallbacks.py takes each away):
- `fdatasync`: fsync.  Where there is F_FULLFSYNC, that comes first: fsync alone leaves the bytes in the drive's cache.
- SEEK_DATA: a file counts as one extent, so that more of it is read.
- open-file-description locks: the process-wide kind.  Two stores of one process then do not keep each other out, and
  one that asks about a store of its own process ends that store's lock.
- `sync_file_range`: `start_writing` does nothing, and a sync of much takes its files' locks for longer at a time.
- `syncfs`: many files are synced one by one, which takes long and costs the loop turns.  So it is where the call would
  not tell of every failed write: with kernels before 5.8, and on other file systems than ext4, XFS and Btrfs.
- `preadv` and RWF_NOWAIT: all counts as cached, and a read of what is not stalls everybody.
Nothing here needs `pwritev`: what is written at once was joined before.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import stat
import struct
from collections.abc import Iterable, Sequence
from typing import NoReturn

import trio

Data = bytes | bytearray | memoryview

DELETED = "the file was deleted while in use"
"""What a sync says of a file that has lost its name: nothing that was written to it will be found again."""

_libc = ctypes.CDLL(None, use_errno=True)
_sync_file_range = getattr(_libc, "sync_file_range", None)
if _sync_file_range is not None:
    _sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_SYNC_FILE_RANGE_WRITE = 2
"""Begin to write.  The flags that wait would take a failed write's error away from the sync that must hear of it."""
_PIECE_BYTES = 1024 * 1024

_syncfs = getattr(_libc, "syncfs", None)
_fstatfs = getattr(_libc, "fstatfs", None)
_SYNCFS_TELLS_SINCE = (5, 8)
_SYNCFS_TELLS = frozenset({0xEF53, 0x58465342, 0x9123683E})
"""The kernel, and the file systems (ext4, XFS, Btrfs; statfs(2)), of which `syncfs` tells every failed write."""
_STATFS_BYTES = 512
"""More than a `struct statfs` has anywhere; its first field is a long, the file system's kind."""

_FULLFSYNC = getattr(fcntl, "F_FULLFSYNC", None)
_OFD_SETLK = getattr(fcntl, "F_OFD_SETLK", None)
_OFD_GETLK = getattr(fcntl, "F_OFD_GETLK", None)
_scratch = memoryview(bytearray(128 * 1024))
"""Where bytes go that nobody looks at; the event loop's alone."""
_FLOCK = struct.Struct("hhqqi4x")
"""Linux's `struct flock`; open-file-description locks are Linux's as well."""
_UNKNOWN_CALL = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS})
"""What a system, or a file system, answers that does not know a call or its flag."""


def _sync_handle(handle: int, *, names: bool = False) -> None:
    """Sync a file's bytes and length, or with `names` a folder's listing, to where a power loss leaves them."""
    if _FULLFSYNC is not None:
        try:
            fcntl.fcntl(handle, _FULLFSYNC)
        except OSError as error:
            if error.errno not in _UNKNOWN_CALL:
                raise
        else:
            return
    if names:
        os.fsync(handle)
    else:
        getattr(os, "fdatasync", os.fsync)(handle)


def _is_told_failures(handle: int) -> bool:
    """Whether `syncfs` of the file system that holds this file tells every failed write there."""
    version = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if _syncfs is None or _fstatfs is None or version is None:
        return False
    if (int(version[1]), int(version[2])) < _SYNCFS_TELLS_SINCE:
        return False
    answer = ctypes.create_string_buffer(_STATFS_BYTES)
    return not _fstatfs(handle, answer) and ctypes.c_long.from_buffer(answer).value & 0xFFFFFFFF in _SYNCFS_TELLS


class Disk:
    """The real file system.  Paths are text; a handle is an integer that `open` returned and `close` ends."""

    # Files -------------------------------------------------------------------------------------------------------

    def open(self, path: str, *, create: bool = False) -> int:
        """A read-write handle of the file at `path`; with `create` it is made when missing (not yet synced)."""
        flags = os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | (os.O_CREAT if create else 0)
        return os.open(path, flags, 0o644)

    def close(self, handle: int) -> None:
        """End `handle`; what was written through it stays written."""
        os.close(handle)

    def pread(self, handle: int, size: int, offset: int) -> bytes:
        """Up to `size` bytes from `offset`; fewer only at the end of the file."""
        return os.pread(handle, size, offset)

    def is_cached(self, handle: int, size: int, offset: int) -> bool:
        """Whether `size` bytes from `offset` can be read without waiting for the disk (RWF_NOWAIT)."""
        flag, preadv = getattr(os, "RWF_NOWAIT", None), getattr(os, "preadv", None)
        if flag is None or preadv is None:
            return True
        try:
            while size > 0:
                count = preadv(handle, (_scratch[:size],), offset, flag)
                if not count:  # the end of the file
                    return True
                size -= count
                offset += count
        except BlockingIOError:
            return False
        except OSError:  # it does not know the flag, or cannot read: then the read itself says so
            return True
        return True

    def pwrite(self, handle: int, data: Data, offset: int) -> int:
        """Write `data` at `offset` in one call; returns how many bytes were written, which may be fewer."""
        return os.pwrite(handle, data, offset)

    def fdatasync(self, handle: int) -> None:
        """Block until all that was written through any handle of this file, and its length, is synced."""
        _sync_handle(handle)

    def truncate(self, handle: int, size: int) -> None:
        """Set the file's length; new bytes read as zero and take no space until written."""
        os.ftruncate(handle, size)

    def size(self, handle: int) -> int:
        """The file's length in bytes."""
        return os.fstat(handle).st_size

    def data_extents(self, handle: int, start: int, end: int) -> list[tuple[int, int]]:
        """(start, end) of the parts between `start` and `end` that may hold other bytes than zero, in order."""
        seek_data, seek_hole = getattr(os, "SEEK_DATA", None), getattr(os, "SEEK_HOLE", None)
        if seek_data is None or seek_hole is None:
            return [(start, end)] if start < end else []
        extents: list[tuple[int, int]] = []
        position = start
        while position < end:
            try:
                data = os.lseek(handle, position, seek_data)
                hole = os.lseek(handle, data, seek_hole)
            except OSError as error:
                if error.errno == errno.ENXIO:  # no data after position
                    break
                return [(start, end)]  # the file system knows no holes
            if data >= end:
                break
            extents.append((data, min(hole, end)))
            position = hole
        return extents

    # Names -------------------------------------------------------------------------------------------------------

    def make_directories(self, path: str) -> list[str]:
        """Make `path` and its missing parents; returns the folders whose listing changed (to be synced)."""
        try:  # most have their parent
            os.mkdir(path)
        except FileExistsError:
            if os.path.isdir(path):
                return []
            raise
        except FileNotFoundError:
            pass
        else:
            return [os.path.dirname(path) or "."]
        missing = []
        current = path
        while not os.path.isdir(current):
            missing.append(current)
            parent = os.path.dirname(current) or "."
            if parent == current:
                break
            current = parent
        os.makedirs(path, exist_ok=True)
        return [os.path.dirname(folder) or "." for folder in missing]

    def list_directory(self, path: str) -> list[str]:
        """The names in the folder `path`, sorted; empty when there is no such folder."""
        try:
            return sorted(os.listdir(path))
        except FileNotFoundError:
            return []

    def exists(self, path: str) -> bool:
        """Whether a file or folder has this path."""
        return os.path.exists(path)

    def is_directory(self, path: str) -> bool:
        """Whether a folder has this path."""
        return os.path.isdir(path)

    def folder_device(self, path: str) -> int | None:
        """A number that the folders of one file system share; None when there is no such folder."""
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return status.st_dev if stat.S_ISDIR(status.st_mode) else None

    def path_size(self, path: str) -> int:
        """The length in bytes of the file at `path`; FileNotFoundError when it is missing."""
        return os.stat(path).st_size

    def modified_ms(self, path: str) -> int:
        """When the file at `path` was last written, in ms, as its file system tells it."""
        return os.stat(path).st_mtime_ns // 1_000_000

    def set_modified_ms(self, path: str, time_ms: int) -> None:
        """Let the file at `path` have been last written at `time_ms`.  Not synced."""
        os.utime(path, ns=(time_ms * 1_000_000, time_ms * 1_000_000))

    def rename(self, source: str, target: str) -> None:
        """Give `source` the name `target`, replacing what had it, in one step (durable after `sync_directory`)."""
        os.rename(source, target)

    def unlink(self, path: str) -> None:
        """Remove the file's name; its bytes go when the last handle is closed."""
        os.unlink(path)

    def remove_directory(self, path: str) -> None:
        """Remove an empty folder."""
        os.rmdir(path)

    def sync_directory(self, path: str) -> None:
        """Block until names made, changed and removed in the folder `path` are synced."""
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0))
        try:
            _sync_handle(handle, names=True)
        finally:
            os.close(handle)

    # Whole files -------------------------------------------------------------------------------------------------

    def read_file(self, path: str) -> bytes:
        """All bytes of the file at `path`; FileNotFoundError when it is missing."""
        with open(path, "rb") as file:
            return file.read()

    def write_file(self, path: str, data: Data) -> None:
        """Make or replace the content of `path` and sync it (its name is durable after `sync_directory`).  Blocks."""
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_CLOEXEC", 0), 0o644)
        try:
            view = memoryview(data)
            while len(view):
                view = view[os.write(handle, view) :]
            _sync_handle(handle)
        finally:
            os.close(handle)

    # Space and locks ---------------------------------------------------------------------------------------------

    def space(self, path: str) -> tuple[int, int]:
        """(bytes this user may still write, bytes used and those) of the file system that holds `path`, as `df` counts.

        What is kept for the superuser is in neither.
        """
        answer = os.statvfs(path)
        used = answer.f_blocks - answer.f_bfree
        return answer.f_bavail * answer.f_frsize, (used + answer.f_bavail) * answer.f_frsize

    def lock(self, path: str) -> int:
        """Make the file `path`, hold an exclusive lock on its first byte and write `lock` into it; returns its handle.

        The lock ends with `close` or with the process.  Conflicts with the lock of a Java broker (POSIX lock of bytes
        0..1) and with another store of this process.  Raises BlockingIOError when it is taken.
        """
        handle = self.open(path, create=True)
        try:
            self._lock_first_byte(handle)
            os.pwrite(handle, b"lock", 0)
        except BaseException:
            os.close(handle)
            raise
        return handle

    def lock_shared(self, path: str) -> int:
        """Hold a shared lock on the first byte of the file `path`, so that nobody may `lock` it; returns its handle.

        Changes nothing.  FileNotFoundError when nobody ever locked it, BlockingIOError when somebody has it.
        """
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        try:
            self._lock_first_byte(handle, fcntl.F_RDLCK)
        except BaseException:
            os.close(handle)
            raise
        return handle

    def is_locked(self, path: str) -> bool:
        """Whether somebody has the file at `path` locked with `lock`, or as a Java broker does.  Changes nothing."""
        try:
            handle = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except FileNotFoundError:
            return False
        try:
            if _OFD_GETLK is not None:
                try:
                    answer = fcntl.fcntl(handle, _OFD_GETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 1, 0))
                except OSError as error:
                    if error.errno not in _UNKNOWN_CALL:
                        raise
                else:
                    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
            try:  # to have it for a moment tells as much
                fcntl.lockf(handle, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, 0)
            except (BlockingIOError, PermissionError):
                return True
            return False
        finally:
            os.close(handle)

    def _lock_first_byte(self, handle: int, kind: int = fcntl.F_WRLCK) -> None:
        if _OFD_SETLK is not None:
            try:
                fcntl.fcntl(handle, _OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, 0, 1, 0))
            except PermissionError as error:  # POSIX allows EACCES for "taken"
                raise BlockingIOError(error.errno, error.strerror) from error
            except OSError as error:
                if error.errno not in _UNKNOWN_CALL:
                    raise
            else:
                return
        shared = fcntl.LOCK_SH if kind == fcntl.F_RDLCK else fcntl.LOCK_EX
        try:
            fcntl.lockf(handle, shared | fcntl.LOCK_NB, 1, 0)
        except PermissionError as error:
            raise BlockingIOError(error.errno, error.strerror) from error

    # In a thread -------------------------------------------------------------------------------------------------

    async def sync(self, handles: Sequence[int], *, directories: Iterable[str] = (), paths: Iterable[str] = ()) -> None:
        """Sync files by handle, files by path and folders, in one hop to a thread; the event loop goes on meanwhile.

        A missing path is skipped: it was removed after it was written.  A handle whose file has lost its name is an
        error (`DELETED`): nobody would find what was written.  Not cut short by cancellation, so that the caller knows
        afterwards what is synced.  The first OSError ends it.
        """
        await trio.to_thread.run_sync(self._sync, tuple(handles), tuple(directories), tuple(paths))

    def _sync(self, handles: Sequence[int], directories: Sequence[str], paths: Sequence[str]) -> None:
        for handle in handles:
            self.fdatasync(handle)
            if not os.fstat(handle).st_nlink:
                raise FileNotFoundError(errno.ENOENT, DELETED)
        for path in paths:
            try:
                handle = self.open(path)
            except FileNotFoundError:
                continue
            try:
                self.fdatasync(handle)
            finally:
                os.close(handle)
        for directory in directories:
            try:
                self.sync_directory(directory)
            except FileNotFoundError:
                continue

    def open_file_system(self, path: str) -> int | None:
        """A handle of the file system that holds the folder `path`, for `sync_file_system`; ended by `close`.

        None where nobody could tell by it of every write that failed since this call.
        """
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0))
        if _is_told_failures(handle):
            return handle
        os.close(handle)
        return None

    async def sync_file_system(self, handle: int) -> bool:
        """Sync all that was written in a file system, by whomever, names included, in one hop to a thread.

        False when the system refuses the call: then nothing is synced.  OSError when a write anywhere there failed
        since the handle was opened, or since the last call that said so.  Not cut short by cancellation.
        """
        return await trio.to_thread.run_sync(self._sync_file_system, handle)

    def _sync_file_system(self, handle: int) -> bool:
        if _syncfs is None:
            return False
        if _syncfs(handle):
            number = ctypes.get_errno()
            if number in _UNKNOWN_CALL or number == errno.EPERM:
                return False
            raise OSError(number, os.strerror(number))
        os.fsync(handle)  # whatever was written is out of the drive's cache as well
        return True

    async def start_writing(self, handle: int, offset: int, size: int) -> None:
        """Have the kernel begin to write `size` bytes from `offset` to the disk, in a thread.  Promises nothing.

        A sync afterwards finds little left to give a place on the disk, for which it keeps others from writing to the
        file.  Failures are the sync's to tell.  Not cut short by cancellation.
        """
        await trio.to_thread.run_sync(self._start_writing, handle, offset, size)

    def _start_writing(self, handle: int, offset: int, size: int) -> None:
        if _sync_file_range is not None:
            for at in range(offset, offset + size, _PIECE_BYTES):
                _sync_file_range(handle, at, min(_PIECE_BYTES, offset + size - at), _SYNC_FILE_RANGE_WRITE)

    async def write(self, handle: int, data: Data, offset: int) -> None:
        """Write all of `data` at `offset` in a thread.  Written on return, not synced; not cut short by cancellation.

        On OSError an unknown part of it stands on disk.
        """
        await trio.to_thread.run_sync(self._write, handle, data, offset)

    def _write(self, handle: int, data: Data, offset: int) -> None:
        written = self.pwrite(handle, data, offset)
        while written < len(data):
            written += self.pwrite(handle, memoryview(data)[written:], offset + written)

    async def read_ahead(self, blocks: Sequence[tuple[str, int, int]]) -> None:
        """Read (path, offset, size) each in a thread, so that they are in the page cache.  What cannot be read is left.

        Cancelling only gives up waiting.
        """
        await trio.to_thread.run_sync(self._read_ahead, tuple(blocks), abandon_on_cancel=True)

    def _read_ahead(self, blocks: Sequence[tuple[str, int, int]]) -> None:
        for path, offset, size in blocks:
            try:
                handle = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            except OSError:
                continue
            try:
                os.pread(handle, size, offset)
            except OSError:
                continue
            finally:
                os.close(handle)

    async def remove(self, path: str) -> None:
        """`unlink` in a thread: giving a gigabyte back takes a file system long.  A missing file is no error.

        Not cut short by cancellation.
        """
        await trio.to_thread.run_sync(self._remove, path)

    def _remove(self, path: str) -> None:
        try:
            self.unlink(path)
        except FileNotFoundError:
            return


class ReadOnlyDisk(Disk):
    """The real file system for those who only look: every changing call is an OSError, also where it would succeed."""

    def open(self, path: str, *, create: bool = False) -> int:
        """A handle for reading; `create` makes nothing."""
        return os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def truncate(self, handle: int, size: int) -> None:
        self._refuse()

    def pwrite(self, handle: int, data: Data, offset: int) -> int:
        self._refuse()

    def set_modified_ms(self, path: str, time_ms: int) -> None:
        self._refuse()

    def make_directories(self, path: str) -> list[str]:
        self._refuse()

    def rename(self, source: str, target: str) -> None:
        self._refuse()

    def unlink(self, path: str) -> None:
        self._refuse()

    def remove_directory(self, path: str) -> None:
        self._refuse()

    def write_file(self, path: str, data: Data) -> None:
        self._refuse()

    def lock(self, path: str) -> int:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise OSError(errno.EROFS, "opened for reading only")
