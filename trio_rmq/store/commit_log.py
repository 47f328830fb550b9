"""The commit log: every record of every queue, in the order of its arrival, in files of fixed length.

Invariants: `position` is where the next record goes, and every byte after it is zero; a record never spans files (a
filler of eight bytes ends a file early); bytes are written in one call per file, and what an answer promised was
written before.  A write that fails for want of space leaves the log as it was; any other failed write or sync is final.
Source of the layout: RocketMQ CommitLog.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

from trio_rmq.errors import StoreCorruptError, StoreFailedError
from trio_rmq.store.disk import Disk
from trio_rmq.store.log_files import FileHandles, LogFiles
from trio_rmq.wire.record import (
    BLANK_SIZE_BYTES,
    RECORD_SIZE_MIN_BYTES,
    CheckedRecord,
    RecordKind,
    check_record,
)

SIZE_KEY = "mappedFileSizeCommitLog"
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_SCAN_BLOCK_BYTES = 4 * 1024 * 1024


class LogFullError(Exception):
    """The disk has no room for the write; nothing of it is left, and it may be tried again later."""


class LogBusyError(LogFullError):
    """Nothing is stored because too much waits in memory; the sentence names the mend."""


class CommitLog:
    """The log's files and its end."""

    def __init__(self, disk: Disk, handles: FileHandles, directory: str, file_size: int, changed: set[str]) -> None:
        self.files = LogFiles(disk, handles, directory, file_size, changed)
        self._disk = disk
        self.position = 0
        """Physical offset of the next record, in bytes."""
        self.unsynced_starts: list[int] = []
        """First offsets of the files written since the last sync; each is pinned open once."""
        self._file_start, self._file_end, self._handle = 0, 0, -1
        """The file that was written last; its handle is good while `unsynced_starts` has it."""

    def load(self, *, unclean: bool, synced_before_ms: int) -> None:
        """Read the folder.  Files after a missing one hold nothing that was synced, or the start stops."""
        orphans = self.files.load(SIZE_KEY, unclean=unclean)
        known = self.files.starts
        for orphan in orphans:
            self.files.starts = [orphan]
            time_ms = self.first_record_time_ms(orphan)
            self.files.starts = known
            if time_ms is not None and time_ms < synced_before_ms:
                raise StoreCorruptError(f"{self.files.path(self.files.end)} is missing: bring it back from a copy")
        for orphan in reversed(orphans):
            self.files.remove_orphan(orphan)

    @property
    def min_offset(self) -> int:
        """The physical offset at which the oldest file begins."""
        return self.files.start

    @property
    def file_end(self) -> int:
        """The end of the file that `position` is in (or that it would begin)."""
        size = self.files.file_size
        return self.position - self.position % size + size

    def make_file(self, start: int) -> None:
        """Make sure that the file which holds `start` exists; LogFullError when there is no room for it."""
        if not self._file_start <= start < self._file_end and self.files.locate(start) is None:
            try:
                self.files.append_file(start - start % self.files.file_size)
            except OSError as error:
                raise LogFullError(self._sentence(error)) from error

    @property
    def written_end(self) -> int:
        """Everything before this physical offset is in files."""
        return self.position

    def write(self, start: int, data: bytes) -> None:
        """Write `data` at `start`, the current `position`, in one call, and move `position` behind it.

        `data` fits one file, which `make_file` made.  Written on return, not synced.  LogFullError: nothing of it is
        stored and `position` stays.  StoreFailedError: the log cannot be trusted any more.
        """
        self.store(start, data)
        self.position = start + len(data)

    def prepare(self, start: int) -> None:
        """See to it that the file which holds `start` is open until its next sync; raises as `write` does."""
        file_start = start - start % self.files.file_size
        if file_start in self.unsynced_starts:
            self._handle = self.files.handle(file_start)
        else:
            try:
                self._handle = self.files.pin(file_start)
            except FileNotFoundError as error:
                raise StoreFailedError(
                    f"{self.files.path(file_start)} was deleted while in use: bring it back from a copy, or start "
                    "again without what it held"
                ) from error
            except OSError as error:
                raise LogFullError(self._sentence(error)) from error
            self.unsynced_starts.append(file_start)
        self._file_start, self._file_end = file_start, file_start + self.files.file_size

    def store(self, start: int, data: bytes) -> None:
        """Write `data` at `start` into its file; `position` stays where it is.  Raises as `write` does."""
        if not self._file_start <= start < self._file_end or self._file_start not in self.unsynced_starts:
            self.prepare(start)
        try:
            written = self._disk.pwrite(self._handle, data, start - self._file_start)
            if written < len(data):
                self.files.write(start + written, memoryview(data)[written:])
        except OSError as error:
            self.undo(start, len(data), error)

    def undo(self, start: int, size: int, error: OSError) -> None:
        """Zero what a failed write may have left, and raise what `write` does for `error`.

        Blocks it wrote to exist, so this needs no space.
        """
        if error.errno not in _NO_SPACE:
            raise StoreFailedError(f"writing the commit log failed: {self._sentence(error)}") from error
        try:
            file_start = start - start % self.files.file_size
            handle = self.files.handle(file_start)
            at = start - file_start
            left = self._disk.pread(handle, size, at)
            used = len(left.rstrip(b"\0"))
            if used:
                self.files.write(start, bytes(used))
        except OSError as second:
            raise StoreFailedError(
                f"the commit log could not be restored after a failed write: {self._sentence(second)}"
            ) from second
        raise LogFullError(self._sentence(error)) from error

    def _sentence(self, error: OSError) -> str:
        return f"{self.files.directory}: {error.strerror or error}"

    # Reading -----------------------------------------------------------------------------------------------------

    def read(self, physical_offset: int, size: int) -> bytes:
        """`size` bytes of one record or of several in one file; shorter or empty when they are not there."""
        return self.files.read(physical_offset, size)

    def before(self, physical_offset: int, size: int) -> bytes:
        """The last bytes, at most `size`, of the file that `physical_offset` is in that come before it."""
        size = min(size, physical_offset % self.files.file_size)
        data = self.files.read(physical_offset - size, size)
        return data if len(data) == size else b""

    def check_at(self, physical_offset: int, *, check_body_crc: bool = True) -> CheckedRecord:
        """What stands at `physical_offset`: a record with its own offset in it, a filler, or nothing valid."""
        head = self.files.read(physical_offset, RECORD_SIZE_MIN_BYTES)
        size = int.from_bytes(head[:4], "big") if len(head) >= BLANK_SIZE_BYTES else 0
        start = self.files.locate(physical_offset)
        room = 0 if start is None else start + self.files.file_size - physical_offset
        if RECORD_SIZE_MIN_BYTES <= size <= room:
            head = self.files.read(physical_offset, size)
        return _own(check_record(head, 0, check_body_crc=check_body_crc), physical_offset)

    def first_record_time_ms(self, start: int) -> int | None:
        """The store time of the first record of the file that begins at `start`, or None when it has none."""
        record = self.check_at(start, check_body_crc=False)
        return record.store_timestamp_ms if record.kind is RecordKind.RECORD else None

    def scan(self, physical_offset: int, *, check_body_crc: bool = True) -> Iterator[tuple[int, CheckedRecord]]:
        """(offset, record) of every record from `physical_offset` on, fillers skipped; the last item is the BAD one.

        A BAD item says where the log ends: at it nothing valid stands.  When the last file ends with a filler, that
        item stands where the next file would begin.
        """
        while True:
            start = self.files.locate(physical_offset)
            if start is None:
                yield physical_offset, CheckedRecord(RecordKind.BAD, reason="the last file ends here")
                return
            file_end = start + self.files.file_size
            for offset, record in self._scan_file(physical_offset, file_end, check_body_crc):
                if record.kind is RecordKind.BLANK:
                    break
                yield offset, record
                if record.kind is RecordKind.BAD:
                    return
            physical_offset = file_end

    def _scan_file(self, offset: int, file_end: int, check_body_crc: bool) -> Iterator[tuple[int, CheckedRecord]]:
        while offset < file_end:
            block = self.files.read(offset, min(_SCAN_BLOCK_BYTES, file_end - offset))
            at, block_end = 0, len(block)
            while at < block_end:
                if at and block_end - at < RECORD_SIZE_MIN_BYTES and offset + block_end < file_end:
                    break  # read on from here
                size = int.from_bytes(block[at : at + 4], "big")
                if at and at + size > block_end and offset + at + size <= file_end:
                    break
                if at + size > block_end and offset + size <= file_end:
                    block = self.files.read(offset, size)  # one record larger than a block
                    block_end = len(block)
                record = _own(check_record(block, at, check_body_crc=check_body_crc), offset + at)
                yield offset + at, record
                if record.kind is not RecordKind.RECORD:
                    return
                at += record.size_bytes
            if not at:
                yield offset, CheckedRecord(RecordKind.BAD, reason="the file cannot be read here")
                return
            offset += at


def _own(record: CheckedRecord, physical_offset: int) -> CheckedRecord:
    """`record`, or BAD when it says that it stands elsewhere: the rest of an older use of these bytes."""
    if record.kind is RecordKind.RECORD and record.physical_offset != physical_offset:
        return CheckedRecord(RecordKind.BAD, record.size_bytes, reason=f"it says it stands at {record.physical_offset}")
    if record.kind is RecordKind.RECORD and record.store_timestamp_ms <= 0:
        return CheckedRecord(RecordKind.BAD, record.size_bytes, reason="it has no store time")
    return record
