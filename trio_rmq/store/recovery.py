"""Starting: find where the log ends, make that end clean on disk, and bring the consume queues into line with it.

After a clean stop (no abort marker) the queues say where the last record stands, and only what follows is read.  After
a crash the log is read from where the checkpoint says that log and queues were synced, and every entry from there on is
made again.

Invariants: nothing before the first bad record is dropped; a bad record followed by one that was synced is corruption,
and the start stops; everything after the log's end is zeroed and synced before any new append; no queue points beyond
the log, and none misses a record of it.  Every step may be interrupted and done again.
Source of the rules: RocketMQ CommitLog.recoverNormally and recoverAbnormally, which stop at the first bad record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from logging import getLogger

import msgspec
import trio

from trio_rmq.errors import StoreCorruptError
from trio_rmq.store.checkpoint import MARKED_BYTES, Checkpoint, Mark
from trio_rmq.store.commit_log import CommitLog
from trio_rmq.store.consume_queue import ConsumeQueue
from trio_rmq.store.consume_queues import ConsumeQueues
from trio_rmq.store.disk import Disk
from trio_rmq.store.dispatch import DelayLevels, Dispatcher, MissingEntriesError, MoreQueues
from trio_rmq.wire.checksum import crc32
from trio_rmq.wire.record import CheckedRecord, RecordKind

_log = getLogger(__name__)
_MAGIC_BYTES = (bytes.fromhex("DAA320A7"), bytes.fromhex("DAA320AB"))
_MAGIC_AT = 4
_SEARCH_BLOCK_BYTES = 1024 * 1024
_RECORDS_A_SLICE = 2000
"""Records read before other tasks get their turn."""
_ENTRIES_IN_MEMORY_MAX = 500_000

TORN = "its topic or its properties have zero bytes: the crash came before all of it was on the disk"

Progress = Callable[[int, int], None]
"""Called now and then with (bytes of the log read, bytes to read at most); both are equal at the end."""


def is_torn(record: CheckedRecord, synced_before_ms: int) -> bool:
    """Whether a whole-looking record of a crashed store is the torn rest of one.

    The checksum covers the body alone.  Bytes that did not reach the disk are zero, and no record that we append has
    such in its topic or properties; one that was stored before `synced_before_ms` was synced as it is.
    """
    return (
        record.kind is RecordKind.RECORD
        and (0 in record.properties or "\0" in record.topic)
        and record.store_timestamp_ms >= synced_before_ms
    )


class Recovered(msgspec.Struct, frozen=True):
    """What a recovery found and did.  Offsets are physical."""

    clean: bool
    """Whether the store had been stopped in order."""
    start_offset: int
    """Where reading began."""
    end_offset: int
    """Where the log ends."""
    records: int
    dispatched: int
    """Queue entries that were missing and were made again."""
    last_time_ms: int
    """Store time of the log's last record; 0 when it has none that was read."""


class Recovery:
    """One recovery of one store; the log's and the queues' files are loaded."""

    def __init__(
        self,
        disk: Disk,
        log: CommitLog,
        queues: ConsumeQueues,
        checkpoint: Checkpoint,
        delays: DelayLevels,
        fences: Mapping[str, int],
        *,
        check_body_crc: bool = True,
        progress: Progress | None = None,
        more_queues: MoreQueues | None = None,
    ) -> None:
        self._more_queues = more_queues
        self._disk = disk
        self._log = log
        self._queues = queues
        self._checkpoint = checkpoint
        self._delays = delays
        self._fences = fences
        self._check_body_crc = check_body_crc
        self._progress = progress

    async def run(self, *, clean: bool) -> Recovered:
        """Recover and leave `log.position` at the end; StoreCorruptError when that would drop synced records.

        Synced on return: the log's end and every change to the queue files.
        """
        log = self._log
        if not log.files.starts:
            for queue in self._queues.table.values():
                self._queues.restart(queue, 0)
            await self._sync([])
            return Recovered(clean, 0, 0, 0, 0, 0)
        self._drop_fenced_queues()
        begin = self._clean_start() if clean else None
        if begin is None:
            clean = False
            begin = self._unclean_start()
        if not clean:
            self._cut_queues(begin)
            self._doubt_names()
        try:
            found = await self._read(begin, clean)
        except MissingEntriesError as error:
            _log.warning("entries of %s are missing: all queues are made again from the log", error)
            begin, clean = log.min_offset, False
            self._cut_queues(begin)
            self._doubt_names()
            found = await self._read(begin, clean)
        await self._end_log(found.end_offset)
        return found

    def _clean_start(self) -> int | None:
        """Where the last record of any queue stands; None when no such record is there (something is amiss)."""
        last = -1
        for queue in self._queues.table.values():
            record = queue.last_record()
            if record is not None and record[0] > last:
                last = record[0]
        if last < self._log.min_offset:
            return self._log.min_offset
        return last if self._log.check_at(last).kind is RecordKind.RECORD else None

    def _unclean_start(self) -> int:
        """The checkpoint's mark, if it is of this log; else a file's start, as RocketMQ chooses it.

        That is the newest file whose first record is no later than the checkpoint, else the oldest file.
        """
        mark = self._checkpoint.mark
        if mark is not None and self._is_true(mark):
            return mark.physical_offset
        limit = self._checkpoint.recovery_time_ms()
        for start in reversed(self._log.files.starts):
            time_ms = self._log.first_record_time_ms(start)
            if time_ms is not None and time_ms <= limit:
                return start
        return self._log.min_offset

    def _is_true(self, mark: Mark) -> bool:
        """Whether the mark is of this log, and the queues still have what they had; they are cut to it."""
        if not self._log.min_offset <= mark.physical_offset <= self._log.files.end:
            return False
        if crc32(self._log.before(mark.physical_offset, MARKED_BYTES)) != mark.log_crc:
            return False
        self._cut_queues(mark.physical_offset)
        return sum([queue.next_offset for queue in self._queues.table.values()]) == mark.entries

    def _drop_fenced_queues(self) -> None:
        """Finish the deletions that a crash interrupted: files of a deleted topic's old queues that came back."""
        for queue in [*self._queues.table.values()]:
            fence = self._fences.get(queue.topic)
            if fence is not None and queue.holds_before(fence):
                self._queues.restart(queue, 0)

    def _cut_queues(self, begin: int) -> None:
        for queue in self._queues.table.values():
            self._queues.cut(queue, begin)
            last = queue.last_record()
            if last is not None and queue.entry(queue.visible - 2) is None and not self._is_of(queue, last[0]):
                self._queues.restart(queue, queue.visible - 1)

    def _is_of(self, queue: ConsumeQueue, physical_offset: int) -> bool:
        """Whether a queue's only entry leads to a record of it, as far as the log goes back; else a crash tore it."""
        if physical_offset < self._log.min_offset:
            return True
        record = self._log.check_at(physical_offset, check_body_crc=False)
        place = (queue.topic, queue.visible - 1)
        return (record.topic, record.queue_offset) == place or (
            self._more_queues is not None and place in self._more_queues(record.properties)
        )

    def _doubt_names(self) -> None:
        """A process that was killed may not have synced the names it made: see to it that they are."""
        files, queues = self._log.files, self._queues
        files.changed_directories.update((files.directory, files.directory.rpartition("/")[0] or "."))
        folders = {run.directory for queue in queues.table.values() for run in queue.file_runs() if run.starts}
        for _ in ("queue", "topic", "all queues", "the store"):
            queues.changed_directories.update(folders)
            folders = {folder.rpartition("/")[0] or "." for folder in folders}

    async def _read(self, begin: int, clean: bool) -> Recovered:
        log = self._log
        dispatcher = Dispatcher(
            self._queues,
            self._delays,
            self._fences,
            from_start=begin == log.min_offset,
            more_queues=self._more_queues,
        )
        total = log.files.end - begin
        records, last_time_ms, end = 0, 0, begin
        for offset, record in log.scan(begin, check_body_crc=self._check_body_crc):
            if not clean and is_torn(record, self._checkpoint.log_time_ms):
                record = CheckedRecord(RecordKind.BAD, record.size_bytes, reason=TORN)
            if record.kind is RecordKind.BAD:
                if not clean:
                    await self._judge_end(offset, record)
                end = offset
                break
            dispatcher.dispatch(record)
            records += 1
            last_time_ms = max(last_time_ms, record.store_timestamp_ms)
            if records % _RECORDS_A_SLICE == 0:
                if dispatcher.dispatched % _ENTRIES_IN_MEMORY_MAX < _RECORDS_A_SLICE:
                    self._write_queues()
                if self._progress is not None:
                    self._progress(offset - begin, total)
                await trio.lowlevel.checkpoint()
        if self._progress is not None:
            self._progress(total, total)
        self._write_queues()
        for queue in self._queues.table.values():
            last = queue.last_record()
            if last is not None and last[0] + last[1] > end:
                self._queues.cut(queue, end)
        return Recovered(clean, begin, end, records, dispatcher.dispatched, last_time_ms)

    def _write_queues(self) -> None:
        for queue in [*self._queues.unwritten]:
            self._queues.write_out(queue)

    async def _judge_end(self, offset: int, bad: CheckedRecord) -> None:
        """Raise StoreCorruptError when a synced record stands after the bad one at `offset`."""
        synced_before_ms = self._checkpoint.log_time_ms
        files = self._log.files
        position = offset
        while (start := files.locate(position)) is not None:
            file_end = start + files.file_size
            for extent_start, extent_end in self._disk.data_extents(
                files.handle(start), position - start, files.file_size
            ):
                await trio.lowlevel.checkpoint()
                later = self._find_record(start + extent_start, start + extent_end, offset, synced_before_ms)
                if later is not None:
                    root = self._checkpoint.path.rpartition("/")[0]
                    raise StoreCorruptError(
                        f"{files.path(files.locate(offset) or 0)}: the record at offset {offset} is damaged "
                        f"({bad.reason}), but the one at {later} was synced after it; starting would lose what lies "
                        f"between. `trio-rmq store verify {root}` lists all damage; bring the files back from a copy "
                        "or a replica, then `trio-rmq store rebuild` makes the queues anew"
                    )
            position = file_end

    def _find_record(self, begin: int, end: int, after: int, before_ms: int) -> int | None:
        """The first whole record that starts in [begin, end), after `after`, and was stored before `before_ms`."""
        log = self._log
        position = begin
        while position < end:
            block = log.read(position, min(_SEARCH_BLOCK_BYTES, end - position) + _MAGIC_AT)
            if not block:
                return None
            for magic in _MAGIC_BYTES:
                at = block.find(magic)
                while at >= 0:
                    candidate = position + at - _MAGIC_AT
                    if candidate > after and candidate >= log.min_offset:
                        record = log.check_at(candidate)
                        if record.kind is RecordKind.RECORD and record.store_timestamp_ms < before_ms:
                            return candidate
                    at = block.find(magic, at + 1)
            position += _SEARCH_BLOCK_BYTES
        return None

    async def _end_log(self, end: int) -> None:
        """Zero what follows `end`, remove the files after it, and sync both and the queues before anyone appends."""
        files = self._log.files
        size = files.file_size
        files.remove_from(end if end % size == 0 else end - end % size + size)
        start = files.locate(end)
        handles = []
        if start is not None and files.zero_from(end):
            handles.append(files.handle(start))
        self._log.position = end
        await self._sync(handles)

    async def _sync(self, handles: list[int]) -> None:
        queues, files = self._queues, self._log.files
        if handles or files.changed_directories:
            await self._disk.sync(handles, directories=sorted(files.changed_directories))
        files.changed_directories.clear()
        if queues.unsynced or queues.changed_directories:
            await queues.sync()
