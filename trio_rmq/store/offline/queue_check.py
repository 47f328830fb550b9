"""Comparing the consume queues with the log: every record has its entry, every entry its record.

The log's records come in their order; for each queue a cursor follows them through its entries.  A record's entry must
hold its place, its size and the code of its tags; what the cursor passes over leads nowhere.

Invariants: a queue that its topic's deletion ended or began anew, entries whose log files are gone, and, after a crash,
entries that the next start makes are no damage; everything else that does not fit is named at the entry.
"""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from trio_rmq.limits import OFFLINE_BLOCKS_MAX
from trio_rmq.store.consume_queue import DELAY_TOPIC, ENTRY, ENTRY_SIZE_BYTES, FILLER_SIZE
from trio_rmq.store.consume_queue_ext import is_address
from trio_rmq.store.dispatch import entry_tags_code
from trio_rmq.store.multi_dispatch import LMQ_QUEUE_ID, dispatched_to
from trio_rmq.store.offline.findings import Findings
from trio_rmq.store.offline.folder import FoundFiles, Progress, StoreFolder
from trio_rmq.store.offline.log_check import LogCheck
from trio_rmq.store.offline.unit_check import UnitCheck
from trio_rmq.wire.record import CheckedRecord, RecordKind, StoredMessage
from trio_rmq.wire.sysflag import is_consumable

_BLOCK_ENTRIES = 204
_SCAN_ENTRIES = 4096
SET_BACK_MAX_MS = 86_400_000
"""A time of delivery may be earlier by this than store times tell: it goes by the clock, they never go back."""
Entry = tuple[int, int, int]
"""Physical offset, record size, tags code."""
_EMPTY: Entry = (0, 0, 0)


class QueueState(msgspec.Struct):
    """How far one queue is compared."""

    topic: str
    queue_id: int
    files: FoundFiles
    cursor: int
    """The entry that the queue's next record must have."""
    first: int
    """The first entry whose record is still in the log."""
    settled: int = 0
    """Entries before this one are right on disk whatever the next start does."""
    without: int = 0
    """Records without their entry since the queue began; they may be of a topic that was deleted and made anew."""
    without_number: int = 0
    without_at: int = -1
    without_what: str = ""
    records: int = 0
    first_time_ms: int = -1
    last_time_ms: int = -1

    @property
    def name(self) -> str:
        """`topic-queue`."""
        return f"{self.topic}-{self.queue_id}"


class QueueCheck:
    """Compares the queues of `folder` with the records that `record` is given, in the log's order."""

    def __init__(self, folder: StoreFolder, log: LogCheck, findings: Findings) -> None:
        self._folder = folder
        self._log = log
        self._findings = findings
        self._blocks: OrderedDict[tuple[str, int], tuple[int, bytes]] = OrderedDict()
        self._states: dict[tuple[str, int], QueueState] = {}
        self._missing: dict[tuple[str, int], tuple[int, int, int]] = {}
        """Queues without files: how many records they should have, and where the first and the last stand."""
        self._units = UnitCheck(folder, findings)
        self.unwritten = 0
        """Records behind the ends of their queues, whose entries the next start makes."""

    def record(self, offset: int, record: StoredMessage) -> None:
        """The next record of the log, at this physical offset."""
        if not is_consumable(record.sys_flag):
            return
        checked = CheckedRecord(
            RecordKind.RECORD,
            topic=record.topic,
            store_timestamp_ms=record.store_timestamp_ms,
            properties=record.properties,
        )
        entry = (offset, record.size_bytes, entry_tags_code(checked, self._folder.delays))
        self._expect(record.topic, record.queue_id, record.queue_offset, entry, record.store_timestamp_ms)
        for name, queue_offset in dispatched_to(record.properties):
            if (name, LMQ_QUEUE_ID) in self._folder.queues:
                self._expect(name, LMQ_QUEUE_ID, queue_offset, entry, record.store_timestamp_ms)

    def finish(self, progress: Progress | None = None) -> None:
        """The log has no more records: look at the entries that none of them claimed."""
        for number, (topic, queue_id) in enumerate(self._folder.queues, start=1):
            state = self._state(topic, queue_id)
            if state is not None:
                if state.without:
                    more = f"; {state.without - 1} more records have none" if state.without > 1 else ""
                    what = f"{state.without_what}{more}"
                    self._add_entry(state, "queue-entry", state.without_number, what, state.without_at)
                self._finish(state)
            if progress is not None and number % 100 == 0:
                progress("queues", number, len(self._folder.queues))
        self._finish_missing()
        self._units.finish()

    @property
    def units(self) -> int:
        """Units of extension files that are those of their records."""
        return self._units.right

    def states(self) -> list[QueueState]:
        """All queues that have files."""
        return [*self._states.values()]

    # A record ----------------------------------------------------------------------------------------------------

    def _expect(self, topic: str, queue_id: int, offset: int, entry: Entry, time_ms: int) -> None:
        """The record of `entry` says that it has `offset` in this queue."""
        physical = entry[0]
        if physical < self._folder.fences.get(topic, 0):
            return
        state = self._state(topic, queue_id)
        if state is None:
            count, first, _ = self._missing.get((topic, queue_id), (0, physical, 0))
            self._missing[topic, queue_id] = count + 1, first, physical
            return
        found = self._entry(state, offset)
        if found[0] == physical and found[1] not in (0, FILLER_SIZE):
            if offset > state.cursor:
                self._passed_over(state, state.cursor, offset)
            if offset == 0 and state.without:
                what = f"queue {state.name} begins again: {state.without} older records have no entries"
                self._add_entry(state, "queue-anew", 0, what, physical, damage=False)
                state.without = 0
            if not state.records:
                state.first_time_ms = time_ms
            state.last_time_ms = time_ms
            state.records += 1
            state.cursor = max(state.cursor, offset + 1)
            if physical < self._log.settled_end:
                state.settled = state.cursor
            if found != entry:
                self._judge_entry(state, offset, found, entry, time_ms)
        elif found[1] and found[1] != FILLER_SIZE and found[0] < physical and not self._log.is_damaged(found[0]):
            what = f"it leads to {found[0]}, but the record at {physical} says that it is its entry"
            self._add_entry(state, "queue-entry", offset, what, physical)
        else:
            self._lacks_entry(state, offset, found, physical)

    def _judge_entry(self, state: QueueState, offset: int, found: Entry, entry: Entry, time_ms: int) -> None:
        """The entry leads to its record, but says something else of it, or leads to a unit that says the rest."""
        if found[1] != entry[1]:
            what = f"it says the record has {found[1]} bytes, it has {entry[1]}"
            self._add_entry(state, "queue-entry", offset, what, entry[0])
        elif is_address(found[2]):
            settled = entry[0] < self._log.settled_end
            earlier_ms = SET_BACK_MAX_MS if state.topic == DELAY_TOPIC else 0
            self._units.check(
                (state.topic, state.queue_id), offset, found[2], entry, time_ms, settled=settled, earlier_ms=earlier_ms
            )
        elif state.topic == DELAY_TOPIC:
            what = f"its time of delivery is {found[2]}, the record's is {entry[2]}"
            set_back = 0 < entry[2] - found[2] <= SET_BACK_MAX_MS
            what += ", as a clock makes it that was set back" if set_back else ""
            self._add_entry(state, "tags-code", offset, what, entry[0], damage=not set_back)
        else:
            what = f"its code is {found[2]}, that of the record's tags is {entry[2]}"
            self._add_entry(state, "tags-code", offset, what, entry[0])

    def _lacks_entry(self, state: QueueState, offset: int, found: Entry, physical: int) -> None:
        """The queue has something else, or nothing, where the record's entry should be."""
        if physical >= self._log.settled_end:
            self.unwritten += 1
            return
        if not state.without:
            leads = f"leads to {found[0]}" if found[1] else "is empty"
            state.without_number, state.without_at = offset, physical
            state.without_what = f"the record at {physical} should have this entry, which {leads}"
        state.without += 1

    def _passed_over(self, state: QueueState, begin: int, end: int) -> None:
        """The entries from `begin` to before `end` were claimed by no record."""
        empty_from = -1
        for number in range(max(begin, state.files.start // ENTRY_SIZE_BYTES), end):
            entry = self._entry(state, number)
            if entry == _EMPTY:
                empty_from = number if empty_from < 0 else empty_from
                continue
            if empty_from >= 0:
                self._add_gap(state, empty_from, number)
                empty_from = -1
            self._unclaimed(state, number, entry)
        if empty_from >= 0:
            self._add_gap(state, empty_from, end)

    def _add_gap(self, state: QueueState, begin: int, end: int) -> None:
        if state.files.locate(begin * ENTRY_SIZE_BYTES) is not None:  # a missing file was told before
            what = f"{end - begin} entries from here on are empty, but later ones are not"
            self._add_entry(state, "queue-gap", begin, what, None, damage=self._is_settled(state, begin))

    def _is_settled(self, state: QueueState, number: int) -> bool:
        """Whether the next start will not make this entry anew anyway."""
        return self._folder.clean or number < state.settled

    def _unclaimed(self, state: QueueState, number: int, entry: Entry) -> None:
        physical, size, _ = entry
        settled = self._is_settled(state, number)
        if self._log.is_damaged(physical):
            return
        if size == FILLER_SIZE and physical == 0:
            if number >= state.first and state.records:
                what = "a filler stands between the queue's entries"
                self._add_entry(state, "queue-entry", number, what, None, damage=settled)
        elif physical >= self._log.end:
            tail = "" if settled else ": the next start drops it"
            what = f"it leads to {physical}, beyond the log's end at {self._log.end}{tail}"
            self._add_entry(state, "queue-entry", number, what, physical, damage=settled)
        elif physical >= self._folder.fences.get(state.topic, 0):
            what = f"it leads to {physical}, {size} bytes: no record with this queue and offset stands there"
            self._add_entry(state, "queue-entry", number, what, physical, damage=settled)

    # The ends ----------------------------------------------------------------------------------------------------

    def _finish(self, state: QueueState) -> None:
        """Entries after the cursor, then nothing but zeros."""
        files = state.files
        for start in files.starts:
            position = max(start, state.cursor * ENTRY_SIZE_BYTES)
            end = start + files.file_size
            while position < end:
                used = files.first_other_than_zero(position, end)
                if used is None:
                    break
                number = used // ENTRY_SIZE_BYTES
                if number > state.cursor:
                    self._add_gap(state, state.cursor, number)
                self._unclaimed(state, number, self._entry(state, number))
                state.cursor = number + 1
                position = state.cursor * ENTRY_SIZE_BYTES

    def _finish_missing(self) -> None:
        for (topic, queue_id), (count, first, last) in sorted(self._missing.items()):
            folder = f"{self._folder.root}/consumequeue/{topic}/{queue_id}"
            deleted = self._folder.topics is not None and topic not in self._folder.topics
            unsettled = first >= self._log.settled_end
            what = f"the queue has no files, but {count} records from {first} to {last} are of it"
            if deleted:
                what += ": its topic is not in config/topics.json, so it was deleted"
            elif unsettled:
                what += ": the next start makes them"
                self.unwritten += count
            self._findings.add(
                "queue-missing", folder, 0, what, damage=not (deleted or unsettled), physical_offset=first
            )

    # Entries -----------------------------------------------------------------------------------------------------

    def _state(self, topic: str, queue_id: int) -> QueueState | None:
        key = topic, queue_id
        state = self._states.get(key)
        if state is None:
            files = self._folder.queues.get(key)
            if files is None or not files.starts:
                return None
            state = QueueState(topic, queue_id, files, 0, 0)
            state.cursor = state.first = self._skip_expired(state)
            self._states[key] = state
        return state

    def _skip_expired(self, state: QueueState) -> int:
        """The first entry whose record is not in a deleted log file; those before must rise."""
        files = state.files
        min_offset = self._folder.min_offset
        last = -1
        for start in files.starts:
            for position in range(start, start + files.file_size, _SCAN_ENTRIES * ENTRY_SIZE_BYTES):
                size = min(_SCAN_ENTRIES * ENTRY_SIZE_BYTES, start + files.file_size - position)
                data = files.read(position, size)
                for number, (physical, size, _) in enumerate(
                    ENTRY.iter_unpack(data[: len(data) - len(data) % ENTRY_SIZE_BYTES]), position // ENTRY_SIZE_BYTES
                ):
                    if size == FILLER_SIZE and physical == 0:
                        continue
                    if not 0 <= physical < min_offset or size <= 0:
                        return number
                    if physical <= last:
                        what = f"it leads to {physical}, not behind the one before it, which leads to {last}"
                        self._add_entry(state, "queue-entry", number, what, None)
                    last = max(last, physical)
        return files.end // ENTRY_SIZE_BYTES

    def _entry(self, state: QueueState, number: int) -> Entry:
        """The entry as it stands in the files; all zero where there is none."""
        if number < 0:
            return _EMPTY
        block = number // _BLOCK_ENTRIES
        key = state.topic, state.queue_id
        kept = self._blocks.get(key)
        if kept is None or kept[0] != block:
            kept = self._blocks[key] = block, self._read_block(state.files, block)
            if len(self._blocks) > OFFLINE_BLOCKS_MAX:
                self._blocks.popitem(last=False)
        at = (number - block * _BLOCK_ENTRIES) * ENTRY_SIZE_BYTES
        data = kept[1]
        if at + ENTRY_SIZE_BYTES > len(data):
            return _EMPTY
        entry: Entry = ENTRY.unpack_from(data, at)
        return entry

    def _read_block(self, files: FoundFiles, block: int) -> bytes:
        """The entries of one block; parts that no file holds are zero, up to the last that one does."""
        begin = block * _BLOCK_ENTRIES * ENTRY_SIZE_BYTES
        end = begin + _BLOCK_ENTRIES * ENTRY_SIZE_BYTES
        data = bytearray()
        position = begin
        while position < end and position < files.end:
            file_end = position - position % files.file_size + files.file_size
            size = min(end, file_end) - position
            data += files.read(position, size).ljust(size, b"\0")
            position += size
        return bytes(data)

    def _add_entry(
        self, state: QueueState, kind: str, number: int, what: str, physical: int | None, *, damage: bool = True
    ) -> None:
        position = max(0, number) * ENTRY_SIZE_BYTES
        start = position - position % state.files.file_size
        self._findings.add(
            kind, state.files.path(start), position - start, f"entry {number} of {state.name}: {what}",
            damage=damage, size_bytes=ENTRY_SIZE_BYTES, physical_offset=physical,
        )  # fmt: skip
