"""Consume queues: for each message of one topic's queue 20 bytes that say where its record stands in the log.

Entries are made from memory the moment a record is appended.  They wait in `tail`, where readers see them at once, and
reach their files in groups (`write_out`); a crash loses them and recovery makes them again from the log.

Invariants: entry n stands at byte 20*n of the queue's files; entries are written without a gap; `written` <= `visible`
<= `next_offset`, where `visible` bounds what readers get (under SYNC_FLUSH it moves after the sync); nothing beyond
`visible` reaches a file.  Source of the layout: RocketMQ ConsumeQueue.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import lru_cache

from trio_rmq.errors import StoreError
from trio_rmq.store.consume_queue_ext import ConsumeQueueExt, is_address
from trio_rmq.store.log_files import LogFiles
from trio_rmq.wire.record import RECORD_SIZE_MIN_BYTES, encode_topic

ENTRY_SIZE_BYTES = 20
ENTRY = struct.Struct(">qiq")
"""Physical offset, record size, tags code."""

FILLER_SIZE = 0x7FFFFFFF
"""The size field of an entry that stands before the first one of a queue which does not begin at a file's start."""

DELAY_TOPIC = "SCHEDULE_TOPIC_XXXX"
_SIZE_AT = 8
_Predicate = Callable[[int, int], bool]
_FILLER = ENTRY.pack(0, FILLER_SIZE, 0)
_ENTRIES_A_READ = 4096
_ENTRIES_A_PAGE = 204
_SIZE_KEY = "mappedFileSizeConsumeQueue"


class ConsumeQueue:
    """One queue of one topic.  Offsets count entries; the physical offsets inside them are bytes of the commit log."""

    __slots__ = (
        "_min_for_physical", "_min_offset", "counted", "ext", "files", "is_delay", "is_plain", "key", "magic",
        "next_offset", "properties_size", "queue_id", "record_middle", "record_rest_bytes", "tail", "topic",
        "topic_field", "uncounted_bytes", "visible", "written",
    )  # fmt: skip

    def __init__(self, topic: str, queue_id: int, files: LogFiles, ext: ConsumeQueueExt | None = None) -> None:
        self.topic = topic
        self.queue_id = queue_id
        self.key = (topic, queue_id)
        self.files = files
        self.topic_field, self.magic = _topic_field(topic)
        self.properties_size = -1
        self.record_middle = b""
        """The bytes between body and properties of a record whose properties have `properties_size` bytes."""
        self.record_rest_bytes = 0
        """How many bytes such a record has without its body, when its hosts are IPv4 ones."""
        self.ext = ext
        """The extension files, when the store has such."""
        self.is_delay = topic == DELAY_TOPIC
        self.is_plain = not self.is_delay and (ext is None or not ext.writes)
        """Whether entries hold the message's tags code as it is."""
        self.tail = bytearray()
        self.written = 0
        self.visible = 0
        self.next_offset = 0
        self.counted = 0
        """Up to which entry `PutCounts` has looked."""
        self.uncounted_bytes = 0
        """The sizes of the records from there on whose entries have left `tail` for the files."""
        self._min_offset = 0
        self._min_for_physical = -1

    def note_properties_size(self, size_bytes: int) -> None:
        """Have `record_middle` and `record_rest_bytes` fit properties of this size."""
        self.properties_size, self.record_middle, self.record_rest_bytes = _middle(self.topic_field, size_bytes)

    def load(self, *, unclean: bool) -> None:
        """Find the queue's end in its files; entries after an empty one, or after a missing file, do not count."""
        for orphan in self.files.load(_SIZE_KEY, unclean=unclean):
            self.files.remove_orphan(orphan)
        if self.ext is not None:
            self.ext.load(unclean=unclean)
        self.find_end()

    def find_end(self) -> None:
        """Find the queue's end in the files that are known."""
        self._set_end(self._first_without(lambda physical, size: physical >= 0 and size > 0))

    def start_at(self, offset: int) -> None:
        """Begin an empty queue at `offset`: its older messages went with the log files that held them."""
        assert not self.files.starts, self  # noqa: S101 - only recovery calls, on a queue without files
        self._set_end(offset)

    def min_offset(self, min_physical_offset: int) -> int:
        """The first entry whose record is still in the log, which begins at `min_physical_offset`; else the end."""
        if self._min_for_physical != min_physical_offset:
            self._min_offset = self._first_reaching(min_physical_offset)
            self._min_for_physical = min_physical_offset
        return self._min_offset

    def read(self, offset: int, count: int) -> bytes:
        """The visible entries from `offset` on, at most `count`; empty when `offset` is outside the queue."""
        end = min(offset + count, self.visible)
        if offset >= end or offset < 0:
            return b""
        written = self.written
        if offset >= written:
            return bytes(self.tail[(offset - written) * ENTRY_SIZE_BYTES : (end - written) * ENTRY_SIZE_BYTES])
        parts = [self._read_files(offset, min(end, written))]
        if end > written and len(parts[0]) == (written - offset) * ENTRY_SIZE_BYTES:
            parts.append(bytes(self.tail[: (end - written) * ENTRY_SIZE_BYTES]))
        return b"".join(parts)

    def entry(self, offset: int) -> tuple[int, int, int] | None:
        """(physical offset, record size, what it holds) of one visible entry; None for none and for a filler.

        It holds the tags code, on the delay topic the time of delivery, or the address of its unit in `ext`.
        """
        data = self.read(offset, 1)
        if len(data) != ENTRY_SIZE_BYTES:
            return None
        physical, size, tags_code = ENTRY.unpack(data)
        return None if size in (0, FILLER_SIZE) else (physical, size, tags_code)

    def last_record(self) -> tuple[int, int] | None:
        """(physical offset, size) of the record of the last visible entry, or None."""
        entry = self.entry(self.visible - 1)
        return None if entry is None else entry[:2]

    def write_out(self) -> int:
        """Write the visible entries that still wait in memory to their files; returns how many.

        Written on return, not synced.  On OSError those not yet written keep waiting, and the call may be repeated.
        """
        if self.ext is not None:
            self.ext.write_out()
        before = self.written
        file_size = self.files.file_size
        while self.written < self.visible:
            position = self.written * ENTRY_SIZE_BYTES
            start = position - position % file_size
            if self.files.locate(position) is None:
                self._append_file(start, position)
            size = min(start + file_size - position, (self.visible - self.written) * ENTRY_SIZE_BYTES)
            data = bytes(self.tail[:size])
            self.files.write(position, data)
            counted = max(0, self.counted - self.written)
            self.uncounted_bytes += sizes_in(data[counted * ENTRY_SIZE_BYTES :] if counted else data)
            self.written += size // ENTRY_SIZE_BYTES
            if size == len(self.tail):
                self.tail = bytearray()
            else:
                del self.tail[:size]
        return self.written - before

    def cut(self, end_physical_offset: int) -> bool:
        """Drop every entry whose record begins at `end_physical_offset` or later, on disk too; True if a file changed.

        So goes a last entry that does not rise over the one before it: a crash tore it while it was written or zeroed.
        What is not yet in files must have been dropped before (recovery).  Written on return, not synced.
        """
        end = self._first_without(lambda physical, size: physical >= 0 and size > 0 and physical < end_physical_offset)
        newest, second = self.entry(end - 1), self.entry(end - 2)
        if newest is not None and second is not None and newest[0] <= second[0]:
            end -= 1
        position = end * ENTRY_SIZE_BYTES
        last = self.files.locate(position)
        before = len(self.files.starts)
        self.files.remove_from(position if last is None else last + self.files.file_size)
        changed = len(self.files.starts) != before
        if last is not None:
            changed = self.files.zero_from(position) or changed
        self._set_end(end)
        if self.ext is not None:
            self.ext.cut(all_units=self.entry(end - 1) is None)
        return changed

    def remove_expired(self, min_physical_offset: int, *, units: bool = False) -> str | None:
        """Remove the oldest file when each of its entries is of a record before `min_physical_offset`.

        With `units` the oldest extension file, when no entry from there on needs it.  Returns its path, or None when
        it stays.  The last file stays whatever it holds: it tells the queue's next offset.  Not synced on return.
        """
        if units and self.ext is not None:
            first = self.entry(self.min_offset(min_physical_offset))
            return None if first is None else self.ext.remove_expired(first[2])
        files = self.files
        if len(files.starts) < 2:
            return None
        data = files.read(files.starts[1] - ENTRY_SIZE_BYTES, ENTRY_SIZE_BYTES)
        if len(data) == ENTRY_SIZE_BYTES and ENTRY.unpack(data)[0] >= min_physical_offset:
            return None
        path = files.path(files.starts[0])
        if files.disk.exists(path):
            files.disk.unlink(path)
        return files.forget_first()

    def run(self, *, units: bool) -> LogFiles:
        """The queue's files, or its extension files where it has such."""
        return self.ext.files if units and self.ext is not None else self.files

    def file_runs(self) -> list[LogFiles]:
        """All that is the queue's on disk."""
        return [self.files] if self.ext is None else [self.files, self.ext.files]

    def remove_files(self) -> None:
        """Remove all files and forget all entries: the queue is as if never written."""
        self.files.remove_from(-1)
        if self.ext is not None:
            self.ext.remove_files()
        self._set_end(0)

    def holds_before(self, physical_offset: int) -> bool:
        """Whether any file begins with the entry of a record that stands before `physical_offset`."""
        for start in self.files.starts:
            first = self._first_entry(start)
            if first is not None and first < physical_offset:
                return True
        return False

    def _first_entry(self, start: int) -> int | None:
        """The physical offset in the first entry of a file that is neither empty nor a filler."""
        for position in range(start, start + self.files.file_size, _ENTRIES_A_READ * ENTRY_SIZE_BYTES):
            data = self.files.read(position, _ENTRIES_A_READ * ENTRY_SIZE_BYTES)
            for physical, size, _ in ENTRY.iter_unpack(data[: len(data) - len(data) % ENTRY_SIZE_BYTES]):
                if size not in (0, FILLER_SIZE):
                    return int(physical)
        return None

    def _set_end(self, end: int) -> None:
        self.tail = bytearray()
        self.written = self.visible = self.next_offset = self.counted = end
        self.uncounted_bytes = 0
        self._min_for_physical = -1
        if self.ext is not None:
            last, before = self.entry(end - 1), self.entry(end - 2)
            code = None if last is None else last[2]
            if code is not None and before is not None and is_address(code) and is_address(before[2]):
                code = max(code, before[2])  # a crash tore the last entry in its address where that does not rise
            self.ext.settle(code)

    def _append_file(self, start: int, first_position: int) -> None:
        if self.files.starts and start != self.files.end:
            raise StoreError(f"{self.files.path(start)} would not follow the queue's last file")
        self.files.append_file(start)
        if first_position > start:
            filler = _FILLER * ((first_position - start) // ENTRY_SIZE_BYTES)
            self.files.write(start, filler)

    def _read_files(self, offset: int, end: int) -> bytes:
        position, end_position = offset * ENTRY_SIZE_BYTES, end * ENTRY_SIZE_BYTES
        parts = []
        while position < end_position:
            start = self.files.locate(position)
            if start is None:
                break
            data = self.files.read(position, min(end_position, start + self.files.file_size) - position)
            if not data:
                break
            parts.append(data)
            position += len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _first_without(self, holds: _Predicate) -> int:
        """The first entry in the files for which `holds` is false, given that it is true for all before it.

        `holds` is false for an empty entry; parts of a file that were never written are not read.
        """
        low = self.files.start // ENTRY_SIZE_BYTES
        high = -(-self.files.data_end() // ENTRY_SIZE_BYTES)
        while high - low > _ENTRIES_A_PAGE:
            middle = (low + high) // 2
            data = self.files.read(middle * ENTRY_SIZE_BYTES, ENTRY_SIZE_BYTES)
            physical, size, _ = ENTRY.unpack(data) if len(data) == ENTRY_SIZE_BYTES else (-1, 0, 0)
            if holds(physical, size):
                low = middle + 1
            else:
                high = middle
        data = self._read_files(low, high)
        for physical, size, _ in ENTRY.iter_unpack(data[: len(data) - len(data) % ENTRY_SIZE_BYTES]):
            if not holds(physical, size):
                break
            low += 1
        return low

    def _first_reaching(self, min_physical_offset: int) -> int:
        low = self.files.start // ENTRY_SIZE_BYTES if self.files.starts else self.written
        high = self.visible
        while low < high:
            middle = (low + high) // 2
            data = self.read(middle, 1)
            physical, size, _ = ENTRY.unpack(data) if len(data) == ENTRY_SIZE_BYTES else (-1, FILLER_SIZE, 0)
            if size != FILLER_SIZE and physical >= min_physical_offset:
                high = middle
            else:
                low = middle + 1
        return low


@lru_cache(1024)
def _topic_field(topic: str) -> tuple[bytes, int]:
    """`encode_topic`, one and the same value for the queues of a topic: sends to many of them find it in the cache."""
    return encode_topic(topic)


@lru_cache(4096)
def _middle(topic_field: bytes, properties_size: int) -> tuple[int, bytes, int]:
    """What `note_properties_size` notes; the same goes for these values."""
    middle = topic_field + properties_size.to_bytes(2, "big")
    return properties_size, middle, RECORD_SIZE_MIN_BYTES - 3 + len(middle) + properties_size


def sizes_in(entries: bytes) -> int:
    """The bytes of all records of these whole entries."""
    total = 0  # the four bytes of all sizes, each summed by itself: a tenth of the time that unpacking them takes
    for at in range(_SIZE_AT, _SIZE_AT + 4):
        total = (total << 8) + sum(entries[at::ENTRY_SIZE_BYTES])
    return total
