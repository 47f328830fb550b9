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
_OPAQUE_AT = 13
"""Where the opaque stands in a frame with a binary header."""
_OFFSET_DIGITS = 16
"""At the end of an offset id: the physical offset, in hexadecimal."""
_JSON = SerializeType.JSON
_ROCKETMQ = SerializeType.ROCKETMQ
_pack_words = struct.Struct(">ii").pack
_pack_int = struct.Struct(">i").pack


class SendReplyEncoder:
    """Encodes answers that differ only in opaque, physical offset, queue id and queue offset.

    `store_host` begins every message id; `ext` is in all answers.
    """

    def __init__(self, store_host: Host, ext: dict[str, str]) -> None:
        self._first_id = encode_offset_id(store_host, 0)
        self._ext = ext
        self._json = self._json_template()
        self._binary: dict[tuple[int, int], bytes] = {}
        """Whole frames by the sizes of queue id and queue offset, on which their lengths depend."""

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
        queue_id_text, queue_offset_text = b"%d" % queue_id, b"%d" % queue_offset
        sizes = len(queue_id_text), len(queue_offset_text)
        template = self._binary.get(sizes) or self._binary_template(*sizes)
        return template % (_pack_int(opaque), physical_offset, queue_id_text, queue_offset_text)

    def _json_template(self) -> bytes:
        """A header with places for physical offset, queue id, queue offset and opaque."""
        queue_id, queue_offset, opaque = 1_234_567, 7_654_321, 1_122_334
        template = self._frame(_JSON, queue_id, queue_offset, opaque)[_HEADER_AT:]
        for value in (queue_id, queue_offset, opaque):
            template = template.replace(b"%d" % value, b"%d", 1)
        return template

    def _binary_template(self, queue_id_size: int, queue_offset_size: int) -> bytes:
        """A frame with places for the opaque's bytes, the physical offset and the digits of both numbers."""
        queue_id, queue_offset = int("1" * queue_id_size), int("1" * queue_offset_size)
        template = self._frame(_ROCKETMQ, queue_id, queue_offset, 0)
        for name, value in ((b"queueId", queue_id), (b"queueOffset", queue_offset)):
            before = name + _pack_int(len(str(value)))
            template = template.replace(before + b"%d" % value, before + b"%b", 1)
        after_opaque = _OPAQUE_AT + template.count(b"%%", 0, _OPAQUE_AT)
        template = template[:after_opaque] + b"%b" + template[after_opaque + 4 :]
        self._binary[queue_id_size, queue_offset_size] = template
        return template

    def _frame(self, serialize_type: SerializeType, queue_id: int, queue_offset: int, opaque: int) -> bytes:
        """An answer's frame, as a %-template with a place for the physical offset."""
        reply = Command(
            0,
            header=SendMessageResponseHeader(msg_id=self._first_id, queue_id=queue_id, queue_offset=queue_offset),
            ext=self._ext,
            flag=FLAG_RESPONSE,
            opaque=opaque,
            serialize_type=serialize_type,
        )
        first_id = self._first_id.encode()
        place = first_id[:-_OFFSET_DIGITS] + b"%%0%dX" % _OFFSET_DIGITS
        return encode_frame(reply).replace(b"%", b"%%").replace(first_id, place, 1)
