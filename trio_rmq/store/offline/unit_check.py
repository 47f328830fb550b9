"""Comparing the extension files with the queue entries that lead into them.

An entry with an address must lead to a whole unit, behind that of the entry before it, and the unit must say what the
record says: the code of its tags (in the delay topic its time of delivery) and its store time.  What no entry leads to
counts for nothing.  Which filters were registered when a message came is not stored, so bit maps are not compared.
"""

from __future__ import annotations

from collections import OrderedDict

from trio_rmq.limits import OFFLINE_BLOCKS_MAX
from trio_rmq.store.consume_queue_ext import MARK, UNIT, UNIT_SIZE_MAX_BYTES, offset_of, parse_unit
from trio_rmq.store.offline.findings import Findings
from trio_rmq.store.offline.folder import FoundFiles, StoreFolder

_BLOCK_BYTES = 4096

QueueKey = tuple[str, int]
"""Topic and queue id."""


class UnitCheck:
    """Compares the units of `folder` with the entries that `check` is given: each queue's in the order of offsets."""

    def __init__(self, folder: StoreFolder, findings: Findings) -> None:
        self._folder = folder
        self._findings = findings
        self._ends: dict[QueueKey, int] = {}
        """Where the last unit of each queue ends."""
        self._blocks: OrderedDict[QueueKey, tuple[int, bytes]] = OrderedDict()
        self.right = 0
        """Units that are those of their records."""

    def check(
        self,
        key: QueueKey,
        number: int,
        address: int,
        entry: tuple[int, int, int],
        time_ms: int,
        *,
        settled: bool,
        earlier_ms: int = 0,
    ) -> None:
        """Entry `number` of the queue holds `address`; of its record it should hold `entry`.

        Unless `settled`, the next start makes up for what is amiss.  The code may be lower by `earlier_ms`, as times of
        delivery are that a clock set back made.
        """
        physical, _, code = entry
        offset = offset_of(address)
        files = self._folder.units.get(key)
        start = None if files is None else files.locate(offset)
        if files is None or start is None:
            path = f"{self._folder.root}/consumequeue_ext/{key[0]}/{key[1]}"
            what = f"entry {number} of {key[0]}-{key[1]} leads to byte {offset} of these files, which is in none"
            self._findings.add("unit", path, 0, what, damage=settled, physical_offset=physical)
            return
        unit = self._unit(key, files, offset)
        end = self._ends.get(key)
        if unit is None:
            what = "no whole unit stands here"
        elif end is not None and offset < end:
            what = f"it is not behind the unit of the entry before, which ends at {end}"
        elif not code - earlier_ms <= unit[0] <= code:
            what = f"its code is {unit[0]}, the record's is {code}"
        elif unit[1] != time_ms:
            what = f"its store time is {unit[1]}, the record's is {time_ms}"
        else:
            self.right += 1
            what = ""
        if what:
            what = f"the unit of entry {number} of {key[0]}-{key[1]}: {what}"
            self._findings.add(
                "unit", files.path(start), offset - start, what,
                damage=settled, size_bytes=UNIT.size, physical_offset=physical,
            )  # fmt: skip
        if unit is not None and (end is None or offset >= end):
            if end is not None:
                self._look_between(files, end, offset)
            self._ends[key] = offset + UNIT.size + len(unit[2] or b"")

    def finish(self) -> None:
        """All entries were given: look at what none of them leads to."""
        for key, files in self._folder.units.items():
            queue = self._folder.queues.get(key)
            if queue is None or not queue.starts:
                if files.starts:
                    what = "the queue has no files: the next start that makes such removes these"
                    self._findings.add("unused", files.directory, 0, what, damage=False)
            elif key in self._ends:
                self._look_between(files, self._ends[key], files.end)

    def _look_between(self, files: FoundFiles, begin: int, end: int) -> None:
        """Between two units, or after the last, stands nothing but zeros, after the mark that ends a file early."""
        if begin == end:
            return
        if files.read(begin, len(MARK)) == MARK:
            begin += len(MARK)
        for start in files.starts:
            low, high = max(begin, start), min(end, start + files.file_size)
            used = files.first_other_than_zero(low, high) if low < high else None
            if used is not None:
                what = "no entry leads to what stands here"
                self._findings.add("unused", files.path(start), used - start, what, damage=False)

    def _unit(self, key: QueueKey, files: FoundFiles, offset: int) -> tuple[int, int, bytes | None] | None:
        block_start, block = self._blocks.get(key, (0, b""))
        unit = parse_unit(block, offset - block_start) if offset >= block_start else None
        if unit is None:
            block = files.read(offset, _BLOCK_BYTES)
            unit = parse_unit(block, 0) or parse_unit(files.read(offset, UNIT_SIZE_MAX_BYTES), 0)
            self._blocks[key] = offset, block
            self._blocks.move_to_end(key)
            if len(self._blocks) > OFFLINE_BLOCKS_MAX:
                self._blocks.popitem(last=False)
        return unit
