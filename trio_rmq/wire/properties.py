"""A message's properties: the text `name \\x01 value \\x02 name \\x01 value` and its meaning as a mapping.

Java's rules hold: of a repeated name the last value counts, a segment without a name or a value is not there, and the
last separator may be missing (4.9 leaves it out, 5.x writes it).  The text is kept as it came wherever it only passes
through, so that records keep their bytes.  Source: RocketMQ MessageDecoder, MessageConst.
"""

from __future__ import annotations

from collections.abc import Mapping

NAME_VALUE_SEPARATOR = "\x01"
PROPERTY_SEPARATOR = "\x02"

KEYS = "KEYS"
TAGS = "TAGS"
WAIT = "WAIT"
DELAY = "DELAY"
RETRY_TOPIC = "RETRY_TOPIC"
REAL_TOPIC = "REAL_TOPIC"
REAL_QUEUE_ID = "REAL_QID"
TRANSACTION_PREPARED = "TRAN_MSG"
PRODUCER_GROUP = "PGROUP"
MIN_OFFSET = "MIN_OFFSET"
MAX_OFFSET = "MAX_OFFSET"
ORIGIN_MESSAGE_ID = "ORIGIN_MESSAGE_ID"
UNIQUE_KEY = "UNIQ_KEY"
RECONSUME_TIME = "RECONSUME_TIME"
MAX_RECONSUME_TIMES = "MAX_RECONSUME_TIMES"
CLUSTER = "CLUSTER"
MSG_REGION = "MSG_REGION"
TRACE_ON = "TRACE_ON"
MSG_TYPE = "MSG_TYPE"
"""`reply` on the answer to a request; of other messages nothing."""
REPLY = "reply"
CORRELATION_ID = "CORRELATION_ID"
"""Joins a request and its reply."""
REPLY_TO_CLIENT = "REPLY_TO_CLIENT"
"""The client id of who asked."""
TTL = "TTL"
"""How long who asked waits for the reply, in milliseconds."""
ARRIVE_TIME = "ARRIVE_TIME"
PUSH_REPLY_TIME = "PUSH_REPLY_TIME"
"""When a reply reached who asked, and when its broker passed it on, in milliseconds since 1970 by their clocks."""
INSTANCE_ID = "INSTANCE_ID"
SHARDING_KEY = "__SHARDINGKEY"
TRANSACTION_ID = "__transactionId__"
POP_CK = "POP_CK"
TIMER_DELAY_SEC = "TIMER_DELAY_SEC"
TIMER_DELAY_MS = "TIMER_DELAY_MS"
TIMER_DELIVER_MS = "TIMER_DELIVER_MS"
TIMER_OUT_MS = "TIMER_OUT_MS"
TIMER_ENQUEUE_MS = "TIMER_ENQUEUE_MS"
TIMER_DEQUEUE_MS = "TIMER_DEQUEUE_MS"
TIMER_ROLL_TIMES = "TIMER_ROLL_TIMES"
TIMER_DEL_UNIQUE_KEY = "TIMER_DEL_UNIQKEY"
KEY_SEPARATOR = " "


def parse_properties(text: str | bytes) -> dict[str, str]:
    """The mapping that `text` stands for, as Java reads it; bytes that are no UTF-8 become replacement characters."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    result: dict[str, str] = {}
    for segment in text.split(PROPERTY_SEPARATOR):
        name, _, value = segment.partition(NAME_VALUE_SEPARATOR)
        if name and value:
            result[name] = value
    return result


def format_properties(properties: Mapping[str, str | None]) -> str:
    """The text of `properties` without a last separator, as a 4.9 client writes it; None values are left out."""
    return PROPERTY_SEPARATOR.join(
        f"{name}{NAME_VALUE_SEPARATOR}{value}" for name, value in properties.items() if value is not None
    )


def property_of(text: str, name: str) -> str | None:
    """The value of `name` in property text, or None: a search without building the mapping."""
    key = f"\x02{name}\x01"
    end = len(text)
    while (start := text.rfind(key, 0, end)) >= 0:
        value = _value(text, start + len(key))
        if value:
            return value
        end = start
    if text.startswith(key[1:]):
        return _value(text, len(key) - 1) or None
    return None


def _value(text: str, start: int) -> str:
    end = text.find("\x02", start)
    return text[start:] if end < 0 else text[start:end]


def property_of_bytes(text: bytes, name: bytes) -> bytes | None:
    """`property_of` on stored bytes, for the store, which needs no other property decoded."""
    key = b"\x02%b\x01" % name
    end = len(text)
    while (start := text.rfind(key, 0, end)) >= 0:
        value = _value_bytes(text, start + len(key))
        if value:
            return value
        end = start
    if text.startswith(key[1:]):
        return _value_bytes(text, len(key) - 1) or None
    return None


def _value_bytes(text: bytes, start: int) -> bytes:
    end = text.find(b"\x02", start)
    return text[start:] if end < 0 else text[start:end]


def append_property(text: str, name: str, value: str) -> str:
    """`text` with one more property at its end, which overrides an earlier one of that name."""
    if text and not text.endswith(PROPERTY_SEPARATOR):
        return f"{text}\x02{name}\x01{value}"
    return f"{text}{name}\x01{value}"


def remove_property(text: str, name: str) -> str:
    """`text` without any property called `name`; the other bytes stay as they are."""
    key = f"{name}\x01"
    if key not in text:
        return text
    return PROPERTY_SEPARATOR.join(segment for segment in text.split(PROPERTY_SEPARATOR) if not segment.startswith(key))


def with_property(text: str, name: str, value: str) -> str:
    """`text` with this property at its end and no other of its name."""
    return append_property(remove_property(text, name), name, value)


def join_properties(item: bytes, batch: bytes) -> bytes:
    """Property text of a batch item followed by that of its batch, which override it (RocketMQ appends them)."""
    if not batch:
        return item
    if not item or item.endswith(b"\x02"):
        return item + batch
    return item + b"\x02" + batch


def flag_property(text: str, name: str, default: bool) -> bool:
    """A true/false property: `default` when it is missing, else whether it says `true` in any case, as in Java."""
    value = property_of(text, name)
    return default if value is None else value.lower() == "true"
