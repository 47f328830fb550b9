"""From a record to its consume-queue entry: the one rule for what the entry holds, on append and on recovery.

On append the record's parts are still in memory; on recovery they come from the log.  Both ask here which records have
an entry and what its tags code is.  Also the fences of deleted topics: records that stand before a topic's deletion
must not come back when its queues are rebuilt.  Source: RocketMQ CommitLog.checkMessageAndReturnSize,
ScheduleMessageService.computeDeliverTimestamp.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from logging import getLogger

from trio_rmq.errors import StoreError
from trio_rmq.store.consume_queue import DELAY_TOPIC, ENTRY, ConsumeQueue
from trio_rmq.store.consume_queues import ConsumeQueues
from trio_rmq.wire.hashing import tags_code
from trio_rmq.wire.properties import DELAY, TAGS, property_of_bytes
from trio_rmq.wire.record import CheckedRecord
from trio_rmq.wire.sysflag import is_consumable

_log = getLogger(__name__)
_UNIT_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_TAGS = TAGS.encode()
_DELAY = DELAY.encode()
_UNKNOWN_LEVEL_MS = 1000

TIMER_TOPIC = "rmq_sys_wheel_timer"
"""Its entries hold the time of delivery, marked where the record recalls another one; 5.x looks at none of it."""

TIMER_RECALL = 1 << 50
"""Added to the time of a record that recalls another one; as a time it lies 35,000 years ahead."""


class DelayLevels:
    """The delays of the delay topic's levels, from the text of messageDelayLevel ("1s 5s 10s ...")."""

    __slots__ = ("delays_ms",)

    def __init__(self, text: str) -> None:
        delays = []
        for word in text.split():
            unit = _UNIT_MS.get(word[-1:])
            if unit is None or not word[:-1].isdigit():
                raise StoreError(f"messageDelayLevel has {word!r}: write numbers with a unit of s, m, h or d")
            delays.append(int(word[:-1]) * unit)
        self.delays_ms = delays

    def deliver_time_ms(self, properties: bytes, store_timestamp_ms: int) -> int | None:
        """When the record with these properties is due, or None when it has no delay level.

        A level above the largest counts as the largest.
        """
        text = property_of_bytes(properties, _DELAY)
        if text is None:
            return None
        try:
            level = min(int(text), len(self.delays_ms))
        except ValueError:
            return None
        if level <= 0:
            return None
        return store_timestamp_ms + (self.delays_ms[level - 1] if self.delays_ms else _UNKNOWN_LEVEL_MS)


def timer_code(properties: bytes) -> int | None:
    """When a record of the timer topic with these properties is to be delivered, ms since 1970; None when none says.

    With TIMER_RECALL added for a record that recalls another one.  Never before the time that was asked for: Apache's
    5.x rounds TIMER_OUT_MS down to whole seconds and delivers a second later; ours is the exact time.
    """
    text = property_of_bytes(properties, b"TIMER_OUT_MS")
    if text is None or not text.isdigit():
        return None
    due_ms = int(text)
    if due_ms % 1000 == 0:
        asked = property_of_bytes(properties, b"TIMER_DELIVER_MS")
        due_ms = max(due_ms, int(asked)) if asked is not None and asked.isdigit() else due_ms + 1000
    return due_ms if property_of_bytes(properties, b"TIMER_DEL_UNIQKEY") is None else due_ms + TIMER_RECALL


def entry_tags_code(record: CheckedRecord, delays: DelayLevels) -> int:
    """What the entry of a record read from the log holds: the hash of its tags, or its time of delivery."""
    properties = record.properties
    if record.topic == DELAY_TOPIC:
        due = delays.deliver_time_ms(properties, record.store_timestamp_ms)
        if due is not None:
            return due
    elif record.topic == TIMER_TOPIC:
        due = timer_code(properties)
        if due is not None:
            return due
    tags = property_of_bytes(properties, _TAGS)
    return 0 if tags is None else tags_code(tags.decode("utf-8", "replace"))


MoreQueues = Callable[[bytes], list[tuple[str, int]]]
"""From a record's properties: (topic, offset) of each further queue, all with queue id 0."""


class MissingEntriesError(Exception):
    """A record's queue ends before the record's place in it: entries of earlier records are missing."""


class Dispatcher:
    """Puts records that are read from the log into their queues, once each, in the log's order.

    `fences` maps a deleted topic to the physical offset of the log's end at its deletion.  With `from_start` the log
    is read from its oldest record, so that a queue may begin anywhere.  `more_queues` tells from a record's properties
    which queues besides its own it stands in, and at which offsets.
    """

    def __init__(
        self,
        queues: ConsumeQueues,
        delays: DelayLevels,
        fences: Mapping[str, int],
        *,
        from_start: bool,
        more_queues: MoreQueues | None = None,
    ) -> None:
        self._more_queues = more_queues
        self._queues = queues
        self._delays = delays
        self._fences = fences
        self._from_start = from_start
        self.dispatched = 0
        """Entries made."""

    def dispatch(self, record: CheckedRecord) -> None:
        """Make the record's entry unless it has one, must have none, or is fenced.

        Raises MissingEntriesError when an earlier entry of its queue is missing and was not to be expected.
        """
        if not is_consumable(record.sys_flag):
            return
        self._put(record, record.topic, record.queue_id, record.queue_offset, units=True)
        if self._more_queues is not None:
            for name, offset in self._more_queues(record.properties):
                self._put(record, name, 0, offset)

    def _put(self, record: CheckedRecord, topic: str, queue_id: int, offset: int, *, units: bool = False) -> None:
        if record.physical_offset < self._fences.get(topic, 0):
            return
        queue = self._queues.make(topic, queue_id)
        if offset != queue.next_offset and (self._has_entry(queue, record) or not self._fit(queue, offset)):
            return
        code = entry_tags_code(record, self._delays)
        if units and queue.ext is not None and queue.ext.writes:
            code = queue.ext.put(code, record.store_timestamp_ms, None)  # which filters there were is not known here
        put_entry(self._queues, queue, record.physical_offset, record.size_bytes, code)
        queue.visible = queue.next_offset
        self.dispatched += 1

    def _has_entry(self, queue: ConsumeQueue, record: CheckedRecord) -> bool:
        last = queue.last_record()
        return last is not None and record.physical_offset <= last[0]

    def _fit(self, queue: ConsumeQueue, offset: int) -> bool:
        """Let `queue` go on at a record's offset, which is not its next one; False when the record gets no entry."""
        name, expected = f"{queue.topic}-{queue.queue_id}", queue.next_offset
        if offset > expected:
            if not self._from_start:
                raise MissingEntriesError(name)
            if expected:
                _log.warning(
                    "queue %s goes from offset %d to %d in the log: what was between is gone", name, expected, offset
                )
        elif queue.last_record() is None:  # a crash took the names of its first files, and recovery emptied the others
            if not self._from_start:
                raise MissingEntriesError(name)
        elif offset == 0:
            _log.warning("queue %s begins again in the log: its topic was deleted and made anew", name)
        else:
            _log.warning("queue %s has two records with offset %d: the later one gets no entry", name, offset)
            return False
        self._queues.restart(queue, offset)
        return True


def put_entry(queues: ConsumeQueues, queue: ConsumeQueue, physical_offset: int, size: int, code: int) -> None:
    """Add the entry of the next message of `queue`; it waits in memory and is not yet visible."""
    if not queue.tail:
        queues.unwritten[queue] = None
    queue.tail += ENTRY.pack(physical_offset, size, code)
    queue.next_offset += 1
