"""The services that bring written data to the disk: the log's sync and the queues' writing out.

`LogFlusher` syncs the log: under SYNC_FLUSH at once and for all waiters of one round together (group commit), else in
the background after an interval.  `QueueFlusher` writes waiting queue entries to their files in groups, syncs them now
and then, and only then raises the checkpoint.

Invariants: `synced_offset` never passes what a sync that began after the write has confirmed; a sync that failed is
never tried again (the kernel may have dropped the pages and marked them clean): the store fails for good; work happens
only after something was written - an idle store wakes nobody.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from logging import getLogger

import trio

from trio_rmq.errors import StoreFailedError
from trio_rmq.store.checkpoint import Checkpoint
from trio_rmq.store.commit_log import CommitLog
from trio_rmq.store.consume_queue import ConsumeQueues
from trio_rmq.store.disk import Disk

_log = getLogger(__name__)
_PAGE_BYTES = 4096
_QUEUES_A_SLICE = 64
"""Queues written out before other tasks get their turn: about 3 ms of system calls."""


class _Round:
    """One sync that many may wait for; `end` is the log offset it covers once it has begun."""

    __slots__ = ("done", "end")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.end = -1


class LogFlusher:
    """Syncs the log and says how far it is synced.

    `synced` is called, with the offset, after each sync and before its waiters wake; `failed` with the reason when one
    fails.
    """

    def __init__(
        self,
        disk: Disk,
        log: CommitLog,
        checkpoint: Checkpoint,
        changed_directories: set[str],
        *,
        sync_flush: bool,
        interval_seconds: float,
        thorough_seconds: float,
        least_pages: int,
        last_time_ms: Callable[[], int],
        synced: Callable[[int], None],
        failed: Callable[[StoreFailedError], None],
    ) -> None:
        self._disk = disk
        self._log = log
        self._checkpoint = checkpoint
        self._changed_directories = changed_directories
        self._sync_flush = sync_flush
        self._interval_seconds = interval_seconds
        self._thorough_seconds = thorough_seconds
        self._least_bytes = least_pages * _PAGE_BYTES
        self._last_time_ms = last_time_ms
        self._synced = synced
        self._failed = failed
        self._wake = trio.Event()
        self._idle = True
        self._next = _Round()
        self._running: _Round | None = None
        self.failure: StoreFailedError | None = None
        self.synced_offset = 0
        """Everything before this physical offset survives a power loss."""
        self.syncs = 0

    def wrote(self) -> None:
        """Records were written: see to it that they get synced."""
        if self._idle:
            self._idle = False
            self._wake.set()

    def fail(self, reason: StoreFailedError) -> None:
        """The log takes no more writes: whoever waits for a sync, now or later, gets `reason`."""
        if self.failure is None:
            self.failure = reason
            self._next.done.set()
            if self._running is not None:
                self._running.done.set()

    async def wait_synced(self, end: int) -> None:
        """Wait until everything before physical offset `end` is synced; StoreFailedError when it never will be.

        Cancelling only gives up waiting.
        """
        if self.synced_offset >= end:
            await trio.lowlevel.checkpoint()
        while self.synced_offset < end:
            if self.failure is not None:
                raise StoreFailedError(str(self.failure)) from self.failure
            running = self._running
            await (running if running is not None and running.end >= end else self._next).done.wait()

    async def run(self) -> None:
        """The service; runs until cancelled, or until the log has failed."""
        flushed_at = trio.current_time()
        while self.failure is None:
            await self._wake.wait()
            if not self._sync_flush:
                await trio.sleep(self._interval_seconds)
                due = flushed_at + self._thorough_seconds - trio.current_time()
                while self._log.position - self.synced_offset < self._least_bytes and due > 0:
                    await trio.sleep(min(due, self._interval_seconds))
                    due = flushed_at + self._thorough_seconds - trio.current_time()
            self._wake = trio.Event()
            self._idle = True
            await self.sync()
            flushed_at = trio.current_time()

    async def sync(self) -> None:
        """Sync all that is written up to now, names included.  Does nothing once the log has failed."""
        if self.failure is not None or self._running is not None:
            return
        running = self._running = self._next
        self._next = _Round()
        log = self._log
        running.end = log.position
        time_ms = self._last_time_ms()
        starts, log.unsynced_starts = log.unsynced_starts, []
        directories = sorted(self._changed_directories)
        self._changed_directories.clear()
        try:
            if starts or directories:
                await self._disk.sync([log.files.handle(start) for start in starts], directories=directories)
                self.syncs += 1
        except OSError as error:
            reason = StoreFailedError(
                f"{log.files.directory}: syncing the commit log failed ({error.strerror or error}); what was not "
                "synced may be lost: check the disk, then start again"
            )
            self.fail(reason)
            self._failed(reason)
            return
        except BaseException:
            log.unsynced_starts = [*starts, *(start for start in log.unsynced_starts if start not in starts)]
            self._changed_directories.update(directories)
            running.done.set()  # its waiters look again and wait for the next round
            raise
        finally:
            self._running = None
        for start in starts:
            log.files.unpin(start)
        if running.end > self.synced_offset:
            self.synced_offset = running.end
        self._checkpoint.log_time_ms = max(self._checkpoint.log_time_ms, time_ms)
        self._synced(self.synced_offset)
        running.done.set()


class QueueFlusher:
    """Writes waiting entries to the queue files in groups, syncs those files and writes the checkpoint.

    `before_sync` (the index's flush) comes first, so that the checkpoint's times of queues and index stay together.
    """

    def __init__(
        self,
        disk: Disk,
        queues: ConsumeQueues,
        checkpoint: Checkpoint,
        *,
        interval_seconds: float,
        thorough_seconds: float,
        visible_time_ms: Callable[[], int],
        before_sync: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self._disk = disk
        self._before_sync = before_sync
        self._queues = queues
        self._checkpoint = checkpoint
        self._interval_seconds = interval_seconds
        self._thorough_seconds = thorough_seconds
        self._visible_time_ms = visible_time_ms
        self._wake = trio.Event()
        self._complained = False
        self._failed = False

    def wrote(self) -> None:
        """Entries became visible: see to it that they reach their files."""
        self._wake.set()

    async def run(self) -> None:
        """The service; runs until cancelled."""
        next_sync = math.inf
        while True:
            with trio.move_on_at(next_sync):
                await self._wake.wait()
                await trio.sleep(self._interval_seconds)
                if next_sync == math.inf:
                    next_sync = trio.current_time() + self._thorough_seconds
            if self._wake.is_set():
                self._wake = trio.Event()
                await self.write_out()
            if trio.current_time() >= next_sync:
                next_sync = math.inf
                await self.sync()

    async def write_out(self) -> None:
        """Write all visible entries that wait; on a full disk they keep waiting and the next round tries again."""
        for count, queue in enumerate([*self._queues.unwritten], start=1):
            if queue in self._queues.unwritten:
                try:
                    self._queues.write_out(queue)
                except OSError as error:
                    if not self._complained:
                        _log.warning(
                            "%s: entries cannot be written now (%s); they wait in memory",
                            queue.files.directory, error.strerror or error,
                        )  # fmt: skip
                    self._complained = True
                    self._wake.set()
                    return
            if count % _QUEUES_A_SLICE == 0:
                await trio.lowlevel.checkpoint()
        self._complained = False

    async def sync(self) -> bool:
        """Write out, sync the files written since the last time and raise the checkpoint; False when that failed.

        A failed sync of queue files loses nothing that the log does not hold: the checkpoint stays, so that recovery
        makes the entries again.
        """
        if self._failed:
            return False
        time_ms = self._visible_time_ms()
        if self._before_sync is not None:
            await self._before_sync()
        await self.write_out()
        if any(queue.written < queue.visible for queue in self._queues.unwritten):
            return False
        paths = [*self._queues.unsynced]
        directories = sorted(self._queues.changed_directories)
        self._queues.unsynced.clear()
        self._queues.changed_directories.clear()
        try:
            await self._disk.sync([], paths=paths, directories=directories)
            self._checkpoint.queues_time_ms = max(self._checkpoint.queues_time_ms, time_ms)
            self._checkpoint.write()
            await self._disk.sync([], paths=[self._checkpoint.path])
        except OSError as error:
            self._failed = True  # not tried again: what was lost might now count as clean
            _log.error("syncing the consume queues failed (%s); the next start makes their entries again", error)
            return False
        return True
