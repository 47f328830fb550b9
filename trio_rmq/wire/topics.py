"""Topic settings as they travel and as they stand in config/topics.json: TopicConfig, its table, and DataVersion.

Fields stand in the order of their wire names, as fastjson writes them; a field that is None is not written (those only
5.x has).  Source: RocketMQ common/TopicConfig, DataVersion, TopicConfigSerializeWrapper.
"""

from __future__ import annotations

from typing import Any

import msgspec

from trio_rmq.errors import ProtocolError
from trio_rmq.wire.fastjson import BodyReader, encode_fastjson, encode_json, shown, shown_dict
from trio_rmq.wire.sysflag import PERMISSION_DEFAULT

SINGLE_TAG = "SINGLE_TAG"


class TopicConfig(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """One topic on one broker: queue counts, permission bits (wire/sysflag.py), flags; attributes only from 5.x."""

    attributes: dict[str, str] | None = None
    order: bool = shown(False)
    perm: int = shown(PERMISSION_DEFAULT)
    read_queue_nums: int = shown(16)
    topic_filter_type: str = shown(SINGLE_TAG)
    topic_name: str = shown("")
    topic_sys_flag: int = shown(0)
    write_queue_nums: int = shown(16)

    def encode_text(self) -> str:
        """The one-line form inside a compressed registration: five fields, a sixth when there are attributes."""
        text = f"{self.topic_name} {self.read_queue_nums} {self.write_queue_nums} {self.perm} {self.topic_filter_type}"
        return text if self.attributes is None else f"{text} {encode_json(self.attributes).decode()}"


def decode_topic_text(text: str) -> TopicConfig:
    """The one-line form of a topic as 4.x (five fields) and 5.x (attributes in a sixth, maybe empty) write it."""
    parts = text.split(" ", 5)
    if len(parts) < 5:
        raise ProtocolError("a topic of a compressed registration has fewer than five fields")
    numbers = parts[1:4]
    if not all(number.isascii() and number.removeprefix("-").isdigit() and len(number) <= 11 for number in numbers):
        raise ProtocolError("a topic of a compressed registration has a field that is no number")
    attributes = _attributes.decode(parts[5].encode()) if len(parts) == 6 and parts[5] else None
    return TopicConfig(
        topic_name=parts[0],
        read_queue_nums=int(parts[1]),
        write_queue_nums=int(parts[2]),
        perm=int(parts[3]),
        topic_filter_type=parts[4],
        attributes=attributes,
    )


class DataVersion(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True, frozen=True):
    """Which state of a table this is: a counter of changes and the time of the last; `state_version` only from 5.x."""

    counter: int = shown(0)
    state_version: int | None = None
    timestamp: int = shown(0)

    def next_version(self, wall_ms: int) -> DataVersion:
        """The version after one more change, made at `wall_ms`."""
        return DataVersion(counter=self.counter + 1, state_version=self.state_version, timestamp=wall_ms)

    def same_as(self, other: DataVersion | None) -> bool:
        """Whether both name the same state; a 4.x version has no state version, which equals 0."""
        return (
            other is not None
            and self.counter == other.counter
            and self.timestamp == other.timestamp
            and (self.state_version or 0) == (other.state_version or 0)
        )


class TopicConfigSerializeWrapper(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """A topic table with its version; the three mapping fields (static topics) only from 5.x, kept as they came."""

    data_version: DataVersion = shown(DataVersion())
    mapping_data_version: DataVersion | None = None
    topic_config_table: dict[str, TopicConfig] = shown_dict()
    topic_queue_mapping_detail_map: dict[str, Any] | None = None
    topic_queue_mapping_info_map: dict[str, Any] | None = None


_attributes = BodyReader(dict[str, str])
_topic_config = BodyReader(TopicConfig)
_data_version = BodyReader(DataVersion)
_wrapper = BodyReader(TopicConfigSerializeWrapper)


def decode_topic_config(data: bytes) -> TopicConfig:
    """One topic's JSON; ProtocolError when it is none."""
    return _topic_config.decode(data)


def encode_topic_config(topic: TopicConfig) -> bytes:
    """One topic as JSON."""
    return encode_json(topic)


def decode_data_version(data: bytes) -> DataVersion:
    """A DataVersion's JSON; ProtocolError when it is none."""
    return _data_version.decode(data)


def encode_data_version(version: DataVersion) -> bytes:
    """A DataVersion as JSON."""
    return encode_json(version)


def decode_topic_table(data: bytes) -> TopicConfigSerializeWrapper:
    """The body of GET_ALL_TOPIC_CONFIG and the content of topics.json; ProtocolError when it is none."""
    return _wrapper.decode(data)


def encode_topic_table(wrapper: TopicConfigSerializeWrapper, *, pretty: bool = False) -> bytes:
    """A topic table as JSON; `pretty` as it stands in topics.json."""
    return encode_fastjson(wrapper, pretty=True) if pretty else encode_json(wrapper)
