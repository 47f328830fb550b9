"""Which keys of a record the index holds, and the hash each has there.

A record is found by its unique key and by each word of its KEYS property, all as `topic#key`; rolled-back records have
none.  Invariants: what is told here from a block of the log equals what `check_record` tells; hashes are Java's.
Source: RocketMQ IndexService.buildIndex, CommitLog.checkMessageAndReturnSize.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import msgspec

from trio_rmq.wire.hashing import index_key_hash, java_string_hash
from trio_rmq.wire.properties import KEY_SEPARATOR, KEYS, UNIQUE_KEY, property_of_bytes
from trio_rmq.wire.record import MAGIC_BLANK, MAGIC_V1, RECORD_SIZE_MIN_BYTES, RecordKind, check_record
from trio_rmq.wire.sysflag import BORN_HOST_V6, STORE_HOST_V6, TRANSACTION_MASK, TRANSACTION_ROLLBACK, transaction_type

_UNIQUE_KEY = UNIQUE_KEY.encode()
_KEYS = KEYS.encode()
_UNIQUE_KEY_MARK = b"\x02%b\x01" % _UNIQUE_KEY
_KEYS_MARK = b"\x02%b\x01" % _KEYS
_SEPARATOR = KEY_SEPARATOR.encode()
_HOSTS_V6 = BORN_HOST_V6 | STORE_HOST_V6
_HEAD = struct.Struct(">ii20xqi16xq20xi")
"""Of a V1 record with IPv4 hosts: size, magic, physical offset, sysFlag, store time, body size."""

_TAIL_UNITS = 4
_TAIL_POWER = 31**_TAIL_UNITS
_HEADS_MAX = 4096
_ODD_FLAGS = _HOSTS_V6 | TRANSACTION_MASK
_head_hashes: dict[bytes, int] = {}
"""The hash of `topic#key` without its last four characters, moved to its place: successive ids differ only there."""


Take = Callable[[int, int, int], None]
"""(hash, physical offset, store time in ms) of one key."""


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
    """`property_of_bytes`, quicker."""
    at = properties.rfind(mark)
    if at >= 0:
        start = at + len(mark)
    elif properties.startswith(mark[1:]):
        start = len(mark) - 1
    else:
        return None
    end = properties.find(b"\x02", start)
    return (properties[start:] if end < 0 else properties[start:end]) or property_of_bytes(properties, name)


def key_hash(topic: bytes, key: bytes) -> int:
    """`index_key_hash` of `topic#key`, both UTF-8; quick for the ASCII keys that most are."""
    if len(key) < _TAIL_UNITS or not key.isascii():
        return index_key_hash(f"{topic.decode('utf-8', 'replace')}#{key.decode('utf-8', 'replace')}")
    head = b"%b#%b" % (topic, key[:-_TAIL_UNITS])
    head_hash = _head_hashes.get(head)
    if head_hash is None:
        if len(_head_hashes) >= _HEADS_MAX:
            _head_hashes.clear()
        head_hash = _head_hashes[head] = java_string_hash(head.decode("utf-8", "replace")) * _TAIL_POWER & 0xFFFFFFFF
    a, b, c, d = key[-_TAIL_UNITS:]
    result = (head_hash + a * 29791 + b * 961 + c * 31 + d) & 0xFFFFFFFF
    if result < 0x80000000:
        return result
    return 0 if result == 0x80000000 else 0x100000000 - result


def take_plain(block: bytes, at: int, position: int, most: int, held_at: int, take: Take) -> tuple[int, int]:
    """Give the keys of a run of plain records to `take`; returns where the run ended and how many records it had.

    Plain are V1 records with IPv4 hosts outside transactions, whole and at their place, that is, nearly all; the run
    ends before any other, after `most`, and before the one at physical offset `held_at`.  `block` stands at `position`.
    """
    size = len(block)
    unpack = _HEAD.unpack_from
    last = size - RECORD_SIZE_MIN_BYTES
    taken = 0
    while taken < most and at <= last:
        record_size, magic, offset, sys_flag, time_ms, body_size = unpack(block, at)
        end = at + record_size
        if (
            magic != MAGIC_V1
            or sys_flag & _ODD_FLAGS
            or offset != position + at
            or offset == held_at
            or end > size
            or not 0 <= body_size <= record_size - RECORD_SIZE_MIN_BYTES
        ):
            break
        topic_at = at + 89 + body_size
        topic_end = topic_at + block[topic_at - 1]
        properties_at = topic_end + 2
        if properties_at > end or end - properties_at != block[topic_end] << 8 | block[topic_end + 1]:
            break
        if properties_at < end:
            topic = block[topic_at:topic_end]
            for key in keys_of(block[properties_at:end]):
                take(key_hash(topic, key), offset, time_ms)
        at = end
        taken += 1
    return at, taken


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
