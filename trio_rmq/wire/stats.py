"""Figures about topics and groups whose maps are keyed by whole queues: `{{"brokerName":...}:{...}}` on the wire.

Source: RocketMQ TopicStatsTable, ConsumeStats, ResetOffsetBody, GetConsumerStatusBody.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from trio_rmq.wire.fastjson import BodyReader, encode_fastjson, shown, shown_dict
from trio_rmq.wire.groups import MessageQueue

T = TypeVar("T")


class TopicOffset(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """One queue's first and next offset, and the store time of its last message (0 when it has none)."""

    last_update_timestamp: int = shown(0)
    max_offset: int = shown(0)
    min_offset: int = shown(0)


class TopicStatsTable(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """A topic's queues on one broker; `topic_put_tps` only from 5.x."""

    offset_table: dict[MessageQueue, TopicOffset] = shown_dict()
    topic_put_tps: float | None = None


class OffsetWrapper(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """A group's place in one queue: broker's next offset, consumed offset, time of the last consumed message."""

    broker_offset: int = shown(0)
    consumer_offset: int = shown(0)
    last_timestamp: int = shown(0)
    pull_offset: int | None = None


class ConsumeStats(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """A group's progress on one broker."""

    consume_tps: float = shown(0.0)
    offset_table: dict[MessageQueue, OffsetWrapper] = shown_dict()


class ResetOffsetBody(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """Where each queue's consumers must go on from."""

    offset_table: dict[MessageQueue, int] = shown_dict()


class GetConsumerStatusBody(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """Offsets by queue, and by client id and queue."""

    consumer_table: dict[str, dict[MessageQueue, int]] = shown_dict()
    message_queue_table: dict[MessageQueue, int] = shown_dict()


class _TopicStatsText(msgspec.Struct, rename="camel"):
    offset_table: dict[str, TopicOffset] = {}
    topic_put_tps: float | None = None


class _ConsumeStatsText(msgspec.Struct, rename="camel"):
    offset_table: dict[str, OffsetWrapper] = {}
    consume_tps: float = 0.0


class _ResetText(msgspec.Struct, rename="camel"):
    offset_table: dict[str, int] = {}


class _StatusText(msgspec.Struct, rename="camel"):
    message_queue_table: dict[str, int] = {}
    consumer_table: dict[str, dict[str, int]] = {}


_queue = BodyReader(MessageQueue)
_topic_stats = BodyReader(_TopicStatsText)
_consume_stats = BodyReader(_ConsumeStatsText)
_reset = BodyReader(_ResetText)
_status = BodyReader(_StatusText)


def _by_queue(table: dict[str, T]) -> dict[MessageQueue, T]:
    return {_queue.decode(key.encode("utf-8", "surrogatepass")): value for key, value in table.items()}


def decode_topic_stats(data: bytes) -> TopicStatsTable:
    """The answer to GET_TOPIC_STATS_INFO; ProtocolError when it is none."""
    text = _topic_stats.decode(data)
    return TopicStatsTable(offset_table=_by_queue(text.offset_table), topic_put_tps=text.topic_put_tps)


def encode_topic_stats(stats: TopicStatsTable) -> bytes:
    """The answer to GET_TOPIC_STATS_INFO, keyed by objects."""
    return encode_fastjson(stats)


def decode_consume_stats(data: bytes) -> ConsumeStats:
    """The answer to GET_CONSUME_STATS; ProtocolError when it is none."""
    text = _consume_stats.decode(data)
    return ConsumeStats(offset_table=_by_queue(text.offset_table), consume_tps=text.consume_tps)


def encode_consume_stats(stats: ConsumeStats) -> bytes:
    """The answer to GET_CONSUME_STATS, keyed by objects."""
    return encode_fastjson(stats)


def decode_reset_offset(data: bytes) -> ResetOffsetBody:
    """The body of RESET_CONSUMER_CLIENT_OFFSET; ProtocolError when it is none."""
    return ResetOffsetBody(offset_table=_by_queue(_reset.decode(data).offset_table))


def encode_reset_offset(body: ResetOffsetBody) -> bytes:
    """The body of RESET_CONSUMER_CLIENT_OFFSET, keyed by objects."""
    return encode_fastjson(body)


def decode_consumer_status(data: bytes) -> GetConsumerStatusBody:
    """The answer to GET_CONSUMER_STATUS_FROM_CLIENT; ProtocolError when it is none."""
    text = _status.decode(data)
    return GetConsumerStatusBody(
        message_queue_table=_by_queue(text.message_queue_table),
        consumer_table={client: _by_queue(table) for client, table in text.consumer_table.items()},
    )


def encode_consumer_status(body: GetConsumerStatusBody) -> bytes:
    """The answer to GET_CONSUMER_STATUS_FROM_CLIENT, keyed by objects."""
    return encode_fastjson(body)
