"""Half messages, their op messages and their copies: what is stored for a transaction, and how it is read back.

A half message lies in queue 0 of RMQ_SYS_TRANS_HALF_TOPIC with its target in REAL_TOPIC and REAL_QID; an op message in
queue 0 of RMQ_SYS_TRANS_OP_HALF_TOPIC, tag `d`, names the queue offset of a half message that counts no more.  Ours
name one, as 4.9's do, which 5.x reads too; those of 5.x, which name several (`12,13,`), are read as well.
Only values here.
Source: RocketMQ TransactionalMessageBridge, TransactionalMessageServiceImpl, EndTransactionProcessor.
"""

from __future__ import annotations

import msgspec

from trio_rmq.broker import names
from trio_rmq.store.messages import NewMessage
from trio_rmq.wire import properties as prop
from trio_rmq.wire.hashing import tags_code
from trio_rmq.wire.ids import Host
from trio_rmq.wire.record import StoredMessage, encode_stored
from trio_rmq.wire.sysflag import TRANSACTION_COMMIT, TRANSACTION_MASK

QUEUE_ID = 0
"""The half queue and the op queue: the transaction topics have one each."""

PREPARED_QUEUE_OFFSET = "TRAN_PREPARED_QUEUE_OFFSET"
"""On a copy: the queue offset of the half message as its producer sent it."""
CHECK_TIMES = "TRANSACTION_CHECK_TIMES"
CHECK_IMMUNITY = "CHECK_IMMUNITY_TIME_IN_SECONDS"
STORED_MS = "TRAN_PREPARED_STORE_MS"
"""Ours, on a copy made before its first check: when the half message was first stored."""

REMOVE_TAG = "d"
_OP_PROPERTIES = f"{prop.TAGS}\x01{REMOVE_TAG}".encode()
_OP_CODE = tags_code(REMOVE_TAG)
_TAGS = prop.TAGS.encode()
_TRANSACTION_ID = f"{prop.TRANSACTION_ID}\x01"
_REAL_TOPIC = f"{prop.REAL_TOPIC}\x01"
_REAL_QUEUE_ID = f"{prop.REAL_QUEUE_ID}\x01"


class HalfMessage(msgspec.Struct, gc=False):
    """A half message as it was read: its record, and what its properties say of its transaction."""

    record: StoredMessage
    text: str
    topic: str
    queue_id: int
    group: str
    origin: int
    """Queue offset of the first record of this transaction's half message."""
    check_times: int
    immunity_ms: int | None
    stored_ms: int
    """When it was first stored as far as that matters: before a check by its first record, then by its last."""
    carried: bool
    """Whether it is one of our copies made before a check."""

    @property
    def offset(self) -> int:
        """Its queue offset."""
        return self.record.queue_offset

    @property
    def unique_key(self) -> str:
        """The id its producer gave it, else the one that names its record."""
        return prop.property_of(self.text, prop.UNIQUE_KEY) or self.record.offset_message_id


def half_properties(text: str, topic: str, queue_id: int) -> str:
    """The properties with which a transactional message for this queue waits for its end."""
    unique_key = prop.property_of(text, prop.UNIQUE_KEY)
    if unique_key and prop.REAL_TOPIC not in text and prop.TRANSACTION_ID not in text and not text.endswith("\x02"):
        return f"{text}\x02{_TRANSACTION_ID}{unique_key}\x02{_REAL_TOPIC}{topic}\x02{_REAL_QUEUE_ID}{queue_id}"
    if unique_key is not None:
        text = prop.with_property(text, prop.TRANSACTION_ID, unique_key)  # as 5.x does
    text = prop.with_property(text, prop.REAL_TOPIC, topic)
    return prop.with_property(text, prop.REAL_QUEUE_ID, str(queue_id))


def read_half(record: StoredMessage) -> HalfMessage | None:
    """What the record of a half message says; None when it is none."""
    if record.topic != names.HALF_TOPIC:
        return None
    text = record.properties.decode("utf-8", "replace")
    topic = prop.property_of(text, prop.REAL_TOPIC)
    queue_id = _number(prop.property_of(text, prop.REAL_QUEUE_ID))
    if topic is None or queue_id is None:
        return None
    origin = _number(prop.property_of(text, PREPARED_QUEUE_OFFSET)) if PREPARED_QUEUE_OFFSET in text else None
    seconds = _number(prop.property_of(text, CHECK_IMMUNITY)) if CHECK_IMMUNITY in text else None
    stored_ms = _number(prop.property_of(text, STORED_MS)) if STORED_MS in text else None
    times = _number(prop.property_of(text, CHECK_TIMES)) if CHECK_TIMES in text else None
    return HalfMessage(
        record,
        text,
        topic,
        queue_id,
        prop.property_of(text, prop.PRODUCER_GROUP) or "",
        record.queue_offset if origin is None else origin,
        times or 0,
        None if seconds is None else seconds * 1000,
        record.store_timestamp_ms if stored_ms is None else stored_ms,
        stored_ms is not None,
    )


def committed(half: HalfMessage) -> NewMessage:
    """The message of a committed transaction, for its real queue; its properties as the half message has them."""
    record = half.record
    message = _copy(record, record.properties)
    message.topic = half.topic
    message.queue_id = half.queue_id
    message.sys_flag = record.sys_flag & ~TRANSACTION_MASK | TRANSACTION_COMMIT
    message.prepared_transaction_offset = record.physical_offset
    return message


def asked_again(half: HalfMessage) -> NewMessage:
    """The copy that stands for a half message once it was asked about, with one check more in its properties."""
    text = prop.with_property(half.text, CHECK_TIMES, str(half.check_times + 1))
    return _moved(half, prop.remove_property(text, STORED_MS))


def carried_forward(half: HalfMessage) -> NewMessage:
    """A copy that changes nothing but the place of a half message."""
    if half.check_times:
        return _moved(half, half.text)
    return _moved(half, prop.with_property(half.text, STORED_MS, str(half.stored_ms)))


def parked(half: HalfMessage) -> NewMessage:
    """The half message as it is put away for good, in TRANS_CHECK_MAX_TIME_TOPIC."""
    record = half.record
    return msgspec.structs.replace(
        _copy(record, record.properties),
        topic=names.CHECK_MAX_TIME_TOPIC,
        queue_id=0,
        prepared_transaction_offset=record.physical_offset,
    )


def op_message(offset: int, host: Host, now_ms: int) -> NewMessage:
    """The op message that ends the half message at this queue offset."""
    return NewMessage(
        names.OP_HALF_TOPIC, QUEUE_ID, b"%d" % offset, _OP_PROPERTIES, 0, 0, now_ms, host, 0, 0, _OP_CODE, False
    )


def named_by_op(record: StoredMessage) -> list[int]:
    """The queue offsets that an op message names; empty when it is none."""
    if record.get_property(prop.TAGS) != REMOVE_TAG:
        return []
    return [int(part) for part in record.body.split(b",") if part.isdigit() and len(part) < 19]


def check_body(half: HalfMessage) -> bytes:
    """The body of CHECK_TRANSACTION_STATE: the half message's record as one of its real queue."""
    return encode_stored(msgspec.structs.replace(half.record, topic=half.topic, queue_id=half.queue_id))


def _moved(half: HalfMessage, text: str) -> NewMessage:
    # RocketMQ's copies lose the flag and the reconsume times; ours keep them.
    return _copy(half.record, prop.with_property(text, PREPARED_QUEUE_OFFSET, str(half.origin)))


def _copy(record: StoredMessage, properties: bytes | str) -> NewMessage:
    tags = prop.property_of_bytes(record.properties, _TAGS)
    return NewMessage(
        record.topic,
        record.queue_id,
        record.body,
        properties,
        record.flag,
        record.sys_flag,
        record.born_timestamp_ms,
        record.born_host,
        record.reconsume_times,
        0,
        0 if tags is None else tags_code(tags.decode("utf-8", "replace")),
        False,
    )


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 19 else None
