"""Consume-queue extension files: what a filter may ask of a message before its record is read.

With enableConsumeQueueExt each entry of a queue holds, in place of its tags code, the address of a *unit* in a file of
`consumequeue_ext`: the tags code, the store time and a bit map that says which registered filters are true of the
message.  Units wait in memory like the entries, and reach their files just before them.

Invariants: a unit never spans files, and four bytes at a file's end stay free for the mark (-1) that ends it early;
no entry that is in a file points to a unit that is not; units after the one of the queue's last entry count for
nothing.  What cannot be read is not known: such a message counts as wanted, and whoever gets it filters by itself.
Source of the layout: RocketMQ ConsumeQueueExt.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from trio_rmq.store.log_files import LogFiles

_ENTRY = struct.Struct(">qiq")
UNIT = struct.Struct(">hqqh")
"""Size of the unit, tags code, store time (ms), length of the bit map that follows."""

UNIT_SIZE_MAX_BYTES = 32_767
_ADDRESS_BASE = -(2**63)
_ADDRESS_MAX = -(2**31) - 1
MARK = b"\xff\xff"
"""Stands where a unit would begin, when the rest of the file is not used."""
_MARK_ROOM_BYTES = 4
_READ_BYTES = 32 * 1024
_UNIT_READ_BYTES = 256
_LOST_FILES_MAX = 16
"""Where more files than that are missing, the address that says so is taken to be wrong: the older files go instead."""

_SIZE_KEY = "mappedFileSizeConsumeQueueExt"

AcceptEntry = Callable[[bytes | None, int], bool]
"""From a message's bit map (None: it has none) and store time in ms: whether it may be wanted.  False is final."""

TAKEN = frozenset({1})
"""What `select` puts in place of the tags codes that are wanted."""


def is_address(code: int) -> bool:
    """Whether an entry's tags code is the address of a unit: no tags code and no time is that small."""
    return code <= _ADDRESS_MAX


def offset_of(address: int) -> int:
    """Where in a queue's extension files the unit at `address` begins, in bytes."""
    return address - _ADDRESS_BASE


class ConsumeQueueExt:
    """The units of one queue.  Offsets are bytes of its extension files; an address is an offset made very small."""

    __slots__ = ("_written", "end", "files", "tail", "unsynced", "writes")

    def __init__(self, files: LogFiles, *, writes: bool) -> None:
        self.files = files
        self.writes = writes
        """Whether new entries get a unit; otherwise those that have one can still be read."""
        self.tail = bytearray()
        """The units from `_written` to `end`."""
        self.end = 0
        self._written = 0
        self.unsynced: dict[str, None] = {}
        """Paths of files written since somebody asked for them."""

    def load(self, *, unclean: bool) -> None:
        """Find the files; where the units end is for the queue's last entry to say (`settle`)."""
        for orphan in self.files.load(_SIZE_KEY, unclean=unclean):
            self.files.remove_orphan(orphan)

    def put(self, tags_code: int, store_timestamp_ms: int, bit_map: bytes | None) -> int:
        """Add a unit in memory; returns what the entry holds: its address, or the tags code when it fits no file."""
        bits = bit_map or b""
        size = UNIT.size + len(bits)
        file_size = self.files.file_size
        if size > UNIT_SIZE_MAX_BYTES or size + _MARK_ROOM_BYTES > file_size:
            return tags_code
        left = file_size - self.end % file_size
        if size + _MARK_ROOM_BYTES > left:
            self.tail += MARK
            self.tail += bytes(left - len(MARK))
            self.end += left
        address = _ADDRESS_BASE + self.end
        self.tail += UNIT.pack(size, tags_code, store_timestamp_ms, len(bits))
        self.tail += bits
        self.end += size
        return address

    def take_back(self, address: int) -> None:
        """Drop the newest unit, whose entry is taken back; it still waits in memory."""
        self.end = address - _ADDRESS_BASE
        del self.tail[self.end - self._written :]

    def write_out(self) -> None:
        """Write the waiting units to their files.  Written on return, not synced; after an OSError call again."""
        file_size = self.files.file_size
        while self.tail:
            start = self._written - self._written % file_size
            if self.files.locate(self._written) is None:
                self._append_file(start)
            size = min(start + file_size - self._written, len(self.tail))
            self.unsynced[self.files.path(start)] = None
            self.files.write(self._written, bytes(self.tail[:size]))
            self._written += size
            del self.tail[:size]

    def _append_file(self, start: int) -> None:
        """Make the file at `start`; empty ones stand in for those before it that are lost."""
        files = self.files
        if files.starts and (start - files.end) // files.file_size > _LOST_FILES_MAX:
            files.remove_from(-1)
        while files.starts and files.end < start:
            files.append_file(files.end)
        files.append_file(start)

    # Reading -----------------------------------------------------------------------------------------------------

    def unit(self, address: int) -> tuple[int, int, bytes | None] | None:
        """(tags code, store time in ms, bit map) of the unit at `address`; None when none can be read there."""
        offset = address - _ADDRESS_BASE
        return parse_unit(self._read(offset, _UNIT_READ_BYTES), 0) or parse_unit(
            self._read(offset, UNIT_SIZE_MAX_BYTES), 0
        )

    def tags_code(self, code: int) -> int:
        """The tags code of an entry that holds `code`; what cannot be read stays an address."""
        unit = self.unit(code) if is_address(code) else None
        return code if unit is None else unit[0]

    def select(
        self, entries: bytes, tags_codes: frozenset[int] | None, accept: AcceptEntry | None
    ) -> list[tuple[int, int, int]]:
        """(physical offset, record size, mark) of whole entries; the mark is 1 for those that may be wanted, else 0.

        Wanted are those with one of `tags_codes` (None: all) whose unit `accept` takes (None: all).
        """
        marked: list[tuple[int, int, int]] = []
        block, block_start = b"", 0
        for physical, size, code in _ENTRY.iter_unpack(entries):
            unit = None
            if is_address(code):
                offset = code - _ADDRESS_BASE
                unit = parse_unit(block, offset - block_start) if offset >= block_start else None
                if unit is None:  # neighbours come with one read
                    block, block_start = self._read(offset, _READ_BYTES), offset
                    unit = parse_unit(block, 0)
            if unit is None:
                taken = is_address(code) or tags_codes is None or code in tags_codes
            else:
                taken = tags_codes is None or unit[0] in tags_codes
                taken = taken and (accept is None or accept(unit[2], unit[1]))
            marked.append((physical, size, int(taken)))
        return marked

    def _read(self, offset: int, size: int) -> bytes:
        if offset >= self._written:
            at = offset - self._written
            return bytes(self.tail[at : at + size])
        return self.files.read(offset, min(size, self._written - offset))

    # Recovery, retention, deletion -------------------------------------------------------------------------------

    def settle(self, last_code: int | None) -> None:
        """Let the units end after that of the queue's last entry, which holds `last_code` (None: there is no entry).

        What waits in memory goes.  Where the entry's unit is lost, the next one begins a new file behind it: no address
        is given twice.  Changes nothing on disk.
        """
        end = self.files.end
        if last_code is not None and is_address(last_code):
            offset = last_code - _ADDRESS_BASE
            self._written = offset + UNIT_SIZE_MAX_BYTES  # for the look: it is in a file, if anywhere
            unit = self.unit(last_code)
            if unit is not None:
                end = offset + UNIT.size + len(unit[2] or b"")
            else:
                file_size = self.files.file_size
                end = max(end, offset - offset % file_size + file_size)
        elif last_code is None and not self.files.starts:
            end = 0
        self.tail = bytearray()
        self._written = self.end = end

    def cut(self, *, all_units: bool = False) -> None:
        """Remove from disk what stands after `end`, or all units of a queue without entries; written, not synced."""
        if all_units:
            self.remove_files()
            return
        file_size = self.files.file_size
        last = self.files.locate(self.end)
        self.files.remove_from(self.end if last is None else last + file_size)
        if last is not None and self.files.zero_from(self.end):
            self.unsynced[self.files.path(last)] = None

    def remove_files(self) -> None:
        """Remove all files and forget all units."""
        self.unsynced.clear()
        self.files.remove_from(-1)
        self.settle(None)

    def remove_expired(self, first_code: int) -> str | None:
        """Remove the oldest file when it ends before the unit of the queue's first entry, which holds `first_code`.

        Returns its path, or None when it stays.  Not synced on return.
        """
        files = self.files
        if len(files.starts) < 2 or not is_address(first_code) or files.starts[1] > first_code - _ADDRESS_BASE:
            return None
        path = files.path(files.start)
        if files.disk.exists(path):
            files.disk.unlink(path)
        self.unsynced.pop(path, None)
        return files.forget_first()


def parse_unit(block: bytes, at: int) -> tuple[int, int, bytes | None] | None:
    """(tags code, store time in ms, bit map) of the whole unit at `at`; None when none stands there."""
    if at + UNIT.size > len(block):
        return None
    size, tags_code, store_timestamp_ms, length = UNIT.unpack_from(block, at)
    if length < 0 or size != UNIT.size + length or at + size > len(block):
        return None
    begin = at + UNIT.size
    return tags_code, store_timestamp_ms, block[begin : begin + length] if length else None
