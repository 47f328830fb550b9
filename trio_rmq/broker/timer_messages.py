"""What is stored of a message that waits for its time: its delivered copy, and the one instead of an old record.

Only values here.  Source: RocketMQ 5.3.3 TimerMessageStore.convert, whose delivered copies keep all properties.
"""

from __future__ import annotations

from trio_rmq.limits import PROPERTIES_SIZE_MAX_BYTES
from trio_rmq.store.dispatch import timer_code
from trio_rmq.store.messages import NewMessage
from trio_rmq.wire import properties as prop
from trio_rmq.wire.hashing import tags_code
from trio_rmq.wire.properties import property_of_bytes
from trio_rmq.wire.record import StoredMessage

_TAGS = prop.TAGS.encode()
_ROLL_TIMES = prop.TIMER_ROLL_TIMES.encode()


def delivered(record: StoredMessage, topic: str, queue_id: int, now_ms: int) -> NewMessage:
    """The message for its own queue, with when it began to wait and when it was delivered, where these still fit.

    Its prepared offset names the record it comes from.
    """
    text = record.properties
    end = b"" if text.endswith(b"\x02") else b"\x02"
    more = b"%bTIMER_ENQUEUE_MS\x01%d\x02TIMER_DEQUEUE_MS\x01%d" % (end, record.store_timestamp_ms, now_ms)
    tags = property_of_bytes(text, _TAGS)
    if len(text) + len(more) <= PROPERTIES_SIZE_MAX_BYTES:
        text += more
    return NewMessage(
        topic,
        queue_id,
        record.body,
        text,
        record.flag,
        record.sys_flag,
        record.born_timestamp_ms,
        record.born_host,
        record.reconsume_times,
        record.physical_offset,
        0 if tags is None else tags_code(tags.decode("utf-8", "replace")),
        False,
    )


def stored_again(record: StoredMessage) -> NewMessage:
    """The younger record of a message that goes on waiting, with one roll more in its properties."""
    times = property_of_bytes(record.properties, _ROLL_TIMES)
    count = int(times) + 1 if times is not None and times.isdigit() else 1
    text = prop.with_property(record.properties.decode("utf-8", "replace"), prop.TIMER_ROLL_TIMES, str(count))
    return NewMessage(
        record.topic,
        record.queue_id,
        record.body,
        text,
        record.flag,
        record.sys_flag,
        record.born_timestamp_ms,
        record.born_host,
        record.reconsume_times,
        record.prepared_transaction_offset,
        timer_code(record.properties) or 0,
        False,
    )
