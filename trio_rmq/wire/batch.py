"""The messages inside the body of one batch send (SEND_BATCH_MESSAGE, or SEND_MESSAGE_V2 with its batch field true).

Items stand back to back: int size, int 0 (magic), int 0 (CRC), int flag, int body size, body, short properties size,
properties.  Invariant: decoding arbitrary bytes raises ProtocolError and nothing else.
Source: RocketMQ MessageDecoder.encodeMessage, MessageBatch.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

import msgspec

from trio_rmq.errors import ProtocolError
from trio_rmq.limits import PROPERTIES_SIZE_MAX_BYTES

_HEAD = struct.Struct(">iiiii")
_HEAD_SIZE_BYTES = _HEAD.size
_SHORT = struct.Struct(">h")
_ITEM_OVERHEAD_BYTES = _HEAD.size + _SHORT.size
_MESSAGE_ILLEGAL = 13


class BatchItem(msgspec.Struct, gc=False):
    """One message of a batch: user flag, body, stored properties text."""

    flag: int
    body: bytes
    properties: bytes


def encode_batch(items: Iterable[BatchItem]) -> bytes:
    """The body of a batch send; ProtocolError when an item's numbers do not fit their fields."""
    parts: list[bytes] = []
    pack_head, pack_short = _HEAD.pack, _SHORT.pack
    try:
        for item in items:
            body, properties = item.body, item.properties
            body_size, properties_size = len(body), len(properties)
            head = pack_head(_ITEM_OVERHEAD_BYTES + body_size + properties_size, 0, 0, item.flag, body_size)
            parts += (head, body, pack_short(properties_size), properties)
    except struct.error as error:
        raise ProtocolError(f"a field of a batch item is out of range: {error}") from None
    return b"".join(parts)


def decode_batch(body: bytes) -> list[tuple[int, bytes, bytes]]:
    """(flag, body, properties) of each message of a batch send's body.

    ProtocolError (MESSAGE_ILLEGAL) when an item is cut short or lies.
    """
    items: list[tuple[int, bytes, bytes]] = []
    unpack = _HEAD.unpack_from
    position, end = 0, len(body)
    while position < end:
        body_at = position + _HEAD_SIZE_BYTES
        if body_at + 2 > end:
            raise _illegal("a batch item is cut short")
        size, _magic, _crc, flag, body_size = unpack(body, position)
        body_end = body_at + body_size
        properties_at = body_end + 2
        if body_size < 0 or properties_at > end:
            raise _illegal("a batch item's body reaches beyond the request")
        properties_size = body[body_end] << 8 | body[body_end + 1]
        item_end = properties_at + properties_size
        if properties_size > PROPERTIES_SIZE_MAX_BYTES or item_end > end:
            raise _illegal("a batch item's properties reach beyond the request")
        if size != item_end - position:
            raise _illegal("a batch item's size is not that of its parts")
        items.append((flag, body[body_at:body_end], body[properties_at:item_end]))
        position = item_end
    return items


def _illegal(message: str) -> ProtocolError:
    return ProtocolError(message, response_code=_MESSAGE_ILLEGAL)
