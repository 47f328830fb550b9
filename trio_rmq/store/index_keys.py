"""Which keys of a record the index holds, and the hash each has there.

A record is found by its unique key and by each word of its KEYS property, all as `topic#key`; rolled-back records have
none.  Invariants: what is told here from a block of the log equals what `check_record` tells; hashes are Java's.
Source: RocketMQ IndexService.buildIndex, CommitLog.checkMessageAndReturnSize.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from operator import mul

import msgspec

from trio_rmq.wire.hashing import index_key_hash, java_string_hash
from trio_rmq.wire.properties import KEY_SEPARATOR, KEYS, UNIQUE_KEY, property_of_bytes
from trio_rmq.wire.record import MAGIC_BLANK, MAGIC_V1, RECORD_SIZE_MIN_BYTES, RecordKind, check_record
from trio_rmq.wire.sysflag import BORN_HOST_V6, STORE_HOST_V6, TRANSACTION_ROLLBACK, transaction_type

_UNIQUE_KEY = UNIQUE_KEY.encode()
_KEYS = KEYS.encode()
_UNIQUE_KEY_MARK = b"\x02%b\x01" % _UNIQUE_KEY
_KEYS_MARK = b"\x02%b\x01" % _KEYS
_SEPARATOR = KEY_SEPARATOR.encode()
_HOSTS_V6 = BORN_HOST_V6 | STORE_HOST_V6
_HEAD = struct.Struct(">ii20xqi16xq20xi")
"""Of a V1 record with IPv4 hosts: size, magic, physical offset, sysFlag, store time, body size."""

_UNITS_MAX = 64
_POWERS = tuple(pow(31, exponent, 1 << 32) for exponent in range(_UNITS_MAX + 1))
_WEIGHTS = tuple(tuple(reversed(_POWERS[:units])) for units in range(_UNITS_MAX + 1))


class Keyed(msgspec.Struct, gc=False):
    """What the index needs of one record; `kind` BAD and BLANK have only `size_bytes`, 0 when nothing can be told."""

    kind: RecordKind
    size_bytes: int
    topic: bytes = b""
    properties: bytes = b""
    store_timestamp_ms: int = 0


def keys_of(properties: bytes) -> list[bytes]:
    """The unique key and the words of KEYS, in the order in which the index gets them, repetitions included."""
    keys = []
    unique = _value(properties, _UNIQUE_KEY, _UNIQUE_KEY_MARK)
    if unique is not None:
        keys.append(unique)
    words = _value(properties, _KEYS, _KEYS_MARK)
    if words is not None:
        keys += [word for word in words.split(_SEPARATOR) if word]
    return keys


def _value(properties: bytes, name: bytes, mark: bytes) -> bytes | None:
    """`property_of_bytes`, quick for what is not the first property, or is not there."""
    at = properties.rfind(mark)
    if at < 0:
        return property_of_bytes(properties, name) if properties.startswith(mark[1:]) else None
    start = at + len(mark)
    end = properties.find(b"\x02", start)
    return (properties[start:] if end < 0 else properties[start:end]) or property_of_bytes(properties, name)


@lru_cache(maxsize=4096)
def _prefix_hash(topic: bytes) -> int:
    return java_string_hash(topic.decode("utf-8", "replace") + "#") & 0xFFFFFFFF


def key_hash(topic: bytes, key: bytes) -> int:
    """`index_key_hash` of `topic#key`, both UTF-8; quick for the short ASCII keys that most are."""
    units = len(key)
    if units > _UNITS_MAX or not key.isascii():
        return index_key_hash(f"{topic.decode('utf-8', 'replace')}#{key.decode('utf-8', 'replace')}")
    result: int = (_prefix_hash(topic) * _POWERS[units] + sum(map(mul, key, _WEIGHTS[units]))) & 0xFFFFFFFF
    if result < 0x80000000:
        return result
    return 0 if result == 0x80000000 else 0x100000000 - result


def read_keyed(block: bytes, at: int, physical_offset: int) -> Keyed:
    """The record at `at` of `block`, which stands at `physical_offset`; BAD with its size when the block ends first.

    Its body's checksum is not looked at: the append or the recovery vouched for it.
    """
    room = len(block) - at
    if room >= RECORD_SIZE_MIN_BYTES:
        size, magic, offset, sys_flag, time_ms, body_size = _HEAD.unpack_from(block, at)
        if magic == MAGIC_V1 and not sys_flag & _HOSTS_V6 and offset == physical_offset:
            if not RECORD_SIZE_MIN_BYTES <= size <= room or not 0 <= body_size <= size - RECORD_SIZE_MIN_BYTES:
                return Keyed(RecordKind.BAD, max(0, size))
            topic_at = at + 88 + body_size
            topic_end = topic_at + 1 + block[topic_at]
            properties = block[topic_end + 2 : at + size]
            if len(properties) != int.from_bytes(block[topic_end : topic_end + 2], "big"):
                return Keyed(RecordKind.BAD, 0)
            if transaction_type(sys_flag) == TRANSACTION_ROLLBACK:
                properties = b""
            return Keyed(RecordKind.RECORD, size, block[topic_at + 1 : topic_end], properties, time_ms)
    size, magic = struct.unpack_from(">ii", block, at) if room >= 8 else (0, 0)
    if magic == MAGIC_BLANK:
        return Keyed(RecordKind.BLANK, size)
    if size > room:
        return Keyed(RecordKind.BAD, size)
    record = check_record(block, at, check_body_crc=False)
    if record.kind is not RecordKind.RECORD or record.physical_offset != physical_offset:
        return Keyed(RecordKind.BAD, 0)
    properties = b"" if transaction_type(record.sys_flag) == TRANSACTION_ROLLBACK else record.properties
    return Keyed(RecordKind.RECORD, size, record.topic.encode(), properties, record.store_timestamp_ms)
