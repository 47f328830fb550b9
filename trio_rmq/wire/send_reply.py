"""The answer to a stored send, encoded at once: the one reply that a broker makes for every message.

Building a Command, its typed header and its text fields costs more than the rest of the answer; here the constant parts
are laid out once.  Invariant: the bytes are those that `encode_frame` makes of the same reply (a test compares them).
"""

from __future__ import annotations

import struct

from trio_rmq.wire.command import FLAG_RESPONSE, Command, SerializeType
from trio_rmq.wire.frame import encode_frame
from trio_rmq.wire.headers import SendMessageResponseHeader

_HEADER_AT = 8
"""Where the header begins in a frame: after its length and its header word."""
_FIELDS_AT = 21
"""Where the fields begin in a binary header without a remark."""
_JSON = SerializeType.JSON
_ROCKETMQ = SerializeType.ROCKETMQ
_ROCKETMQ_WORD = 1 << 24
_pack_words = struct.Struct(">ii").pack
_pack_head = struct.Struct(">iiii").pack
_pack_size = struct.Struct(">i").pack


class SendReplyEncoder:
    """Encodes answers that differ only in opaque, message id, queue id and queue offset; `ext` is in all of them."""

    def __init__(self, ext: dict[str, str]) -> None:
        sample_id, queue_id, queue_offset, opaque = "-message-id-", 1_234_567, 7_654_321, 1_122_334
        header = SendMessageResponseHeader(msg_id=sample_id, queue_id=queue_id, queue_offset=queue_offset)
        reply = Command(0, header=header, ext=ext, flag=FLAG_RESPONSE, opaque=opaque)
        text = encode_frame(reply)[_HEADER_AT:].decode().replace("%", "%%")
        for value, place in ((sample_id, "%s"), (str(queue_id), "%d"), (str(queue_offset), "%d"), (str(opaque), "%d")):
            text = text.replace(value, place, 1)
        self._json = text
        reply.serialize_type = _ROCKETMQ
        binary = encode_frame(reply)[_HEADER_AT:]
        self._binary_start = binary[:5]
        self._binary_end = binary[binary.index(b"%d" % queue_offset) + len(b"%d" % queue_offset) :]

    def encode(
        self, serialize_type: SerializeType, opaque: int, msg_id: str, queue_id: int, queue_offset: int
    ) -> bytes | None:
        """The whole frame, or None for an encoding that has no frames (CBOR)."""
        if serialize_type is _JSON:
            header = (self._json % (msg_id, queue_id, queue_offset, opaque)).encode()
            size = len(header)
            return _pack_words(4 + size, size) + header
        if serialize_type is not _ROCKETMQ:
            return None
        msg_id_bytes, queue_id_bytes, queue_offset_bytes = msg_id.encode(), b"%d" % queue_id, b"%d" % queue_offset
        fields = b"\0\5msgId%b%b\0\7queueId%b%b\0\13queueOffset%b%b%b" % (
            _pack_size(len(msg_id_bytes)),
            msg_id_bytes,
            _pack_size(len(queue_id_bytes)),
            queue_id_bytes,
            _pack_size(len(queue_offset_bytes)),
            queue_offset_bytes,
            self._binary_end,
        )
        size = _FIELDS_AT + len(fields)
        head = _pack_head(opaque, FLAG_RESPONSE, 0, len(fields))
        return b"%b%b%b%b" % (_pack_words(4 + size, _ROCKETMQ_WORD | size), self._binary_start, head, fields)
