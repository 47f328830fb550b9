"""Multi-dispatch: one record that stands in several queues - RocketMQ 4.9's light message queues (LMQ).

A message whose property INNER_MULTI_DISPATCH names queues (`%LMQ%a,%LMQ%b`) gets an entry in its own queue and one in
queue 0 of each of those; INNER_MULTI_QUEUE_OFFSET, written into the record, says at which offsets, so that recovery
puts the entries back.

Invariants: all entries of a record become visible together, or none is made; only `%LMQ%` queues are dispatched to; a
record carries INNER_MULTI_QUEUE_OFFSET only when this store wrote it.  A message that is not yet its consumers' -
delayed or half - is dispatched when it is delivered.  Source: RocketMQ MultiDispatch, MixAll.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from trio_rmq.limits import TOPIC_LENGTH_MAX
from trio_rmq.store.append import Appender
from trio_rmq.store.consume_queue import DELAY_TOPIC, ConsumeQueue
from trio_rmq.store.consume_queues import ConsumeQueues
from trio_rmq.store.dispatch import TIMER_TOPIC
from trio_rmq.store.messages import AppendResult, AppendStatus, BatchResult, NewBatch, NewMessage
from trio_rmq.wire.properties import append_property, property_of, remove_property
from trio_rmq.wire.sysflag import TRANSACTION_PREPARED

LMQ_PREFIX = "%LMQ%"
QUEUES = "INNER_MULTI_DISPATCH"
OFFSETS = "INNER_MULTI_QUEUE_OFFSET"
SEPARATOR = ","
LMQ_QUEUE_ID = 0

_WAITING_TOPICS = frozenset({DELAY_TOPIC, TIMER_TOPIC, "RMQ_SYS_TRANS_HALF_TOPIC"})
_MARK = "INNER_MULTI"
_MARK_BYTES = _MARK.encode()
_NOT_IN_BATCHES = f"the items of a batch may not have {QUEUES}: send singly"


class MultiDispatch:
    """Appends through `appender`, whose methods it has."""

    def __init__(self, appender: Appender, queues: ConsumeQueues, *, queues_max: int) -> None:
        self._appender = appender
        self._queues = queues
        self._queues_max = queues_max
        self._known = self._lmq_known = -1

    def append(
        self, messages: Sequence[NewMessage], *, together: bool = False, accepted: bool = False
    ) -> list[AppendResult]:
        """`Appender.append`; runs of messages that dispatch to nothing go in one write, the others in one each."""
        marked = [index for index, message in enumerate(messages) if is_marked(message.properties)]
        if not marked:
            return self._appender.append(messages, together=together, accepted=accepted)
        if together:
            return [_refused(AppendStatus.MESSAGE_ILLEGAL, _NOT_IN_BATCHES) for _ in messages]
        results: list[AppendResult] = []
        begin = 0
        for index in marked:
            if begin < index:
                results += self._appender.append(messages[begin:index], accepted=accepted)
            results.append(self._append_one(messages[index], accepted))
            begin = index + 1
        if begin < len(messages):
            results += self._appender.append(messages[begin:], accepted=accepted)
        return results

    def append_batch(self, batch: NewBatch) -> BatchResult:
        """`Appender.append_batch`, but for items that dispatch to more queues, which are refused."""
        if any(_MARK_BYTES in properties for _, _, properties in batch.items):
            return BatchResult(AppendStatus.MESSAGE_ILLEGAL, remark=_NOT_IN_BATCHES)
        return self._appender.append_batch(batch)

    def _append_one(self, message: NewMessage, accepted: bool) -> AppendResult:
        text = message.properties if isinstance(message.properties, str) else message.properties.decode()
        text = remove_property(text, OFFSETS)
        names = (property_of(text, QUEUES) or "").rstrip(SEPARATOR)
        queues: dict[str, ConsumeQueue] = {}
        if not names.strip() or message.topic in _WAITING_TOPICS or message.sys_flag & TRANSACTION_PREPARED:
            return self._appender.append([msgspec.structs.replace(message, properties=text)], accepted=accepted)[0]
        wanted = names.split(SEPARATOR)
        for name in wanted:
            if not is_lmq(name):
                return _refused(AppendStatus.MESSAGE_ILLEGAL, f"{QUEUES} names {name[:200]!r}: no {LMQ_PREFIX} queue")
        table = self._queues.table
        missing = {name for name in wanted if (name, LMQ_QUEUE_ID) not in table}
        if missing and self._count() + len(missing) > self._queues_max:
            return _refused(
                AppendStatus.LMQ_CONSUME_QUEUE_NUM_EXCEEDED,
                f"there are maxLmqConsumeQueueNum ({self._queues_max}) {LMQ_PREFIX} queues: delete some, or raise it",
            )
        for name in wanted:
            queues[name] = self._queues.make(name, LMQ_QUEUE_ID)
        if missing:
            self._known, self._lmq_known = len(table), self._lmq_known + len(missing)
        own = table.get((message.topic, message.queue_id))
        offsets = SEPARATOR.join(str(queues[name].next_offset) for name in wanted)
        text = append_property(text, OFFSETS, offsets)
        others = [queue for queue in queues.values() if queue is not own]
        placed = msgspec.structs.replace(message, properties=text)
        return self._appender.append([placed], accepted=accepted, others=others)[0]

    def _count(self) -> int:
        """How many `%LMQ%` queues there are; looked up anew when others made or removed queues."""
        table = self._queues.table
        if len(table) != self._known:
            self._known, self._lmq_known = len(table), sum(name.startswith(LMQ_PREFIX) for name, _ in table)
        return self._lmq_known


def is_marked(properties: str | bytes) -> bool:
    """Whether the properties name further queues, or may do so."""
    return (_MARK in properties) if isinstance(properties, str) else (_MARK_BYTES in properties)


def _refused(status: AppendStatus, remark: str) -> AppendResult:
    return AppendResult(status, remark=remark)


def dispatched_to(properties: bytes) -> list[tuple[str, int]]:
    """(name, offset) of the `%LMQ%` queues that a stored record was dispatched to; none where its text is no good."""
    if _MARK_BYTES not in properties:
        return []
    text = properties.decode("utf-8", "replace")
    names = (property_of(text, QUEUES) or "").rstrip(SEPARATOR).split(SEPARATOR)
    offsets = (property_of(text, OFFSETS) or "").split(SEPARATOR)
    if len(names) != len(offsets) or not all(offset.isascii() and offset.isdigit() for offset in offsets):
        return []
    return [(name, int(offset)) for name, offset in zip(names, offsets, strict=True) if is_lmq(name)]


def is_lmq(name: str) -> bool:
    """Whether `name` may be that of a `%LMQ%` queue: it names a folder, whoever wrote it."""
    return (
        name.startswith(LMQ_PREFIX) and len(name.encode()) <= TOPIC_LENGTH_MAX and "/" not in name and "\0" not in name
    )
