"""The body with which a broker registers at a name server, in all the forms that 3.x, 4.x and 5.x brokers send.

Plain JSON; the same, deflated, in a packed form of its own; and before 3.0.11 the topic table alone.  Invariant: no
more than INFLATED_BODY_MAX_BYTES are ever inflated, and only ProtocolError leaves the decoder.
Source: RocketMQ RegisterBrokerBody; the deflated layout stands in protocol/layouts.md.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import msgspec

from trio_rmq.errors import ProtocolError
from trio_rmq.limits import INFLATED_BODY_MAX_BYTES
from trio_rmq.wire.fastjson import BodyReader, encode_fastjson, encode_json, shown_list
from trio_rmq.wire.topics import (
    TopicConfigSerializeWrapper,
    decode_data_version,
    decode_topic_table,
    decode_topic_text,
    encode_data_version,
)

VERSION_3_0_11 = 37
"""MQVersion ordinal from which a registration has a RegisterBrokerBody."""
VERSION_5_0_0 = 413
"""MQVersion ordinal from which the deflated form ends in the static topics' mappings."""

_ZLIB_START = 0x78
_INT = struct.Struct(">i")


class RegisterBrokerBody(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """A broker's topics and filter servers; an incremental registration carries only the topics that changed."""

    filter_server_list: list[str] = shown_list()
    topic_config_serialize_wrapper: TopicConfigSerializeWrapper = msgspec.field(
        default_factory=lambda: TopicConfigSerializeWrapper()
    )


_body = BodyReader(RegisterBrokerBody)
_strings = BodyReader(list[str])
_mapping = BodyReader(dict[str, Any])


def decode_register_body(data: bytes, *, compressed: bool = False, version: int = VERSION_3_0_11) -> RegisterBrokerBody:
    """The body of REGISTER_BROKER; `compressed` and `version` come from the request's header.

    A body that starts as a zlib stream is inflated whatever the header says: 5.3.3 brokers say false and deflate.  No
    body at all is an empty table at version 0.  ProtocolError when it is none of the forms.
    """
    if not data:
        return RegisterBrokerBody()
    if compressed or data[0] == _ZLIB_START:
        return _decode_packed(_inflate(data), version)
    if version < VERSION_3_0_11:
        return RegisterBrokerBody(topic_config_serialize_wrapper=decode_topic_table(data))
    return _body.decode(data)


def encode_register_body(body: RegisterBrokerBody, *, compressed: bool = False, version: int = VERSION_3_0_11) -> bytes:
    """`body` in the form that a broker of `version` sends: JSON, or deflated when `compressed`."""
    if compressed:
        return zlib.compress(_encode_packed(body, version), 9)
    if version < VERSION_3_0_11:
        return encode_json(body.topic_config_serialize_wrapper)
    return encode_json(body)


def _inflate(data: bytes) -> bytes:
    inflater = zlib.decompressobj()
    try:
        result = inflater.decompress(data, INFLATED_BODY_MAX_BYTES)
    except zlib.error as error:
        raise ProtocolError(f"the registration is no zlib stream: {error}") from None
    if inflater.unconsumed_tail:
        raise ProtocolError(f"the registration inflates to more than {INFLATED_BODY_MAX_BYTES} bytes")
    return result


class _Parts:
    """Reads length-prefixed parts in order."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def number(self) -> int:
        start = self._position
        if start + 4 > len(self._data):
            raise ProtocolError("the inflated registration is cut short")
        self._position = start + 4
        result: int = _INT.unpack_from(self._data, start)[0]
        if result < 0:
            raise ProtocolError("the inflated registration has a negative length")
        return result

    def part(self) -> bytes:
        size = self.number()
        start = self._position
        if start + size > len(self._data):
            raise ProtocolError("the inflated registration is cut short")
        self._position = start + size
        return self._data[start : start + size]

    @property
    def at_end(self) -> bool:
        return self._position == len(self._data)


def _decode_packed(data: bytes, version: int) -> RegisterBrokerBody:
    parts = _Parts(data)
    wrapper = TopicConfigSerializeWrapper(data_version=decode_data_version(parts.part()))
    for _ in range(parts.number()):
        try:
            topic = decode_topic_text(parts.part().decode())
        except UnicodeDecodeError:
            raise ProtocolError("a topic of the registration is no UTF-8") from None
        wrapper.topic_config_table[topic.topic_name] = topic
    filter_servers = parts.part()
    body = RegisterBrokerBody(
        filter_server_list=[] if filter_servers == b"null" else _strings.decode(filter_servers),
        topic_config_serialize_wrapper=wrapper,
    )
    if version >= VERSION_5_0_0 and not parts.at_end:
        mappings = [_mapping.decode(parts.part()) for _ in range(parts.number())]
        wrapper.topic_queue_mapping_info_map = {str(mapping.get("topic", "")): mapping for mapping in mappings}
    return body


def _encode_packed(body: RegisterBrokerBody, version: int) -> bytes:
    wrapper = body.topic_config_serialize_wrapper
    out: list[bytes] = []
    _append(out, encode_data_version(wrapper.data_version))
    out.append(_INT.pack(len(wrapper.topic_config_table)))
    for topic in wrapper.topic_config_table.values():
        _append(out, topic.encode_text().encode())
    _append(out, encode_json(body.filter_server_list))
    if version >= VERSION_5_0_0:
        mappings = wrapper.topic_queue_mapping_info_map or {}
        out.append(_INT.pack(len(mappings)))
        for mapping in mappings.values():
            _append(out, encode_fastjson(mapping))
    return b"".join(out)


def _append(out: list[bytes], part: bytes) -> None:
    out.append(_INT.pack(len(part)))
    out.append(part)
