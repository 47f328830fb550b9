"""The index: finds records by unique key and by key, in RocketMQ's index files.

It follows the log, a few milliseconds behind and off the path of the appends: a service takes the keys of plain records
from the messages themselves, once they are visible, and reads all others back from the page cache, in slices.  Keys
wait in memory (at most some `GROUP_KEYS_MAX`, 20 bytes each); groups of them go to the files.  So a backlog takes no
memory, and an index that is missing, older than the log or cut by a crash is made again in the background, from the
first record that it does not hold, while the store serves.

Invariants: an index file never holds a key of a record that is not synced; the header of a file counts a group only
after the checkpoint's index time covers it, so that Apache's rule for unclean starts (files newer than that time are
removed) spares our files and removes those whose writer synced nothing; a record found by a hash is returned only when
its topic and key really are those asked for.  Source of the rules: RocketMQ IndexService.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from logging import getLogger

import trio

from trio_rmq.clock import wall_ms
from trio_rmq.errors import StoreError
from trio_rmq.store.checkpoint import Checkpoint
from trio_rmq.store.commit_log import CommitLog
from trio_rmq.store.disk import Disk
from trio_rmq.store.index_file import HEADER_SIZE_BYTES, Header, IndexFile, IndexLostError
from trio_rmq.store.index_keys import (
    Appended,
    Pending,
    fresh_keys,
    fresh_keys_of_batch,
    key_hash,
    keys_of,
    read_keyed,
    take_plain,
)
from trio_rmq.store.log_files import FileHandles
from trio_rmq.store.messages import AppendResult, AppendStatus, BatchResult, NewBatch, NewMessage, QueryResult
from trio_rmq.wire.record import RecordKind, check_record

_log = getLogger(__name__)
_PUT_OK = AppendStatus.PUT_OK

GROUP_KEYS_MAX = 100_000
"""Most keys that wait in memory: 2 MB; a group that large has some 20 of them in each page of slots."""

_GATHER_SECONDS = 0.005
"""How long after a write its records' keys are gathered; a query gathers them at once."""

_FRESH_MESSAGES_MAX = 10_000
"""Most messages that wait for that; more are read back from the log."""

_RECORDS_A_SLICE = 250
_FRESH_FEW, _FRESH_A_SLICE_FEW, _FRESH_A_SLICE_MAX = 64, 16, 64
"""Of messages just appended a slice takes those of one append, at most 0.1 ms; while few wait, of several appends.

A sender that is alone is kept from 30 us by that, and spared a turn of the loop an append.  Many connections are better
served by little a turn: it lasts longer, and so answers more of them (64 x 1 sends: 31 us of CPU each, else 36).
"""

_BLOCK_BYTES = 128 * 1024
_QUERY_SLICES_MAX = 256
"""A query gathers at most this many slices itself; further behind the index is only while it is being made again."""

_CLOSE_SLICES_MAX = 4096
_CANDIDATES_A_BREATH = 16
_ANSWER_BYTES_MAX = 8 * 1024 * 1024
"""Half of the largest frame; the first record is taken whatever its size."""

_BEHIND_WORTH_TELLING_BYTES = 4 * 1024 * 1024
_NAME_DIGITS = 17


class Index:
    """The index of one store, in the folder `directory`.

    `visible_end` and `synced_end` say up to which physical offset records are visible and synced; `fence` from which
    offset on a topic's records count (0 unless it was deleted).
    """

    def __init__(
        self,
        disk: Disk,
        handles: FileHandles,
        log: CommitLog,
        checkpoint: Checkpoint,
        directory: str,
        *,
        slot_count: int,
        item_count: int,
        visible_end: Callable[[], int],
        synced_end: Callable[[], int],
        fence: Callable[[str], int],
    ) -> None:
        self._disk = disk
        self._handles = handles
        self._log = log
        self._checkpoint = checkpoint
        self._directory = directory
        self._slot_count = slot_count
        self._item_count = item_count
        self._visible_end = visible_end
        self._synced_end = synced_end
        self._fence = fence
        self._files: list[IndexFile] = []
        self._pending = Pending()
        self._changed_directories: set[str] = set()
        self._wake = trio.Event()
        self.idle = True
        """Whether the service sleeps, so that `wrote` does something."""
        self._lock = trio.Lock()
        self._failed = self._complained = self._loaded = self._was_clean = False
        self._appended = Appended()
        self._held_at = -1
        self._held = 0
        self.position = 0
        """Keys of all records before this physical offset are in the index, in memory or in files."""

    # Life --------------------------------------------------------------------------------------------------------

    async def load(self, *, clean: bool) -> None:
        """Find the files, after the log's end is known; StoreError for what does not belong there.

        After an unclean stop files that may hold what never reached the disk are removed; the service makes what they
        held again.  Synced on return.
        """
        self._was_clean = clean
        try:
            await self._load(clean=clean)
        except (OSError, IndexLostError) as error:
            raise StoreError(f"the index in {self._directory} cannot be used ({error})") from error
        self._loaded = True

    async def _load(self, *, clean: bool) -> None:
        for name in self._disk.list_directory(self._directory):
            if len(name) != _NAME_DIGITS or not name.isascii() or not name.isdigit():
                raise StoreError(f"{self._directory}/{name} does not belong there: move it away and start again")
            file = IndexFile(self._disk, self._handles, f"{self._directory}/{name}", self._slot_count, self._item_count)
            if not clean and self._disk.path_size(file.path) <= HEADER_SIZE_BYTES:  # its length never reached the disk
                self._remove(file)
                continue
            file.load()
            self._files.append(file)
        if not clean:
            self._drop_from(lambda file: file.header.end_ms > self._checkpoint.index_time_ms or file.header.count <= 1)
            self._drop_from(lambda file: not file.is_whole())
            if self._files:
                mended = await self._files[-1].settle()
                if mended:
                    _log.info("%s: %d slots of an unfinished write led back", self._files[-1].path, mended)
        with_room = [number for number, file in enumerate(self._files) if file.room]
        if with_room:  # nothing comes after a file that has room
            self._drop(with_room[0] + 1)
        log_end = self._log.position
        self._drop_from(lambda file: file.header.count > 1 and file.header.end_physical >= log_end)
        if self._changed_directories:
            await self._sync_names()
        self.position = self._first_missing()
        behind = self._visible_end() - self.position
        if behind > 0:
            self.wrote()
        if behind > _BEHIND_WORTH_TELLING_BYTES:
            _log.info("%s: the keys of the log's last %d bytes are made again", self._directory, behind)

    def _drop_from(self, doubtful: Callable[[IndexFile], bool]) -> None:
        """Remove the first file that is `doubtful`, and all after it."""
        self._drop(next((n for n, file in enumerate(self._files) if doubtful(file)), len(self._files)))

    def _drop(self, number: int) -> None:
        """Remove the files from the one with this number on, the last one first."""
        while len(self._files) > number:
            self._remove(self._files[-1])
            self._files.pop()

    def _remove(self, file: IndexFile) -> None:
        file.remove()
        self._changed_directories.add(self._directory)

    def _first_missing(self) -> int:
        """Where the first record stands whose keys may not all be in the files; `_held` says how many of it are."""
        start, end, held = self._log.min_offset, -1, 0
        for file in reversed(self._files):
            if file.header.count <= 1:  # nothing is in it yet
                continue
            if end >= 0 and file.header.end_physical != end:
                break
            end = file.header.end_physical
            items = file.items_of_last()
            held += items
            if items < file.header.count - 1:
                break
        if end < start:
            return start
        self._held_at, self._held = end, held
        return end

    async def run(self) -> None:
        """The service: gathers keys soon after their records became visible; runs until cancelled."""
        while True:
            await self._wake.wait()
            await trio.sleep(_GATHER_SECONDS)
            self._wake = trio.Event()
            self.idle = True
            while True:
                if len(self._pending.hashes) >= GROUP_KEYS_MAX:
                    await self.flush()
                if not self.gather():
                    break
                await trio.lowlevel.checkpoint()

    def wrote(self) -> None:
        """Records became visible: see to it that they are found."""
        self.idle = False
        self._wake.set()

    def appended(self, messages: Sequence[NewMessage], results: Sequence[AppendResult]) -> None:
        """These were appended: keep them for `gather`, unless earlier ones are still to be read.

        Not the first of a transaction, whose keys the record decides, nor those after it.
        """
        if results[-1].status is _PUT_OK and self._follows(results[0].physical_offset):
            fresh = fresh_keys(messages, results)
            if fresh is not None:
                self._appended.keep(fresh)

    def appended_batch(self, batch: NewBatch, result: BatchResult) -> None:
        """The same for a batch."""
        if self._follows(result.physical_offsets[0]):
            self._appended.keep(fresh_keys_of_batch(batch, result))

    def _follows(self, physical_offset: int) -> bool:
        """Whether nothing before that is still to be read from the log, and not too many wait."""
        appended = self._appended
        return (
            physical_offset == (appended.end if appended else self.position) and appended.messages < _FRESH_MESSAGES_MAX
        )

    async def close(self) -> bool:
        """Bring the files up to the log's end; False when that failed, so that the next start must look after them.

        An index that is still being made again goes on at the next start.
        """
        if not self._loaded:
            return self._was_clean
        for _ in range(_CLOSE_SLICES_MAX):
            if not self.gather():
                break
            if len(self._pending.hashes) >= GROUP_KEYS_MAX and not await self.flush():
                return False
        return await self.flush()

    async def expire(self, min_physical_offset: int) -> int:
        """Remove the files that hold only keys of records before `min_physical_offset`; returns how many.

        The last file stays, as in Apache's broker.  OSError ends it; what is left is for the next call.
        """
        removed = 0
        while len(self._files) > 1 and self._files[0].header.end_physical < min_physical_offset:
            await self._disk.remove(self._files[0].path)
            self._handles.forget(self._files[0].path)
            del self._files[0]
            self._changed_directories.add(self._directory)
            removed += 1
        return removed

    @property
    def waiting(self) -> int:
        """How many gathered keys wait in memory."""
        return len(self._pending.hashes)

    # Gathering ---------------------------------------------------------------------------------------------------

    def gather(self) -> bool:
        """Take the keys of the next records, a few milliseconds' work; False when there are none, or too many wait."""
        end = self._visible_end()
        position = max(self.position, self._log.min_offset)
        if position >= end or len(self._pending.hashes) >= GROUP_KEYS_MAX:
            return False
        if self._appended:
            appended = self._appended
            few = appended.messages <= _FRESH_FEW
            most = _FRESH_A_SLICE_FEW if few else min(appended.first_messages, _FRESH_A_SLICE_MAX)
            self.position, count = appended.take(most, self.position, end, self._pending)
            return count > 0
        try:
            block = self._log.read(position, min(_BLOCK_BYTES, end - position))
            if not block:
                return False  # its file went this very moment
            size = int.from_bytes(block[:4], "big")
            if len(block) < size <= end - position:  # a record larger than a block
                block = self._log.read(position, size)
        except OSError as error:
            self._complain("the log cannot be read to index it", error)
            return False
        self.position = position + self._take(block, position)
        return True

    def _take(self, block: bytes, position: int) -> int:
        """Take the keys of the records of `block`, which stands at `position`; returns how many bytes are done."""
        pending = self._pending
        at, left, size = 0, _RECORDS_A_SLICE, len(block)
        while left and at < size:
            at, taken = take_plain(block, at, position, left, self._held_at, pending)
            left -= taken
            if not left or at >= size:
                break
            left -= 1
            record = read_keyed(block, at, position + at)
            if record.kind is not RecordKind.RECORD:
                if record.kind is RecordKind.BAD and at and (at + record.size_bytes > size or size - at < 8):
                    break  # the rest of it is in the next block
                if record.kind is RecordKind.BAD:
                    _log.error(
                        "%s: the record at offset %d cannot be read; keys of its log file from there on are not found",
                        self._directory, position + at,
                    )  # fmt: skip
                file_size = self._log.files.file_size
                return file_size - position % file_size
            offset = position + at
            keys = keys_of(record.properties)
            if offset == self._held_at:
                del keys[: self._held]
            for key in keys:
                pending.add(key_hash(record.topic, key), offset, record.store_timestamp_ms)
            at += record.size_bytes
        return at

    # Files -------------------------------------------------------------------------------------------------------

    async def flush(self) -> bool:
        """Bring the gathered keys of synced records to the files; False when that failed.  Synced on return.

        Those that are gathered meanwhile are left to the next call, else it might never return under load.  On a full
        disk they keep waiting and the next call tries again; after a failed sync the index takes no more.
        """
        async with self._lock:
            try:
                left = self._ready()
                while self._loaded and not self._failed and (count := min(left, self._ready())):
                    left -= await self._write(self._active(), count)
            except OSError as error:
                self._complain("index files cannot be written now; keys wait in memory", error)
                return False
            except IndexLostError as error:
                self._failed = True  # not tried again: what was lost might now count as clean
                _log.error("syncing the index failed (%s); the next start makes up for it", error)
            if self._failed:
                return False
            self._complained = False
            if self.position < self._visible_end():
                self.wrote()
            return True

    def _ready(self) -> int:
        return bisect_left(self._pending.offsets, self._synced_end())

    async def _write(self, file: IndexFile, ready: int) -> int:
        """Write the first `ready` keys, or as many as `file` has room for; returns how many."""
        pending = self._pending
        count = min(ready, file.room)
        hashes, offsets, times_ms = pending.hashes[:count], pending.offsets[:count], pending.times_ms[:count]
        await self._sync_names()
        header = await file.write_group(hashes, offsets, times_ms)
        checkpoint = self._checkpoint
        checkpoint.index_time_ms = max(checkpoint.index_time_ms, header.end_ms)
        with trio.CancelScope(shield=True):  # a header that was written must be synced before a next file is made
            checkpoint.write()
            await self._sync([], [checkpoint.path])
            file.commit(header)
            pending.drop(count)
            await file.sync()
        return count

    async def _sync_names(self) -> None:
        directories = sorted(self._changed_directories)
        if directories:
            await self._sync(directories, [])
            self._changed_directories.difference_update(directories)

    async def _sync(self, directories: list[str], paths: list[str]) -> None:
        try:
            await self._disk.sync([], directories=directories, paths=paths)
        except OSError as error:
            raise IndexLostError(f"{self._directory}: {error.strerror or error}") from error

    def _active(self) -> IndexFile:
        """The last file, or a new one when it is full; made names wait to be synced.  May raise OSError."""
        last = self._files[-1] if self._files else None
        if last is not None and last.room:
            return last
        if not self._disk.is_directory(self._directory):
            self._changed_directories.update(self._disk.make_directories(self._directory))
        name = datetime.fromtimestamp(wall_ms() / 1000).strftime("%Y%m%d%H%M%S%f")[:_NAME_DIGITS]
        if last is not None:  # names must rise, whatever the clock does; nobody reads a time from them
            before = int(last.path.rpartition("/")[2])
            name = f"{max(int(name), before + 1):0{_NAME_DIGITS}d}"
        file = IndexFile(self._disk, self._handles, f"{self._directory}/{name}", self._slot_count, self._item_count)
        file.create(Header() if last is None else last.header)
        self._changed_directories.add(self._directory)
        self._files.append(file)
        return file

    def _complain(self, what: str, error: OSError) -> None:
        if not self._complained:
            _log.warning("%s: %s (%s)", self._directory, what, error.strerror or error)
        self._complained = True

    # Queries -----------------------------------------------------------------------------------------------------

    async def query(self, topic: str, key: str, *, max_count: int, begin_ms: int, end_ms: int) -> QueryResult:
        """See `MessageStore.query`."""
        for _ in range(_QUERY_SLICES_MAX):
            if not self.gather():
                break
            await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
        name, word = topic.encode("utf-8", "replace"), key.encode("utf-8", "replace")
        wanted = key_hash(name, word)
        fence = max(self._fence(topic), self._log.min_offset)
        records: list[bytes] = []
        seen: set[int] = set()
        total = looked = 0
        for candidate in self._candidates(wanted, begin_ms, end_ms):
            if len(records) >= max_count:
                break
            if candidate is None:
                await trio.lowlevel.checkpoint()
                continue
            offset, early, late = candidate
            if offset in seen or early > end_ms or late < begin_ms or offset < fence:
                continue
            seen.add(offset)
            looked += 1
            if looked % _CANDIDATES_A_BREATH == 0:
                await trio.lowlevel.checkpoint()
            record = self._matching(offset, topic, word, begin_ms, end_ms)
            if record is None:
                continue
            if records and total + len(record) > _ANSWER_BYTES_MAX:
                break
            records.append(record)
            total += len(record)
        return QueryResult(records, *self._last_update())

    def _candidates(self, wanted: int, begin_ms: int, end_ms: int) -> Iterator[tuple[int, int, int] | None]:
        """What may match, the newest first, as `IndexFile.chain` tells it."""
        files = self._files[:]  # before the keys in memory: those may move to a file meanwhile, and be seen twice
        yield from self._pending.newest(wanted)
        for file in reversed(files):
            header = file.header
            if header.count > 1 and header.begin_ms <= end_ms and header.end_ms >= begin_ms:
                try:
                    yield from file.chain(wanted, begin_ms)
                except OSError as error:
                    if file in self._files:
                        self._complain(f"{file.path} cannot be read", error)
            if header.begin_ms < begin_ms:
                return
            yield None

    def _matching(self, offset: int, topic: str, key: bytes, begin_ms: int, end_ms: int) -> bytes | None:
        """The record at `offset`, if it has this topic and key and was stored in the range."""
        try:
            size = int.from_bytes(self._log.read(offset, 4), "big")
            if not 0 < size <= self._visible_end() - offset:
                return None
            data = self._log.read(offset, size)
        except OSError as error:
            self._complain("a record cannot be read", error)
            return None
        record = check_record(data)
        if (
            record.kind is not RecordKind.RECORD
            or record.physical_offset != offset
            or record.topic != topic
            or not begin_ms <= record.store_timestamp_ms <= end_ms
            or key not in keys_of(record.properties)
        ):
            return None
        return data

    def _last_update(self) -> tuple[int, int]:
        if self._pending.offsets:
            return self._pending.times_ms[-1], self._pending.offsets[-1]
        header = self._files[-1].header if self._files else Header()
        return header.end_ms, header.end_physical
