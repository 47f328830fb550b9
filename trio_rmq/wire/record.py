"""The stored message record: the same bytes in the commit log, in a pull response and in a viewed message.

Invariants: a record's stated size equals the size computed from its parts; what is decoded encodes again to the same
bytes; decoding arbitrary bytes raises ProtocolError and nothing else, and takes no more memory than the input has.
V1 has one topic length byte, V2 (5.x, topics over 127 bytes) two; each host has 4 or 16 address bytes, told by two
bits of sysFlag.  Source: RocketMQ CommitLog, MessageDecoder; the layout stands in protocol/layouts.md.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import IntEnum
from functools import lru_cache

import msgspec

from trio_rmq.errors import ProtocolError
from trio_rmq.limits import PROPERTIES_SIZE_MAX_BYTES
from trio_rmq.wire.checksum import crc32
from trio_rmq.wire.ids import Host, encode_offset_id
from trio_rmq.wire.properties import TAGS, UNIQUE_KEY, parse_properties, property_of_bytes
from trio_rmq.wire.sysflag import BORN_HOST_V6, STORE_HOST_V6

MAGIC_V1 = -626_843_481
MAGIC_V2 = -626_843_477
MAGIC_BLANK = -875_286_124

BLANK_SIZE_BYTES = 8
"""A filler: int bytes left in the file, int magic; the rest of the file is unused."""

RECORD_SIZE_MIN_BYTES = 91
"""Size of a V1 record with IPv4 hosts and with no body, topic or properties."""

QUEUE_OFFSET_AT = 20
PHYSICAL_OFFSET_AT = 28
SYS_FLAG_AT = 36
"""Byte positions inside any record."""

_TOPIC_LENGTH_V1_MAX = 127
_HOSTS_V6 = BORN_HOST_V6 | STORE_HOST_V6
_MAGIC_V1_LOW = MAGIC_V1 & 0xFF

_HEAD = struct.Struct(">iiiiiqqiq4siq4siiqi")
_HEADS = {
    0: _HEAD,
    BORN_HOST_V6: struct.Struct(">iiiiiqqiq16siq4siiqi"),
    STORE_HOST_V6: struct.Struct(">iiiiiqqiq4siq16siiqi"),
    _HOSTS_V6: struct.Struct(">iiiiiqqiq16siq16siiqi"),
}
_SIZE_AND_MAGIC = struct.Struct(">ii")
_PLAIN_HEAD = struct.Struct(">iiii4xqqi16xq12xqi")
"""Of a V1 record with IPv4 hosts, what CheckedRecord needs: hosts, flag, birth and reconsume times are skipped."""
_GLANCE_HEAD = struct.Struct(">ii12xq8xi32xi8xi")
"""Of the same, what `glance_records` needs: size, magic, queue offset, sysFlag, reconsume times, body size."""
_TWO_LONGS = struct.Struct(">qq")
_LONG = struct.Struct(">q")
_SHORT = struct.Struct(">h")

_pack_head = _HEAD.pack
pack_shared_v4 = struct.Struct(">iq4siq4siiq").pack
"""Packs the middle of a head with IPv4 hosts that messages of one sender and millisecond share: sysFlag; time, address
and port of birth; the same of the store; reconsume times, prepared offset."""
pack_head_v4 = struct.Struct(">iiiiiqq48si").pack
"""Packs the 88 bytes before the body, for the log's append, which joins a whole run of records once: size, magic, body
CRC, queue id, flag, queue offset, physical offset, what `pack_shared_v4` gave, body size."""
_pack_short = _SHORT.pack

Buffer = bytes | bytearray | memoryview


class StoredMessage(msgspec.Struct, gc=False, kw_only=True):
    """One decoded record; `properties` is the stored text, undecoded."""

    size_bytes: int
    magic: int
    body_crc: int
    queue_id: int
    flag: int
    queue_offset: int
    physical_offset: int
    sys_flag: int
    born_timestamp_ms: int
    born_host: Host
    store_timestamp_ms: int
    store_host: Host
    reconsume_times: int
    prepared_transaction_offset: int
    body: bytes
    topic: str
    properties: bytes

    def property_map(self) -> dict[str, str]:
        """All properties as a new mapping."""
        return parse_properties(self.properties)

    def get_property(self, name: str) -> str | None:
        """The value of the property `name`, or None."""
        value = property_of_bytes(self.properties, name.encode())
        return None if value is None else value.decode("utf-8", "replace")

    @property
    def tags(self) -> str | None:
        """The TAGS property."""
        return self.get_property(TAGS)

    @property
    def unique_key(self) -> str | None:
        """The UNIQ_KEY property: the id its producer gave it."""
        return self.get_property(UNIQUE_KEY)

    @property
    def offset_message_id(self) -> str:
        """The id that names this very record: its store host and physical offset."""
        return encode_offset_id(self.store_host, self.physical_offset)


class RecordKind(IntEnum):
    """What recovery found at a position of the log."""

    RECORD = 0
    BLANK = 1
    BAD = 2


class CheckedRecord(msgspec.Struct, gc=False):
    """The answer of `check_record`: for RECORD what dispatching needs, for BLANK the filler's size, for BAD why."""

    kind: RecordKind
    size_bytes: int = 0
    topic: str = ""
    queue_id: int = 0
    queue_offset: int = 0
    physical_offset: int = 0
    sys_flag: int = 0
    store_timestamp_ms: int = 0
    prepared_transaction_offset: int = 0
    properties: bytes = b""
    reason: str = ""


def encode_topic(topic: str) -> tuple[bytes, int]:
    """(length and name bytes, magic) of a record's topic field; worth keeping per queue.  V2 from 128 bytes on."""
    name = topic.encode()
    if len(name) <= _TOPIC_LENGTH_V1_MAX:
        return bytes((len(name),)) + name, MAGIC_V1
    if len(name) > 32_767:
        raise ProtocolError("a topic name is longer than its two length bytes can say")
    return _SHORT.pack(len(name)) + name, MAGIC_V2


def record_size(topic_field: bytes, body: Buffer, properties: bytes, born_host: Host, store_host: Host) -> int:
    """Bytes that the record takes in the log; `topic_field` comes from `encode_topic`."""
    size = 90 + len(topic_field) + len(body) + len(properties)
    if len(born_host[0]) == 16:
        size += 12
    return size + 12 if len(store_host[0]) == 16 else size


def encode_record(
    topic_field: bytes,
    queue_id: int,
    queue_offset: int,
    physical_offset: int,
    store_timestamp_ms: int,
    store_host: Host,
    body: Buffer,
    properties: bytes,
    flag: int,
    sys_flag: int,
    born_timestamp_ms: int,
    born_host: Host,
    reconsume_times: int = 0,
    prepared_transaction_offset: int = 0,
    magic: int = MAGIC_V1,
) -> bytes:
    """One record, ready for the log.

    `topic_field` and `magic` come from `encode_topic`.  The two IPv6 bits of `sys_flag` are set or cleared to fit the
    hosts.  Raises ProtocolError when a number does not fit its field or `properties` is over 32,767 bytes: check
    before queue offsets are handed out.
    """
    born_address, born_port = born_host
    store_address, store_port = store_host
    properties_size = len(properties)
    if len(born_address) != 4 or len(store_address) != 4 or sys_flag & _HOSTS_V6:
        pack, sys_flag = _choose_head(sys_flag, born_address, store_address)
        size = record_size(topic_field, body, properties, born_host, store_host)
    else:
        pack = _pack_head
        size = 90 + len(topic_field) + len(body) + properties_size
    try:
        return b"".join(
            (
                pack(
                    size,
                    magic,
                    crc32(body) & 0x7FFFFFFF,
                    queue_id,
                    flag,
                    queue_offset,
                    physical_offset,
                    sys_flag,
                    born_timestamp_ms,
                    born_address,
                    born_port,
                    store_timestamp_ms,
                    store_address,
                    store_port,
                    reconsume_times,
                    prepared_transaction_offset,
                    len(body),
                ),
                body,
                topic_field,
                _pack_short(properties_size),
                properties,
            )
        )
    except struct.error as error:
        raise ProtocolError(
            f"a field of the message does not fit the stored record: {error}", response_code=13
        ) from None


def _choose_head(sys_flag: int, born_address: bytes, store_address: bytes) -> tuple[Callable[..., bytes], int]:
    bits = 0
    for address, bit in ((born_address, BORN_HOST_V6), (store_address, STORE_HOST_V6)):
        if len(address) == 16:
            bits |= bit
        elif len(address) != 4:
            raise ProtocolError(f"a host of {len(address)} address bytes is neither IPv4 nor IPv6")
    return _HEADS[bits].pack, (sys_flag & ~_HOSTS_V6) | bits


def assign_offsets(
    record: bytearray | memoryview, queue_offset: int, physical_offset: int, store_timestamp_ms: int, at: int = 0
) -> None:
    """Write the three values that only the store knows into a record built earlier, which starts at `at`."""
    sys_flag = int.from_bytes(record[at + SYS_FLAG_AT : at + SYS_FLAG_AT + 4], "big")
    store_time_at = at + (68 if sys_flag & BORN_HOST_V6 else 56)
    _TWO_LONGS.pack_into(record, at + QUEUE_OFFSET_AT, queue_offset, physical_offset)
    _LONG.pack_into(record, store_time_at, store_timestamp_ms)


def encode_stored(message: StoredMessage) -> bytes:
    """The record of `message` (tests, transaction check-backs); its size and CRC are computed anew."""
    topic_field, magic = encode_topic(message.topic)
    if message.magic == MAGIC_V2 and magic == MAGIC_V1:
        topic_field, magic = b"\0" + topic_field, MAGIC_V2
    return encode_record(
        topic_field,
        message.queue_id,
        message.queue_offset,
        message.physical_offset,
        message.store_timestamp_ms,
        message.store_host,
        message.body,
        message.properties,
        message.flag,
        message.sys_flag,
        message.born_timestamp_ms,
        message.born_host,
        message.reconsume_times,
        message.prepared_transaction_offset,
        magic,
    )


def encode_blank(size_bytes: int) -> bytes:
    """The eight bytes that say: `size_bytes` are left in this file and hold nothing."""
    return _SIZE_AND_MAGIC.pack(size_bytes, MAGIC_BLANK)


def peek_record(buffer: Buffer, position: int = 0) -> tuple[int, int]:
    """(stated size, magic) of what stands at `position`; ProtocolError when fewer than eight bytes do."""
    if position < 0 or position + 8 > len(buffer):
        raise ProtocolError("fewer than eight bytes where a record should start")
    size, magic = _SIZE_AND_MAGIC.unpack_from(buffer, position)
    return size, magic


def decode_record(buffer: Buffer, position: int = 0, *, check_crc: bool = False) -> StoredMessage:
    """The record that starts at `position`; ProtocolError when there is none, it is cut short or its parts disagree.

    With `check_crc` the body's checksum is verified too (what the log does on recovery; TCP has its own).
    """
    end = len(buffer)
    if position < 0 or position + RECORD_SIZE_MIN_BYTES > end:
        raise ProtocolError("the record is cut short")
    sys_flag = int.from_bytes(buffer[position + SYS_FLAG_AT : position + SYS_FLAG_AT + 4], "big")
    hosts = sys_flag & _HOSTS_V6
    head = _HEADS[hosts] if hosts else _HEAD
    if position + head.size > end:
        raise ProtocolError("the record is cut short")
    (
        size,
        magic,
        crc,
        queue_id,
        flag,
        queue_offset,
        physical_offset,
        sys_flag,
        born_timestamp_ms,
        born_address,
        born_port,
        store_timestamp_ms,
        store_address,
        store_port,
        reconsume_times,
        prepared_transaction_offset,
        body_size,
    ) = head.unpack_from(buffer, position)
    body_at = position + head.size
    topic, properties_at, record_end = _tail(buffer, body_at + body_size, magic, position + size, body_size)
    body = bytes(buffer[body_at : body_at + body_size])
    if check_crc and body and crc32(body) & 0x7FFFFFFF != crc:
        raise ProtocolError("the body's checksum is wrong")
    return StoredMessage(
        size_bytes=size,
        magic=magic,
        body_crc=crc,
        queue_id=queue_id,
        flag=flag,
        queue_offset=queue_offset,
        physical_offset=physical_offset,
        sys_flag=sys_flag,
        born_timestamp_ms=born_timestamp_ms,
        born_host=(born_address, born_port),
        store_timestamp_ms=store_timestamp_ms,
        store_host=(store_address, store_port),
        reconsume_times=reconsume_times,
        prepared_transaction_offset=prepared_transaction_offset,
        body=body,
        topic=topic,
        properties=bytes(buffer[properties_at:record_end]),
    )


def record_properties(record: bytes) -> bytes:
    """The property text of one whole record as the log has it, found by its lengths alone; nothing else is decoded."""
    hosts = record[39]
    body_size_at = 84 + (12 if hosts & BORN_HOST_V6 else 0) + (12 if hosts & STORE_HOST_V6 else 0)
    name_at = body_size_at + 5 + int.from_bytes(record[body_size_at : body_size_at + 4], "big")
    topic_size = record[name_at - 1]
    if record[7] != _MAGIC_V1_LOW:
        topic_size = topic_size << 8 | record[name_at]
        name_at += 1
    return record[name_at + topic_size + 2 :]


def _tail(buffer: Buffer, topic_at: int, magic: int, record_end: int, body_size: int) -> tuple[str, int, int]:
    """(topic, position of the properties, end of the record) after every length was checked against the others."""
    if magic == MAGIC_V1:
        length_size = 1
    elif magic == MAGIC_V2:
        length_size = 2
    else:
        raise ProtocolError(f"{magic & 0xFFFFFFFF:#x} is no magic number of a record")
    if record_end > len(buffer) or body_size < 0 or topic_at + length_size > record_end:
        raise ProtocolError("the record is cut short")
    name_at = topic_at + length_size
    topic_size = buffer[topic_at] if length_size == 1 else buffer[topic_at] << 8 | buffer[topic_at + 1]
    properties_at = name_at + topic_size + 2
    if properties_at > record_end:
        raise ProtocolError("the topic reaches beyond its record")
    properties_size = buffer[properties_at - 2] << 8 | buffer[properties_at - 1]
    if properties_size > PROPERTIES_SIZE_MAX_BYTES or properties_at + properties_size != record_end:
        raise ProtocolError("the record's size is not that of its parts")
    try:
        topic = str(buffer[name_at : name_at + topic_size], "utf-8")
    except UnicodeDecodeError:
        raise ProtocolError("the record's topic is no UTF-8") from None
    return topic, properties_at, record_end


def check_record(buffer: Buffer, position: int = 0, *, check_body_crc: bool = True) -> CheckedRecord:
    """What stands at `position` of the log, with the checks of RocketMQ's recovery in its order; never raises.

    Enough bytes; magic; body checksum; stated size equals computed size.  A stored physical offset that is not the
    real position is for the caller to judge.
    """
    plain = _check_plain(buffer, position, check_body_crc)
    if plain is not None:
        return plain
    if position + 8 > len(buffer):
        return CheckedRecord(RecordKind.BAD, reason="fewer than eight bytes are left")
    size, magic = _SIZE_AND_MAGIC.unpack_from(buffer, position)
    if magic == MAGIC_BLANK:
        return CheckedRecord(RecordKind.BLANK, size)
    try:
        record = decode_record(buffer, position, check_crc=check_body_crc)
    except ProtocolError as error:
        return CheckedRecord(RecordKind.BAD, size, reason=str(error))
    return CheckedRecord(
        RecordKind.RECORD,
        size,
        record.topic,
        record.queue_id,
        record.queue_offset,
        record.physical_offset,
        record.sys_flag,
        record.store_timestamp_ms,
        record.prepared_transaction_offset,
        record.properties,
    )


def _check_plain(buffer: Buffer, position: int, check_body_crc: bool) -> CheckedRecord | None:
    """`check_record` of a whole V1 record with IPv4 hosts, in a third of the time; None for anything else."""
    if position < 0 or position + RECORD_SIZE_MIN_BYTES > len(buffer):
        return None
    (
        size,
        magic,
        crc,
        queue_id,
        queue_offset,
        physical_offset,
        sys_flag,
        store_timestamp_ms,
        prepared_transaction_offset,
        body_size,
    ) = _PLAIN_HEAD.unpack_from(buffer, position)
    end = position + size
    if magic != MAGIC_V1 or sys_flag & _HOSTS_V6 or end > len(buffer):
        return None
    if not 0 <= body_size <= size - RECORD_SIZE_MIN_BYTES:
        return None
    body_at = position + _PLAIN_HEAD.size
    name_at = body_at + body_size + 1
    name_end = name_at + buffer[name_at - 1]
    properties_at = name_end + 2
    if properties_at > end or buffer[name_end] << 8 | buffer[name_end + 1] != end - properties_at:
        return None
    if check_body_crc and body_size and crc32(buffer[body_at : name_at - 1]) & 0x7FFFFFFF != crc:
        return None
    try:
        topic = _topic_text(bytes(buffer[name_at:name_end]))
    except UnicodeDecodeError:
        return None
    return CheckedRecord(
        RecordKind.RECORD,
        size,
        topic,
        queue_id,
        queue_offset,
        physical_offset,
        sys_flag,
        store_timestamp_ms,
        prepared_transaction_offset,
        bytes(buffer[properties_at:end]),
    )


@lru_cache(4096)
def _topic_text(name: bytes) -> str:
    return name.decode()


def decode_records(body: Buffer, *, check_crc: bool = False) -> list[StoredMessage]:
    """All records of a pull response's body, which holds nothing else; ProtocolError otherwise."""
    records = []
    position, end = 0, len(body)
    while position < end:
        record = decode_record(body, position, check_crc=check_crc)
        records.append(record)
        position += record.size_bytes
    return records


def glance_records(body: Buffer) -> list[tuple[int, int, int, int]]:
    """Of each record of a pull response's body: its position, queue offset, reconsume times and body size.

    The sizes of each are compared with one another as `decode_record` does, so that it will find the record there; only
    its topic's letters are left unread.  Takes a quarter of the time.  ProtocolError as of `decode_records`.
    """
    found: list[tuple[int, int, int, int]] = []
    add = found.append
    position, end = 0, len(body)
    glance = _GLANCE_HEAD.unpack_from
    while position < end:
        try:
            size, magic, queue_offset, sys_flag, reconsume_times, body_size = glance(body, position)
            if magic == MAGIC_V1 and body_size >= 0 and not sys_flag & _HOSTS_V6:
                topic_at = position + 88 + body_size
                properties_at = topic_at + body[topic_at] + 3
                record_end = position + size
                properties_size = body[properties_at - 2] << 8 | body[properties_at - 1]
                if properties_at + properties_size == record_end <= end and properties_size <= 0x7FFF:
                    add((position, queue_offset, reconsume_times, body_size))
                    position = record_end
                    continue
        except (struct.error, IndexError):
            pass  # it ends before what its numbers say
        record = decode_record(body, position)  # another kind, or what is wrong
        add((position, record.queue_offset, record.reconsume_times, len(record.body)))
        position += record.size_bytes
    return found
