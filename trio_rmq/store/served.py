"""What a pull is about to serve, checked against the bodies' checksums: the option checkCRCOnPull.

RocketMQ checks bodies only in recovery, so bits that rot later reach consumers.  Checking each body on its way out
costs too much for a default; who wants it gets all messages before the damaged one, then an error that names it.
"""

from __future__ import annotations

import struct

from trio_rmq.errors import StoreCorruptError
from trio_rmq.store.consume_queue import ENTRY, ENTRY_SIZE_BYTES, ConsumeQueue
from trio_rmq.store.messages import GetResult, GetStatus
from trio_rmq.wire.checksum import crc32
from trio_rmq.wire.record import PHYSICAL_OFFSET_AT
from trio_rmq.wire.sysflag import BORN_HOST_V6, STORE_HOST_V6

_HEAD = struct.Struct(">i4xi24xi")
"""Of any record: size, body CRC, sysFlag."""

_INT = struct.Struct(">i")
_BODY_AT = 88
_HOSTS_V6 = BORN_HOST_V6 | STORE_HOST_V6
_V6_MORE_BYTES = 12
_ENTRIES_MAX = 4096


def first_damaged(body: bytes) -> tuple[int, int, int] | None:
    """The first record of `body` whose body's checksum is wrong; None when there is none.

    How many records stand before it, where it begins, and where the one before it does.
    """
    head, number = _HEAD.unpack_from, _INT.unpack_from
    view = memoryview(body)
    at, before, count, end = 0, 0, 0, len(body)
    while at < end:
        size, crc, flags = head(body, at)
        start = at + _BODY_AT
        if flags & _HOSTS_V6:
            start += _V6_MORE_BYTES * (bool(flags & BORN_HOST_V6) + bool(flags & STORE_HOST_V6))
        body_size = number(body, start - 4)[0] if start <= end else -1
        stop = start + body_size
        if body_size < 0 or stop > at + size or stop > end or crc32(view[start:stop]) & 0x7FFFFFFF != crc:
            return count, at, before
        before = at
        at += size
        count += 1
    return None


def undamaged(result: GetResult, queue: ConsumeQueue, offset: int) -> GetResult:
    """`result`, cut before the first damaged record; StoreCorruptError when that is its first.

    `offset` is where in `queue` the pull began.
    """
    found = first_damaged(result.body)
    if found is None:
        return result
    count, at, before = found
    if count:
        last = _index_of(queue, offset, _physical_of(result.body, before))
        return GetResult(
            GetStatus.FOUND, offset + last + 1, result.min_offset, result.max_offset, result.body[:at], count
        )
    physical = _physical_of(result.body, at)
    place = offset + _index_of(queue, offset, physical)
    raise StoreCorruptError(
        f"the message at offset {place} of {queue.topic}-{queue.queue_id}, physical offset {physical}, is damaged: "
        "its body's checksum is wrong. Stop the broker, let `trio-rmq store verify` list all damage and bring the file "
        "back from a copy or a replica, or let the group go on at a later offset"
    )


def _physical_of(body: bytes, at: int) -> int:
    return int.from_bytes(body[at + PHYSICAL_OFFSET_AT : at + PHYSICAL_OFFSET_AT + 8], "big", signed=True)


def _index_of(queue: ConsumeQueue, offset: int, physical: int) -> int:
    """How many entries from `offset` on stand before the one that leads to `physical`; 0 when none does."""
    data = queue.read(offset, _ENTRIES_MAX)
    entries = ENTRY.iter_unpack(data[: len(data) - len(data) % ENTRY_SIZE_BYTES])
    return next((number for number, entry in enumerate(entries) if entry[0] == physical), 0)
