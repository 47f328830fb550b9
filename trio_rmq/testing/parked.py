"""Reads what lies in a broker's store: a topic's messages, and those that wait somewhere for something.

Pure reading of the queues and their records, with no look into the services that serve them.  Invariant: a message is
shown under its own topic and queue, wherever it lies meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from trio_rmq.broker import names
from trio_rmq.broker.deferring import TIMER_QUEUE_ID, delete_key
from trio_rmq.broker.half_messages import QUEUE_ID as HALF_QUEUE_ID
from trio_rmq.broker.half_messages import named_by_op, read_half
from trio_rmq.client import MessageQueue, ReceivedMessage
from trio_rmq.clock import wall_ms
from trio_rmq.store.dispatch import timer_code
from trio_rmq.store.message_store import MessageStore
from trio_rmq.wire import properties as prop
from trio_rmq.wire.record import StoredMessage, decode_record, decode_records

_A_READ = 32


@dataclass(frozen=True, slots=True)
class Waiting:
    """A message that is stored and not delivered yet; `due_ms` is when it will be, in ms since 1970."""

    message: ReceivedMessage
    due_ms: int


class Parked:
    """The messages in one store."""

    def __init__(self, store: MessageStore, broker_name: str) -> None:
        self._store = store
        self._broker_name = broker_name

    def messages(self, topic: str) -> list[ReceivedMessage]:
        """What consumers of `topic` can have, over all its queues, in the order in which it was stored."""
        queue_ids = [queue_id for name, queue_id in self._store.queues() if name == topic]
        records = [record for queue_id in queue_ids for record in self._records(topic, queue_id)]
        return [self._message(record) for record in sorted(records, key=lambda record: record.physical_offset)]

    def at(self, physical_offset: int) -> ReceivedMessage | None:
        """The message whose record begins there, under its own topic; None when none does."""
        data = self._store.record_at(physical_offset)
        return None if data is None else self._message(_at_home(decode_record(data)))

    def delayed(self, topic: str | None = None) -> list[Waiting]:
        """Messages that wait for their time - a delay level, a timer, a retry - the earliest first."""
        found = [*self._leveled(), *self._timed()]
        waiting = [Waiting(self._message(_at_home(record)), due_ms) for record, due_ms in found if due_ms > wall_ms()]
        waiting.sort(key=lambda one: one.due_ms)
        return [one for one in waiting if topic is None or one.message.stored.topic == topic]

    def half_messages(self, topic: str | None = None) -> list[ReceivedMessage]:
        """Messages of transactions that nobody has committed or rolled back, in the order in which they were stored.

        One that was asked about is shown once, as it was stored last.
        """
        ended = {offset for op in self._records(names.OP_HALF_TOPIC, HALF_QUEUE_ID) for offset in named_by_op(op)}
        halves = [read_half(record) for record in self._records(names.HALF_TOPIC, HALF_QUEUE_ID)]
        return [
            self._message(_at_home(half.record))
            for half in halves
            if half is not None and half.offset not in ended and topic in (None, half.topic)
        ]

    def _leveled(self) -> Iterator[tuple[StoredMessage, int]]:
        for topic, queue_id in self._store.queues():
            if topic == names.SCHEDULE_TOPIC:
                for record in self._records(topic, queue_id):
                    for _, _, due_ms in self._store.reader.entries(topic, queue_id, record.queue_offset, 1):
                        yield record, due_ms

    def _timed(self) -> Iterator[tuple[StoredMessage, int]]:
        waiting: dict[str, tuple[StoredMessage, int]] = {}
        for record in self._records(names.TIMER_TOPIC, TIMER_QUEUE_ID):
            recalled = record.get_property(prop.TIMER_DEL_UNIQUE_KEY)
            due_ms = timer_code(record.properties)
            if recalled is not None:
                waiting.pop(recalled, None)
            elif due_ms is not None:  # a later record of the same message takes the place of the earlier one
                key = record.unique_key or record.offset_message_id
                waiting[delete_key(record.get_property(prop.REAL_TOPIC) or "", key)] = record, due_ms
        yield from waiting.values()

    def _records(self, topic: str, queue_id: int) -> Iterator[StoredMessage]:
        offset = self._store.min_offset(topic, queue_id)
        while offset < self._store.max_offset(topic, queue_id):
            result = self._store.get_messages(topic, queue_id, offset, max_count=_A_READ)
            yield from decode_records(result.body)
            offset = max(offset + 1, result.next_begin_offset)

    def _message(self, record: StoredMessage) -> ReceivedMessage:
        queue = MessageQueue(topic=record.topic, broker_name=self._broker_name, queue_id=record.queue_id)
        return ReceivedMessage.from_record(record, queue)


def _at_home(record: StoredMessage) -> StoredMessage:
    """A record that lies in a queue of waiting messages, with the topic and queue that it is for."""
    topic, queue_id = record.get_property(prop.REAL_TOPIC), record.get_property(prop.REAL_QUEUE_ID)
    if topic is None or record.topic not in names.SYSTEM_TOPICS:
        return record
    is_number = queue_id is not None and queue_id.isascii() and queue_id.isdigit()
    return msgspec.structs.replace(record, topic=topic, queue_id=int(queue_id or 0) if is_number else record.queue_id)
