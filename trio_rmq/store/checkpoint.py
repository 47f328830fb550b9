"""The checkpoint file: up to which store time the log, the consume queues and the index are known to be synced.

Recovery after a crash starts at a log file that is older than all of them, or at our own mark, which is nearer.  Each
is raised only after the sync that makes it true.  Layout (RocketMQ StoreCheckpoint): 4096 bytes, three longs, the rest
zero in 4.9; 5.x writes two more longs, which stay as they were found.  Our mark stands at byte 256, where no version of
RocketMQ looks (see `Mark`); it has a checksum of its own.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from trio_rmq.store.disk import Disk
from trio_rmq.wire.checksum import crc32

SIZE_BYTES = 4096
_TIMES = struct.Struct(">qqq")
_CLOCK_SLACK_MS = 3000
_MARK_AT = 256
_MARK = struct.Struct(">8sqIqI")
_MARK_NAME = b"trio-rmq"
MARKED_BYTES = 64
"""How many bytes of the log before a mark its checksum covers, at most: less at a file's start."""


class Mark(NamedTuple):
    """A place up to which log and queues are synced.

    It stays true when another broker goes on with the folder, for the log only grows behind it; what it says of the log
    and the queues tells whether they still are those that it was set for.
    """

    physical_offset: int
    """Where a record ends, in bytes of the log."""
    log_crc: int
    """CRC-32 of the last MARKED_BYTES of the log before it."""
    entries: int
    """How many entries of records before it all queues had been given: the sum of their next offsets."""


class Checkpoint:
    """Times are store timestamps in milliseconds; 0 means nothing is known."""

    def __init__(self, disk: Disk, path: str) -> None:
        self._disk = disk
        self._path = path
        self._content = bytearray(SIZE_BYTES)
        self.log_time_ms = 0
        """Every log record stored before this time is synced."""
        self.queues_time_ms = 0
        """Every consume-queue entry of a record stored before this time is synced."""
        self.index_time_ms = 0
        """Every index entry of a record stored before this time is synced."""
        self.mark: Mark | None = None
        """Where a recovery may begin; None when nothing is known."""

    def load(self) -> None:
        """Read the file; a missing or short one counts as zeros, which only makes recovery start earlier."""
        try:
            content = self._disk.read_file(self._path)
        except FileNotFoundError:
            return
        self._content = bytearray(content[:SIZE_BYTES].ljust(SIZE_BYTES, b"\0"))
        times = _TIMES.unpack_from(self._content)
        self.log_time_ms, self.queues_time_ms, self.index_time_ms = (max(0, time) for time in times)
        name, *values, crc = _MARK.unpack_from(self._content, _MARK_AT)
        if name == _MARK_NAME and crc == self._mark_checksum():
            self.mark = Mark(*values)

    def _mark_checksum(self) -> int:
        return crc32(self._content[_MARK_AT : _MARK_AT + _MARK.size - 4])

    def recovery_time_ms(self) -> int:
        """Records stored up to this time are synced in the log and in the queues (with RocketMQ's 3 s of slack)."""
        return max(0, min(self.log_time_ms, self.queues_time_ms) - _CLOCK_SLACK_MS)

    def write(self) -> None:
        """Write times and mark into the file, made when missing, 4096 bytes long.  Written on return, not synced."""
        content = self._content
        _TIMES.pack_into(content, 0, self.log_time_ms, self.queues_time_ms, self.index_time_ms)
        if self.mark is None:
            content[_MARK_AT : _MARK_AT + _MARK.size] = bytes(_MARK.size)
        else:
            _MARK.pack_into(content, _MARK_AT, _MARK_NAME, *self.mark, 0)
            _MARK.pack_into(content, _MARK_AT, _MARK_NAME, *self.mark, self._mark_checksum())
        handle = self._disk.open(self._path, create=True)
        try:
            if self._disk.size(handle) != SIZE_BYTES:
                self._disk.truncate(handle, SIZE_BYTES)
            # One sector: all of it is old or all of it is new.
            self._disk.pwrite(handle, self._content[: _MARK_AT + _MARK.size], 0)
        finally:
            self._disk.close(handle)

    @property
    def path(self) -> str:
        """Where the file stands, to be synced by path."""
        return self._path
