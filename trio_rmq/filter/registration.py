"""What a broker remembers of a group's SQL92 filter, and the file that keeps it: `config/consumerFilter.json`.

The registration outlives its consumers: bit maps are made with it also while nobody is connected, so that a group that
comes back finds its messages sorted.  Invariant: what is written equals Apache's file byte for byte, but for the order
of topics and groups, which Apache leaves to a hash map.  Source: RocketMQ ConsumerFilterData, ConsumerFilterManager.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from trio_rmq.errors import ProtocolError
from trio_rmq.filter.bloom import BloomFilterData
from trio_rmq.wire.fastjson import BodyReader, encode_fastjson, encode_json

FilterTable = dict[str, dict[str, "ConsumerFilterData"]]
"""Registrations by topic, then by group."""


class ConsumerFilterData(msgspec.Struct, kw_only=True, rename="camel"):
    """One group's filter of one topic; times in Unix milliseconds.

    `born_time` is when this expression was registered: bit maps of earlier messages do not know it.  `dead_time` is
    when the last consumer left, 0 while there is one.  `client_version` is the subscription's version.
    """

    bloom_filter_data: BloomFilterData | None = None
    born_time: int = 0
    client_version: int = 0
    consumer_group: str = ""
    dead_time: int = 0
    expression: str = ""
    expression_type: str = ""
    topic: str = ""

    @property
    def dead(self) -> bool:
        """Whether the group has no consumer of this topic."""
        return self.dead_time >= self.born_time

    def knew(self, store_time_ms: int) -> bool:
        """Whether a message stored then has this expression in its bit map."""
        return store_time_ms > self.born_time


class _Topic(msgspec.Struct, kw_only=True, rename="camel"):
    group_filter_data: dict[str, ConsumerFilterData] = {}
    topic: str = ""


class _File(msgspec.Struct, kw_only=True, rename="camel"):
    filter_data_by_topic: dict[str, _Topic] = {}


_read = BodyReader(_File)


def decode_consumer_filters(data: bytes) -> FilterTable:
    """The registrations in the bytes of a consumerFilter.json; ProtocolError when they are no such file."""
    if not data.strip():
        raise ProtocolError("the file of consumer filters is empty")
    return {name: topic.group_filter_data for name, topic in _read.decode(data).filter_data_by_topic.items()}


def encode_consumer_filters(filters: Mapping[str, Mapping[str, ConsumerFilterData]]) -> bytes:
    """The bytes of a consumerFilter.json; topics without a group are left out, as by Apache."""
    topics = {
        name: {"groupFilterData": {group: _fields(data) for group, data in groups.items()}, "topic": name}
        for name, groups in filters.items()
        if groups
    }
    return encode_fastjson({"filterDataByTopic": topics}, pretty=True)


def encode_consumer_filter(data: ConsumerFilterData) -> bytes:
    """One registration as it stands in the file, for tools to show."""
    return encode_fastjson(_fields(data), pretty=True)


def _fields(data: ConsumerFilterData) -> dict[str, object]:
    """The fields of one registration in the file's order, the derived `dead` among them."""
    bloom = data.bloom_filter_data
    return {
        "bloomFilterData": bloom
        and {"bitNum": bloom.bit_num, "bitPos": msgspec.Raw(encode_json(bloom.bit_pos))},  # Java's array: on one line
        "bornTime": data.born_time,
        "clientVersion": data.client_version,
        "consumerGroup": data.consumer_group,
        "dead": data.dead,
        "deadTime": data.dead_time,
        "expression": data.expression,
        "expressionType": data.expression_type,
        "topic": data.topic,
    }
