"""Reading a whole commit log, past whatever is damaged in it, and saying what that is.

Every record is decoded with its body's checksum; where nothing valid stands, the next place is looked for at which a
record says that it stands there.  What lies between is one damaged range.  Beyond RocketMQ's own checks (size, magic,
checksum, parts) each record is compared with its neighbours and with what no broker ever writes.

Invariants: the records come in the order of the log, each once; every byte of the files is a record's, a filler's,
inside a range that a finding names, or zero.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator

from trio_rmq.errors import ProtocolError
from trio_rmq.store.consume_queue import DELAY_TOPIC
from trio_rmq.store.dispatch import TIMER_TOPIC
from trio_rmq.store.offline.findings import Findings
from trio_rmq.store.offline.folder import Progress, StoreFolder
from trio_rmq.store.recovery import TORN
from trio_rmq.wire.ids import Host, host_text
from trio_rmq.wire.record import (
    BLANK_SIZE_BYTES,
    MAGIC_BLANK,
    RECORD_SIZE_MIN_BYTES,
    StoredMessage,
    decode_record,
    peek_record,
)
from trio_rmq.wire.sysflag import (
    COMPRESSED,
    COMPRESSION_MASK,
    TRANSACTION_COMMIT,
    is_consumable,
    transaction_type,
)

_BLOCK_BYTES = 4 * 1024 * 1024
_SEARCH_BLOCK_BYTES = 1024 * 1024
_MAGICS = tuple(bytes.fromhex(text) for text in ("DAA320A7", "DAA320AB", "CBD43194"))
_MAGIC_AT = 4
_PORT_MAX = 65_535
_HALF_TOPIC = "RMQ_SYS_TRANS_HALF_TOPIC"
_LATER_TOPICS = frozenset({DELAY_TOPIC, TIMER_TOPIC})
"""Of records whose copies, stored when their time has come, name them."""
_PUT_AWAY_TOPICS = frozenset({_HALF_TOPIC, "TRANS_CHECK_MAX_TIME_TOPIC"})
"""Of halves that are asked about again, or were in vain: these may name their old place without ending it."""
TEN_YEARS_MS = 10 * 365 * 24 * 3_600_000
KNOWN_SYS_FLAGS = 0x7FF
"""The bits of sysFlag that 4.9 or 5.x give a meaning."""

_RECORDS_A_REPORT = 2000
_NAMELESS = re.compile(b"(?:^|\x02)[^\x01\x02]+(?:\x02|$)")
"""A part of the properties between their ends (byte 2) without a name before byte 1."""


class LogCheck:
    """One reading of the log in `folder`; what it finds goes to `findings`."""

    def __init__(self, folder: StoreFolder, findings: Findings, progress: Progress | None = None) -> None:
        self._folder = folder
        self._files = folder.log_files
        self._findings = findings
        self._progress = progress
        self._block = b""
        self._block_at = 0
        self._last_time_ms = 0
        self._last_at = -1
        self._hosts: list[tuple[Host, int]] = []
        self._ended = False
        self._range_starts: list[int] = []
        self._range_ends: list[int] = []
        self.records = 0
        self.fillers = 0
        self.bytes = 0
        """Bytes of records."""
        self.first_time_ms = -1
        self.end = folder.min_offset
        """Where the log ends: after its last record, at the start of the next file after a filler."""
        self.settled_end = 0
        """Everything before this physical offset was synced with its entries before the broker stopped."""
        self.damaged_bytes = 0

    def is_damaged(self, physical_offset: int) -> bool:
        """Whether the offset is inside a damaged range, or in a file that is missing."""
        index = bisect_right(self._range_starts, physical_offset) - 1
        if index >= 0 and physical_offset < self._range_ends[index]:
            return True
        return self._files.start <= physical_offset < self._files.end and self._files.locate(physical_offset) is None

    def scan(self, begin: int = 0) -> Iterator[tuple[int, StoredMessage]]:
        """(physical offset, record) of all from `begin` on that are whole and in their place.

        `begin` is where a record stands, or before the log.
        """
        starts = self._files.starts
        size = self._files.file_size
        for number, start in enumerate(starts):
            if self._ended:
                break
            if start + size <= begin:
                continue
            for offset, record in self._scan_file(max(start, begin), start + size, starts[number + 1 :]):
                self._note(offset, record)
                yield offset, record
                if self._progress is not None and self.records % _RECORDS_A_REPORT == 0:
                    self._progress("log", offset - starts[0], self._files.end - starts[0])
        self._judge_hosts()
        if self._progress is not None and starts:
            self._progress("log", self._files.end - starts[0], self._files.end - starts[0])

    def place_from(self, begin: int) -> int | None:
        """Where, from `begin` on, the next record stands that is whole and in its place; None when none does."""
        for start in self._files.starts:
            end = start + self._files.file_size
            if begin < end:
                place = self._next_valid(max(begin, start), end)
                if place is not None and isinstance(self._at(place, end), StoredMessage):
                    return place
        return None

    # One file ----------------------------------------------------------------------------------------------------

    def _scan_file(self, start: int, end: int, later: list[int]) -> Iterator[tuple[int, StoredMessage]]:
        offset = start
        while offset < end:
            found = self._at(offset, end)
            if isinstance(found, StoredMessage):
                yield offset, found
                offset += found.size_bytes
                continue
            if isinstance(found, int):  # a filler
                self.fillers += 1
                self.end = end
                self._must_be_zero(offset + BLANK_SIZE_BYTES, end, "after the filler that ends the file")
                return
            used = self._files.first_other_than_zero(offset, end)
            if used is None:
                if any(self._files.first_other_than_zero(next_start, next_start + end - start) for next_start in later):
                    self._damage(offset, end, "the file ends without a filler, but later files hold records")
                return
            next_at = self._next_valid(offset + 1, end)
            if self._is_tail(next_at, end, later):
                self._cut(offset, found)
                return
            if next_at is None:
                last = self._files.last_other_than_zero(offset, end)
                zeros = found.startswith("zeros")
                self._damage(
                    offset,
                    end if last is None or self._first_record(None, end, later) else last + 1,
                    "bytes after the log's end are not zero" if zeros else found,
                )
                return
            self._damage(offset, next_at, found)
            offset = next_at

    def _at(self, offset: int, end: int) -> StoredMessage | int | str:
        """The record at `offset`; the size that a filler says; or why there is neither."""
        block, at = self._bytes_at(offset, RECORD_SIZE_MIN_BYTES, end)
        if len(block) - at < BLANK_SIZE_BYTES:
            return "fewer than eight bytes are left in the file"
        size, magic = peek_record(block, at)
        if magic == MAGIC_BLANK:
            left = end - offset
            return size if size == left else f"a filler says that {size} bytes are left in the file, {left} are"
        if not RECORD_SIZE_MIN_BYTES <= size <= end - offset:
            return f"{size} is no size of a record here" if size or magic else "zeros stand where a record should"
        block, at = self._bytes_at(offset, size, end)
        try:
            record = decode_record(block, at, check_crc=True)
        except ProtocolError as error:
            return str(error)
        if record.physical_offset != offset:
            return f"the record says it stands at {record.physical_offset}"
        if record.store_timestamp_ms <= 0:
            return "the record has no store time"
        if not record.body and record.body_crc:
            return "the body's checksum is wrong"
        if 0 in record.properties or "\0" in record.topic:  # no broker of ours writes that
            folder = self._folder
            if not folder.clean and record.store_timestamp_ms >= folder.checkpoint.log_time_ms:
                return TORN
        return record

    def _bytes_at(self, offset: int, size: int, end: int) -> tuple[bytes, int]:
        """(block, position in it) with `size` bytes from `offset`, fewer only at the file's end."""
        at = offset - self._block_at
        if at < 0 or at + min(size, end - offset) > len(self._block):
            self._block_at, at = offset, 0
            self._block = self._files.read(offset, min(max(size, _BLOCK_BYTES), end - offset))
        return self._block, at

    def _next_valid(self, begin: int, end: int) -> int | None:
        """Where, from `begin` on, the next record or filler stands that is in its place."""
        files = self._files
        start = begin - begin % files.file_size
        for extent_start, extent_end in files.disk.data_extents(files.handle(start), begin - start, end - start):
            for position in range(extent_start, extent_end, _SEARCH_BLOCK_BYTES):
                block = files.read(start + position, min(_SEARCH_BLOCK_BYTES, end - start - position) + _MAGIC_AT)
                places = [start + position + at - _MAGIC_AT for magic in _MAGICS for at in _all_places(block, magic)]
                for place in sorted(places):
                    if begin <= place < end and not isinstance(self._at(place, end), str):
                        return place
        return None

    # Judging -----------------------------------------------------------------------------------------------------

    def _first_record(self, next_at: int | None, end: int, later: list[int]) -> StoredMessage | None:
        """The next record: at `next_at` in this file, else the first of the `later` files'."""
        found = None if next_at is None else self._at(next_at, end)
        if isinstance(found, StoredMessage):
            return found
        for start in later:
            file_end = start + self._files.file_size
            place = self._next_valid(start, file_end)
            found = None if place is None else self._at(place, file_end)
            if isinstance(found, StoredMessage):
                return found
        return None

    def _is_tail(self, next_at: int | None, end: int, later: list[int]) -> bool:
        """Whether a crash tore the log here, so that nothing synced comes after: as recovery judges it."""
        if self._folder.clean:
            return False
        record = self._first_record(next_at, end, later)
        return record is None or record.store_timestamp_ms >= self._folder.checkpoint.log_time_ms

    def _cut(self, offset: int, reason: str) -> None:
        """The next start makes `offset` the log's end."""
        size = self._files.file_size
        start = offset - offset % size
        last = self._files.last_other_than_zero(offset, start + size)
        stop = start + size if last is None else last + 1
        what = f"{reason}: a torn tail, which the next start cuts off"
        self._add("tail", offset, what, damage=False, size_bytes=stop - offset)
        self._add_range(offset, self._files.end)
        self._ended = True

    def _damage(self, offset: int, end: int, reason: str) -> None:
        self._add("record", offset, reason, size_bytes=end - offset)
        self._add_range(offset, end)
        self.damaged_bytes += end - offset

    def _add_range(self, offset: int, end: int) -> None:
        self._range_starts.append(offset)
        self._range_ends.append(end)

    def _add(self, kind: str, offset: int, what: str, *, damage: bool = True, size_bytes: int = 0) -> None:
        size = self._files.file_size
        self._findings.add(
            kind, self._files.path(offset - offset % size), offset % size, what,
            damage=damage, size_bytes=size_bytes, physical_offset=offset,
        )  # fmt: skip

    def _must_be_zero(self, begin: int, end: int, where: str) -> None:
        used = self._files.first_other_than_zero(begin, end)
        if used is not None:
            last = self._files.last_other_than_zero(used, end)
            size = (used if last is None else last) - used + 1
            self._add("unused", used, f"bytes {where} are not zero; nobody reads them", damage=False, size_bytes=size)

    def _note(self, offset: int, record: StoredMessage) -> None:
        """What one record, whole by itself, says that cannot be."""
        self.records += 1
        self.bytes += record.size_bytes
        self.end = offset + record.size_bytes
        time_ms = record.store_timestamp_ms
        if self.first_time_ms < 0:
            self.first_time_ms = time_ms
        if self._folder.clean or time_ms <= self._folder.checkpoint.recovery_time_ms():
            self.settled_end = self.end
        if time_ms < self._last_time_ms:
            what = f"store time {time_ms} is before {self._last_time_ms}, that of the record at {self._last_at}"
            self._add("store-time", offset, what, size_bytes=record.size_bytes)
        self._last_time_ms, self._last_at = time_ms, offset
        for what in _impossible(record, self._is_waiting):
            self._add("field", offset, what, size_bytes=record.size_bytes)
        for what in _unlikely(record):
            self._add("field", offset, what, damage=False, size_bytes=record.size_bytes)
        self._hosts.append((record.store_host, offset))
        if len(self._hosts) > 3:
            del self._hosts[0]
        if len(self._hosts) == 3:
            self._compare_hosts(1)
            if self.records == 3:
                self._compare_hosts(0)

    @property
    def last_time_ms(self) -> int:
        """Store time of the last record, in ms; 0 without records."""
        return self._last_time_ms

    def _is_waiting(self, physical_offset: int, record: StoredMessage) -> bool:
        """Whether what `record` may name stands there, or did before its file was deleted.

        That is a half message, for one that ends it or is it put elsewhere, or one that waited for its time.
        """
        if not 0 <= physical_offset < record.physical_offset:
            return False
        if physical_offset < self._files.start:
            return True
        start = self._files.locate(physical_offset)
        if start is None:
            return False
        head = self._files.read(physical_offset, 4)
        size = int.from_bytes(head, "big")
        if not RECORD_SIZE_MIN_BYTES <= size <= start + self._files.file_size - physical_offset:
            return self.is_damaged(physical_offset)
        try:
            waiting = decode_record(self._files.read(physical_offset, size))
        except ProtocolError:
            return self.is_damaged(physical_offset)
        if waiting.physical_offset != physical_offset:
            return False
        ends = transaction_type(record.sys_flag) == TRANSACTION_COMMIT or record.topic in _PUT_AWAY_TOPICS
        return waiting.topic in _LATER_TOPICS or (ends and waiting.topic == _HALF_TOPIC)

    def _judge_hosts(self) -> None:
        if len(self._hosts) == 3:
            self._compare_hosts(2)

    def _compare_hosts(self, odd: int) -> None:
        """Note the one of three neighbouring records that alone has another store host."""
        if self._hosts[0][0] == self._hosts[1][0] == self._hosts[2][0]:
            return
        (host, offset), *others = self._hosts[odd], *(self._hosts[n] for n in range(3) if n != odd)
        if others[0][0] == others[1][0] != host:
            what = f"its store host {host_text(host)} is not that of its neighbours, {host_text(others[0][0])}"
            self._add("store-host", offset, what, damage=False)


def _all_places(block: bytes, magic: bytes) -> Iterator[int]:
    at = block.find(magic)
    while at >= 0:
        yield at
        at = block.find(magic, at + 1)


def _impossible(record: StoredMessage, is_waiting: Callable[[int, StoredMessage], bool]) -> Iterator[str]:
    """What no broker writes: one sentence each."""
    for name, (address, port) in (("born", record.born_host), ("store", record.store_host)):
        if not 0 <= port <= _PORT_MAX:
            yield f"{name} host {address.hex()} has port {port}"
    if record.queue_id < 0:
        yield f"queue id {record.queue_id} is negative"
    if record.reconsume_times < 0:
        yield f"it says it was consumed again {record.reconsume_times} times"
    if not is_consumable(record.sys_flag) and record.queue_offset:
        yield f"its sysFlag {record.sys_flag:#x} says that it stands in no queue, but it has queue offset there"
    waiting_at = record.prepared_transaction_offset
    if transaction_type(record.sys_flag) == TRANSACTION_COMMIT:
        if not is_waiting(waiting_at, record):
            yield f"it is a committed message, but no half or delayed message stands at {waiting_at}"
    elif waiting_at and not is_waiting(waiting_at, record):
        yield f"it names a half or delayed message at {waiting_at}, where none stands that it may name"
    properties = record.properties
    if properties:
        try:
            properties.decode()
        except UnicodeDecodeError:
            yield "its properties are no UTF-8"
        if _NAMELESS.search(properties) is not None:
            yield "its properties have a part without a name"


def _unlikely(record: StoredMessage) -> Iterator[str]:
    """What no broker that we know writes, but a sender or a later version may."""
    flags = record.sys_flag
    if flags & ~KNOWN_SYS_FLAGS:
        yield f"its sysFlag {flags & 0xFFFFFFFF:#x} has bits that no version knows"
    if 0 in record.properties or "\0" in record.topic:
        yield "its topic or its properties have zero bytes: perhaps a crash tore it"
    if flags & COMPRESSION_MASK and not flags & COMPRESSED:
        yield f"its sysFlag {flags:#x} names a compression, but not that the body is compressed"
    if record.born_timestamp_ms and abs(record.born_timestamp_ms - record.store_timestamp_ms) > TEN_YEARS_MS:
        yield f"its born time {record.born_timestamp_ms} is over ten years from its store time"
