"""Delayed messages: each waits in a queue of SCHEDULE_TOPIC_XXXX, one queue a delay level, until its time has come.

A message sent with a delay level is stored in its level's queue, whose entries carry the time of delivery in the place
of the tags code.  One task a level, begun with the level's first message, sleeps until the next is due and then stores
everything that is due under its real topic again, many with one write.

Invariants: a level keeps its order; no message is delivered before the time in its entry, nor, when the clock was set
back since, before its whole delay has passed once more; the offsets on disk (config/delayOffset.json) never pass a
message whose delivered copy is not synced, so that a crash loses none; a delivered copy names the record it was made
from, so that it repeats none whose copy survived it.
Source: RocketMQ ScheduleMessageService (4.9).
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from logging import getLogger

import trio

from trio_rmq.broker import names
from trio_rmq.broker.delivered_copies import LOG_BEHIND_MAX_BYTES, copies_since
from trio_rmq.broker.long_polling import HeldPulls
from trio_rmq.clock import wall_ms
from trio_rmq.errors import StoreFailedError
from trio_rmq.store.message_store import MessageStore
from trio_rmq.store.messages import AppendStatus, NewMessage
from trio_rmq.store.multi_dispatch import is_marked
from trio_rmq.wire import properties as prop
from trio_rmq.wire.groups import DelayOffsets, decode_delay_offsets, encode_delay_offsets
from trio_rmq.wire.hashing import tags_code
from trio_rmq.wire.properties import property_of_bytes
from trio_rmq.wire.record import StoredMessage

_log = getLogger(__name__)

_SLICE_MESSAGES = 128
_SLICE_BYTES = 512 * 1024
"""Most that is delivered before other tasks get their turn: some 2 ms of work."""

_NAP_SECONDS = 30.0
"""Longest sleep while a message waits: the clock may be set forward meanwhile, or the machine be suspended."""

_OFFSETS_SECONDS_MAX = 1.0
"""Longest time from a delivery to the saving of offsets begins; flushDelayOffsetInterval may shorten it."""

_PAUSE_MIN_SECONDS, _PAUSE_MAX_SECONDS = 0.1, 10.0
"""From the first to the longest pause before a refused delivery is tried again."""

_REAL_TOPIC = prop.REAL_TOPIC.encode()
_REAL_QUEUE_ID = prop.REAL_QUEUE_ID.encode()
_TAGS = prop.TAGS.encode()
_LASTING = frozenset({AppendStatus.MESSAGE_ILLEGAL, AppendStatus.PROPERTIES_SIZE_EXCEEDED})
"""Refusals that no waiting mends."""


def delayed_properties(text: str, level: int, topic: str, queue_id: int) -> str:
    """The properties with which a message for this queue waits in the queue of delay level `level`."""
    text = prop.with_property(text, prop.DELAY, str(level))
    text = prop.with_property(text, prop.REAL_TOPIC, topic)
    return prop.with_property(text, prop.REAL_QUEUE_ID, str(queue_id))


class DelayOffsetTable:
    """Which message of each level is to be delivered next, as config/delayOffset.json has it."""

    def __init__(self) -> None:
        self.offsets: dict[int, int] = {}
        """Level to queue offset: every message before it has a synced delivered copy."""
        self.log_offset: int | None = None
        """Those copies stand before it in the log, all others from there on; None: unknown, Apache wrote the file."""
        self.unsaved = False
        """Whether the table differs from what was last encoded for its file."""

    def encode(self, *, pretty: bool = True) -> bytes:
        """The content of delayOffset.json; with `pretty` as the file has it, and the table then counts as saved."""
        if pretty:
            self.unsaved = False
        log_offset = self.log_offset if pretty else None
        return encode_delay_offsets(DelayOffsets(offset_table=self.offsets, log_offset=log_offset), pretty=pretty)

    def load(self, content: bytes) -> None:
        """Take the content of delayOffset.json, of 4.9 or 5.x; ProtocolError when it is none."""
        loaded = decode_delay_offsets(content)
        self.offsets, self.log_offset = dict(loaded.offset_table), loaded.log_offset


@dataclass(slots=True, eq=False)
class _Level:
    """Where one level stands; `delay_ms` is None for one that messageDelayLevel no longer has."""

    number: int
    delay_ms: int | None
    next_offset: int = 0
    capped_before: int = 0
    capped_until: float = math.inf
    pause_seconds: float = 0.0

    @property
    def queue_id(self) -> int:
        return self.number - 1

    def remaining_ms(self, offset: int, due_ms: int, now_ms: int) -> float:
        """How long the message at `offset` has to wait; not more than 0 when it is due."""
        remaining: float = due_ms - now_ms
        if remaining > 0 and offset < self.capped_before:
            remaining = min(remaining, (self.capped_until - trio.current_time()) * 1000)
        return remaining


class DelayService:
    """Delivers the delayed messages of one broker.

    `delays_ms` is the delay of each level, from level 1 on; `interval_seconds` bounds how late offsets are saved,
    `save_soon` asks for it, and `saved` waits for it.
    """

    def __init__(
        self,
        store: MessageStore,
        held_pulls: HeldPulls,
        *,
        delays_ms: list[int],
        interval_seconds: float,
        save_soon: Callable[[], None],
        saved: Callable[[], Awaitable[object]],
    ) -> None:
        self._store = store
        self._held_pulls = held_pulls
        self._delays_ms = delays_ms
        self._interval_seconds = min(interval_seconds, _OFFSETS_SECONDS_MAX)
        self._levels: list[_Level] = []
        self._save_soon = save_soon
        self._saved = saved
        self._copied_before: frozenset[int] = frozenset()
        """Physical offsets of what was delivered before a crash that the table does not know of."""
        self._turn = trio.Lock()
        self._delivered = trio.Event()
        self._is_marked = is_marked if store.dispatches_to_many else _never
        self.table = DelayOffsetTable()
        """The offsets as they are saved; `run` begins there, and raises them as deliveries are synced."""

    def running_stats(self) -> dict[str, str]:
        """`scheduleMessageOffset_<level>`: next offset and end of each level that delivered, as tools read them."""
        offsets = {**self.table.offsets, **{level.number: level.next_offset for level in self._levels}}
        return {
            f"scheduleMessageOffset_{level}": f"{offset},{self._store.max_offset(names.SCHEDULE_TOPIC, level - 1)}"
            for level, offset in offsets.items()
            if offset or level in self.table.offsets
        }

    async def run(self) -> None:
        """Deliver for ever; cancelled, it notes in the table what was delivered, once that is synced."""
        self._levels = self._find_levels()
        log_offset = self.table.log_offset
        if log_offset is not None and self._store.max_physical_offset > log_offset:
            self._copied_before = await copies_since(self._store, log_offset, prop.DELAY)
            for level in self._levels:
                self._pass_copied(level)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_offsets)
                await self._begin_levels(nursery)
        finally:
            with trio.CancelScope(shield=True):
                await self._settle()

    # -- offsets --------------------------------------------------------------------------------------------------

    def _find_levels(self) -> list[_Level]:
        """The configured levels, and those that only the store has, each where the table says, inside its queue."""
        store, known = self._store, len(self._delays_ms)
        stored = {queue_id + 1 for topic, queue_id in store.queues() if topic == names.SCHEDULE_TOPIC}
        levels = []
        for number in sorted({*range(1, known + 1), *stored}):
            level = _Level(number, self._delays_ms[number - 1] if number <= known else None)
            saved = self.table.offsets.get(number, 0)
            first = store.min_offset(names.SCHEDULE_TOPIC, level.queue_id)
            end = store.max_offset(names.SCHEDULE_TOPIC, level.queue_id)
            level.next_offset = min(max(saved, first), end)
            if level.next_offset != saved and number in self.table.offsets:
                _log.warning(
                    "delay level %d goes on at %d: delayOffset.json says %d, and its queue has %d to %d",
                    number, level.next_offset, saved, first, end,
                )  # fmt: skip
            if number > known and level.next_offset < end:
                _log.warning(
                    "%d messages wait in delay level %d, but messageDelayLevel has %d levels: they keep their times",
                    end - level.next_offset, number, known,
                )  # fmt: skip
            levels.append(level)
        return levels

    def _pass_copied(self, level: _Level) -> None:
        """Go on behind what was delivered before a crash, now: the saved offsets soon let nobody find its copies.

        It may not be due again for long, where the clock was set back.  What a level delivered is a run from its next
        offset on, but for the few that were left out for good.
        """
        while True:
            places = self._store.reader.entries(
                names.SCHEDULE_TOPIC, level.queue_id, level.next_offset, _SLICE_MESSAGES
            )
            copied = [at for at, (physical, _, _) in enumerate(places, 1) if physical in self._copied_before]
            if not copied:
                return
            self._go_on_at(level, level.next_offset + copied[-1])

    async def _keep_offsets(self) -> None:
        """Some time after a delivery, note it; the table's file follows."""
        while True:
            await self._delivered.wait()
            await trio.sleep(self._interval_seconds)
            self._delivered = trio.Event()
            await self._settle()
            self._save_soon()

    async def _settle(self, *, log: bool = False) -> None:
        """Sync what was delivered up to now, then put it into the table; a failed store leaves the table behind.

        With nothing delivered since, only where the log is goes into the table, and only where `log` asks for it.
        """
        offsets = {level.number: level.next_offset for level in self._levels if level.next_offset}
        log_offset = self._store.max_physical_offset
        if offsets.items() <= self.table.offsets.items() and not log:
            return
        try:
            await self._store.sync()
        except StoreFailedError:
            return
        self.table.offsets.update(offsets)
        self.table.log_offset = log_offset
        self.table.unsaved = True

    async def _log_not_far_behind(self) -> None:
        """Before the first delivery in a while: save where in the log its copy will be looked for after a crash."""
        saved = self.table.log_offset
        if saved is None or self._store.max_physical_offset - saved > LOG_BEHIND_MAX_BYTES:
            await self._settle(log=True)
            await self._saved()

    # -- one level ------------------------------------------------------------------------------------------------

    async def _begin_levels(self, nursery: trio.Nursery) -> None:
        """Begin each level's task once a message waits in its queue; most levels of most brokers never have one."""
        unused = {level.queue_id: level for level in self._levels}
        while unused:
            for queue_id, level in list(unused.items()):
                if self._store.max_offset(names.SCHEDULE_TOPIC, queue_id) > level.next_offset:
                    del unused[queue_id]
                    nursery.start_soon(self._serve_level, level)
            if unused:
                await self._held_pulls.wait_message(names.SCHEDULE_TOPIC, *unused)

    async def _serve_level(self, level: _Level) -> None:
        while True:
            seconds = self._seconds_until_due(level)
            if seconds is None:
                await self._held_pulls.wait_message(names.SCHEDULE_TOPIC, level.queue_id)
            elif seconds > 0:
                await trio.sleep(min(seconds, _NAP_SECONDS))
            else:
                async with self._turn:  # one slice at a time, however many levels have something due
                    await self._log_not_far_behind()
                    refusal = self._deliver(level)
                if refusal is not None:
                    await self._pause(level, refusal)
                elif level.pause_seconds:
                    _log.warning("delay level %d: the store takes messages again", level.number)
                    level.pause_seconds = 0.0

    async def _pause(self, level: _Level, refusal: str) -> None:
        if not level.pause_seconds:
            _log.error(
                "delay level %d: the message at %d is due and cannot be stored (%s); it is tried again until it is",
                level.number, level.next_offset, refusal,
            )  # fmt: skip
        level.pause_seconds = min(max(2 * level.pause_seconds, _PAUSE_MIN_SECONDS), _PAUSE_MAX_SECONDS)
        await trio.sleep(level.pause_seconds)

    def _seconds_until_due(self, level: _Level) -> float | None:
        """When the level's next message is due, from now; not more than 0 when it is; None when there is none."""
        store, queue_id = self._store, level.queue_id
        first = store.min_offset(names.SCHEDULE_TOPIC, queue_id)
        if level.next_offset < first:
            _log.error(
                "delay level %d: the messages from %d to %d went with old log files, undelivered: "
                "raise fileReservedTime above the longest delay, or make room",
                level.number, level.next_offset, first - 1,
            )  # fmt: skip
            self._go_on_at(level, first)
        entries = store.reader.entries(names.SCHEDULE_TOPIC, queue_id, level.next_offset, 1)
        if not entries:
            if level.next_offset >= store.max_offset(names.SCHEDULE_TOPIC, queue_id):
                return None
            after = store.get_messages(names.SCHEDULE_TOPIC, queue_id, level.next_offset, max_count=1).next_begin_offset
            _log.error("delay level %d: its queue cannot be read from %d on", level.number, level.next_offset)
            self._go_on_at(level, max(after, level.next_offset + 1))
            return 0.0
        due_ms, now_ms = entries[0][2], wall_ms()
        remaining = level.remaining_ms(level.next_offset, due_ms, now_ms)
        if level.delay_ms is not None and remaining > level.delay_ms:
            # Stored in the future: the clock was set back since, or the level's delay made shorter.
            _log.warning(
                "delay level %d: the message at %d would wait %.0f ms, more than the level's delay: the clock was set "
                "back or messageDelayLevel changed; all that wait now wait %d ms at most",
                level.number, level.next_offset, remaining, level.delay_ms,
            )  # fmt: skip
            level.capped_before = store.max_offset(names.SCHEDULE_TOPIC, queue_id)
            level.capped_until = trio.current_time() + level.delay_ms / 1000
            remaining = level.delay_ms
        return remaining / 1000

    def _deliver(self, level: _Level) -> str | None:
        """Store a slice of what is due; why it must be tried again, or None."""
        places: list[tuple[int, int]] = []
        total, now_ms = 0, wall_ms()
        offset = level.next_offset
        for physical, size, due_ms in self._store.reader.entries(
            names.SCHEDULE_TOPIC, level.queue_id, offset, _SLICE_MESSAGES
        ):
            if due_ms > now_ms and level.remaining_ms(offset, due_ms, now_ms) > 0:
                break
            if places and total + size > _SLICE_BYTES:
                break
            places.append((physical, size))
            total += size
            offset += 1
        messages: list[NewMessage] = []
        offsets: list[int] = []
        end = level.next_offset
        for (physical, _), record in zip(places, self._store.reader.records(places), strict=True):
            message = None if physical in self._copied_before else self._restored(level, physical, record)
            if message is not None:
                messages.append(message)
                offsets.append(end)
            end += 1
            if message is not None and self._is_marked(message.properties):
                break  # it may be refused alone, and what follows it must not overtake it
        for at, message, result in zip(offsets, messages, self._store.append(messages, accepted=True), strict=True):
            if result.status in _LASTING:
                _log.error(
                    "delay level %d: the message at %d cannot be stored in %s-%d and is left out: %s",
                    level.number, at, message.topic, message.queue_id, result.remark,
                )  # fmt: skip
            elif result.status is not AppendStatus.PUT_OK:
                self._go_on_at(level, at)
                return result.remark
        self._go_on_at(level, end)
        return None

    def _go_on_at(self, level: _Level, offset: int) -> None:
        level.next_offset = offset
        self._delivered.set()

    def _restored(self, level: _Level, physical_offset: int, record: StoredMessage | None) -> NewMessage | None:
        """The message as it was sent, its properties as stored (RocketMQ leaves DELAY and REAL_* in them, too).

        Its prepared offset names the record it comes from.
        """
        if record is None:
            _log.error("delay level %d: the record at %d is gone or damaged", level.number, physical_offset)
            return None
        text = record.properties
        topic = property_of_bytes(text, _REAL_TOPIC)
        queue_id = property_of_bytes(text, _REAL_QUEUE_ID)
        if topic is None or queue_id is None or not queue_id.isdigit() or topic == names.HALF_TOPIC.encode():
            _log.error("delay level %d: the record at %d does not say where it goes", level.number, physical_offset)
            return None
        tags = property_of_bytes(text, _TAGS)
        return NewMessage(
            topic.decode("utf-8", "replace"),
            int(queue_id),
            record.body,
            text,
            record.flag,
            record.sys_flag,
            record.born_timestamp_ms,
            record.born_host,
            record.reconsume_times,
            physical_offset,
            0 if tags is None else tags_code(tags.decode("utf-8", "replace")),
            False,
        )


def _never(properties: str | bytes) -> bool:
    return False
