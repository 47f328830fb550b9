"""Figures about consumers that tools ask a broker for: time spans, corrected offsets, lists, queue entries, rates.

Fields stand in the order of their wire names, as fastjson writes them.  Source: RocketMQ QueryConsumeTimeSpanBody,
QueryCorrectionOffsetBody, ConsumeStatsList, QueryConsumeQueueResponseBody, BrokerStatsData, ProducerTableInfo,
QuerySubscriptionResponseBody.
"""

from __future__ import annotations

import msgspec

from trio_rmq.wire.fastjson import BodyReader, encode_fastjson, encode_json, shown, shown_dict, shown_list
from trio_rmq.wire.groups import MessageQueue
from trio_rmq.wire.heartbeat import SubscriptionData
from trio_rmq.wire.stats import ConsumeStats


class QueueTimeSpan(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """One queue in Unix milliseconds: store times of its first, its last and the group's last consumed message.

    `delay_time` is how long the next message to consume has been waiting.  -1 where there is no such message.
    """

    consume_time_stamp: int = shown(0)
    delay_time: int = shown(0)
    max_time_stamp: int = shown(0)
    message_queue: MessageQueue = msgspec.field(default_factory=MessageQueue)
    min_time_stamp: int = shown(0)


class QueryConsumeTimeSpanBody(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """The time spans of a topic's queues."""

    consume_time_span_set: list[QueueTimeSpan] = shown_list()


class QueryCorrectionOffsetBody(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """The lowest consumed offset by queue id; Java's Long.MAX_VALUE where the compared group is behind it."""

    correction_offsets: dict[int, int] = shown_dict()


class ConsumeStatsList(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """Every group's progress: a list of one-entry maps from group to its topics' figures; total lag in messages."""

    broker_addr: str | None = None
    consume_stats_list: list[dict[str, list[ConsumeStats]]] = shown_list()
    total_diff: int = shown(0)


class ConsumeQueueData(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """One queue entry; the texts tell of its extension, `eval` whether the asked group's bit map takes it."""

    bit_map: str | None = None
    eval: bool = shown(False)
    extend_data_json: str | None = None
    msg: str | None = None
    physic_offset: int = shown(0)
    physic_size: int = shown(0)
    tags_code: int = shown(0)


class QueryConsumeQueueResponseBody(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """Some entries of a queue, its first and next offset, and what the asked group subscribes to."""

    filter_data: str | None = None
    max_queue_index: int = shown(0)
    min_queue_index: int = shown(0)
    queue_data: list[ConsumeQueueData] | None = None
    subscription_data: SubscriptionData | None = None


class BrokerStatsItem(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """A figure over one window: its sum, its rate a second and its mean a time."""

    avgpt: float = shown(0.0)
    sum: int = shown(0)
    tps: float = shown(0.0)


class BrokerStatsData(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """A figure over the last minute, hour and day."""

    stats_day: BrokerStatsItem = msgspec.field(default_factory=lambda: BrokerStatsItem())
    stats_hour: BrokerStatsItem = msgspec.field(default_factory=lambda: BrokerStatsItem())
    stats_minute: BrokerStatsItem = msgspec.field(default_factory=lambda: BrokerStatsItem())


class ProducerInfo(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """One connected producer; the time of its last heartbeat in Unix milliseconds."""

    client_id: str = shown("")
    language: str = shown("OTHER")
    last_update_timestamp: int = shown(0)
    remote_ip: str = msgspec.field(name="remoteIP", default_factory=lambda: "")
    version: int = shown(0)


class ProducerTableInfo(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """All connected producers by group."""

    data: dict[str, list[ProducerInfo]] = shown_dict()


class QuerySubscriptionResponseBody(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """What a group subscribes to of one topic; no subscription when nobody is connected."""

    group: str | None = None
    subscription_data: SubscriptionData | None = None
    topic: str | None = None


_time_spans = BodyReader(QueryConsumeTimeSpanBody)
_corrections = BodyReader(QueryCorrectionOffsetBody)
_queue_entries = BodyReader(QueryConsumeQueueResponseBody)
_stats_data = BodyReader(BrokerStatsData)
_producers = BodyReader(ProducerTableInfo)


def decode_time_spans(data: bytes) -> QueryConsumeTimeSpanBody:
    """The answer to QUERY_CONSUME_TIME_SPAN; ProtocolError when it is none."""
    return _time_spans.decode(data)


def encode_time_spans(body: QueryConsumeTimeSpanBody) -> bytes:
    """The answer to QUERY_CONSUME_TIME_SPAN as JSON."""
    return encode_json(body)


def decode_corrections(data: bytes) -> QueryCorrectionOffsetBody:
    """The answer to QUERY_CORRECTION_OFFSET; ProtocolError when it is none."""
    return _corrections.decode(data)


def encode_corrections(body: QueryCorrectionOffsetBody) -> bytes:
    """The answer to QUERY_CORRECTION_OFFSET, keyed by bare numbers."""
    return encode_fastjson(body)


def encode_consume_stats_list(body: ConsumeStatsList) -> bytes:
    """The answer to GET_BROKER_CONSUME_STATS, its offsets keyed by objects."""
    return encode_fastjson(body)


def decode_queue_entries(data: bytes) -> QueryConsumeQueueResponseBody:
    """The answer to QUERY_CONSUME_QUEUE; ProtocolError when it is none."""
    return _queue_entries.decode(data)


def encode_queue_entries(body: QueryConsumeQueueResponseBody) -> bytes:
    """The answer to QUERY_CONSUME_QUEUE as JSON."""
    return encode_json(body)


def decode_stats_data(data: bytes) -> BrokerStatsData:
    """The answer to VIEW_BROKER_STATS_DATA; ProtocolError when it is none."""
    return _stats_data.decode(data)


def encode_stats_data(body: BrokerStatsData) -> bytes:
    """The answer to VIEW_BROKER_STATS_DATA as JSON."""
    return encode_json(body)


def decode_producer_table(data: bytes) -> ProducerTableInfo:
    """The answer to GET_ALL_PRODUCER_INFO; ProtocolError when it is none."""
    return _producers.decode(data)


def encode_producer_table(body: ProducerTableInfo) -> bytes:
    """The answer to GET_ALL_PRODUCER_INFO as JSON."""
    return encode_json(body)


def encode_subscription_answer(body: QuerySubscriptionResponseBody) -> bytes:
    """The answer to QUERY_SUBSCRIPTION_BY_CONSUMER as JSON."""
    return encode_json(body)
