"""Timers: messages for any later time wait in the timer queue and are stored under their own topic when it has come.

A message that asks for a time is stored in queue 0 of rmq_sys_wheel_timer, whose entries carry the time of delivery in
the place of the tags code.  So the consume queue, twenty bytes a message and made again from the log after a crash, is
the durable index; in memory a pending message is eight bytes (`deadlines.py`), and of more than a few millions only the
next ones.  One task sleeps until the first is due, and stores what is due many with one write.

Invariants: nothing is delivered before its time by the wall clock, whichever way that is set; the saved progress
never passes what is synced; a delivered copy names the record it was made from, so that a crash repeats none whose copy
survived.  A recalled message is not delivered, from the moment the recall is answered.
Source of names, properties and limits: RocketMQ 5.3.3 TimerMessageStore, HookUtils.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from logging import getLogger

import trio

from trio_rmq.broker import names
from trio_rmq.broker.deadlines import Deadlines
from trio_rmq.broker.deferring import TIMER_QUEUE_ID, delete_key
from trio_rmq.broker.delivered_copies import LOG_BEHIND_MAX_BYTES, copies_since
from trio_rmq.broker.long_polling import HeldPulls
from trio_rmq.broker.timer_messages import delivered, stored_again
from trio_rmq.broker.timer_progress import Progress, TimerProgress
from trio_rmq.clock import wall_ms
from trio_rmq.errors import StoreFailedError
from trio_rmq.limits import TIMERS_IN_MEMORY_MAX
from trio_rmq.store.dispatch import TIMER_RECALL, timer_code
from trio_rmq.store.message_store import MessageStore
from trio_rmq.store.messages import AppendStatus, NewMessage
from trio_rmq.wire import properties as prop
from trio_rmq.wire.properties import property_of_bytes
from trio_rmq.wire.record import StoredMessage

logger = getLogger(__name__)

_SLICE_MESSAGES = 256
_SLICE_BYTES = 512 * 1024
"""Most that is delivered before other tasks get their turn: some 2 ms of work."""

_ENTRIES_A_READ = 2048
_NAP_SECONDS = 60.0
"""Longest sleep while a message waits: the wall clock may be set forward meanwhile."""

_SETTLE_SECONDS = 1.0
"""From a delivery to the saving of progress."""

_HORIZON_MS = 60_000
"""So long before their time messages that were not kept in memory are looked up again."""

_FENCES_MAX = 16
"""Most that are kept, for a clock set back again and again; without the oldest a restart may repeat messages."""

_RECALL_KEPT_MS = 2000
"""A recall is remembered so much longer than its message's time, which Apache's handles give to the second only."""

_ROLLS_A_LIFE = 8
"""Messages are looked through for those to roll so often in the time after which they are."""

_PAUSE_MIN_SECONDS, _PAUSE_MAX_SECONDS = 0.1, 10.0
_CODE_MIN = 1 << 40
"""Entries with a smaller code hold the hash of tags: Apache's broker wrote them.  2**40 ms is a day in 2004."""

_BLOCK_BITS = 16
_KEY = prop.UNIQUE_KEY.encode()
_REAL_TOPIC, _REAL_QUEUE_ID = prop.REAL_TOPIC.encode(), prop.REAL_QUEUE_ID.encode()
_DELETE_KEY, _ROLL_TIMES = prop.TIMER_DEL_UNIQUE_KEY.encode(), prop.TIMER_ROLL_TIMES.encode()
_LASTING = frozenset({AppendStatus.MESSAGE_ILLEGAL, AppendStatus.PROPERTIES_SIZE_EXCEEDED})

Due = tuple[int, int]
"""(time of delivery in ms, queue offset)."""


class Timers:
    """Delivers the timers of one broker; `load` comes first, then `run`.

    `roll_after_ms`: a message whose record is older is stored again, so that its log file may go.  `saved` saves the
    progress and returns when it is on disk.
    """

    def __init__(
        self,
        store: MessageStore,
        held_pulls: HeldPulls,
        *,
        roll_after_ms: int,
        saved: Callable[[], Awaitable[object]],
        in_memory_max: int = TIMERS_IN_MEMORY_MAX,
    ) -> None:
        self._store = store
        self._held_pulls = held_pulls
        self._roll_after_ms = roll_after_ms
        self._saved = saved
        self._in_memory_max = in_memory_max
        self.progress = TimerProgress()
        """What the file has; `load` begins there."""
        self._pending = Deadlines()
        self._horizon_ms: float = math.inf
        """Messages due from then on are not all in memory."""
        self._blocks: Counter[int] = Counter()
        """How many messages wait, by queue offset >> 16, in memory or not."""
        self._queue_offset = 0
        self._delivered_ms = 0
        self._fences: list[tuple[int, int]] = []
        """See `timer_progress`; in falling order of times, all of them later than `_delivered_ms`."""
        self._delivered_before: frozenset[int] = frozenset()
        """Physical offsets of what was delivered before a crash that the progress does not know of."""
        self._recalled: dict[str, int] = {}
        self._recall_swept_ms = 0
        self._rolled: list[Due] = []
        """(time, queue offset) of each roll: messages before the offset that were due later wait elsewhere now."""
        self._next_roll = math.inf
        self._rolled_keys: tuple[int, set[object]] = (0, set())
        self._settle_at = math.inf
        self._pause_seconds = 0.0
        self._wake = trio.Event()

    # -- for handlers and tools ------------------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        """How many messages wait."""
        return self._blocks.total()

    def recall(self, topic: str, unique_key: str, timestamp_ms: int) -> None:
        """Do not deliver this message, whose time is one before `timestamp_ms`; the recall itself is stored."""
        self._recalled[delete_key(topic, unique_key)] = timestamp_ms

    def running_stats(self) -> dict[str, str]:
        """How far timers are, as 5.x's tools read it (BrokerController's runtime info)."""
        behind = self._end() - self._queue_offset
        now_ms = wall_ms()
        first_ms = self._pending.first_due(now_ms)
        late_ms = 0 if first_ms is None else now_ms - first_ms
        return {
            "timerReadBehind": str(late_ms // 1000),
            "timerOffsetBehind": str(behind),
            "timerCongestNum": str(self.pending),
        }

    # -- starting --------------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Find what waits: every message due after what was delivered, or that came after the saved progress."""
        store, saved = self._store, self.progress.now
        end = self._end()
        first = min(max(saved.first_offset, store.min_offset(names.TIMER_TOPIC, TIMER_QUEUE_ID)), end)
        self._queue_offset = min(max(saved.queue_offset, first), end)
        self._delivered_ms = saved.delivered_ms
        self._fences = list(saved.fences)
        if first == end:
            return
        if store.max_physical_offset > saved.log_offset:
            self._delivered_before = await copies_since(store, saved.log_offset, prop.TIMER_DEQUEUE_MS)
            await self._count_delivered(first, end)
        begin, self._queue_offset = self._queue_offset, end
        await self._read_entries(first, begin, saved.delivered_ms + 1)
        await self._read_entries(begin, end, 0)
        self._next_roll = trio.current_time()
        logger.info("%d messages wait for their time", self.pending)

    async def _count_delivered(self, begin: int, end: int) -> None:
        """What was delivered before a crash is so from now on, though the clock was set back: its copies are behind."""
        while self._delivered_before and begin < end and (entries := self._entries(begin, _ENTRIES_A_READ)):
            codes = [code for physical, _, code in entries if physical in self._delivered_before]
            self._delivered_ms = max([self._delivered_ms, *(code for code in codes if code < TIMER_RECALL)])
            begin += len(entries)
            await trio.lowlevel.checkpoint()

    async def _read_entries(self, begin: int, end: int, from_ms: int, *, again: bool = False) -> None:
        """Enter the messages from `begin` to `end` that are due at `from_ms` or later; `again`: counted before."""
        while begin < end:
            entries = self._entries(begin, min(_ENTRIES_A_READ, end - begin))
            if not entries:
                break
            self._enter(begin, entries, from_ms, again=again)
            begin += len(entries)
            if again:
                self._deliver()
            await trio.lowlevel.checkpoint()

    # -- taking in -------------------------------------------------------------------------------------------------

    def _end(self) -> int:
        return self._store.max_offset(names.TIMER_TOPIC, TIMER_QUEUE_ID)

    def _entries(self, offset: int, count: int) -> list[tuple[int, int, int]]:
        return self._store.reader.entries(names.TIMER_TOPIC, TIMER_QUEUE_ID, offset, count)

    def _enter(
        self, offset: int, entries: Sequence[tuple[int, int, int]], from_ms: int, *, again: bool = False
    ) -> None:
        recalls: list[tuple[int, int]] = []
        for physical, size, code in entries:
            if code < _CODE_MIN:
                [record] = self._store.reader.records([(physical, size)])
                code = (None if record is None else timer_code(record.properties)) or 0
                if not code:
                    logger.error("the timer message at offset %d is gone or damaged", offset)
            if code >= TIMER_RECALL:
                if code - TIMER_RECALL + _RECALL_KEPT_MS >= from_ms and not again:
                    recalls.append((physical, size))
            elif (
                code >= max(from_ms, 1)
                and physical not in self._delivered_before
                and not any(offset < before and code <= by_ms for before, by_ms in self._fences)
            ):
                if not again:
                    self._fence(offset, code)
                    self._blocks[offset >> _BLOCK_BITS] += 1
                if code < self._horizon_ms:
                    self._pending.add(code, offset)
            offset += 1
        for record in self._store.reader.records(recalls):
            if record is not None:
                key = record.get_property(prop.TIMER_DEL_UNIQUE_KEY) or ""
                self._recalled[key] = (timer_code(record.properties) or TIMER_RECALL) - TIMER_RECALL + 1
        if len(self._pending) > self._in_memory_max:
            horizon_ms = self._pending.drop_far(self._in_memory_max // 2)
            if horizon_ms is not None:
                self._horizon_ms = min(self._horizon_ms, horizon_ms)

    def _fence(self, offset: int, due_ms: int) -> None:
        """Keep what was delivered before this message came, when it is due before some of that."""
        if due_ms > self._delivered_ms or (self._fences and self._fences[-1][1] == self._delivered_ms):
            return
        self._fences.append((offset, self._delivered_ms))
        if len(self._fences) > _FENCES_MAX:
            del self._fences[0]

    async def _take_in(self) -> None:
        while entries := self._entries(self._queue_offset, _ENTRIES_A_READ):
            self._enter(self._queue_offset, entries, 0)
            self._queue_offset += len(entries)
            if self._next_roll == math.inf:
                self._next_roll = trio.current_time() + self._roll_after_ms / 1000 / _ROLLS_A_LIFE
            if len(entries) == _ENTRIES_A_READ:
                await trio.lowlevel.checkpoint()

    # -- the task --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Deliver for ever; cancelled, it notes how far it is, once that is synced."""
        try:
            while True:
                await self._take_in()
                if await self._work():
                    await trio.lowlevel.checkpoint()
                    continue
                arrival = self._held_pulls.waking(self._wake, names.TIMER_TOPIC, TIMER_QUEUE_ID)
                with trio.move_on_after(self._seconds()), arrival:
                    if self._end() > self._queue_offset:
                        self._wake.set()
                    await self._wake.wait()
                self._wake = trio.Event()
        finally:
            with trio.CancelScope(shield=True):
                await self._settle()

    async def _work(self) -> bool:
        """Deliver a slice of what is due, and do what has its time; True when more is due."""
        now_ms = wall_ms()
        if self._pending.first_due(now_ms) is not None:
            await self._log_not_far_behind()
            refusal = self._deliver()
            if refusal is not None:
                await self._pause(refusal)
            elif self._pause_seconds:
                logger.warning("timers: the store takes messages again")
                self._pause_seconds = 0.0
        if now_ms > self._horizon_ms - _HORIZON_MS or (
            self._horizon_ms < math.inf and len(self._pending) < self._in_memory_max // 8
        ):
            horizon_ms, self._horizon_ms = int(self._horizon_ms), math.inf
            await self._read_entries(self._first(), self._queue_offset, horizon_ms, again=True)
        if trio.current_time() >= self._next_roll:
            await self._roll()
        if trio.current_time() >= self._settle_at:
            await self._settle()
        elif self._position() - self.progress.now.log_offset > LOG_BEHIND_MAX_BYTES and self._settle_at == math.inf:
            self._changed()
        return self._pending.first_due(wall_ms()) is not None

    def _seconds(self) -> float:
        now_ms = wall_ms()
        seconds = min(self._settle_at, self._next_roll) - trio.current_time()
        next_ms = self._pending.next_ms(now_ms)
        if next_ms is not None:
            seconds = min(seconds, (next_ms - now_ms) / 1000, _NAP_SECONDS)
        elif self._horizon_ms < math.inf:
            seconds = min(seconds, _NAP_SECONDS)
        return max(seconds, 0.0)

    async def _pause(self, refusal: str) -> None:
        if not self._pause_seconds:
            logger.error("messages are due and cannot be stored (%s); tried again until they are", refusal)
        self._pause_seconds = min(max(2 * self._pause_seconds, _PAUSE_MIN_SECONDS), _PAUSE_MAX_SECONDS)
        await trio.sleep(self._pause_seconds)

    # -- progress --------------------------------------------------------------------------------------------------

    def _changed(self) -> None:
        if self._settle_at == math.inf:
            self._settle_at = trio.current_time() + _SETTLE_SECONDS

    def _first(self) -> int:
        return min(self._blocks, default=self._queue_offset >> _BLOCK_BITS) << _BLOCK_BITS

    def _position(self) -> int:
        return self._store.max_physical_offset

    async def _settle(self) -> None:
        """Sync, then note how far everything is; a failed store leaves that where it was."""
        self._settle_at = math.inf
        now_ms = wall_ms()
        next_ms = self._pending.next_ms(now_ms)
        delivered_ms = max(self._delivered_ms, now_ms)
        if next_ms is not None:  # also where the clock was set back since: what waits is not delivered
            delivered_ms = min(delivered_ms, next_ms - 1)
        if self._horizon_ms < math.inf:
            delivered_ms = min(delivered_ms, int(self._horizon_ms) - 1)
        first = min(self._first(), self._queue_offset)
        fences = [fence for fence in self._fences if fence[1] > delivered_ms]
        progress = Progress(first, self._queue_offset, delivered_ms, self._position(), tuple(fences))
        if not self._queue_offset or progress == self.progress.now:
            return
        try:
            await self._store.sync()
        except StoreFailedError:
            return
        self._delivered_ms, self._fences = delivered_ms, fences
        self.progress.set(progress)

    async def _log_not_far_behind(self) -> None:
        """Before the first delivery in a while: save where in the log its copy will be looked for after a crash."""
        if self._position() - self.progress.now.log_offset > LOG_BEHIND_MAX_BYTES:
            await self._settle()
            await self._saved()

    # -- delivering ------------------------------------------------------------------------------------------------

    def _deliver(self) -> str | None:
        """Store a slice of what is due; why it must be tried again, or None."""
        now_ms = wall_ms()
        taken = self._pending.take(now_ms, _SLICE_MESSAGES)
        if not taken:
            return None
        messages: list[NewMessage] = []
        dues: list[Due] = []
        total = 0
        done = len(taken)
        for index, (due, record) in enumerate(zip(taken, self._records(taken), strict=True)):
            if total > _SLICE_BYTES:
                done = index
                break
            message = None if self._rolled and self._is_elsewhere(due) else self._message(due, record, now_ms)
            if message is not None:
                messages.append(message)
                dues.append(due)
                total += len(message.body)
        refusal: str | None = None
        refused: list[Due] = []
        for due, message, result in zip(dues, messages, self._store.append(messages, accepted=True), strict=True):
            if result.status in _LASTING:
                logger.error(
                    "the timer message at %d cannot be stored in %s-%d and is left out: %s",
                    due[1], message.topic, message.queue_id, result.remark,
                )  # fmt: skip
            elif result.status is not AppendStatus.PUT_OK:
                refusal = result.remark
                refused.append(due)
        kept = {*refused, *taken[done:]}
        for due in taken:
            if due in kept:
                self._pending.add(*due)
            elif not self._rolled or not self._is_elsewhere(due):
                self._forget(due[1])
        self._changed()
        return refusal

    def _forget(self, offset: int) -> None:
        block = offset >> _BLOCK_BITS
        self._blocks[block] -= 1
        if self._blocks[block] <= 0:
            del self._blocks[block]

    def _records(self, taken: Sequence[Due]) -> list[StoredMessage | None]:
        """The records at these queue offsets, in the order given; neighbours are read together."""
        offsets = sorted({offset for _, offset in taken})
        places: list[tuple[int, int]] = []
        index = 0
        while index < len(offsets):
            run = index + 1
            while run < len(offsets) and offsets[run] - offsets[index] < _SLICE_MESSAGES:
                run += 1
            begin = offsets[index]
            entries = self._entries(begin, offsets[run - 1] - begin + 1)
            entries += [(-1, 0, 0)] * (offsets[run - 1] - begin + 1 - len(entries))
            places += [entries[offset - begin][:2] for offset in offsets[index:run]]
            index = run
        found = dict(zip(offsets, self._store.reader.records(places), strict=True))
        return [found[offset] for _, offset in taken]

    def _is_elsewhere(self, due: Due) -> bool:
        """Whether the message was rolled: a younger record stands for it."""
        at = bisect_right(self._rolled, due[1], key=lambda roll: roll[1])
        return at < len(self._rolled) and due[0] > self._rolled[at][0]

    def _message(self, due: Due, record: StoredMessage | None, now_ms: int) -> NewMessage | None:
        """The message as it is delivered; None when it is recalled, delivered already or cannot be read."""
        if record is None:
            logger.error(
                "the timer message at offset %d is gone or damaged, undelivered: raise fileReservedTime above the "
                "longest delay, or make room on the disk",
                due[1],
            )
            return None
        text = record.properties
        topic, queue_id = property_of_bytes(text, _REAL_TOPIC), property_of_bytes(text, _REAL_QUEUE_ID)
        if topic is None or queue_id is None or not queue_id.isdigit():
            logger.error("the timer message at offset %d does not say where it goes", due[1])
            return None
        name = topic.decode("utf-8", "replace")
        if (_DELETE_KEY in text and property_of_bytes(text, _DELETE_KEY) is not None) or self._was_rolled_and_delivered(
            due, record, name
        ):
            return None
        if self._recalled and self._is_recalled(due, name, property_of_bytes(text, _KEY)):
            return None
        return delivered(record, name, int(queue_id), now_ms)

    def _is_recalled(self, due: Due, topic: str, unique_key: bytes | None) -> bool:
        if due[0] > self._recall_swept_ms + 60_000:
            self._recall_swept_ms = due[0]
            for key in [key for key, at in self._recalled.items() if at + _RECALL_KEPT_MS < due[0]]:
                del self._recalled[key]
        key = delete_key(topic, "" if unique_key is None else unique_key.decode("utf-8", "replace"))
        return abs(self._recalled.get(key, -_RECALL_KEPT_MS) - due[0]) < _RECALL_KEPT_MS

    # -- rolling ---------------------------------------------------------------------------------------------------

    async def _roll(self) -> None:
        """Store again what waits in old records and is not due soon, so that the log's old files may go."""
        self._next_roll = trio.current_time() + self._roll_after_ms / 1000 / _ROLLS_A_LIFE
        now_ms = wall_ms()
        after_ms = now_ms + _HORIZON_MS
        end = self._store.offset_by_time(names.TIMER_TOPIC, TIMER_QUEUE_ID, now_ms - self._roll_after_ms)
        begin = max(self._first(), self._rolled[-1][1] if self._rolled else 0)
        rolled = 0
        while begin < end:
            entries = self._entries(begin, min(_SLICE_MESSAGES, end - begin))
            if not entries:
                break
            dues = [
                (code, begin + index) for index, (_, _, code) in enumerate(entries) if after_ms < code < TIMER_RECALL
            ]
            records = [record for record in self._records(dues) if record is not None]
            if dues and not self._store_again(records):
                break
            rolled += len(dues)
            begin += len(entries)
            for _, offset in dues:
                self._forget(offset)
            self._rolled = [roll for roll in self._rolled if roll[1] < begin] + [(after_ms, begin)]
            self._deliver()
            await trio.lowlevel.checkpoint()
        if rolled:
            logger.info("%d messages that wait for their time were stored again: their records were old", rolled)
            self._changed()
        if not self._blocks:
            self._next_roll = math.inf

    def _store_again(self, records: Iterable[StoredMessage]) -> bool:
        copies = [stored_again(record) for record in records]
        return all(result.status is AppendStatus.PUT_OK for result in self._store.append(copies, accepted=True))

    def _was_rolled_and_delivered(self, due: Due, record: StoredMessage, topic: str) -> bool:
        """Whether a copy of the same message was delivered at the same time: a crash lost which one stands for it."""
        if due[0] - record.store_timestamp_ms < self._roll_after_ms and _ROLL_TIMES not in record.properties:
            return False
        key = property_of_bytes(record.properties, _KEY) or (record.born_timestamp_ms, record.body_crc)
        if self._rolled_keys[0] != due[0]:
            self._rolled_keys = (due[0], set())
        seen = self._rolled_keys[1]
        if (topic, key) in seen:
            return True
        seen.add((topic, key))
        return False
