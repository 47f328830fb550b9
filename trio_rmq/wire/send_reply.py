"""The answer to a stored send, encoded at once: the one reply that a broker makes for every message.

Building a Command, its typed header and its text fields costs more than the rest of the answer; here the constant parts
are laid out once.  Invariant: the bytes are those that `encode_frame` makes of the same reply (a test compares them).
"""

from __future__ import annotations

import struct

from trio_rmq.wire.command import FLAG_RESPONSE, Command, SerializeType
from trio_rmq.wire.frame import encode_frame
from trio_rmq.wire.headers import SendMessageResponseHeader
from trio_rmq.wire.ids import Host, encode_offset_id

_HEADER_AT = 8
"""Where the header begins in a frame: after its length and its header word."""
_FIELDS_AT = 21
"""Where the fields begin in a binary header without a remark."""
_OFFSET_DIGITS = 16
"""At the end of an offset id: the physical offset, in hexadecimal."""
_JSON = SerializeType.JSON
_ROCKETMQ = SerializeType.ROCKETMQ
_ROCKETMQ_WORD = 1 << 24
_pack_words = struct.Struct(">ii").pack
_pack_head = struct.Struct(">iiii").pack
_pack_size = struct.Struct(">i").pack
_DIGITS_SIZES = [_pack_size(digits) for digits in range(20)]
"""The size word before a number of so many digits."""


class SendReplyEncoder:
    """Encodes answers that differ only in opaque, physical offset, queue id and queue offset.

    `store_host` begins every message id; `ext` is in all answers.
    """

    def __init__(self, store_host: Host, ext: dict[str, str]) -> None:
        sample_id, queue_id, queue_offset, opaque = "-message-id-", 1_234_567, 7_654_321, 1_122_334
        header = SendMessageResponseHeader(msg_id=sample_id, queue_id=queue_id, queue_offset=queue_offset)
        reply = Command(0, header=header, ext=ext, flag=FLAG_RESPONSE, opaque=opaque)
        id_start = encode_offset_id(store_host, 0)[:-_OFFSET_DIGITS].encode()
        message_id = id_start + b"%%0%dX" % _OFFSET_DIGITS
        template = encode_frame(reply)[_HEADER_AT:].replace(b"%", b"%%")
        for value, place in ((sample_id, message_id), (queue_id, b"%d"), (queue_offset, b"%d"), (opaque, b"%d")):
            template = template.replace(str(value).encode(), place, 1)
        self._json = template
        reply.serialize_type = _ROCKETMQ
        binary = encode_frame(reply)[_HEADER_AT:]
        self._binary_start = binary[:5]
        last_value = b"%d" % queue_offset
        self._binary_end = binary[binary.index(last_value) + len(last_value) :]
        id_size = _pack_size(len(id_start) + _OFFSET_DIGITS)
        self._binary = b"\0\5msgId%b%b\0\7queueId%%b%%b\0\13queueOffset%%b%%b%%b" % (id_size, message_id)

    def encode(
        self, serialize_type: SerializeType, opaque: int, physical_offset: int, queue_id: int, queue_offset: int
    ) -> bytes | None:
        """The whole frame, or None for an encoding that has no frames (CBOR)."""
        if serialize_type is _JSON:
            header = self._json % (physical_offset, queue_id, queue_offset, opaque)
            size = len(header)
            return _pack_words(4 + size, size) + header
        if serialize_type is not _ROCKETMQ:
            return None
        queue_id_bytes, queue_offset_bytes = b"%d" % queue_id, b"%d" % queue_offset
        fields = self._binary % (
            physical_offset,
            _DIGITS_SIZES[len(queue_id_bytes)],
            queue_id_bytes,
            _DIGITS_SIZES[len(queue_offset_bytes)],
            queue_offset_bytes,
            self._binary_end,
        )
        size = _FIELDS_AT + len(fields)
        head = _pack_head(opaque, FLAG_RESPONSE, 0, len(fields))
        return b"%b%b%b%b" % (_pack_words(4 + size, _ROCKETMQ_WORD | size), self._binary_start, head, fields)
