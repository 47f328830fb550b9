"""One index file: hash slots that lead to chains of items, each a key's hash and where its record stands in the log.

The file changes on disk only in whole groups, in this order: the new items (behind the last item, so nothing sees
them), a sync, the slots that lead to them, a sync, and then the header that counts them.  A slot that leads to an item
the header does not count belongs to a group that was cut short; the chain of that item leads back to what the slot led
to before (`_settled`), so a group may be cut short anywhere and written again.

Invariants: the file has its exact length from creation (sparse); items 1 .. count-1 and their slots are synced when the
header on disk counts them; an item's number is larger than that of the item it leads to.  Only 4 KiB pages of the slots
that a group touches are read and written; nothing else of the file is kept in memory.
Source of the layout: RocketMQ IndexFile, IndexHeader.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence

import msgspec
import trio

from trio_rmq.errors import StoreError
from trio_rmq.store.disk import Data, Disk
from trio_rmq.store.log_files import FileHandles

HEADER_SIZE_BYTES = 40
SLOT_SIZE_BYTES = 4
ITEM_SIZE_BYTES = 20

_HEADER = struct.Struct(">qqqqii")
_ITEM = struct.Struct(">iqii")
_SLOT = struct.Struct(">i")
_PAGE_SLOTS = 1024
_INT_MAX = 2**31 - 1
_SWAPS = sys.byteorder == "little"
"""Whether the files' numbers have to be turned round for `array`."""
_KEYS_A_SLICE = 1024
"""Keys between two turns of other tasks, however many of them share a slot."""
_PAGE_AS_KEYS = 64
"""Reading or writing a page of slots counts as much as so many keys."""
_ITEMS_A_BREATH = 64
"""Items of one chain read before other tasks get their turn: even when each is a read of a cold disk."""
_SETTLE_BLOCK_BYTES = 64 * 1024


def item_of(data: Data, at: int) -> tuple[int, int, int, int]:
    """(hash, physical offset, seconds, item before it in its slot) of the item at byte `at` of `data`."""
    item: tuple[int, int, int, int] = _ITEM.unpack_from(data, at)
    return item


class IndexLostError(Exception):
    """A sync failed: what was written to the index may be gone, though reads still show it."""


class Header(msgspec.Struct, frozen=True):
    """The 40 bytes; times are store times in ms, offsets physical, `count` is the number of the next item (from 1)."""

    begin_ms: int = 0
    end_ms: int = 0
    begin_physical: int = 0
    end_physical: int = 0
    used_slots: int = 0
    count: int = 1


def header_of(data: bytes) -> Header:
    """The header in the first 40 bytes of a file, as they are."""
    return Header(*_HEADER.unpack(data))


class IndexFile:
    """The file at `path` with `slot_count` slots and room for the items 1 .. `item_count`-1 (item 0 is never used)."""

    __slots__ = ("_disk", "_handles", "header", "item_count", "path", "slot_count")

    def __init__(self, disk: Disk, handles: FileHandles, path: str, slot_count: int, item_count: int) -> None:
        self._disk = disk
        self._handles = handles
        self.path = path
        self.slot_count = slot_count
        self.item_count = item_count
        self.header = Header()

    @property
    def size_bytes(self) -> int:
        """The file's length."""
        return self.items_at + self.item_count * ITEM_SIZE_BYTES

    @property
    def room(self) -> int:
        """How many more items it takes."""
        return self.item_count - self.header.count

    @property
    def items_at(self) -> int:
        """Where item 0 would stand, in bytes of the file."""
        return HEADER_SIZE_BYTES + self.slot_count * SLOT_SIZE_BYTES

    # Life --------------------------------------------------------------------------------------------------------

    def create(self, after: Header) -> None:
        """Make the file; `after` is the header of the one before it, whose end it starts with, as Apache's does.

        Written on return, not synced.  Leaves nothing behind when it raises OSError.
        """
        handle = self._handles.get(self.path, create=True)
        try:
            self._disk.truncate(handle, self.size_bytes)
            header = Header(after.end_ms, after.end_ms, after.end_physical, after.end_physical)
            if after.count > 1:
                self._write(_HEADER.pack(*msgspec.structs.astuple(header)), 0)
        except OSError:
            self.remove()
            raise
        self.header = header

    def load(self) -> None:
        """Read the header.  StoreError when the file's length is not what the configuration says."""
        size = self._disk.path_size(self.path)
        if size != self.size_bytes:
            raise StoreError(
                f"{self.path} has {size} bytes, but maxHashSlotNum {self.slot_count} and maxIndexNum {self.item_count} "
                f"make {self.size_bytes}: set them to what this store was made with, or remove the file (it is made "
                "again from the log)"
            )
        header = header_of(self._read(HEADER_SIZE_BYTES, 0))
        self.header = msgspec.structs.replace(header, count=min(max(1, header.count), self.item_count))

    def is_whole(self) -> bool:
        """Whether the header is that of its newest item; one that was cut short while it was written is not."""
        header = self.header
        if header.count <= 1:
            return True
        _, offset, seconds, _ = self._item(header.count - 1)
        return offset == header.end_physical and (
            header.count == 2 or [seconds] == _seconds_since(header.begin_ms, [header.end_ms])
        )

    async def settle(self) -> int:
        """After an unclean stop: lead slots of a group that was cut short back; returns how many.  Synced on return."""
        mended = 0
        handle = self._handles.pin(self.path)
        try:
            for start, end in self._disk.data_extents(handle, HEADER_SIZE_BYTES, self.items_at):
                first = start - (start - HEADER_SIZE_BYTES) % SLOT_SIZE_BYTES
                for position in range(first, end, _SETTLE_BLOCK_BYTES):
                    block = self._read(min(_SETTLE_BLOCK_BYTES, self.items_at - position), position)
                    values = array("i", block)
                    if _SWAPS:
                        values.byteswap()
                    if max(values) >= self.header.count:
                        for index, value in enumerate(values):
                            if value >= self.header.count:
                                self._write(_SLOT.pack(self._settled(value)), position + index * SLOT_SIZE_BYTES)
                                mended += 1
                    await trio.lowlevel.checkpoint()
            if mended:
                await self._sync(handle)
        finally:
            self._handles.unpin(self.path)
        return mended

    def remove(self) -> None:
        """Remove the file."""
        self._handles.forget(self.path)
        if self._disk.exists(self.path):
            self._disk.unlink(self.path)

    def items_of_last(self) -> int:
        """How many of the newest items lead to the record at `header.end_physical`."""
        number = self.header.count - 1
        while number > 0 and self._item(number)[1] == self.header.end_physical:
            number -= 1
        return self.header.count - 1 - number

    # Writing -----------------------------------------------------------------------------------------------------

    async def write_group(self, hashes: Sequence[int], offsets: Sequence[int], times_ms: Sequence[int]) -> Header:
        """Write the items and slots of keys, at most `room` of them; returns the header that `commit` then makes true.

        `hashes` of the keys, physical `offsets` and store times of their records, which do not fall.  Synced on
        return, and seen by nobody.  When it raises OSError or is cancelled it may be called again with the same keys,
        or the same and more; after IndexLostError the file takes no more.
        """
        handle = self._handles.pin(self.path)
        try:
            pages = await self._by_page(hashes)
            previous, used = await self._previous(hashes, pages)
            header = await self._write_items(hashes, offsets, times_ms, previous, used)
            await self._sync(handle)
            await self._write_slots(hashes, pages)
            await self._sync(handle)
        finally:
            self._handles.unpin(self.path)
        return header

    def commit(self, header: Header) -> None:
        """Let the items that `header` counts be seen.  Written on return, not synced."""
        self._write(_HEADER.pack(*msgspec.structs.astuple(header)), 0)
        self.header = header

    async def sync(self) -> None:
        """Sync what was written; IndexLostError when that fails."""
        handle = self._handles.pin(self.path)
        try:
            await self._sync(handle)
        finally:
            self._handles.unpin(self.path)

    async def _sync(self, handle: int) -> None:
        try:
            await self._disk.sync([handle])
        except OSError as error:
            raise IndexLostError(f"{self.path}: {error.strerror or error}") from error

    async def _by_page(self, hashes: Sequence[int]) -> dict[int, list[int]]:
        """Which keys' slots each page of slots has, pages in the order of the file, keys in their own."""
        pages: dict[int, list[int]] = defaultdict(list)
        slot_count = self.slot_count
        for start in range(0, len(hashes), _KEYS_A_SLICE):
            for index, key_hash in enumerate(hashes[start : start + _KEYS_A_SLICE], start):
                pages[key_hash % slot_count // _PAGE_SLOTS].append(index)
            await trio.lowlevel.checkpoint()
        return {page: pages[page] for page in sorted(pages)}

    async def _previous(self, hashes: Sequence[int], pages: dict[int, list[int]]) -> tuple[array[int], int]:
        """For each key the item that its item leads to (0: none), and how many slots had none.

        A slot may lead to an item of this very group that an earlier try wrote: at its first key here that is the same
        key's or a later one's item, and nothing counts it.
        """
        previous = array("i", bytes(4 * len(hashes)))
        used = 0
        count, slot_count = self.header.count, self.slot_count
        left = _KEYS_A_SLICE
        for page, keys in pages.items():
            slots = self._read_page(page)
            left -= _PAGE_AS_KEYS
            for part in _parts(keys):
                for index in part:
                    slot = hashes[index] % slot_count % _PAGE_SLOTS
                    item = slots[slot]
                    if item >= count + index or item < 0:
                        item = self._settled(item)
                    if not item:
                        used += 1
                    previous[index] = item
                    slots[slot] = count + index
                left -= len(part)
                if left <= 0:
                    await trio.lowlevel.checkpoint()
                    left = _KEYS_A_SLICE
        return previous, used

    async def _write_items(
        self,
        hashes: Sequence[int],
        offsets: Sequence[int],
        times_ms: Sequence[int],
        previous: Sequence[int],
        used: int,
    ) -> Header:
        header = self.header
        begin_ms, begin_physical = header.begin_ms, header.begin_physical
        pack = _ITEM.pack
        for start in range(0, len(hashes), _KEYS_A_SLICE):
            keys = slice(start, start + _KEYS_A_SLICE)
            seconds = _seconds_since(begin_ms, times_ms[keys])
            if header.count + start == 1:  # the first item's time is counted from the end of the file before
                begin_ms, begin_physical = times_ms[0], offsets[0]
                seconds[1:] = _seconds_since(begin_ms, times_ms[keys][1:])
            items = map(pack, hashes[keys], offsets[keys], seconds, previous[keys])
            self._write(b"".join(items), self.items_at + (header.count + start) * ITEM_SIZE_BYTES)
            await trio.lowlevel.checkpoint()
        return Header(
            begin_ms,
            times_ms[-1],
            begin_physical,
            offsets[-1],
            header.used_slots + used,
            header.count + len(hashes),
        )

    async def _write_slots(self, hashes: Sequence[int], pages: dict[int, list[int]]) -> None:
        count, slot_count = self.header.count, self.slot_count
        left = _KEYS_A_SLICE
        for page, keys in pages.items():
            slots = self._read_page(page)
            left -= _PAGE_AS_KEYS
            for part in _parts(keys):
                for index in part:
                    slots[hashes[index] % slot_count % _PAGE_SLOTS] = count + index
                left -= len(part)
                if left <= 0:
                    await trio.lowlevel.checkpoint()
                    left = _KEYS_A_SLICE
            if _SWAPS:
                slots.byteswap()
            self._write(memoryview(slots).cast("B"), HEADER_SIZE_BYTES + page * _PAGE_SLOTS * SLOT_SIZE_BYTES)

    # Reading -----------------------------------------------------------------------------------------------------

    def chain(self, key_hash: int, begin_ms: int) -> Iterator[tuple[int, int, int] | None]:
        """(physical offset, earliest ms, latest ms) of the records whose key has this hash, the newest first.

        The two times bound the record's store time, which the file knows in seconds only.  None is a place where
        other tasks may get their turn.  Ends at records older than `begin_ms`.  OSError when the file is gone.
        """
        slot_at = HEADER_SIZE_BYTES + key_hash % self.slot_count * SLOT_SIZE_BYTES
        number = self._settled(_SLOT.unpack(self._read(SLOT_SIZE_BYTES, slot_at))[0])
        seen = 0
        while number > 0:
            item_hash, offset, seconds, before = self._item(number)
            early = self.header.begin_ms + (0 if number == 1 else max(0, seconds) * 1000)
            late = early + 999
            if seconds == _INT_MAX:
                late = self.header.end_ms
            if late < begin_ms:
                return
            if item_hash == key_hash:
                yield offset, early, late
            number = before if before < number else 0
            seen += 1
            if seen % _ITEMS_A_BREATH == 0:
                yield None

    def _settled(self, number: int) -> int:
        """The newest item of a slot's chain that the header counts, when the slot leads to `number`; 0 for none."""
        while number >= self.header.count:
            before = self._item(number)[3] if number < self.item_count else 0
            number = before if before < number else 0
        return max(0, number)

    def _item(self, number: int) -> tuple[int, int, int, int]:
        data = self._read(ITEM_SIZE_BYTES, self.items_at + number * ITEM_SIZE_BYTES)
        item: tuple[int, int, int, int] = _ITEM.unpack(data)
        return item

    def _read_page(self, page: int) -> array[int]:
        """The slots of a page as numbers."""
        count = min(_PAGE_SLOTS, self.slot_count - page * _PAGE_SLOTS)
        at = HEADER_SIZE_BYTES + page * _PAGE_SLOTS * SLOT_SIZE_BYTES
        slots = array("i", self._read(count * SLOT_SIZE_BYTES, at))
        if _SWAPS:
            slots.byteswap()
        return slots

    def _read(self, size: int, offset: int) -> bytes:
        data = self._disk.pread(self._handles.get(self.path), size, offset)
        return data if len(data) == size else data.ljust(size, b"\0")

    def _write(self, data: Data, offset: int) -> None:
        handle = self._handles.get(self.path)
        done = self._disk.pwrite(handle, data, offset)
        while done < len(data):
            done += self._disk.pwrite(handle, memoryview(data)[done:], offset + done)


def _seconds_since(begin_ms: int, times_ms: Sequence[int]) -> list[int]:
    """Whole seconds from `begin_ms` to each time, as the items have them: 0 for earlier ones and without a begin."""
    if begin_ms <= 0:
        return [0] * len(times_ms)
    seconds = [(time_ms - begin_ms) // 1000 for time_ms in times_ms]
    if seconds and (min(seconds) < 0 or max(seconds) > _INT_MAX):
        return [min(max(0, value), _INT_MAX) for value in seconds]
    return seconds


def _parts(keys: list[int]) -> Iterator[list[int]]:
    """The keys of one page, so many at a time as may be handled in one turn."""
    return (keys[start : start + _KEYS_A_SLICE] for start in range(0, len(keys), _KEYS_A_SLICE))
