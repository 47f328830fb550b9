"""The checkpoint file: up to which store time the log, the consume queues and the index are known to be synced.

Recovery after a crash starts at a log file that is older than all of them.  A value is raised only after the sync that
makes it true.  Layout (RocketMQ StoreCheckpoint): 4096 bytes, three longs, the rest zero in 4.9; 5.x writes two more
longs, which stay as they were found.
"""

from __future__ import annotations

import struct

from trio_rmq.store.disk import Disk

SIZE_BYTES = 4096
_TIMES = struct.Struct(">qqq")
_CLOCK_SLACK_MS = 3000


class Checkpoint:
    """Times are store timestamps in milliseconds; 0 means nothing is known."""

    def __init__(self, disk: Disk, path: str) -> None:
        self._disk = disk
        self._path = path
        self._content = bytes(SIZE_BYTES)
        self.log_time_ms = 0
        """Every log record stored before this time is synced."""
        self.queues_time_ms = 0
        """Every consume-queue entry of a record stored before this time is synced."""
        self.index_time_ms = 0
        """Every index entry of a record stored before this time is synced."""

    def load(self) -> None:
        """Read the file; a missing or short one counts as zeros, which only makes recovery start earlier."""
        try:
            content = self._disk.read_file(self._path)
        except FileNotFoundError:
            return
        self._content = content[:SIZE_BYTES].ljust(SIZE_BYTES, b"\0")
        times = _TIMES.unpack_from(self._content)
        self.log_time_ms, self.queues_time_ms, self.index_time_ms = (max(0, time) for time in times)

    def recovery_time_ms(self) -> int:
        """Records stored up to this time are synced in the log and in the queues (with RocketMQ's 3 s of slack)."""
        return max(0, min(self.log_time_ms, self.queues_time_ms) - _CLOCK_SLACK_MS)

    def write(self) -> None:
        """Write the three times into the file, made when missing, 4096 bytes long.  Written on return, not synced."""
        handle = self._disk.open(self._path, create=True)
        try:
            self._content = (
                _TIMES.pack(self.log_time_ms, self.queues_time_ms, self.index_time_ms) + self._content[_TIMES.size :]
            )
            if self._disk.size(handle) != SIZE_BYTES:
                self._disk.truncate(handle, SIZE_BYTES)
            self._disk.pwrite(handle, self._content[: _TIMES.size], 0)
        finally:
            self._disk.close(handle)

    @property
    def path(self) -> str:
        """Where the file stands, to be synced by path."""
        return self._path
