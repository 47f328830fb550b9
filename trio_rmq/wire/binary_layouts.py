"""Binary headers like earlier ones: what repeats in them is compared, not decoded.

A client sends the same fields with values of the same lengths most of the time: two headers then differ only in the
bytes of the values.  A `Layout` holds all other bytes as one number and cuts the values out in one step, in half the
time of a walk over the fields.

Once a handler has read such a header as its type, a `Form` knows which of its values change from one command to the
next - `properties`, queue id and 64-bit numbers (offsets, times) - and cuts a header of this size into these and the
bytes between them, in one step.  Where those bytes were met before, the header is like an earlier one: all that they
say - code, flag, names, the other values - is shared, and a handler may see by the identity of what is shared that a
command differs from the one before in nothing else.

Invariants: a layout or form answers exactly what the walk would, or nothing; what it answers for was walked once
without error; the caches are bounded, and nothing but speed depends on them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cache
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

if TYPE_CHECKING:
    from trio_rmq.wire.command import Command

HeaderT = TypeVar("HeaderT", bound=msgspec.Struct)
LikenessT = TypeVar("LikenessT", bound="Likeness")

OPAQUE = slice(5, 9)
"""Where the opaque stands in a binary header."""

AREA_AT = 21
"""Where the fields begin in a binary header without a remark."""

LAYOUTS_MAX = 512
"""Most layouts kept, one for each size; all are dropped when one more is learnt."""

LAYOUT_SIZE_MAX_BYTES = 2048
"""Largest field area that gets a layout: larger ones gain little."""

LIKENESSES_MAX = 4096
"""Most likenesses kept; all are dropped when one more is learnt."""

LONG_DIGITS_MAX = 18
"""Any number of as many digits fits 64 bits."""

INT_DIGITS_MAX = 9
"""Any number of as many digits fits 32 bits."""

TEXT_SLOT = "properties"
"""The attribute of typed headers that changes and is no number."""

LEARN_AFTER = 8
"""Areas of one size that were walked in vain before the next one's layout is learnt (it costs ten walks).

As many headers must have come that need another form before one takes the place of another."""


class Layout:
    """What field areas of one layout have in common; an area is all fields together, without their size.

    `mask` covers every byte but those of the values, and `common` is what stands there, both as little-endian numbers.
    """

    __slots__ = ("_cut", "_forms", "cache", "common", "mask", "names", "values")

    def __init__(self, area: bytes, names: Sequence[str], values: Sequence[slice], cache: LayoutCache) -> None:
        """`values` are the places in `area` of the values of `names`."""
        self.mask = _mask(len(area), values)
        self.common = int.from_bytes(area, "little") & self.mask
        self.names = tuple(names)
        self.values = tuple(values)
        self.cache = cache
        self._cut = itemgetter(*values)
        self._forms: dict[type[msgspec.Struct], Form[Likeness]] = {}

    def fields(self, area: bytes) -> dict[str, str]:
        """The fields of an area of this layout."""
        text = area.decode("latin-1")
        values = self._cut(text)
        if not text.isascii():
            values = [value if value.isascii() else value.encode("latin-1").decode() for value in values]
        return dict(zip(self.names, values, strict=True))

    def form(self, header_type: type[msgspec.Struct], size_bytes: int) -> Form[Likeness]:
        """The form of headers of this layout that are read as this type; `size_bytes` is that of the whole header."""
        form = self._forms.get(header_type)
        if form is None:
            places = dict(zip(self.names, self.values, strict=True))
            slots = [
                (attribute, name, slice(AREA_AT + place.start, AREA_AT + place.stop))
                for attribute, name, size_max in changing_fields(header_type)
                if (place := places.get(name)) is not None and 0 < place.stop - place.start <= size_max
            ]
            form = self._forms[header_type] = Form(size_bytes, sorted(slots, key=lambda slot: slot[2].start))
        return form


class BinaryFields(msgspec.Struct, eq=False):
    """The fields of an incoming binary header that has a known layout, no remark and is ASCII; decoded when asked for.

    `data` is the whole header.
    """

    data: bytes
    layout: Layout

    def fields(self) -> dict[str, str]:
        """All of them as text."""
        return self.layout.fields(self.data[AREA_AT:])

    def header(self, header_type: type[HeaderT], command: Command) -> HeaderT:
        """Them as the typed header of their `command`; msgspec's errors when one is missing or mistyped."""
        fields = self.fields()
        header = msgspec.convert(fields, header_type, strict=False)
        self.layout.cache.learn_form(self, fields, header, command)
        return header


class Likeness:
    """What headers share that differ in nothing but their slots: opaque, and the values that change.

    `slots` are the attributes of the typed header for these values, in the order in which these come.
    """

    __slots__ = ("_fields", "_header", "_header_type", "_names", "code", "flag", "language", "slots", "version")

    def __init__(self, form: Form[Any], fields: dict[str, str], header: msgspec.Struct, command: Command) -> None:
        self.code = command.code
        self.flag = command.flag
        self.language = command.language
        self.version = command.version
        self.slots = form.slots
        self._names = form.names
        self._fields = dict(fields)
        self._header_type = type(header)
        self._header: Any = header.__copy__()  # type: ignore[attr-defined] # there, but not declared

    def fields(self, values: Sequence[bytes]) -> dict[str, str]:
        """All fields as text; `values` are those of the slots."""
        fields = dict(self._fields)
        for name, value in zip(self._names, values, strict=True):
            fields[name] = value.decode()
        return fields

    def header(self, header_type: type[HeaderT], values: Sequence[bytes]) -> HeaderT:
        """A typed header of its own; msgspec's errors when a value is mistyped."""
        if header_type is not self._header_type:
            return msgspec.convert(self.fields(values), header_type, strict=False)
        # `copy.copy` takes three times as long to find out that the type copies itself.
        copied = self._header.__copy__()
        for slot, value in zip(self.slots, values, strict=True):
            if slot == TEXT_SLOT:
                setattr(copied, slot, value.decode())
            elif value.isdigit():
                setattr(copied, slot, int(value))
            else:
                return msgspec.convert(self.fields(values), header_type, strict=False)
        return copied  # type: ignore[no-any-return] # a copy of what has this type


class LikeFields(msgspec.Struct, eq=False, gc=False):
    """The fields of an incoming header, binary or JSON, that is like an earlier one.

    `values` are its opaque and the bytes of its slots, all of them ASCII and no longer than what they stand for can be.
    """

    likeness: Likeness
    values: tuple[Any, ...]

    def fields(self) -> dict[str, str]:
        """All of them as text."""
        return self.likeness.fields(self.values[1:])

    def header(self, header_type: type[HeaderT]) -> HeaderT:
        """Them as a typed header of its own; msgspec's errors when one is missing or mistyped."""
        return self.likeness.header(header_type, self.values[1:])


class Form(Generic[LikenessT]):
    """How headers of one size are cut: literal bytes and slots in turn, as `unpack` gives them, literal bytes first."""

    __slots__ = ("likenesses", "literals", "names", "newest", "opaque", "places", "slots", "unpack")

    def __init__(
        self, size_bytes: int, slots: Sequence[tuple[str, str, slice]], opaque: slice = OPAQUE, opaque_code: str = "i"
    ) -> None:
        """`slots` are (attribute, wire name, place in the header), in order of their places.

        The opaque is a slot as well, before or behind all others; `opaque_code` is how `struct` reads it.
        """
        self.slots = tuple(attribute for attribute, _, _ in slots)
        self.names = tuple(name for _, name, _ in slots)
        self.places = [place for _, _, place in slots]
        self.opaque = opaque
        """The place of the opaque, which is not among `places`."""
        coded = [(opaque, opaque_code), *((place, f"{place.stop - place.start}s") for place in self.places)]
        parts, at = [">"], 0
        for place, code in sorted(coded, key=lambda slot: slot[0].start):
            parts.append(f"{place.start - at}s{code}")
            at = place.stop
        self.unpack = struct.Struct(f"{''.join(parts)}{size_bytes - at}s").unpack_from
        self.likenesses: dict[tuple[Any, ...], LikenessT] = {}
        """By their literal bytes."""
        self.literals: tuple[Any, ...] = ()
        """Those of `newest`."""
        self.newest: LikenessT | None = None
        """The likeness that was found last."""

    def find(self, literals: tuple[Any, ...]) -> LikenessT | None:
        """The likeness with these literal bytes."""
        found = self.likenesses.get(literals)
        if found is not None:
            self.literals, self.newest = literals, found
        return found


class LayoutCache:
    """One layout for each size of the field area, learnt when it pays; and one form for each size of the header."""

    __slots__ = ("_layouts", "_likenesses", "_strangers", "_walked", "forms")

    def __init__(self) -> None:
        self._layouts: dict[int, Layout] = {}
        self._walked: dict[int, int] = {}
        self._likenesses = 0
        self._strangers = 0
        self.forms: dict[int, Form[Likeness]] = {}
        """By the size of the header."""

    def __len__(self) -> int:
        return len(self._layouts)

    @property
    def likenesses(self) -> int:
        """How many headers' likes are known."""
        return sum(len(form.likenesses) for form in self.forms.values())

    def layout(self, area: bytes) -> Layout | None:
        """The layout of `area`, where it is known."""
        layout = self._layouts.get(len(area))
        if layout is None or int.from_bytes(area, "little") & layout.mask != layout.common:
            return None
        return layout

    def learn_form(self, raw: BinaryFields, fields: dict[str, str], header: msgspec.Struct, command: Command) -> None:
        """Know the likes of a header that was read as its type without error."""
        size = len(raw.data)
        form = raw.layout.form(type(header), size)
        known = self.forms.get(size)
        if known is not None and known.places == form.places:
            form = known
        elif known is not None and (self._strangers + 1) % LEARN_AFTER:
            self._strangers += 1
            return
        else:
            self._strangers = 0
            self.forms[size] = form
            if known is not None:
                known.likenesses.clear()
        if self._likenesses >= LIKENESSES_MAX:
            self._likenesses = 0
            for other in self.forms.values():
                other.likenesses.clear()
        self._likenesses += 1
        form.likenesses[form.unpack(raw.data)[::2]] = Likeness(form, fields, header, command)

    def wants(self, size_bytes: int) -> bool:
        """Called once for each area walked over: whether `learn` should be called for it."""
        walked = self._walked.get(size_bytes, 0) + 1
        if walked < LEARN_AFTER:
            if len(self._walked) > LAYOUT_SIZE_MAX_BYTES:
                self._walked.clear()
            self._walked[size_bytes] = walked
            return False
        self._walked[size_bytes] = 0
        return size_bytes <= LAYOUT_SIZE_MAX_BYTES

    def learn(self, area: bytes, names: Sequence[str], values: Sequence[slice]) -> None:
        """Keep the layout of an area that was walked over without error."""
        if len(values) < 2:
            return
        if len(self._layouts) >= LAYOUTS_MAX:
            self._layouts.clear()
            self.forms.clear()
            self._likenesses = 0
        self._layouts[len(area)] = Layout(area, names, values, self)


def _mask(size_bytes: int, holes: Sequence[slice]) -> int:
    """A number of `size_bytes` with all bits set but those in `holes`."""
    mask = bytearray(b"\xff" * size_bytes)
    for hole in holes:
        mask[hole] = bytes(hole.stop - hole.start)
    return int.from_bytes(mask, "little")


@cache
def changing_fields(header_type: type[msgspec.Struct]) -> Sequence[tuple[str, str, int]]:
    """(attribute, wire name, most bytes) of the fields that differ from one header to the next."""
    found: list[tuple[str, str, int]] = []
    for field in msgspec.structs.fields(header_type):
        if _is_long(msgspec.inspect.type_info(field.type)):
            found.append((field.name, field.encode_name, LONG_DIGITS_MAX))
        elif field.name == "queue_id":
            found.append((field.name, field.encode_name, INT_DIGITS_MAX))
        elif field.name == TEXT_SLOT:
            found.append((field.name, field.encode_name, LAYOUT_SIZE_MAX_BYTES))
    return found


def _is_long(kind: msgspec.inspect.Type) -> bool:
    if isinstance(kind, msgspec.inspect.UnionType):
        return any(_is_long(part) for part in kind.types)
    return isinstance(kind, msgspec.inspect.IntType) and (kind.le is None or kind.le > 2**32)
