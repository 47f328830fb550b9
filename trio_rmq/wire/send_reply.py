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


_QUEUES_MAX = 1024
"""Most queue ids whose template is kept for them; all others share templates, which have one place more to fill."""

_Template = tuple[int, int, bytes]
"""The least and the greatest queue offset with so many digits, and the frame with places for what changes."""

_Halves = tuple[int, int, bytes, bytes]
"""The same for all queues whose ids have as many digits: the frame in two, without the queue's id between them."""

_NO_TEMPLATE: _Template = (1, 0, b"")
_NO_SHARED = (1, 0, 1, 0, b"")


class SendReplyEncoder:
    """Encodes answers that differ only in opaque, physical offset, queue id and queue offset.

    `store_host` begins every message id; `ext` is in all answers.
    """

    def __init__(self, store_host: Host, ext: dict[str, str]) -> None:
        self._first_id = encode_offset_id(store_host, 0)
        self._ext = ext
        self._json = self._json_template()
        self._binary: dict[int, _Template] = {}
        """By queue id: of one queue the answers have the same length for long."""
        self._halves: dict[tuple[int, int], _Halves] = {}
        """By the number of digits of queue id and queue offset."""
        self._shared: tuple[int, int, int, int, bytes] = _NO_SHARED
        """The least and the greatest queue id and queue offset of the last answer that shared a template, and that."""

    def encode(
        self, serialize_type: SerializeType, opaque: int, physical_offset: int, queue_id: int, queue_offset: int
    ) -> bytes | None:
        """The whole frame, or None for an encoding that has no frames (CBOR)."""
        if serialize_type is _ROCKETMQ:
            least, greatest, template = self._binary.get(queue_id, _NO_TEMPLATE)
            if not least <= queue_offset <= greatest:
                if len(self._binary) >= _QUEUES_MAX and queue_id not in self._binary:
                    template = self._shared_template(queue_id, queue_offset)
                    return template % (_pack_int(opaque), physical_offset, queue_id, queue_offset)
                template = self._binary_template(queue_id, queue_offset)
            return template % (_pack_int(opaque), physical_offset, queue_offset)
        if serialize_type is _JSON:
            header = self._json % (physical_offset, queue_id, queue_offset, opaque)
            size = len(header)
            return _pack_words(4 + size, size) + header
        return None

    def _json_template(self) -> bytes:
        """A header with places for physical offset, queue id, queue offset and opaque."""
        queue_id, queue_offset, opaque = 1_234_567, 7_654_321, 1_122_334
        template = self._with_place(self._frame(_JSON, queue_id, queue_offset, opaque)[_HEADER_AT:])
        for name, value in ((b'"queueId":"', queue_id), (b'"queueOffset":"', queue_offset), (b'"opaque":', opaque)):
            template = template.replace(b"%b%d" % (name, value), b"%b%%d" % name, 1)
        return template

    def _binary_template(self, queue_id: int, queue_offset: int) -> bytes:
        """The template for this queue as long as its offsets have so many digits, kept for the next answer."""
        least, greatest, before, after = self._halves_for(len(str(queue_id)), len(str(queue_offset)))
        template = b"%b%d%b" % (before, queue_id, after)
        self._binary[queue_id] = least, greatest, template
        return template

    def _shared_template(self, queue_id: int, queue_offset: int) -> bytes:
        """The template for all queues whose ids and offsets have as many digits, with a place for the id as well."""
        least_id, greatest_id, least, greatest, template = self._shared
        if least_id <= queue_id <= greatest_id and least <= queue_offset <= greatest:
            return template
        digits = len(str(queue_id))
        least, greatest, before, after = self._halves_for(digits, len(str(queue_offset)))
        template = b"%b%%d%b" % (before, after)
        self._shared = 10 ** (digits - 1) if digits > 1 else 0, 10**digits - 1, least, greatest, template
        return template

    def _halves_for(self, queue_digits: int, offset_digits: int) -> _Halves:
        halves = self._halves.get((queue_digits, offset_digits))
        if halves is None:
            halves = self._halves[queue_digits, offset_digits] = self._make_halves(queue_digits, offset_digits)
        return halves

    def _make_halves(self, queue_digits: int, offset_digits: int) -> _Halves:
        """A frame with places for the opaque's bytes, the physical offset, and a queue offset of so many digits."""
        least, greatest = (10 ** (offset_digits - 1) if offset_digits > 1 else 0), 10**offset_digits - 1
        queue_id = 10**queue_digits - 1
        frame = self._frame(_ROCKETMQ, queue_id, greatest, 0)
        offset_field = b"queueOffset" + _pack_int(offset_digits)
        template = self._with_place(frame[_OPAQUE_AT + 4 :])
        template = template.replace(offset_field + b"%d" % greatest, offset_field + b"%d", 1)
        queue_field = b"queueId" + _pack_int(queue_digits)
        before, _, after = template.partition(queue_field + b"%d" % queue_id)
        return least, greatest, frame[:_OPAQUE_AT].replace(b"%", b"%%") + b"%b" + before + queue_field, after

    def _with_place(self, text: bytes) -> bytes:
        """`text` as a template with a place for the physical offset."""
        first_id = self._first_id.encode()
        place = first_id[:-_OFFSET_DIGITS] + b"%%0%dX" % _OFFSET_DIGITS
        return text.replace(b"%", b"%%").replace(first_id, place, 1)

    def _frame(self, serialize_type: SerializeType, queue_id: int, queue_offset: int, opaque: int) -> bytes:
        """The frame of the answer with physical offset 0."""
        reply = Command(
            0,
            header=SendMessageResponseHeader(msg_id=self._first_id, queue_id=queue_id, queue_offset=queue_offset),
            ext=self._ext,
            flag=FLAG_RESPONSE,
            opaque=opaque,
            serialize_type=serialize_type,
        )
        return encode_frame(reply)
