"""The services that bring written data to the disk: the log's sync and the queues' writing out.

`LogFlusher` syncs the log: under SYNC_FLUSH at once and for all waiters of one round together (group commit), the next
round beginning before those of the last are told, else in the background after an interval.  `QueueFlusher` writes
waiting queue entries to their files in groups, syncs them now and then, and only then raises the checkpoint.

Invariants: `synced_offset` never passes what a sync that began after the write has confirmed; a sync that failed is
never tried again (the kernel may have dropped the pages and marked them clean): the store fails for good; work happens
only after something was written - an idle store wakes nobody.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable
from logging import getLogger

import trio

from trio_rmq.errors import StoreFailedError
from trio_rmq.store.checkpoint import MARKED_BYTES, Checkpoint, Mark
from trio_rmq.store.commit_log import CommitLog
from trio_rmq.store.consume_queues import ConsumeQueues
from trio_rmq.store.disk import Disk
from trio_rmq.wire.checksum import crc32

_log = getLogger(__name__)
_PAGE_BYTES = 4096
_UNMARKED_BYTES_MAX = 256 * 1024 * 1024
"""So much log behind the checkpoint's mark has the queues synced early: a start after a crash reads little more."""

_UNMARKED_ENTRIES_MAX = 1_000_000
"""The same for entries: a start makes some 150,000 a second again, and small records come to more in as many bytes."""

_REWRITE_BLOCK_BYTES = 1024 * 1024
"""Written at once when a start after a crash writes the log's end again."""

_MUCH_BYTES = 4 * 1024 * 1024
"""So much unsynced has the kernel begin to write it before it is synced.  Measured on ext4, appends at 120 MB/s beside
a sync every half second, without what they waited for a processor: the slowest took 13 ms before, 0.5 to 16 ms since.
"""

_CALLS_A_SLICE = 64
"""Answers given after a sync before other tasks get their turn: about 2 ms."""

_FEW_QUEUES = 100
"""Of so few an early sync costs little, whatever waits in them."""

_ENTRIES_A_QUEUE = 100
"""With more, a sync is early only for so many entries to each, which then share the cost of writing that queue out."""

_QUEUES_A_SLICE, _SLICE_SECONDS = 64, 0.002
"""Queues written out, and the time for it, before other tasks get their turn.  One more takes 20 us, or half a
millisecond where a file system makes its folder and file.
"""

_QUEUES_A_LOOK = 8192
"""Queues that are looked at, whether much waits in them, before other tasks get their turn: half a millisecond."""

_REST = 9
"""The service rests so many times as long as each slice took: writing out takes a tenth of the loop at most."""


Told = Callable[[StoreFailedError | None], None]
"""Called once a sync is done, with None, or will never be, with the reason; must not wait or raise."""

SyncedPlace = tuple[int, int]
"""A physical offset, and how many queue entries there are of all records before it."""


class _Round:
    """One sync that many may wait for; `end` is the log offset it covers once it has begun."""

    __slots__ = ("calls", "done", "end")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.calls: list[Told] = []
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
        entries: Callable[[], int],
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
        self._entries = entries
        self._synced = synced
        self._failed = failed
        self._wake = trio.Event()
        self.idle = True
        """Whether nothing waits for a sync, so that `wrote` does something."""
        self._next = _Round()
        self._running: _Round | None = None
        self._calls: deque[tuple[Told, StoreFailedError | None]] = deque()
        self._calls_came = trio.Event()
        self.failure: StoreFailedError | None = None
        self.synced_offset = 0
        """Everything before this physical offset survives a power loss."""
        self.synced_place: SyncedPlace | None = None
        """The same with the entries there were, while no queue was removed since."""
        self.syncs = 0

    def wrote(self) -> None:
        """Records were written: see to it that they get synced."""
        if self.idle:
            self.idle = False
            self._wake.set()

    def fail(self, reason: StoreFailedError) -> None:
        """The log takes no more writes: whoever waits for a sync, now or later, gets `reason`."""
        if self.failure is None:
            self.failure = reason
            for waited in (self._running, self._next):
                if waited is not None:
                    waited.done.set()
                    self._tell(waited, reason)

    def _tell(self, waited: _Round, failure: StoreFailedError | None) -> None:
        if waited.calls:
            self._calls.extend([(call, failure) for call in waited.calls])
            waited.calls.clear()
            self._calls_came.set()

    async def wait_synced(self, end: int) -> None:
        """Wait until everything before physical offset `end` is synced; StoreFailedError when it never will be.

        Cancelling only gives up waiting.
        """
        if self.synced_offset >= end:
            await trio.lowlevel.checkpoint()
        while self.synced_offset < end:
            if self.failure is not None:
                raise StoreFailedError(str(self.failure)) from self.failure
            await self._round_of(end).done.wait()

    def when_synced(self, end: int, told: Told) -> None:
        """Have `told` called as soon as `wait_synced` would return or raise, at once if it would do so at once.

        For who needs no task meanwhile.  Whoever is told then are told in the order in which they asked.
        """
        if self.synced_offset >= end:
            told(None)
        elif self.failure is not None:
            told(self.failure)
        else:
            self._round_of(end).calls.append(told)

    def _round_of(self, end: int) -> _Round:
        running = self._running
        return running if running is not None and running.end >= end else self._next

    async def run(self) -> None:
        """The service; runs until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_at_once if self._sync_flush else self._run_at_intervals)
            while True:
                await self._calls_came.wait()
                self._calls_came = trio.Event()
                if self._running is not None:
                    await trio.lowlevel.checkpoint()  # the next sync gets its thread first
                while self._calls:
                    for _ in range(min(len(self._calls), _CALLS_A_SLICE)):
                        told, failure = self._calls.popleft()
                        told(failure)
                    await trio.lowlevel.checkpoint()

    async def _run_at_once(self) -> None:
        while self.failure is None:
            if self.idle:
                await self._wake.wait()
                # Whoever has more to append this very moment joins the round instead of waiting for the next one.
                await trio.lowlevel.checkpoint()
                await trio.lowlevel.checkpoint()
            # Else they came while the disk was busy: it goes on with them while those it is done with are answered.
            await self._sync_wakeful()

    async def _run_at_intervals(self) -> None:
        flushed_at = trio.current_time()
        while self.failure is None:
            await self._wake.wait()
            await trio.sleep(self._interval_seconds)
            due = flushed_at + self._thorough_seconds - trio.current_time()
            while self._log.written_end - self.synced_offset < self._least_bytes and due > 0:
                await trio.sleep(min(due, self._interval_seconds))
                due = flushed_at + self._thorough_seconds - trio.current_time()
            await self._sync_wakeful()
            flushed_at = trio.current_time()

    async def _sync_wakeful(self) -> None:
        """Sync after the one that somebody else began, which may not cover all; what is written meanwhile wakes us."""
        while self._running is not None:
            await self._running.done.wait()
        self._wake = trio.Event()
        self.idle = True
        await self.sync()

    async def sync(self) -> None:
        """Sync all that is written up to now, names included.  Does nothing once the log has failed."""
        if self.failure is not None or self._running is not None:
            return
        running = self._running = self._next
        self._next = _Round()
        log = self._log
        running.end = log.written_end
        place = running.end, self._entries()
        time_ms = self._last_time_ms()
        starts, log.unsynced_starts = log.unsynced_starts, []
        directories = sorted(self._changed_directories)
        self._changed_directories.clear()
        try:
            if running.end - self.synced_offset >= _MUCH_BYTES:
                await self._start_writing(starts, running.end)
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
            self._next.calls[:0] = running.calls
            raise
        finally:
            self._running = None
        for start in starts:
            log.files.unpin(start)
        if running.end > self.synced_offset:
            self.synced_offset = running.end
        self.synced_place = place
        self._checkpoint.log_time_ms = max(self._checkpoint.log_time_ms, time_ms)
        self._synced(self.synced_offset)
        running.done.set()
        self._tell(running, None)

    async def _start_writing(self, starts: list[int], end: int) -> None:
        """Have the kernel begin to write what the files at `starts` hold of the log before `end` and is not synced."""
        files = self._log.files
        for start in starts:
            begin = max(start, self.synced_offset)
            size = min(start + files.file_size, end) - begin
            if size > 0:
                await self._disk.start_writing(files.handle(start), begin - start, size)

    async def sync_up_to(self, end: int) -> None:
        """Sync at once what stands before physical offset `end`; StoreFailedError when that fails."""
        while self.synced_offset < end:
            if self.failure is not None:
                raise StoreFailedError(str(self.failure)) from self.failure
            if self._running is None:
                await self.sync()
            else:
                await self._running.done.wait()

    async def sync_from(self, start_offset: int) -> None:
        """Sync the log from `start_offset` on: what a crash left written but not synced must not be called synced.

        It is written once more first.  Where a sync had failed, the kernel shows the bytes and takes them for clean,
        so a sync alone would leave them out, and the next power loss would tear a hole under what came after.
        """
        log = self._log
        size = log.files.file_size
        try:
            for start in [start for start in log.files.starts if start + size > start_offset]:
                position, end = max(start, start_offset), min(start + size, log.position)
                while position < end:
                    block = log.read(position, min(_REWRITE_BLOCK_BYTES, end - position))
                    if data := block.rstrip(b"\0"):  # zeros may be a hole, which shall take no space
                        log.files.write(position, data)
                    position += _REWRITE_BLOCK_BYTES
                    await trio.lowlevel.checkpoint()
                log.files.pin(start)
                log.unsynced_starts.append(start)
        except OSError as error:
            reason = StoreFailedError(
                f"{log.files.directory}: what a crash left cannot be written again ({error.strerror or error}): "
                "check the disk, then start again"
            )
            self.fail(reason)
            self._failed(reason)
            return
        await self.sync()


class QueueFlusher:
    """Writes waiting entries to the queue files in groups, syncs those files and writes the checkpoint.

    `before_sync` (the index's flush) comes first, so that the checkpoint's times of queues and index stay together.
    Queues in which little waits (RocketMQ's least pages) are written only then, so that many slow queues cost little.
    A sync is due every `thorough_seconds`, and early when much log is behind the mark: a start after a crash reads
    what is.  Among many queues it is early only for many entries to each, so that no message pays for more than a small
    share of a file; a start then reads what came in `thorough_seconds` and while the queues were written out.
    `synced_place` says up to where the log is synced, and how many entries there are of what is before that.
    """

    def __init__(
        self,
        disk: Disk,
        log: CommitLog,
        queues: ConsumeQueues,
        checkpoint: Checkpoint,
        *,
        synced_place: Callable[[], SyncedPlace | None],
        interval_seconds: float,
        thorough_seconds: float,
        least_pages: int,
        visible_time_ms: Callable[[], int],
        before_sync: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self._disk = disk
        self._before_sync = before_sync
        self._log = log
        self._synced_place = synced_place
        self._queues = queues
        self._checkpoint = checkpoint
        self._interval_seconds = interval_seconds
        self._thorough_seconds = thorough_seconds
        self._least_bytes = least_pages * _PAGE_BYTES
        self._visible_time_ms = visible_time_ms
        self._wake = trio.Event()
        self.idle = True
        """Whether no entries wait, so that `wrote` does something."""
        self._complained = False
        self._failed = False

    def wrote(self) -> None:
        """Entries became visible: see to it that they reach their files."""
        self.idle = False
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
                self.idle = True
                await self.write_out(least_bytes=self._least_bytes, rest=_REST)
            if trio.current_time() >= next_sync or self._much_is_unmarked():
                next_sync = math.inf
                await self.sync(rest=_REST)

    async def write_out(self, *, least_bytes: int = 0, rest: float = 0) -> bool:
        """Write what is visible now of all queues in which at least `least_bytes` wait; False when not all was.

        On a full disk they keep waiting and the next round tries again.  After each slice of many it rests for `rest`
        times as long as the slice took.
        """
        candidates = [*self._queues.unwritten]
        all_written = True
        begun = trio.current_time()
        next_round = begun + self._interval_seconds if rest else math.inf
        written = 0
        for start in range(0, len(candidates), _QUEUES_A_LOOK):
            if start:
                await trio.lowlevel.checkpoint()
                begun = trio.current_time()
            for queue in candidates[start : start + _QUEUES_A_LOOK]:
                if len(queue.tail) < least_bytes or queue not in self._queues.unwritten:
                    continue
                try:
                    self._queues.write_out(queue)
                except OSError as error:
                    self._complain(queue.files.directory, error)
                    return False
                all_written = all_written and queue.written >= queue.visible
                written += 1
                now = trio.current_time()
                if written % _QUEUES_A_SLICE and now - begun < _SLICE_SECONDS:
                    continue
                await trio.sleep(rest * (now - begun))
                begun = trio.current_time()
                if begun >= next_round:  # what is sent to much must not wait for all the others
                    next_round = begun + self._interval_seconds
                    all_written = await self.write_out(least_bytes=self._least_bytes) and all_written
                    begun = trio.current_time()
        self._complained = False
        return all_written

    def _complain(self, directory: str, error: OSError) -> None:
        if not self._complained:
            _log.warning(
                "%s: entries cannot be written now (%s); they wait in memory", directory, error.strerror or error
            )
        self._complained = True
        self.wrote()

    async def sync(self, *, rest: float = 0) -> bool:
        """Write out, sync the files written since the last time and raise the checkpoint; False when that failed.

        A failed sync of queue files loses nothing that the log does not hold: the checkpoint stays, so that recovery
        makes the entries again.  `rest` is that of `write_out`.
        """
        if self._failed:
            return False
        time_ms = self._visible_time_ms()
        place = self._synced_place()  # its entries are visible, and so will be written
        if self._before_sync is not None:
            await self._before_sync()
        if not await self.write_out(rest=rest):
            return False
        try:
            await self._queues.sync()
            self._checkpoint.queues_time_ms = max(self._checkpoint.queues_time_ms, time_ms)
            self._raise_mark(place)
            self._checkpoint.write()
            await self._disk.sync([], paths=[self._checkpoint.path])
        except OSError as error:
            self._failed = True  # not tried again: what was lost might now count as clean
            _log.error("syncing the consume queues failed (%s); the next start makes their entries again", error)
            return False
        return True

    def _much_is_unmarked(self) -> bool:
        mark, place = self._checkpoint.mark, self._synced_place()
        if place is None:
            return False  # nothing is known that a mark could say
        marked_offset, marked_entries = (
            (self._log.min_offset, 0) if mark is None else (mark.physical_offset, mark.entries)
        )
        unmarked_entries = place[1] - marked_entries
        queues = len(self._queues.unwritten) + len(self._queues.unsynced)
        return (queues <= _FEW_QUEUES or unmarked_entries >= _ENTRIES_A_QUEUE * queues) and (
            unmarked_entries >= _UNMARKED_ENTRIES_MAX or self._log.position - marked_offset >= _UNMARKED_BYTES_MAX
        )

    def _raise_mark(self, place: SyncedPlace | None) -> None:
        if place is None:
            return
        end, entries = place
        last = self._log.before(end, MARKED_BYTES)
        if last:  # at a file's start there is nothing to tell the log by
            self._checkpoint.mark = Mark(end, crc32(last), entries)
