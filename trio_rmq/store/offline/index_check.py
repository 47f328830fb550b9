"""Comparing the index files with the log: every item leads to a record with such a key, every slot to its chain.

Items stand in the order of the log, so one walk beside the log's records compares them; the slots and chains that they
make are built up in memory once more and compared with those in the file.

Invariants: keys that are not indexed are a note - the index follows the log and may be behind, and Apache's loses some
in a crash; an item or a slot that leads wrong is damage.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator

from trio_rmq.store.index_file import HEADER_SIZE_BYTES, ITEM_SIZE_BYTES, SLOT_SIZE_BYTES, IndexFile, item_of
from trio_rmq.store.index_keys import key_hash, keys_of
from trio_rmq.store.offline.findings import Findings
from trio_rmq.store.offline.folder import Progress, StoreFolder
from trio_rmq.store.offline.log_check import LogCheck
from trio_rmq.wire.record import StoredMessage
from trio_rmq.wire.sysflag import TRANSACTION_ROLLBACK, transaction_type

_ITEMS_A_READ = 4096
_INT_MAX = 2**31 - 1


class _Item:
    """One item of one file."""

    __slots__ = ("file", "hashed", "number", "physical", "seconds")

    def __init__(self, file: IndexFile, number: int, hashed: int, physical: int, seconds: int) -> None:
        self.file, self.number = file, number
        self.hashed, self.physical, self.seconds = hashed, physical, seconds


class IndexCheck:
    """Compares the index of `folder` with the records that `record` is given, in the log's order."""

    def __init__(
        self, folder: StoreFolder, log: LogCheck, findings: Findings, progress: Progress | None = None
    ) -> None:
        self._folder = folder
        self._log = log
        self._findings = findings
        self._progress = progress
        self.items = 0
        self._items = self._read_items()
        self._item: _Item | None = None
        self._ahead: _Item | None = None
        self._last_physical = -1
        self._advance()
        self._advance()
        self._missing = 0
        self._missing_first = self._missing_last = -1

    def record(self, offset: int, record: StoredMessage) -> None:
        """The next record of the log, at this physical offset."""
        while self._item is not None and self._item.physical < offset:
            self._unclaimed(self._item)
            self._advance()
        properties = record.properties
        if transaction_type(record.sys_flag) == TRANSACTION_ROLLBACK:
            properties = b""
        topic = record.topic.encode()
        wanted = [key_hash(topic, key) for key in keys_of(properties)]
        found: list[_Item] = []
        while self._item is not None and self._item.physical == offset:
            found.append(self._item)
            self._advance()
        for item in found:
            if item.hashed not in wanted:
                self._add(item, f"no key of the record at {offset} has its hash {item.hashed}")
            self._check_time(item, record)
        if not set(wanted).issubset([item.hashed for item in found]):
            if not self._missing:
                self._missing_first = offset
            self._missing += 1
            self._missing_last = offset

    def finish(self) -> None:
        """The log has no more records."""
        while self._item is not None:
            self._unclaimed(self._item)
            self._advance()
        if self._missing and self._folder.index_files:
            first = self._folder.index_files[0]
            what = (
                f"keys of {self._missing} records, from {self._missing_first} to {self._missing_last}, are not indexed"
            )
            self._findings.add(
                "index-gap", first.path.rpartition("/")[0], 0, what, damage=False, physical_offset=self._missing_first
            )

    # Items -------------------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Go on to the next item that does not fall out of the log's order."""
        while True:
            self._item, self._ahead = self._ahead, next(self._items, None)
            item = self._item
            if item is None:
                return
            ahead = self._ahead
            if item.physical >= self._last_physical and (
                ahead is None or item.physical <= ahead.physical or ahead.physical < self._last_physical
            ):
                self._last_physical = item.physical
                return
            self._add(item, f"it leads to {item.physical}, which is not between the items before and after it")

    def _read_items(self) -> Iterator[_Item]:
        files = self._folder.index_files
        total = sum(file.header.count - 1 for file in files)
        for file in files:
            slots = array("i", bytes(SLOT_SIZE_BYTES * file.slot_count))
            used = 0
            first: _Item | None = None
            item: _Item | None = None
            for number, hashed, physical, seconds, before in self._read_file(file):
                item = _Item(file, number, hashed, physical, seconds)
                first = first or item
                slot = hashed % file.slot_count
                if slots[slot] != before:
                    self._add(item, f"it leads on to item {before}, the one before it in slot {slot} is {slots[slot]}")
                used += not slots[slot]
                slots[slot] = number
                self.items += 1
                if self._progress is not None and self.items % _ITEMS_A_READ == 0:
                    self._progress("index", self.items, total)
                yield item
            self._check_header(file, first, item, used)
            self._check_slots(file, slots)

    def _read_file(self, file: IndexFile) -> Iterator[tuple[int, int, int, int, int]]:
        handle = self._folder.handles.pin(file.path)
        try:
            for begin in range(1, file.header.count, _ITEMS_A_READ):
                count = min(_ITEMS_A_READ, file.header.count - begin)
                data = self._folder.disk.pread(handle, count * ITEM_SIZE_BYTES, file.items_at + begin * ITEM_SIZE_BYTES)
                for index in range(len(data) // ITEM_SIZE_BYTES):
                    yield (begin + index, *item_of(data, index * ITEM_SIZE_BYTES))
        finally:
            self._folder.handles.unpin(file.path)

    def _check_header(self, file: IndexFile, first: _Item | None, last: _Item | None, used: int) -> None:
        header = file.header
        if first is None or last is None:
            return
        for name, says, at, item in (
            ("first", header.begin_physical, 16, first),
            ("last", header.end_physical, 24, last),
        ):
            if says != item.physical:
                what = f"the header says that the {name} item leads to {says}, it leads to {item.physical}"
                self._findings.add("index-header", file.path, at, what, size_bytes=8)
        if header.used_slots != used:
            what = f"the header counts {header.used_slots} used slots, the items use {used}"
            self._findings.add("index-header", file.path, 32, what, size_bytes=4)

    def _check_slots(self, file: IndexFile, slots: array[int]) -> None:
        """The file's slots against those its items make; then that nothing stands behind the last item."""
        if sys.byteorder == "little":
            slots.byteswap()
        content = slots.tobytes()
        handle = self._folder.handles.pin(file.path)
        try:
            for begin in range(0, len(content), _ITEMS_A_READ):
                end = min(begin + _ITEMS_A_READ, len(content))
                data = self._folder.disk.pread(handle, end - begin, HEADER_SIZE_BYTES + begin)
                if data != content[begin:end]:
                    self._compare_slots(file, begin, data, content)
            begin = file.items_at + file.header.count * ITEM_SIZE_BYTES
            for first, last in (
                (HEADER_SIZE_BYTES + len(content), file.items_at + ITEM_SIZE_BYTES),
                (begin, file.size_bytes),
            ):
                for start, stop in self._folder.disk.data_extents(handle, first, last):
                    for position in range(start, stop, 1024 * 1024):
                        if self._folder.disk.pread(handle, min(1024 * 1024, stop - position), position).strip(b"\0"):
                            what = "bytes of items that the header does not count are not zero; nobody reads them"
                            self._findings.add("unused", file.path, position, what, damage=False)
                            return
        finally:
            self._folder.handles.unpin(file.path)

    def _compare_slots(self, file: IndexFile, begin: int, data: bytes, content: bytes) -> None:
        for at in range(0, len(data), SLOT_SIZE_BYTES):
            says = int.from_bytes(data[at : at + SLOT_SIZE_BYTES], "big", signed=True)
            wanted = int.from_bytes(content[begin + at : begin + at + SLOT_SIZE_BYTES], "big", signed=True)
            if says != wanted:
                unfinished = not self._folder.clean and says >= file.header.count
                what = f"slot {(begin + at) // SLOT_SIZE_BYTES} leads to item {says}, its newest is {wanted}"
                if unfinished:
                    what += ": a write that a crash cut short; the next start leads it back"
                self._findings.add(
                    "index-slot", file.path, HEADER_SIZE_BYTES + begin + at, what,
                    damage=not unfinished, size_bytes=SLOT_SIZE_BYTES,
                )  # fmt: skip

    def _check_time(self, item: _Item, record: StoredMessage) -> None:
        header = item.file.header
        time_ms = record.store_timestamp_ms
        if item.number == 1 and header.begin_ms != time_ms:
            what = f"the header says that the first record was stored at {header.begin_ms}, it was at {time_ms}"
            self._findings.add("index-header", item.file.path, 0, what, size_bytes=8)
        if item.number == header.count - 1 and header.end_ms != time_ms:
            what = f"the header says that the last record was stored at {header.end_ms}, it was at {time_ms}"
            self._findings.add("index-header", item.file.path, 8, what, size_bytes=8)
        seconds = min(max(0, (time_ms - header.begin_ms) // 1000), _INT_MAX)
        if item.number > 1 and item.seconds != seconds:
            self._add(
                item, f"it says {item.seconds} s after the file's begin, the record at {item.physical} is {seconds} s"
            )

    def _unclaimed(self, item: _Item) -> None:
        physical = item.physical
        if physical < self._folder.min_offset or self._log.is_damaged(physical):
            return
        if physical >= self._log.end and not self._folder.clean:
            what = f"it leads to {physical}, beyond the log's end: the next start drops it"
            self._add(item, what, damage=False)
            return
        self._add(item, f"it leads to {physical}, where no record stands")

    def _add(self, item: _Item, what: str, *, damage: bool = True) -> None:
        at = item.file.items_at + item.number * ITEM_SIZE_BYTES
        self._findings.add(
            "index-item", item.file.path, at, f"item {item.number}: {what}",
            damage=damage, size_bytes=ITEM_SIZE_BYTES, physical_offset=item.physical,
        )  # fmt: skip
