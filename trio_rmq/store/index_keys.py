"""Which keys of a record the index holds, and the hash each has there.

A record is found by its unique key and by each word of its KEYS property, all as `topic#key`; rolled-back records have
none.  Invariants: what is told here from a block of the log equals what `check_record` tells; hashes are Java's.
Source: RocketMQ IndexService.buildIndex, CommitLog.checkMessageAndReturnSize.
"""

from __future__ import annotations

import struct
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from functools import lru_cache

import msgspec

from trio_rmq.store.messages import AppendResult, AppendStatus, BatchResult, NewBatch, NewMessage
from trio_rmq.wire.hashing import index_key_hash, java_string_hash
from trio_rmq.wire.properties import KEY_SEPARATOR, KEYS, UNIQUE_KEY, property_of_bytes
from trio_rmq.wire.record import MAGIC_BLANK, MAGIC_V1, RECORD_SIZE_MIN_BYTES, RecordKind, check_record
from trio_rmq.wire.sysflag import BORN_HOST_V6, STORE_HOST_V6, TRANSACTION_MASK, TRANSACTION_ROLLBACK, transaction_type

_UNIQUE_KEY = UNIQUE_KEY.encode()
_KEYS = KEYS.encode()
_UNIQUE_KEY_MARK = b"\x02%b\x01" % _UNIQUE_KEY
_KEYS_MARK = b"\x02%b\x01" % _KEYS
_UNIQUE_KEY_START = _UNIQUE_KEY_MARK[1:]
_UNIQUE_KEY_TEXT = f"{UNIQUE_KEY}\x01"
_UNIQUE_KEY_AT = len(_UNIQUE_KEY_TEXT)
_KEYS_TEXT = f"{KEYS}\x01"
_KEYS_START = _KEYS_MARK[1:]
_PROPERTY_END = 2
_PROPERTY_END_TEXT = "\x02"
_CHUNK_KEYS = 4096
_PUT_OK = AppendStatus.PUT_OK
_SEPARATOR = KEY_SEPARATOR.encode()
_HOSTS_V6 = BORN_HOST_V6 | STORE_HOST_V6
_HEAD = struct.Struct(">ii20xqi16xq20xi")
"""Of a V1 record with IPv4 hosts: size, magic, physical offset, sysFlag, store time, body size."""

_TAIL_UNITS = 4
_ONLY_KEY_END_MIN = _UNIQUE_KEY_AT + _TAIL_UNITS
_TAIL_POWER: int = 31**_TAIL_UNITS
_ODD_FLAGS = _HOSTS_V6 | TRANSACTION_MASK


class Pending:
    """Keys in the order of the log whose items are not in a file yet: hash, physical offset, store time of each."""

    __slots__ = ("_add_hash", "_add_offset", "_add_time", "hashes", "offsets", "times_ms")

    def __init__(self) -> None:
        self.hashes = array("i")
        self.offsets = array("q")
        self.times_ms = array("q")
        self._add_hash = self.hashes.append
        self._add_offset = self.offsets.append
        self._add_time = self.times_ms.append

    def add(self, hashed: int, offset: int, time_ms: int) -> None:
        """One more key."""
        self._add_hash(hashed)
        self._add_offset(offset)
        self._add_time(time_ms)

    def drop(self, count: int) -> None:
        """The first `count` keys are in a file now."""
        del self.hashes[:count]
        del self.offsets[:count]
        del self.times_ms[:count]

    def newest(self, wanted: int) -> Iterator[tuple[int, int, int] | None]:
        """Like `IndexFile.chain`, over a copy."""
        hashes, offsets, times_ms = self.hashes[:], self.offsets[:], self.times_ms[:]
        for end in range(len(hashes), 0, -_CHUNK_KEYS):
            start = max(0, end - _CHUNK_KEYS)
            if wanted in hashes[start:end]:
                for index in range(end - 1, start - 1, -1):
                    if hashes[index] == wanted:
                        yield offsets[index], times_ms[index], times_ms[index]
            yield None


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
    return _joined_hash(_head_hash(topic, key[:-_TAIL_UNITS]), key[-_TAIL_UNITS:])


def _joined_hash(moved: int, tail: bytes) -> int:
    """The index's hash of a text from the moved hash of its head and its last units."""
    a, b, c, d = tail
    result = (moved + a * 29791 + b * 961 + c * 31 + d) & 0xFFFFFFFF
    if result < 0x80000000:
        return result
    return 0 if result == 0x80000000 else 0x100000000 - result


@lru_cache(4096)
def _head_hash(topic: bytes, head: bytes) -> int:
    """The hash of `topic#head`, moved to make room for a tail: successive ids differ only in that."""
    return java_string_hash(f"{topic.decode('utf-8', 'replace')}#{head.decode()}") * _TAIL_POWER & 0xFFFFFFFF


class FreshKeys(msgspec.Struct, gc=False):
    """What the index needs of records just appended, from physical offset `start` to `end`, all stored at `time_ms`.

    Of each: its topic, its stored properties and its physical offset.
    """

    start: int
    end: int
    time_ms: int
    topics: Sequence[str]
    properties: Sequence[str | bytes]
    offsets: Sequence[int]


def fresh_keys(messages: Sequence[NewMessage], results: Sequence[AppendResult]) -> FreshKeys | None:
    """Of messages up to the first of a transaction, whose keys its record decides; None when there is no other.

    The last message was stored; None also when others were stored at another time than it.
    """
    last = results[-1]
    time_ms = last.store_timestamp_ms
    if results[0].store_timestamp_ms != time_ms:
        return None
    end = last.physical_offset + last.size_bytes
    offsets = [result.physical_offset for result in results]
    flags = [message.sys_flag for message in messages]
    if min(offsets) < 0 or any(flags):
        messages, offsets, end = _before_transaction(messages, results, end)
        if not offsets:
            return None
    topics = [message.topic for message in messages]
    return FreshKeys(offsets[0], end, time_ms, topics, [message.properties for message in messages], offsets)


def _before_transaction(
    messages: Sequence[NewMessage], results: Sequence[AppendResult], end: int
) -> tuple[Sequence[NewMessage], list[int], int]:
    """The stored messages before the first of a transaction, their physical offsets, and where they end."""
    kept, offsets = [], []
    for message, result in zip(messages, results, strict=True):
        if result.status is _PUT_OK:
            if message.sys_flag & TRANSACTION_MASK:
                end = result.physical_offset
                break
            kept.append(message)
            offsets.append(result.physical_offset)
    return kept, offsets, end


def fresh_keys_of_batch(batch: NewBatch, result: BatchResult) -> FreshKeys:
    """Of a batch that was stored."""
    offsets = result.physical_offsets
    properties = [item[2] for item in batch.items]
    end, time_ms = result.end_physical_offset, result.store_timestamp_ms
    return FreshKeys(offsets[0], end, time_ms, [batch.topic] * len(offsets), properties, offsets)


class Appended:
    """Messages just appended whose keys are still to be taken, in the order of the log; false when there are none.

    `messages` says how many, `end` where the last of them ends.
    """

    __slots__ = ("_taken", "_waiting", "end", "messages")

    def __init__(self) -> None:
        self._waiting: deque[FreshKeys] = deque()
        self._taken = 0
        """How many of the first ones' messages are done."""
        self.messages = 0
        self.end = -1

    def __bool__(self) -> bool:
        return bool(self._waiting)

    @property
    def first_messages(self) -> int:
        """How many are left of the append that is next; there is one."""
        return len(self._waiting[0].offsets) - self._taken

    def keep(self, fresh: FreshKeys) -> None:
        """These come after those that wait."""
        self._waiting.append(fresh)
        self.messages += len(fresh.offsets)
        self.end = fresh.end

    def take(self, most: int, position: int, end: int, pending: Pending) -> tuple[int, int]:
        """Add the keys of at most so many messages, of appends that end by `end`, to `pending`.

        Everything before `position` is there already; returns what it is now, and how many messages wait no more.
        Those that do not stand at `position` are only left out: the log was cut short there, or they came from it.
        """
        left = most
        while self._waiting and left:
            fresh, begin = self._waiting[0], self._taken
            if fresh.end > end:
                break
            offsets = fresh.offsets
            stop = min(begin + left, len(offsets))
            whole = stop == len(offsets)
            if offsets[begin] == position:
                _take(fresh, begin, stop, pending)
                position = fresh.end if whole else offsets[stop]
            left -= stop - begin
            self._taken = 0 if whole else stop
            if whole:
                self._waiting.popleft()
        self.messages -= most - left
        return position, most - left


def _take(fresh: FreshKeys, begin: int, stop: int, pending: Pending) -> None:
    """Add the keys of messages that were just appended, from number `begin` to before `stop`."""
    last_topic, last_head, moved = "", "", 0
    time_ms = fresh.time_ms
    add_hash, add_offset, add_time = pending.hashes.append, pending.offsets.append, pending.times_ms.append
    topics, stored, offsets = fresh.topics, fresh.properties, fresh.offsets
    if stop - begin < len(offsets):
        topics, stored, offsets = topics[begin:stop], stored[begin:stop], offsets[begin:stop]
    for topic, properties, offset in zip(topics, stored, offsets, strict=True):
        text = properties if isinstance(properties, str) else properties.decode("latin-1")  # the same, if ASCII
        # Nearly all have their unique key at the start, no other, and differ from the one before in its tail only.
        if (
            text.rfind(_UNIQUE_KEY_TEXT) == 0
            and (end := text.find(_PROPERTY_END_TEXT)) >= _ONLY_KEY_END_MIN
            and _KEYS_TEXT not in text
            and text.isascii()
        ):
            tail_at = end - _TAIL_UNITS
            head = text[_UNIQUE_KEY_AT:tail_at]
            if head != last_head or topic != last_topic:
                last_topic, last_head = topic, head
                moved = _head_hash(topic.encode(), head.encode())
            add_hash(_joined_hash(moved, text[tail_at:end].encode()))
            add_offset(offset)
            add_time(time_ms)
        else:
            for word in keys_of(_as_bytes(properties)):
                pending.add(key_hash(topic.encode(), word), offset, time_ms)


def _as_bytes(properties: str | bytes) -> bytes:
    return properties.encode() if isinstance(properties, str) else properties


def take_plain(block: bytes, at: int, position: int, most: int, held_at: int, pending: Pending) -> tuple[int, int]:
    """Add the keys of a run of plain records to `pending`; returns where the run ended and how many records it had.

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
        unique_at = block.rfind(_UNIQUE_KEY_START, properties_at, end)
        if block.find(_KEYS_START, properties_at, end) >= 0 or (
            unique_at > properties_at and block[unique_at - 1] != _PROPERTY_END
        ):
            topic = block[topic_at:topic_end]
            for key in keys_of(block[properties_at:end]):
                pending.add(key_hash(topic, key), offset, time_ms)
        elif unique_at >= 0:  # the one key that every message of RocketMQ's clients has
            unique_at += len(_UNIQUE_KEY_START)
            unique_end = block.find(_PROPERTY_END, unique_at, end)
            key = block[unique_at : end if unique_end < 0 else unique_end]
            for word in (key,) if key else keys_of(block[properties_at:end]):
                pending.add(key_hash(block[topic_at:topic_end], word), offset, time_ms)
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
