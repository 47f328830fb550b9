"""Transactions: half messages that wait for their end, and the questions to producers that never sent it.

A half message is stored out of sight; its producer's END_TRANSACTION stores the message under its real topic, or not,
and then an op message that says: this half message counts no more.  What stays open past its immunity is asked about:
a copy with one check more takes its place, and a live producer of the group is asked over its own connection.

One task does all of that by deadlines and sleeps while nothing is open.  Half messages are looked at a second after
they came, when most have ended, so one that ends in time costs nothing here but a bit.

Invariants: a half message is never dropped before the record that takes its place - a committed message, a copy, a
parked one - is written; a transaction is committed at most once, also when the process dies between that and its op
message; the progress that is saved never passes what is synced.  A check counts only when somebody was asked.
Source: RocketMQ TransactionalMessageServiceImpl, TransactionalMessageCheckService.
"""

from __future__ import annotations

import logging
import math
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import trio

from trio_rmq.broker import half_messages, names
from trio_rmq.broker.deadlines import Deadlines
from trio_rmq.broker.half_messages import HalfMessage
from trio_rmq.broker.half_queue import HalfQueue
from trio_rmq.broker.long_polling import HeldPulls
from trio_rmq.broker.members import Members
from trio_rmq.broker.offsets import ConsumerOffsetTable
from trio_rmq.broker.topics import TopicTable
from trio_rmq.broker.transaction_asking import Asking, ask, is_reading, say_parked
from trio_rmq.clock import wall_ms
from trio_rmq.config import BrokerConfig
from trio_rmq.errors import StoreFailedError
from trio_rmq.remoting.session import Session
from trio_rmq.store.message_store import MessageStore
from trio_rmq.store.messages import AppendResult, AppendStatus, NewMessage
from trio_rmq.wire.ids import Host
from trio_rmq.wire.sysflag import TRANSACTION_COMMIT, TRANSACTION_MASK

logger = logging.getLogger(__name__)

_SLICE = 64
"""Half messages read, asked about or carried forward before other tasks get their turn."""

_YOUNG_SECONDS = 1.0
"""A half message is looked at when it is this old: most have ended by then."""

_SETTLE_SECONDS = 5.0
"""From a change to the saving of progress (RocketMQ: flushConsumerOffsetInterval's default)."""

_NAP_SECONDS = 30.0
"""Longest sleep while a half message is open: the wall clock may be set meanwhile."""

_BUSY_MS = 100
"""Until a producer that has not read what it was asked is asked more."""

_REFUSED_MS = 1000
"""Until a copy that the store refused is tried again."""

_SPAN_MAX = 4_000_000
"""From the lowest open half message to the end: beyond, the lowest are carried forward.  Half a megabyte of bits."""

_OPS_A_READ = 256
_OK = AppendStatus.PUT_OK


class Transactions:
    """The open transactions of one broker.  `load` comes before anything else, then `run` for as long as it serves.

    `reserved_ms` is how long the log keeps a record; `scheduled` makes of a committed message what is stored for it,
    should it ask to be delivered later.
    """

    def __init__(
        self,
        config: BrokerConfig,
        store: MessageStore,
        topics: TopicTable,
        offsets: ConsumerOffsetTable,
        members: Members,
        held_pulls: HeldPulls,
        *,
        store_host: Host,
        reserved_ms: int,
        scheduled: Callable[[NewMessage], NewMessage],
    ) -> None:
        self._config = config
        self._store = store
        self._topics = topics
        self._offsets = offsets
        self._held_pulls = held_pulls
        self._store_host = store_host
        self._reserved_ms = reserved_ms
        self._scheduled = scheduled
        self._half = HalfQueue(0, 0)
        self._deadlines = Deadlines()
        self._seen = 0
        """Half messages before this offset have been looked at."""
        self._ages: deque[tuple[float, int]] = deque()
        """(time, end of the half queue then), for those not yet looked at."""
        self._unasked: dict[str, array[int]] = {}
        """Offsets of half messages that nobody could be asked about, by producer group."""
        self._appeared: list[str] = []
        self._owed: list[int] = []
        """Offsets whose op message the store refused."""
        self._settle_at = math.inf
        self._settled = (-1, -1)
        self._wake = trio.Event()
        self._asking = Asking(members)
        members.on_producer_group = self._producer_group_appeared

    # -- what producers end ---------------------------------------------------------------------------------------

    def make_topics(self) -> None:
        """See to it that the topics of half and op messages exist."""
        for topic in (names.HALF_TOPIC, names.OP_HALF_TOPIC):
            if self._topics.get(topic) is None:
                self._topics.create_internal(topic, 1)

    def find_many(self, places: Sequence[tuple[int, int]]) -> list[HalfMessage | None]:
        """`find` for each (queue offset, physical offset); those of neighbours are read together."""
        first = min([offset for offset, _ in places])
        count = max([offset for offset, _ in places]) - first + 1
        if len(places) == 1 or count > 4 * len(places):
            return [self.find(*place) for place in places]
        reader = self._store.reader
        entries = reader.entries(names.HALF_TOPIC, half_messages.QUEUE_ID, first, count)
        wanted = sorted({offset for offset, _ in places if offset - first < len(entries)})
        records = reader.records([entries[offset - first][:2] for offset in wanted])
        by_offset = dict(zip(wanted, records, strict=True))
        found: list[HalfMessage | None] = []
        for offset, physical in places:
            record = by_offset.get(offset)
            if record is not None and record.physical_offset == physical:
                found.append(half_messages.read_half(record))
            else:
                found.append(self.find(offset, physical))
        return found

    def find(self, queue_offset: int, physical_offset: int) -> HalfMessage | None:
        """The half message whose record begins at `physical_offset`; fast where it also is at `queue_offset`."""
        reader = self._store.reader
        for physical, size, _ in reader.entries(names.HALF_TOPIC, half_messages.QUEUE_ID, queue_offset, 1):
            if physical == physical_offset:
                [record] = reader.records([(physical, size)])
                return None if record is None else half_messages.read_half(record)
        record = reader.message_at(physical_offset)
        return None if record is None else half_messages.read_half(record)

    def place_of(self, half: HalfMessage) -> int | None:
        """Where the transaction of this half message is open now; None when it has ended."""
        if half.offset >= self._store.max_offset(names.HALF_TOPIC, half_messages.QUEUE_ID):
            return None
        return self._half.place_of(half.origin, half.offset)

    def immunity_ms(self, half: HalfMessage) -> int:
        """How long after it was stored nobody asks about it."""
        return self._config.transaction_time_out if half.immunity_ms is None else half.immunity_ms

    def committed(self, half: HalfMessage) -> NewMessage:
        """What a commit stores; RequestError when the message asks for a time that it may not."""
        return self._scheduled(half_messages.committed(half))

    def end(
        self, commits: Sequence[tuple[HalfMessage, NewMessage]], rollbacks: Sequence[HalfMessage]
    ) -> list[AppendResult]:
        """End open transactions, each named once, the commits with what they store; the results of the commits.

        Written on return.  A commit that the store refuses leaves its transaction open.
        """
        results = self._store.append([message for _, message in commits], accepted=True)
        ended = [half for (half, _), result in zip(commits, results, strict=True) if result.status is _OK]
        ended += rollbacks
        self._write_ops([self._close(half) for half in ended])
        return results

    def _close(self, half: HalfMessage) -> int:
        place = self._half.place_of(half.origin, half.offset)
        if place is None:
            place = half.offset
        self._half.end(place, half.origin)
        return place

    def _write_ops(self, offsets: Sequence[int]) -> None:
        """Store the op messages of half messages that count no more; those that are refused are tried again."""
        if not offsets:
            return
        now_ms, host = wall_ms(), self._store_host
        results = self._store.append([half_messages.op_message(offset, host, now_ms) for offset in offsets])
        refused = [offset for offset, result in zip(offsets, results, strict=True) if result.status is not _OK]
        if refused and not self._owed:
            logger.error("op messages of ended transactions cannot be stored now (%s); tried again", results[-1].remark)
        self._owed += refused
        self._changed()

    def _changed(self) -> None:
        if self._settle_at == math.inf:
            self._settle_at = trio.current_time() + _SETTLE_SECONDS
            self._wake.set()

    def _producer_group_appeared(self, group: str) -> None:
        if group in self._unasked:
            self._appeared.append(group)
            self._wake.set()

    # -- starting -------------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Find what is open; ends what a crash left committed, parked or copied without its op message."""
        store, queue_id = self._store, half_messages.QUEUE_ID
        base = self._saved(names.HALF_TOPIC)
        op = self._saved(names.OP_HALF_TOPIC)
        self._half = HalfQueue(base, op)
        end = store.max_offset(names.HALF_TOPIC, queue_id)
        last_op = -1
        while True:
            entries = store.reader.entries(names.OP_HALF_TOPIC, queue_id, op, _OPS_A_READ)
            if not entries:
                break
            for record in store.reader.records([(physical, size) for physical, size, _ in entries]):
                if record is None:
                    logger.error("an op message near offset %d is gone or damaged: producers may be asked again", op)
                    continue
                for offset in half_messages.named_by_op(record):
                    if offset < end:
                        self._half.end_place(offset)
            last_op = entries[-1][0]
            op += len(entries)
            await trio.lowlevel.checkpoint()
        found = self._half.open_from_base(end, 1)
        if found:
            replaced = await self._replaced(max(last_op, self._physical(found[0])))
            offset = found[0]
            while offset < end:
                offset = self._look(offset, min(offset + _SLICE, end), replaced)
                await trio.lowlevel.checkpoint()
        self._seen = end
        self._half.sample(op, end)
        if found:
            logger.info("%d half messages are open, from offset %d on", len(self._deadlines), self._half.base)

    def _saved(self, topic: str) -> int:
        store, queue_id = self._store, half_messages.QUEUE_ID
        first, end = store.min_offset(topic, queue_id), store.max_offset(topic, queue_id)
        saved = self._offsets.query(names.TRANSACTION_GROUP, topic, queue_id)
        if saved is not None and saved < first:
            logger.error("%s: offsets %d to %d went with old log files", topic, saved, first - 1)
        return first if saved is None else min(max(saved, first), end)

    def _physical(self, offset: int) -> int:
        entries = self._store.reader.entries(names.HALF_TOPIC, half_messages.QUEUE_ID, offset, 1)
        return entries[0][0] if entries else -1

    async def _replaced(self, begin: int) -> frozenset[int]:
        """Physical offsets of half messages that a record from `begin` on took the place of; `begin` is a record's.

        It is the last op message, or the first open half message: only a process that died leaves such, since between
        a commit and its op message nothing else is stored.
        """
        recovered = self._store.recovered
        if recovered is None or recovered.clean:
            return frozenset()
        found: set[int] = set()
        for count, record in enumerate(self._store.reader.records_from(begin)):
            if record.sys_flag & TRANSACTION_MASK == TRANSACTION_COMMIT or record.topic == names.CHECK_MAX_TIME_TOPIC:
                found.add(record.prepared_transaction_offset)
            if count % 2000 == 0:
                await trio.lowlevel.checkpoint()
        return frozenset(found)

    # -- looking at half messages ---------------------------------------------------------------------------------

    def _look(self, begin: int, end: int, replaced: frozenset[int] = frozenset()) -> int:
        """Enter the deadlines of the open half messages from `begin` to `end`; returns `end`."""
        is_ended = self._half.is_ended
        offsets = [offset for offset in range(begin, end) if not is_ended(offset)]
        stale: list[int] = []
        for half in self._read(offsets):
            if half.record.physical_offset in replaced or (
                half.origin != half.offset and not half.check_times and not half.carried and is_ended(half.origin)
            ):  # the second: 5.x ends an immune copy by an op message that names the first record
                self._half.end(half.offset, half.origin)
                stale.append(half.offset)
                continue
            older = self._half.found(half.origin, half.offset)
            if older is not None:
                self._half.end_place(older)
                stale.append(older)
                if older == half.offset:
                    continue
            self._deadlines.add(self._due_ms(half), half.offset)
        self._write_ops(stale)
        return end

    def _due_ms(self, half: HalfMessage) -> int:
        """When to look at it; not later than its whole wait from now: a clock set back leaves store times ahead."""
        now_ms = wall_ms()
        if half.check_times:
            wait_ms = self._config.transaction_check_interval
            return min(half.record.store_timestamp_ms, now_ms) + wait_ms
        due_ms = min(half.stored_ms, now_ms) + self.immunity_ms(half)
        return min(due_ms, half.record.store_timestamp_ms + self._reserved_ms * 3 // 4)

    def _read(self, offsets: Sequence[int]) -> list[HalfMessage]:
        """The half messages at these offsets; one that cannot be read is said and counts no more."""
        reader = self._store.reader
        places: list[tuple[int, int]] = []
        index = 0
        while index < len(offsets):  # neighbours' entries come with one read
            run = index + 1
            while run < len(offsets) and offsets[run] == offsets[run - 1] + 1:
                run += 1
            entries = reader.entries(names.HALF_TOPIC, half_messages.QUEUE_ID, offsets[index], run - index)
            places += [(physical, size) for physical, size, _ in entries]
            places += [(-1, 0)] * (run - index - len(entries))
            index = run
        halves = []
        for offset, record in zip(offsets, reader.records(places), strict=True):
            half = None if record is None else half_messages.read_half(record)
            if half is None:
                logger.error("the half message at offset %d is gone or damaged: its transaction cannot end", offset)
                self._half.end_place(offset)
            else:
                halves.append(half)
        return halves

    # -- the task -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Ask back for ever; cancelled, it notes how far it is, once that is synced."""
        try:
            while True:
                seconds = await self._work()
                with (
                    trio.move_on_after(min(seconds, _NAP_SECONDS) if len(self._deadlines) else seconds),
                    nullcontext() if self._ages else self._woken_by_arrivals(),
                ):
                    await self._wake.wait()
                self._wake = trio.Event()
        finally:
            with trio.CancelScope(shield=True):
                await self._settle()

    def _woken_by_arrivals(self) -> AbstractContextManager[None]:
        if self._store.max_offset(names.HALF_TOPIC, half_messages.QUEUE_ID) > self._seen:
            self._wake.set()
        return self._held_pulls.waking(self._wake, names.HALF_TOPIC, half_messages.QUEUE_ID)

    async def _work(self) -> float:
        """Do what is due; returns the seconds until more is."""
        now = trio.current_time()
        self._sample(now)
        while self._ages and self._ages[0][0] + _YOUNG_SECONDS <= now:
            _, end = self._ages.popleft()
            while self._seen < end:
                self._seen = self._look(
                    max(self._seen, self._half.base), min(max(self._seen, self._half.base) + _SLICE, end)
                )
                await trio.lowlevel.checkpoint()
        for group in self._appeared:
            for offset in self._unasked.pop(group, ()):
                self._deadlines.add(0, offset)
        self._appeared.clear()
        if self._owed:
            owed, self._owed = self._owed, []
            self._write_ops(owed)
        while (taken := self._deadlines.take(wall_ms(), _SLICE)) and await self._check(taken):
            pass
        if self._seen - self._half.base > _SPAN_MAX:
            await self._replace([], [], self._read(self._half.open_from_base(self._seen, _SLICE)))
        if self._settle_at <= trio.current_time():
            await self._settle()
        return self._seconds()

    def _sample(self, now: float) -> None:
        """Note that the half messages up to the queue's end, and the op messages up to theirs, are as old as this."""
        end = self._store.max_offset(names.HALF_TOPIC, half_messages.QUEUE_ID)
        if end > (self._ages[-1][1] if self._ages else self._seen):
            self._ages.append((now, end))
        self._half.sample(self._store.max_offset(names.OP_HALF_TOPIC, half_messages.QUEUE_ID), end)

    def _seconds(self) -> float:
        now, now_ms = trio.current_time(), wall_ms()
        seconds = self._settle_at - now
        if self._ages:
            seconds = min(seconds, self._ages[0][0] + _YOUNG_SECONDS - now)
        next_ms = self._deadlines.next_ms(now_ms)
        if next_ms is not None:
            seconds = min(seconds, (next_ms - now_ms) / 1000)
        if self._owed:
            seconds = min(seconds, _REFUSED_MS / 1000)
        return max(seconds, 0.0)

    async def _settle(self) -> None:
        """Sync, then save how far both queues are done with; a failed store leaves that where it was."""
        self._settle_at = math.inf
        progress = (self._half.base, self._half.op_base)
        if progress == self._settled:
            return
        try:
            await self._store.sync()
        except StoreFailedError:
            return
        self._settled = progress
        for topic, offset in zip((names.HALF_TOPIC, names.OP_HALF_TOPIC), progress, strict=True):
            if offset:
                self._offsets.commit(names.TRANSACTION_GROUP, topic, half_messages.QUEUE_ID, offset)

    # -- asking back ----------------------------------------------------------------------------------------------

    async def _check(self, taken: Sequence[tuple[int, int]]) -> bool:
        """Ask about, park or carry forward those of `taken` that are open; False when it is better to pause."""
        offsets = sorted({offset for _, offset in taken if not self._half.is_ended(offset)})
        now_ms = wall_ms()
        asked: list[tuple[HalfMessage, Session]] = []
        parked: list[HalfMessage] = []
        carried: list[HalfMessage] = []
        goes_on = True
        for half in self._read(offsets):
            age_ms = now_ms - half.record.store_timestamp_ms
            if half.check_times >= self._config.transaction_check_max or age_ms >= self._reserved_ms:
                parked.append(half)
            elif not half.check_times and half.stored_ms <= now_ms < half.stored_ms + self.immunity_ms(half):
                carried.append(half)
            elif (session := self._asking.producer(half.group)) is None:
                self._wait_for_producer(half)
            elif not is_reading(session):
                self._deadlines.add(now_ms + _BUSY_MS, half.offset)
                goes_on = False
            else:
                asked.append((half, session))
        stored = await self._replace(asked, parked, carried)
        return goes_on and stored

    def _wait_for_producer(self, half: HalfMessage) -> None:
        waiting = self._unasked.get(half.group)
        if waiting is None:
            logger.warning(
                "producer group %r has open transactions (%s to %s) and no connected producer to ask",
                half.group, half.unique_key, half.topic,
            )  # fmt: skip
            waiting = self._unasked[half.group] = array("q")
        waiting.append(half.offset)
        self._deadlines.add(half.record.store_timestamp_ms + self._reserved_ms, half.offset)

    async def _replace(
        self, asked: list[tuple[HalfMessage, Session]], parked: list[HalfMessage], carried: list[HalfMessage]
    ) -> bool:
        """Store what takes the place of these half messages, then ask; False when the store refused some of it."""
        halves = [*parked, *carried, *(half for half, _ in asked)]
        if not halves:
            return True
        if parked and self._topics.get(names.CHECK_MAX_TIME_TOPIC) is None:
            self._topics.create_internal(names.CHECK_MAX_TIME_TOPIC, 1)
        messages = [half_messages.parked(half) for half in parked]
        messages += [half_messages.carried_forward(half) for half in carried]
        messages += [half_messages.asked_again(half) for half, _ in asked]
        results = self._store.append(messages, accepted=True)
        placed: dict[int, AppendResult] = {}
        ended = []
        for index, (half, result) in enumerate(zip(halves, results, strict=True)):
            if result.status is not _OK:
                self._deadlines.add(wall_ms() + _REFUSED_MS, half.offset)
                continue
            placed[half.offset] = result
            if index < len(parked):
                say_parked(half)
                self._half.end(half.offset, half.origin)
            else:
                self._half.move(half.origin, half.offset, result.queue_offset)
            ended.append(half.offset)
        self._write_ops(ended)
        if len(placed) < len(halves):
            logger.error("copies of half messages cannot be stored now (%s); tried again", results[-1].remark)
        asked = [(half, session) for half, session in asked if half.offset in placed]
        if asked:
            last = placed[asked[-1][0].offset]
            await self._store.wait_durable(last.physical_offset + last.size_bytes)
            places = [placed[half.offset] for half, _ in asked]
            copies = self._store.reader.records([(place.physical_offset, place.size_bytes) for place in places])
            for (_, session), record in zip(asked, copies, strict=True):
                copy = None if record is None else half_messages.read_half(record)
                if copy is not None:
                    ask(session, copy)
        await trio.lowlevel.checkpoint()
        return len(placed) == len(halves)
