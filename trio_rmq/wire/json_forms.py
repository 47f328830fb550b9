"""JSON headers of sends like earlier ones: what repeats in them is compared, not parsed.

As in `binary_layouts`, a form cuts a header into what changes from one send to the next - queue id, time, unique id,
opaque - and the bytes between; where those were met before, the header shares what they say.

Only a header that is, byte for byte, what our own encoder makes of its meaning gets a form.  In such a header all
values of fields are texts, and a field's name in quotes, a colon and a quote stand in it once: right before its value.
Letters and digits end and begin nothing there.

Invariants: a form answers what the parser would, or nothing; the cache is bounded, and nothing but speed depends on it.
"""

from __future__ import annotations

from collections.abc import Callable

from trio_rmq.errors import ProtocolError
from trio_rmq.wire.binary_layouts import (
    LAYOUT_SIZE_MAX_BYTES,
    LEARN_AFTER,
    LIKENESSES_MAX,
    TEXT_SLOT,
    Form,
    Likeness,
    changing_fields,
)
from trio_rmq.wire.codes import RequestCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.headers import SendMessageRequestHeaderV2
from trio_rmq.wire.properties import NAME_VALUE_SEPARATOR, PROPERTY_SEPARATOR, UNIQUE_KEY

SEND_CODE = int(RequestCode.SEND_MESSAGE_V2)
"""The one request whose headers get forms: no other comes so often in JSON."""

OPAQUE_DIGITS_MAX = 9
"""Any number of as many digits fits 32 bits."""

LEARN_PAUSE_MAX = 256
"""Most headers of one size that are parsed before another is learnt: it costs 20 times as much as parsing one."""

_FIELDS = changing_fields(SendMessageRequestHeaderV2)
_OPAQUE = b'"opaque":'
_UNIQUE_KEY = f"{UNIQUE_KEY}{NAME_VALUE_SEPARATOR}"
_UNIQUE_KEY_ESCAPED_BYTES = len(_UNIQUE_KEY) + len("\\u0001") - 1


class JsonLikeness(Likeness):
    """The likeness of JSON headers: `before` and `after` are what stands around the unique id in their properties."""

    __slots__ = ("after", "before")

    before: bytes
    after: bytes


class JsonForms:
    """Forms by the size of the header; `encode` makes the header of a command."""

    __slots__ = ("_encode", "_missed", "_pause", "by_size", "likenesses")

    def __init__(self, encode: Callable[[Command], bytes]) -> None:
        self._encode = encode
        self._missed: dict[int, int] = {}
        self._pause = LEARN_AFTER
        self.by_size: dict[int, Form[JsonLikeness]] = {}
        self.likenesses = 0
        """How many headers' likes are known."""

    def missed(self, header: bytes, command: Command) -> None:
        """Called for each send whose header had to be parsed: sometimes its likes are worth to be known."""
        size = len(header)
        missed = self._missed.get(size, 0) + 1
        if missed < self._pause or size > LAYOUT_SIZE_MAX_BYTES:
            self._missed[size] = missed
            if len(self._missed) > LAYOUT_SIZE_MAX_BYTES:
                self._missed.clear()
            return
        self._missed[size] = 0
        self._pause = min(2 * self._pause, LEARN_PAUSE_MAX)
        self._learn(header, command)

    def _learn(self, header: bytes, command: Command) -> None:
        try:
            typed = command.decode_header(SendMessageRequestHeaderV2)
            fields = command.ext_fields()
        except ProtocolError:
            return
        plain = Command(
            command.code,
            ext=fields,
            flag=command.flag,
            opaque=command.opaque,
            language=command.language,
            version=command.version,
        )
        if command.remark is not None or command.opaque < 0 or self._encode(plain) != header:
            return
        text = fields.get("i", "")
        unique_id, _, _ = text.removeprefix(_UNIQUE_KEY).partition(PROPERTY_SEPARATOR)
        if not text.startswith(_UNIQUE_KEY) or not unique_id.isalnum():
            return
        slots = []
        for attribute, name, size_max in _FIELDS:
            start = header.find(b'"%b":"' % name.encode()) + len(name) + 4
            size = len(fields.get(name, ""))
            if attribute == TEXT_SLOT:
                start += _UNIQUE_KEY_ESCAPED_BYTES
                size = len(unique_id)
            if not 0 < size <= size_max:
                return
            slots.append((attribute, name, slice(start, start + size)))
        opaque_at = header.rindex(_OPAQUE) + len(_OPAQUE)
        opaque = slice(opaque_at, opaque_at + len(str(command.opaque)))
        places = [place for _, _, place in slots]
        if opaque.stop - opaque.start > OPAQUE_DIGITS_MAX or [*places, opaque] != sorted(
            [*places, opaque], key=lambda place: place.start
        ):
            return
        if self.likenesses >= LIKENESSES_MAX:
            self.by_size.clear()
            self.likenesses = 0
        form = self.by_size.get(len(header))
        if form is None or form.places != places or form.opaque != opaque:
            form = self.by_size[len(header)] = Form(len(header), slots, opaque, f"{opaque.stop - opaque.start}s")
        likeness = JsonLikeness(form, fields, typed, command)
        likeness.before = _UNIQUE_KEY.encode()
        likeness.after = text[len(_UNIQUE_KEY) + len(unique_id) :].encode()
        form.likenesses[form.unpack(header)[::2]] = likeness
        self.likenesses += 1
