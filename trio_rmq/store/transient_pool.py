"""transientStorePoolEnable: records wait in memory and are written to the log by a service of their own, in a thread.

Appends then never touch the disk, so no write of theirs can stall.  The price is RocketMQ's: a record is answered
before it is in the page cache, and what was not yet written - usually commitIntervalCommitLog's 200 ms - is lost when
the process is killed, not only when power is.  A stop in order writes everything.

Invariants: readers see a record, queues and index get it, and the log's sync covers it, only once it is written; what
waits is bounded; records are written in order, and one that is not followed by its predecessor is never written.
Source: RocketMQ TransientStorePool and CommitLog.CommitRealTimeService.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice
from logging import getLogger

import trio

from trio_rmq.errors import StoreFailedError
from trio_rmq.store.commit_log import CommitLog, LogBusyError, LogFullError
from trio_rmq.store.disk import Disk
from trio_rmq.store.log_files import FileHandles

_log = getLogger(__name__)
_PAGE_BYTES = 4096
_WRITE_BYTES_MAX = 4 * 1024 * 1024
"""Most bytes of one write, so that readers see something soon."""


class BufferedCommitLog(CommitLog):
    """A commit log whose writes wait in memory.

    With `fail_fast` a record that finds no room there is refused; else it and all before it are written at once.
    """

    def __init__(
        self,
        disk: Disk,
        handles: FileHandles,
        directory: str,
        file_size: int,
        changed: set[str],
        *,
        room_bytes: int,
        fail_fast: bool,
    ) -> None:
        super().__init__(disk, handles, directory, file_size, changed)
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._room_bytes = room_bytes
        self._fail_fast = fail_fast
        self.waiting_bytes = 0
        """Bytes that wait in memory."""
        self.full = ""
        """Why the last write failed for want of space: nothing further is taken until one succeeds."""
        self.failed = False
        """Whether the log failed for good: what still waits stays unwritten."""

    @property
    def written_end(self) -> int:
        """Everything before this physical offset is in files."""
        return self._waiting[0][0] if self._waiting else self.position

    def write(self, start: int, data: bytes) -> None:
        """Take `data` into memory.  LogFullError when the disk has no room for it, LogBusyError when that has none."""
        if self.full:
            raise LogFullError(self.full)
        if self.waiting_bytes + len(data) > self._room_bytes and self._waiting:
            if self._fail_fast:
                raise LogBusyError(
                    f"{self.waiting_bytes} bytes wait in memory for the disk, more than transientStorePoolSize allows: "
                    "send slower, or let senders wait with fastFailIfNoBufferInStorePool=false"
                )
            self._write_all()
        self._waiting.append((start, data))
        self.waiting_bytes += len(data)
        self.position = start + len(data)

    def _write_all(self) -> None:
        while self._waiting:
            start, data = self._waiting[0]
            self.store(start, data)
            self._done(start + len(data))

    def _done(self, end: int) -> None:
        while self._waiting and self._waiting[0][0] < end:
            self.waiting_bytes -= len(self._waiting.popleft()[1])
        self.full = ""

    async def commit(self, written: Callable[[int], None]) -> None:
        """Write what waits, in a thread, and tell `written` up to which physical offset after each write.

        LogFullError: there is no room, and what is left goes on waiting.  StoreFailedError: the log cannot be trusted
        any more.  A cancelled call finishes its write first.
        """
        size = self.files.file_size
        while self._waiting and not self.failed:
            start, first = self._waiting[0]
            parts, end = [first], start + len(first)
            for later, data in islice(self._waiting, 1, None):
                if later != end or end % size == 0 or end + len(data) - start > _WRITE_BYTES_MAX:
                    break
                parts.append(data)
                end += len(data)
            self.prepare(start)
            file_start = start - start % size
            try:
                await self._disk.write(self.files.handle(file_start), b"".join(parts), start - file_start)
            except OSError as error:
                begin = max(start, self.written_end)  # an append that found no room may have written some meanwhile
                if begin < end:
                    self.undo(begin, end - begin, error)
            self._done(end)
            written(self.written_end)


class CommitService:
    """Writes what waits in `log`, an interval after it came and in groups; tells `written` and `failed`."""

    def __init__(
        self,
        log: BufferedCommitLog,
        *,
        interval_seconds: float,
        thorough_seconds: float,
        least_pages: int,
        written: Callable[[int], None],
        failed: Callable[[StoreFailedError], None],
    ) -> None:
        self._log = log
        self._interval_seconds = interval_seconds
        self._thorough_seconds = thorough_seconds
        self._least_bytes = least_pages * _PAGE_BYTES
        self._written = written
        self._failed = failed
        self._wake = trio.Event()
        self._one = trio.Lock()

    def wrote(self) -> None:
        """Records came: see to it that they get written."""
        self._wake.set()

    async def run(self) -> None:
        """The service; runs until cancelled, or until the log has failed."""
        committed_at = trio.current_time()
        while True:
            await self._wake.wait()
            await trio.sleep(self._interval_seconds)
            due = committed_at + self._thorough_seconds - trio.current_time()
            if self._log.waiting_bytes < self._least_bytes and due > 0:
                await trio.sleep(due)
            self._wake = trio.Event()
            await self.commit()
            if self._log.failed:
                return
            committed_at = trio.current_time()
            if self._log.full:
                self._wake.set()  # try again

    async def commit(self) -> bool:
        """Write all that waits now; False when the disk has no room for it or the log failed (`failed` was told).

        Cancelled, it finishes the write it is at.
        """
        async with self._one:
            full_before = self._log.full
            try:
                await self._log.commit(self._written)
            except LogFullError as error:
                self._log.full = str(error)
                if not full_before:
                    _log.warning("senders are refused, and %d bytes wait in memory: %s", self._log.waiting_bytes, error)
                return False
            except StoreFailedError as error:
                self._failed(error)
                return False
            if self._log.failed:
                return False
            if full_before:
                _log.warning("senders are served again: the disk takes the log's writes")
            return True
