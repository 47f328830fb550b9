"""Reading: pulls, look-ups by offset and by time.

A pull unpacks the queue's entries, picks those that match, and reads their records with as few calls as it can: records
that stand close together in the log come with one read, then all are joined once.  The page cache is the cache, so a
pull from the middle of a backlog costs what one from its end costs; what is not in it goes to a thread first.  Only the
two stretches read last are kept, at most 2 MiB.
Source of the statuses and of the next offset: RocketMQ DefaultMessageStore.getMessage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from operator import add, sub
from struct import Struct

from trio_rmq.errors import ProtocolError
from trio_rmq.store.commit_log import CommitLog
from trio_rmq.store.consume_queue import ENTRY, ENTRY_SIZE_BYTES, FILLER_SIZE, ConsumeQueue
from trio_rmq.store.consume_queue_ext import TAKEN, AcceptEntry
from trio_rmq.store.consume_queues import ConsumeQueues
from trio_rmq.store.messages import GetResult, GetStatus
from trio_rmq.store.page_cache import RECENT_BYTES, RECENT_ENTRIES, PageCache
from trio_rmq.store.served import undamaged
from trio_rmq.wire.record import (
    PHYSICAL_OFFSET_AT,
    RECORD_SIZE_MIN_BYTES,
    CheckedRecord,
    RecordKind,
    StoredMessage,
    decode_record,
)
from trio_rmq.wire.sysflag import BORN_HOST_V6

_ENTRIES_A_PULL = 800
"""Most entries one pull looks at (RocketMQ: 16,000 bytes of them)."""

_GAP_BYTES_MAX = 16 * 1024
"""Records closer than this are read together: copying that much costs about as much as another call."""

_SPAN_BYTES_MAX = 1024 * 1024

_AHEAD_BYTES = 16 * 1024
"""Read behind a stretch of the log: where the records of the next queue's pull end."""


@lru_cache(64)
def _entries_layout(count: int) -> Struct:
    """Unpacks so many queue entries to physical offset and size of each, the tags codes left out."""
    return Struct(">" + "qi8x" * count)


class Reader:
    """The reading half of a store; `end` says up to which physical offset records are visible."""

    def __init__(
        self,
        log: CommitLog,
        queues: ConsumeQueues,
        *,
        count_max: int,
        bytes_max: int,
        end: Callable[[], int],
        cache: PageCache,
        check_crc: bool = False,
    ) -> None:
        self._check_crc = check_crc
        self._cache = cache
        self._log = log
        self._queues = queues
        self._count_max = count_max
        self._bytes_max = bytes_max
        self._end = end
        self._stretches: tuple[tuple[int, bytes], tuple[int, bytes]] = ((0, b""), (0, b""))
        """The two read last between the records of several queues, and where each begins in the log."""
        self.messages = 0
        self.bytes = 0
        self.found = 0
        self.missed = 0

    def get_messages(
        self,
        topic: str,
        queue_id: int,
        offset: int,
        *,
        max_count: int,
        max_bytes: int | None = None,
        tags_codes: frozenset[int] | None = None,
        accept: Callable[[bytes], bool] | None = None,
        accept_entry: AcceptEntry | None = None,
        wait: bool = True,
    ) -> GetResult:
        """See `MessageStore.get_messages`."""
        queue = self._queues.table.get((topic, queue_id))
        if queue is None:
            self.missed += 1
            return GetResult(GetStatus.NO_MATCHED_LOGIC_QUEUE, 0, 0, 0)
        end = queue.visible
        begin = queue.min_offset(self._log.min_offset)
        if begin <= offset < end:
            cache = None if wait else self._cache
            result = self._get(queue, offset, begin, end, max_count, max_bytes, tags_codes, accept, accept_entry, cache)
        elif end == 0:
            result = GetResult(GetStatus.NO_MESSAGE_IN_QUEUE, 0, begin, end)
        elif offset < begin:
            result = GetResult(GetStatus.OFFSET_TOO_SMALL, begin, begin, end)
        elif offset == end:
            result = GetResult(GetStatus.OFFSET_OVERFLOW_ONE, offset, begin, end)
        else:
            result = GetResult(GetStatus.OFFSET_OVERFLOW_BADLY, end, begin, end)
        if self._check_crc and result.count:
            result = undamaged(result, queue, offset)
        if result.count:
            self.found += 1
            self.messages += result.count
            self.bytes += len(result.body)
        else:
            self.missed += 1
        return result

    def _get(
        self,
        queue: ConsumeQueue,
        offset: int,
        begin: int,
        end: int,
        max_count: int,
        max_bytes: int | None,
        tags_codes: frozenset[int] | None,
        accept: Callable[[bytes], bool] | None,
        accept_entry: AcceptEntry | None,
        cache: PageCache | None,
    ) -> GetResult:
        count_max = max(1, min(max_count, self._count_max))
        bytes_max = self._bytes_max if max_bytes is None else min(max_bytes, self._bytes_max)
        filtered = tags_codes is not None or accept is not None
        entries_max = max(_ENTRIES_A_PULL, max_count) if filtered else count_max
        if cache is not None and offset < queue.written - RECENT_ENTRIES:
            cache.require_span(queue.files, offset * ENTRY_SIZE_BYTES, entries_max * ENTRY_SIZE_BYTES)
        data = queue.read(offset, entries_max)
        if len(data) < ENTRY_SIZE_BYTES:
            next_offset = self._next_file(queue, offset)
            return GetResult(GetStatus.OFFSET_FOUND_NULL, next_offset, begin, end)
        if len(data) % ENTRY_SIZE_BYTES:
            data = data[: -(len(data) % ENTRY_SIZE_BYTES)]
        if not filtered:
            taken = self._all_of(data, bytes_max, cache)
            if taken is not None:
                body, count = taken
                return GetResult(GetStatus.FOUND, offset + count, begin, end, body, count)
        entries: Iterable[tuple[int, int, int]] = ENTRY.iter_unpack(data)
        if filtered and queue.ext is not None:
            entries = queue.ext.select(data, tags_codes, accept_entry)
            tags_codes = TAKEN
        status = GetStatus.NO_MATCHED_MESSAGE
        file_size = self._log.files.file_size
        picked: list[tuple[int, int]] = []
        records: list[bytes] = []
        total = seen = 0
        skip_below = -1
        for physical, size, code in entries:
            if picked and (len(picked) >= count_max or total + size > bytes_max):
                break
            seen += 1
            if physical < skip_below or size == FILLER_SIZE:
                continue
            if tags_codes is not None and code not in tags_codes:
                continue
            if physical < self._log.min_offset:
                if not picked:
                    status = GetStatus.MESSAGE_WAS_REMOVING
                skip_below = physical - physical % file_size + file_size
                continue
            if accept is not None:
                if cache is not None and physical < self._log.position - RECENT_BYTES:
                    cache.require_span(self._log.files, physical, size)
                record = self._log.read(physical, size)
                if len(record) != size or not accept(record):
                    continue
                records.append(record)
            picked.append((physical, size))
            total += size
        next_offset = offset + seen
        if not picked:
            return GetResult(status, next_offset, begin, end)
        if cache is not None and accept is None and picked[0][0] < self._log.position - RECENT_BYTES:
            first, (last, last_size) = picked[0][0], picked[-1]
            span = last + last_size - first
            if 0 < span <= _SPAN_BYTES_MAX and first // file_size == last // file_size:
                cache.require_span(self._log.files, first, span)
            else:
                cache.require(self._log.files, picked)
        body = b"".join(records) if accept is not None else self._read_records(picked, total)
        if len(body) != total:  # a log file is missing or cut short under our feet
            return self._get_around(offset, data, picked, begin, end)
        return GetResult(GetStatus.FOUND, next_offset, begin, end, body, len(picked))

    def _all_of(self, data: bytes, bytes_max: int, cache: PageCache | None) -> tuple[bytes, int] | None:
        """The records of all these entries, joined, and their count, when one read of the log brings them.

        None for everything out of the ordinary: too many bytes, fillers, records that stand far apart, overlap, go over
        a file's end or are gone.  Half of what it costs to look at each entry by itself.
        """
        count = len(data) // ENTRY_SIZE_BYTES
        numbers = _entries_layout(count).unpack(data)
        places, sizes = numbers[::2], numbers[1::2]
        total, first = sum(sizes), places[0]
        span = places[-1] + sizes[-1] - first
        log, file_size = self._log, self._log.files.file_size
        if (
            not 0 < total <= min(span, bytes_max)
            or span > _SPAN_BYTES_MAX
            or first < log.min_offset
            or first // file_size != (first + span - 1) // file_size
        ):
            return None
        if span != total:
            gaps = [*map(sub, places[1:], map(add, places, sizes))]
            if min(gaps) < 0 or max(gaps) > _GAP_BYTES_MAX or min(sizes) <= 0:
                return None
        if span == total:
            if cache is not None and first < log.position - RECENT_BYTES:
                cache.require_span(log.files, first, span)
            block = log.read(first, span)
            return (block, count) if len(block) == span else None
        begin, block = self._stretch(first, span, cache)
        if len(block) < first - begin + span:
            return None
        view = memoryview(block)
        return b"".join(
            [view[place - begin : place - begin + size] for place, size in zip(places, sizes, strict=True)]
        ), count

    def _stretch(self, first: int, span: int, cache: PageCache | None) -> tuple[int, bytes]:
        """A stretch of the log, and where it begins, that holds the `span` bytes from `first` unless they are gone.

        A group drains the queues of a topic abreast, and their records stand between one another's: so what was read
        for one is looked into for the next ones.  What is visible changes no more; what is no longer in the log nobody
        asks for here.
        """
        for kept in self._stretches:
            if kept[0] <= first and first + span <= kept[0] + len(kept[1]):
                return kept
        log, file_size = self._log, self._log.files.file_size
        size = max(span, min(span + _AHEAD_BYTES, self._end() - first, file_size - first % file_size))
        if cache is not None and first < log.position - RECENT_BYTES:
            cache.require_span(log.files, first, size)
        read = first, log.read(first, size)
        if not self._check_crc:  # else what was found damaged is read anew each time
            self._stretches = read, self._stretches[0]
        return read

    def _get_around(self, offset: int, data: bytes, picked: list[tuple[int, int]], begin: int, end: int) -> GetResult:
        """The picked records before the first that cannot be read; or, when that is the first, on to the next file."""
        records: list[bytes] = []
        for physical, size in picked:
            record = self._log.read(physical, size)
            if len(record) != size:
                break
            records.append(record)
        places = [entry[0] for entry in ENTRY.iter_unpack(data)]
        if records:
            after = places.index(picked[len(records) - 1][0]) + 1
            return GetResult(GetStatus.FOUND, offset + after, begin, end, b"".join(records), len(records))
        physical = picked[0][0]
        at = places.index(physical)
        file_size = self._log.files.file_size
        file_end = physical - physical % file_size + file_size
        after = next((index for index in range(at, len(places)) if places[index] >= file_end), len(places))
        return GetResult(GetStatus.MESSAGE_WAS_REMOVING, offset + after, begin, end)

    def _read_records(self, picked: list[tuple[int, int]], total: int) -> bytes:
        """The records at `picked`, joined.  Neighbours with small gaps between them come with one read."""
        first = picked[0][0]
        last, last_size = picked[-1]
        file_size = self._log.files.file_size
        if last + last_size - first == total and first // file_size == last // file_size:
            return self._log.read(first, total)
        parts: list[bytes | memoryview] = []
        index, count = 0, len(picked)
        while index < count:
            start, size = picked[index]
            end = start + size
            file_end = start - start % file_size + file_size
            stop = index + 1
            while stop < count:
                physical, size = picked[stop]
                if (
                    physical < end
                    or physical - end > _GAP_BYTES_MAX
                    or physical >= file_end
                    or physical + size - start > _SPAN_BYTES_MAX
                ):
                    break
                end = physical + size
                stop += 1
            block = self._log.read(start, end - start)
            if stop == index + 1:
                parts.append(block)
            else:
                view = memoryview(block)
                parts.extend(view[physical - start : physical - start + size] for physical, size in picked[index:stop])
            index = stop
        return b"".join(parts)

    def _next_file(self, queue: ConsumeQueue, offset: int) -> int:
        entries = queue.files.file_size // ENTRY_SIZE_BYTES
        return min(offset - offset % entries + entries, queue.visible)

    def has_queue(self, topic: str, queue_id: int) -> bool:
        """Whether the queue ever got a message."""
        return (topic, queue_id) in self._queues.table

    def queue_entries(
        self, topic: str, queue_id: int, offset: int, count_max: int
    ) -> list[tuple[int, int, int]] | None:
        """(physical offset, size, tags code) of up to `count_max` visible entries from `offset` on.

        Fewer where a file of the queue ends, fillers left out; None for no such queue or nothing at `offset`.
        """
        queue = self._queues.table.get((topic, queue_id))
        if queue is None or not queue.min_offset(self._log.min_offset) <= offset < queue.visible:
            return None
        data = queue.read(offset, min(count_max, queue.visible - offset))
        whole = len(data) - len(data) % ENTRY_SIZE_BYTES
        return _with_tags_codes(queue, [entry for entry in ENTRY.iter_unpack(data[:whole]) if entry[1] != FILLER_SIZE])

    def entries(self, topic: str, queue_id: int, offset: int, max_count: int) -> list[tuple[int, int, int]]:
        """(physical offset, record size, tags code) of visible entries from `offset` on; a filler has FILLER_SIZE."""
        queue = self._queues.table.get((topic, queue_id))
        data = b"" if queue is None else queue.read(offset, max_count)
        entries = list(ENTRY.iter_unpack(data[: len(data) - len(data) % ENTRY_SIZE_BYTES]))
        return entries if queue is None else _with_tags_codes(queue, entries)

    def records(self, places: list[tuple[int, int]]) -> list[StoredMessage | None]:
        """The records at these (physical offset, size), in order; None for one that is gone or damaged."""
        total = sum([size for _, size in places])
        whole = places and all(0 < size < FILLER_SIZE for _, size in places)
        body = self._read_records(places, total) if whole else b""
        if len(body) != total or not whole:
            return [self._record(physical, size) for physical, size in places]
        messages: list[StoredMessage | None] = []
        position = 0
        for physical, size in places:
            try:
                message = decode_record(body, position)
                messages.append(message if message.physical_offset == physical else None)
            except ProtocolError:
                messages.append(None)
            position += size
        return messages

    def _record(self, physical: int, size: int) -> StoredMessage | None:
        if not 0 < size < FILLER_SIZE:
            return None
        try:
            message = decode_record(self._log.read(physical, size))
        except ProtocolError:
            return None
        return message if message.physical_offset == physical else None

    def message_at(self, physical_offset: int) -> StoredMessage | None:
        """The visible record that begins at `physical_offset`; None when none does."""
        data = self.record_at(physical_offset)
        return None if data is None else decode_record(data)

    def records_from(self, begin: int) -> Iterator[CheckedRecord]:
        """Each record from the one at `begin` to the log's end, bodies unchecked."""
        for _, record in self._log.scan(max(begin, self._log.min_offset), check_body_crc=False):
            if record.kind is RecordKind.RECORD:
                yield record

    def record_at(self, physical_offset: int) -> bytes | None:
        """See `MessageStore.record_at`."""
        if not self._log.min_offset <= physical_offset <= self._end() - RECORD_SIZE_MIN_BYTES:
            return None
        record = self._log.check_at(physical_offset)
        if record.kind is not RecordKind.RECORD or physical_offset + record.size_bytes > self._end():
            return None
        return self._log.read(physical_offset, record.size_bytes)

    def store_time_of(self, physical_offset: int) -> int:
        """The store time, in ms, of the record that begins at `physical_offset`; -1 when none can be read there."""
        head = self._log.read(physical_offset, RECORD_SIZE_MIN_BYTES)
        if len(head) < RECORD_SIZE_MIN_BYTES:
            return -1
        if int.from_bytes(head[PHYSICAL_OFFSET_AT : PHYSICAL_OFFSET_AT + 8], "big") != physical_offset:
            return -1
        at = 68 if head[39] & BORN_HOST_V6 else 56
        return int.from_bytes(head[at : at + 8], "big", signed=True)

    def store_time_at(self, topic: str, queue_id: int, offset: int) -> int:
        """See `MessageStore.store_time_at`."""
        queue = self._queues.table.get((topic, queue_id))
        entry = None if queue is None else queue.entry(offset)
        return -1 if entry is None else self.store_time_of(entry[0])

    def offset_by_time(self, topic: str, queue_id: int, timestamp_ms: int) -> int:
        """See `MessageStore.offset_by_time`."""
        queue = self._queues.table.get((topic, queue_id))
        if queue is None:
            return 0
        low, high = queue.min_offset(self._log.min_offset), queue.visible
        while low < high:
            middle = (low + high) // 2
            if self.store_time_at(topic, queue_id, middle) < timestamp_ms:
                low = middle + 1
            else:
                high = middle
        return low


def _with_tags_codes(queue: ConsumeQueue, entries: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Entries with the tags codes that their units hold, where they have such."""
    ext = queue.ext
    return entries if ext is None else [(physical, size, ext.tags_code(code)) for physical, size, code in entries]
