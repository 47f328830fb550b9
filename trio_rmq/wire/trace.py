r"""Message traces: what producers and consumers say of a message's way, as the body of messages to a trace topic.

A body is records, each ended by \x02, its fields joined by \x01, the first being the record's type.  A text that is
not there is written `null`, so a tag or key that is really `null` reads as none.  Source: RocketMQ TraceDataEncoder of
4.9.8, byte for byte, and the recall record of 5.x; what it reads of older clients is read here too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import IntEnum

import msgspec

from trio_rmq.errors import ProtocolError
from trio_rmq.wire.properties import KEY_SEPARATOR

FIELD_SEPARATOR = "\x01"
RECORD_END = "\x02"
_NONE = "null"


class TracedMessageType(IntEnum):
    """What kind of message was sent (RocketMQ MessageType)."""

    NORMAL = 0
    HALF = 1
    COMMIT = 2
    DELAY = 3
    ORDER = 4
    """Only 5.x says so."""


class ConsumeReturnType(IntEnum):
    """How a listener call ended (RocketMQ ConsumeReturnType)."""

    SUCCESS = 0
    TIME_OUT = 1
    EXCEPTION = 2
    RETURN_NULL = 3
    FAILED = 4


class SendTrace(msgspec.Struct, frozen=True, kw_only=True):
    """`Pub`: a message was sent; `success` only when it was stored as safely as its broker is configured to."""

    time_ms: int
    """When the send began, in milliseconds since 1970 by the client's clock; so in all records."""
    region_id: str | None
    group: str
    topic: str
    message_id: str
    tags: str | None
    keys: str | None
    """Separated by blanks; so in all records."""
    store_host: str
    """The broker's address."""
    body_size_bytes: int
    """As it left, maybe packed."""
    cost_ms: int
    message_type: TracedMessageType
    offset_message_id: str
    success: bool


class ConsumeStartTrace(msgspec.Struct, frozen=True, kw_only=True):
    """`SubBefore`: a listener is about to be called with the message."""

    time_ms: int
    region_id: str | None
    group: str
    request_id: str
    """The same for all messages of one listener call, and in the record of its end."""
    message_id: str
    retry_times: int
    keys: str | None


class ConsumeEndTrace(msgspec.Struct, frozen=True, kw_only=True):
    """`SubAfter`: the listener call ended; `cost_ms` is its time divided by the number of its messages."""

    request_id: str
    message_id: str
    cost_ms: int
    success: bool
    keys: str | None
    return_type: int
    """A ConsumeReturnType."""
    time_ms: int | None = None
    group: str | None = None
    """Both missing in what old clients, and clients of a cloud, wrote."""


class EndTransactionTrace(msgspec.Struct, frozen=True, kw_only=True):
    """`EndTransaction`: a producer told how a transaction ended."""

    time_ms: int
    region_id: str | None
    group: str
    topic: str
    message_id: str
    tags: str | None
    keys: str | None
    store_host: str
    message_type: TracedMessageType = TracedMessageType.COMMIT
    transaction_id: str | None
    state: str
    """COMMIT_MESSAGE, ROLLBACK_MESSAGE or UNKNOW."""
    from_check: bool
    """Whether the broker had asked."""


class RecallTrace(msgspec.Struct, frozen=True, kw_only=True):
    """`Recall`: a message that waits for its time was taken back (5.x)."""

    time_ms: int
    region_id: str | None
    group: str
    topic: str
    message_id: str
    success: bool


Trace = SendTrace | ConsumeStartTrace | ConsumeEndTrace | EndTransactionTrace | RecallTrace


def trace_keys(trace: Trace) -> list[str]:
    """By which the record is looked up: the message's id and its keys."""
    keys = None if isinstance(trace, RecallTrace) else trace.keys
    return [trace.message_id, *(key for key in (keys or "").split(KEY_SEPARATOR) if key)]


# -- writing ----------------------------------------------------------------------------------------------------------


def encode_trace(trace: Trace) -> str:
    """The record; ProtocolError when a text has one of the two separators in it."""
    fields = _fields(trace)
    for field in fields:
        if FIELD_SEPARATOR in field or RECORD_END in field:
            raise ProtocolError(f"a field of a trace has a separator in it: {field!r}")
    return FIELD_SEPARATOR.join(fields) + RECORD_END


def encode_traces(traces: Iterable[Trace]) -> bytes:
    """The records as the body of a trace message; ProtocolError as of `encode_trace`."""
    return "".join(map(encode_trace, traces)).encode()


def _fields(trace: Trace) -> list[str]:
    match trace:
        case SendTrace():
            return [
                "Pub", str(trace.time_ms), _text(trace.region_id), trace.group, trace.topic, trace.message_id,
                _text(trace.tags), _text(trace.keys), trace.store_host, str(trace.body_size_bytes), str(trace.cost_ms),
                str(int(trace.message_type)), trace.offset_message_id, _flag(trace.success),
            ]  # fmt: skip
        case ConsumeStartTrace():
            return [
                "SubBefore", str(trace.time_ms), _text(trace.region_id), trace.group, trace.request_id,
                trace.message_id, str(trace.retry_times), _text(trace.keys),
            ]  # fmt: skip
        case ConsumeEndTrace():
            fields = [
                "SubAfter", trace.request_id, trace.message_id, str(trace.cost_ms), _flag(trace.success),
                _text(trace.keys), str(int(trace.return_type)),
            ]  # fmt: skip
            return fields if trace.time_ms is None else [*fields, str(trace.time_ms), trace.group or _NONE]
        case EndTransactionTrace():
            return [
                "EndTransaction", str(trace.time_ms), _text(trace.region_id), trace.group, trace.topic,
                trace.message_id, _text(trace.tags), _text(trace.keys), trace.store_host,
                str(int(trace.message_type)), _text(trace.transaction_id), trace.state, _flag(trace.from_check),
            ]  # fmt: skip
        case RecallTrace():
            return [
                "Recall", str(trace.time_ms), _text(trace.region_id), trace.group, trace.topic, trace.message_id,
                _flag(trace.success),
            ]  # fmt: skip


def _text(value: str | None) -> str:
    return value or _NONE


def _flag(value: bool) -> str:
    return "true" if value else "false"


# -- reading ----------------------------------------------------------------------------------------------------------


def decode_traces(body: bytes | str) -> list[Trace]:
    """The records of a trace message's body; ProtocolError for one that cannot be read, or of an unknown type."""
    try:
        text = body if isinstance(body, str) else body.decode()
    except UnicodeDecodeError as error:
        raise ProtocolError(f"the traces are no UTF-8: {error}") from None
    return [_decode_record(record) for record in text.split(RECORD_END) if record]


def _decode_record(record: str) -> Trace:
    kind, *fields = record.split(FIELD_SEPARATOR)
    try:
        reader = _READERS[kind]
    except KeyError:
        raise ProtocolError(f"{kind!r} is no type of trace record") from None
    try:
        return reader(fields)
    except (ValueError, IndexError) as error:
        raise ProtocolError(f"a trace record {kind} with {len(fields)} fields cannot be read: {error}") from None


def _read_send(fields: list[str]) -> SendTrace:
    old = len(fields) == 12  # without the offset message id
    return SendTrace(
        time_ms=_number(fields[0]),
        region_id=_maybe(fields[1]),
        group=fields[2],
        topic=fields[3],
        message_id=fields[4],
        tags=_maybe(fields[5]),
        keys=_maybe(fields[6]),
        store_host=fields[7],
        body_size_bytes=_number(fields[8]),
        cost_ms=_number(fields[9]),
        message_type=TracedMessageType(_number(fields[10])),
        offset_message_id="" if old else fields[11],
        success=_truth(fields[11 if old else 12]),
    )


def _read_consume_start(fields: list[str]) -> ConsumeStartTrace:
    return ConsumeStartTrace(
        time_ms=_number(fields[0]),
        region_id=_maybe(fields[1]),
        group=fields[2],
        request_id=fields[3],
        message_id=fields[4],
        retry_times=_number(fields[5]),
        keys=_maybe(fields[6]),
    )


def _read_consume_end(fields: list[str]) -> ConsumeEndTrace:
    has_time = len(fields) > 7
    return ConsumeEndTrace(
        request_id=fields[0],
        message_id=fields[1],
        cost_ms=_number(fields[2]),
        success=_truth(fields[3]),
        keys=_maybe(fields[4]),
        return_type=_number(fields[5]) if len(fields) > 5 else ConsumeReturnType.SUCCESS,
        time_ms=_number(fields[6]) if has_time else None,
        group=fields[7] if has_time else None,
    )


def _read_end_transaction(fields: list[str]) -> EndTransactionTrace:
    return EndTransactionTrace(
        time_ms=_number(fields[0]),
        region_id=_maybe(fields[1]),
        group=fields[2],
        topic=fields[3],
        message_id=fields[4],
        tags=_maybe(fields[5]),
        keys=_maybe(fields[6]),
        store_host=fields[7],
        message_type=TracedMessageType(_number(fields[8])),
        transaction_id=_maybe(fields[9]),
        state=fields[10],
        from_check=_truth(fields[11]),
    )


def _read_recall(fields: list[str]) -> RecallTrace:
    return RecallTrace(
        time_ms=_number(fields[0]),
        region_id=_maybe(fields[1]),
        group=fields[2],
        topic=fields[3],
        message_id=fields[4],
        success=_truth(fields[5]),
    )


_READERS: dict[str, Callable[[list[str]], Trace]] = {
    "Pub": _read_send,
    "SubBefore": _read_consume_start,
    "SubAfter": _read_consume_end,
    "EndTransaction": _read_end_transaction,
    "Recall": _read_recall,
}


def _maybe(text: str) -> str | None:
    return None if text == _NONE else text


def _number(text: str) -> int:
    if not text.removeprefix("-").isdecimal() or not text.isascii() or len(text) > 20:
        raise ValueError(f"{text[:40]!r} is no number")
    return int(text)


def _truth(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(f"{text[:40]!r} is neither true nor false")
    return text == "true"
