"""A run of fixed-size files that together hold one long sequence of bytes: a commit log or one consume queue.

Invariants: every file has exactly the configured length from its creation (sparse: it takes space as it is written);
a file's name is the offset of its first byte, 20 digits; the files follow each other without a gap; nothing but such
files is ever made in the folder, because Apache's broker refuses to start over a stray one.
Source: RocketMQ MappedFileQueue.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

from trio_rmq.errors import StoreCorruptError, StoreError
from trio_rmq.store.disk import Data, Disk

_NAME_DIGITS = 20
_ZERO_BLOCK = bytes(1024 * 1024)


class FileHandles:
    """Open handles by path, at most `limit` of them besides the pinned ones; the longest unused is closed first.

    A pinned handle stays open until unpinned: pin what a thread works on and what holds unsynced data (a sync through
    a later handle might not hear of an earlier write's failure).
    """

    __slots__ = ("_disk", "_limit", "_open", "_pinned")

    def __init__(self, disk: Disk, limit: int) -> None:
        self._disk = disk
        self._limit = limit
        self._open: OrderedDict[str, int] = OrderedDict()
        self._pinned: dict[str, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._open) + len(self._pinned)

    def get(self, path: str, *, create: bool = False) -> int:
        """The handle of the file at `path`, usable until the next call of this object."""
        pinned = self._pinned.get(path)
        if pinned is not None:
            return pinned[0]
        handle = self._open.get(path)
        if handle is not None:
            self._open.move_to_end(path)
            return handle
        handle = self._disk.open(path, create=create)
        self._open[path] = handle
        self._trim()
        return handle

    def pin(self, path: str) -> int:
        """The handle of the file at `path`, open until as many `unpin` calls follow."""
        pinned = self._pinned.get(path)
        if pinned is not None:
            self._pinned[path] = (pinned[0], pinned[1] + 1)
            return pinned[0]
        handle = self.get(path)
        del self._open[path]
        self._pinned[path] = (handle, 1)
        return handle

    def unpin(self, path: str) -> None:
        """Undo one `pin`; without effect when the file was forgotten meanwhile."""
        pinned = self._pinned.get(path)
        if pinned is None:
            return
        handle, count = pinned
        if count > 1:
            self._pinned[path] = (handle, count - 1)
            return
        del self._pinned[path]
        self._open[path] = handle
        self._trim()

    def forget(self, path: str) -> None:
        """Close the handle of `path`, pinned or not, because its file goes."""
        pinned = self._pinned.pop(path, None)
        handle = pinned[0] if pinned is not None else self._open.pop(path, None)
        if handle is not None:
            self._disk.close(handle)

    def close_all(self) -> None:
        """Close every handle."""
        for path in [*self._pinned, *self._open]:
            self.forget(path)

    def _trim(self) -> None:
        while len(self._open) > self._limit:
            _, handle = self._open.popitem(last=False)
            self._disk.close(handle)


class LogFiles:
    """The files of one folder.  Offsets count bytes of the whole sequence; `starts` are the files' first offsets.

    `changed_directories` collects folders whose listing changed and was not synced yet; whoever syncs data for
    somebody's acknowledgement syncs those too.
    """

    __slots__ = ("_handles", "changed_directories", "directory", "disk", "file_size", "starts")

    def __init__(
        self, disk: Disk, handles: FileHandles, directory: str, file_size: int, changed_directories: set[str]
    ) -> None:
        self.disk = disk
        self._handles = handles
        self.directory = directory
        self.file_size = file_size
        self.starts: list[int] = []
        self.changed_directories = changed_directories

    @property
    def start(self) -> int:
        """The first offset that is still there (0 without files)."""
        return self.starts[0] if self.starts else 0

    @property
    def end(self) -> int:
        """The offset just after the last file (0 without files)."""
        return self.starts[-1] + self.file_size if self.starts else 0

    def path(self, start: int) -> str:
        """The path of the file that begins at offset `start`."""
        return f"{self.directory}/{start:0{_NAME_DIGITS}d}"

    def load(self, size_key: str, *, unclean: bool = False) -> list[int]:
        """Read the folder.  `size_key` is the configuration key that set the file size, for the error's sentence.

        After an unclean stop a file of length zero - its name reached the disk, its length did not - gets its length,
        and files after a gap are left out and returned: the caller judges whether anything synced was in them.
        Raises StoreError when a file's length is not the configured one or a stray file is there, StoreCorruptError
        when a file in the middle is missing after a clean stop.
        """
        starts = []
        for name in self.disk.list_directory(self.directory):
            if len(name) != _NAME_DIGITS or not name.isascii() or not name.isdigit():
                raise StoreError(f"{self.directory}/{name} does not belong there: move it away and start again")
            starts.append(int(name))
        for start in starts:
            path = self.path(start)
            size = self.disk.path_size(path)
            if size == 0 and unclean:
                self.disk.truncate(self._handles.get(path), self.file_size)
            elif size != self.file_size or start % self.file_size:
                raise StoreError(
                    f"{path} has {size} bytes, but {size_key} is {self.file_size}: "
                    f"set {size_key} to what this store was made with"
                )
        gap = next((index for index, (a, b) in enumerate(pairwise(starts), 1) if b != a + self.file_size), len(starts))
        if gap < len(starts) and not unclean:
            raise StoreCorruptError(
                f"{self.path(starts[gap - 1] + self.file_size)} is missing: bring it back from a copy"
            )
        self.starts, orphans = starts[:gap], starts[gap:]
        return orphans

    def remove_orphan(self, start: int) -> None:
        """Remove a file that `load` left out."""
        path = self.path(start)
        self._handles.forget(path)
        self.disk.unlink(path)
        self.changed_directories.add(self.directory)

    def locate(self, offset: int) -> int | None:
        """The start of the file that holds `offset`, or None when no file does."""
        starts = self.starts
        if not starts:
            return None
        index = (offset - starts[0]) // self.file_size
        return starts[index] if 0 <= index < len(starts) else None

    def handle(self, start: int) -> int:
        """The handle of the file that begins at `start`, usable until another file is asked for."""
        return self._handles.get(self.path(start))

    def pin(self, start: int) -> int:
        """`handle`, kept open until `unpin`."""
        return self._handles.pin(self.path(start))

    def unpin(self, start: int) -> None:
        """End a `pin`."""
        self._handles.unpin(self.path(start))

    def data_end(self) -> int:
        """An offset after which every byte is zero: the end of what the last file that has any data may hold."""
        for start in reversed(self.starts):
            extents = self.disk.data_extents(self.handle(start), 0, self.file_size)
            if extents:
                return start + extents[-1][1]
        return self.start

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`, fewer when their file ends before; empty when no file holds `offset`.

        A file that somebody deleted behind our back holds nothing.
        """
        start = self.locate(offset)
        if start is None:
            return b""
        try:
            handle = self._handles.get(self.path(start))
        except FileNotFoundError:
            return b""
        return self.disk.pread(handle, size, offset - start)

    def write(self, offset: int, data: Data) -> None:
        """Write all of `data`, which fits the file that holds `offset`.  Written on return, not synced.

        On OSError an unknown part of `data` stands on disk.
        """
        start = self.locate(offset)
        assert start is not None, offset  # noqa: S101 - the caller made the file
        disk, handle, at = self.disk, self._handles.get(self.path(start)), offset - start
        written = disk.pwrite(handle, data, at)
        while written < len(data):
            written += disk.pwrite(handle, memoryview(data)[written:], at + written)

    def append_file(self, start: int) -> None:
        """Make the file that begins at `start`, the next one of the sequence, with its whole length.

        Leaves nothing behind when it raises OSError.
        """
        if not self.starts:
            self.changed_directories.update(self.disk.make_directories(self.directory))
        path = self.path(start)
        try:
            self.disk.truncate(self._handles.get(path, create=True), self.file_size)
        except OSError:
            self._handles.forget(path)
            if self.disk.exists(path):
                self.disk.unlink(path)
            raise
        self.starts.append(start)
        self.changed_directories.add(self.directory)

    def forget_first(self) -> str:
        """Take the oldest file, which was removed or is about to be, out of the sequence; returns its path."""
        path = self.path(self.starts[0])
        self._handles.forget(path)
        del self.starts[0]
        return path

    def remove_from(self, start: int) -> None:
        """Remove the files that begin at `start` or later, the last one first."""
        while self.starts and self.starts[-1] >= start:
            path = self.path(self.starts[-1])
            self._handles.forget(path)
            self.disk.unlink(path)
            self.starts.pop()
            self.changed_directories.add(self.directory)

    def zero_from(self, offset: int) -> bool:
        """Make every byte from `offset` to the end of its file zero, writing only where it is not; True if it wrote.

        The file keeps its length.  Written on return, not synced.
        """
        start = self.locate(offset)
        if start is None:
            return False
        handle = self._handles.get(self.path(start))
        wrote = False
        for extent_start, extent_end in self.disk.data_extents(handle, offset - start, self.file_size):
            position = extent_start
            while position < extent_end:
                block = self.disk.pread(handle, min(len(_ZERO_BLOCK), extent_end - position), position)
                if not block:
                    break
                if block.count(0) != len(block):
                    wrote = True
                    done = 0
                    while done < len(block):
                        done += self.disk.pwrite(handle, _ZERO_BLOCK[: len(block) - done], position + done)
                position += len(block)
        return wrote
