"""Layouts of binary headers met before: names and lengths of all fields at once, where they repeat.

A client sends the same fields with values of the same lengths most of the time: two headers then differ only in the
bytes of the values.  A layout holds all other bytes as one number and cuts the values out in one step, in half the time
of a walk over the fields.  A typed header goes further: one that differs from an earlier one only in its `properties`,
queue id and 64-bit numbers (offsets, times) is a copy of that one with those replaced, in a quarter of the time.

Invariants: a layout answers exactly what the walk would, or None; what it answers for was walked once without error;
the cache is bounded, and nothing but speed depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import TypeVar

import msgspec

HeaderT = TypeVar("HeaderT", bound=msgspec.Struct)

LAYOUTS_MAX = 512
"""Most layouts kept, one for each size; all are dropped when one more is learnt."""

LAYOUT_SIZE_MAX_BYTES = 2048
"""Largest field area that gets a layout: larger ones gain little."""

PROTOTYPES_MAX = 4096
"""Most typed headers kept to be copied; all are dropped when one more is learnt."""

LONG_DIGITS_MAX = 18
"""Any number of as many digits fits 64 bits."""

INT_DIGITS_MAX = 9
"""Any number of as many digits fits 32 bits."""

LEARN_AFTER = 8
"""Areas of one size that were walked in vain before the next one's layout is learnt (it costs ten walks)."""


class Layout:
    """What field areas of one layout have in common; an area is all fields together, without their size.

    `mask` covers every byte but those of the values, and `common` is what stands there, both as little-endian numbers.
    """

    __slots__ = ("_cache", "_cut", "_names", "_values", "common", "mask", "readers", "size_bytes")

    def __init__(self, area: bytes, names: Sequence[str], values: Sequence[slice], cache: LayoutCache) -> None:
        """`values` are the places in `area` of the values of `names`."""
        self.mask = _mask(len(area), values)
        self.common = int.from_bytes(area, "little") & self.mask
        self._cut = itemgetter(*values)
        self._names = tuple(names)
        self._values = tuple(values)
        self._cache = cache
        self.readers: dict[type[msgspec.Struct], HeaderReader] = {}
        self.size_bytes = len(area)

    def fields(self, area: bytes) -> dict[str, str]:
        """The fields of an area of this layout."""
        text = area.decode("latin-1")
        values = self._cut(text)
        if not text.isascii():
            values = [value if value.isascii() else value.encode("latin-1").decode() for value in values]
        return dict(zip(self._names, values, strict=True))

    def reader(self, header_type: type[msgspec.Struct]) -> HeaderReader:
        """Makes the reader of headers of this type from areas of this layout."""
        places = dict(zip(self._names, self._values, strict=True))
        reader = self.readers[header_type] = HeaderReader(self, places, header_type, self._cache)
        return reader


class HeaderReader:
    """Makes headers of one type from areas of one layout: by copying, where all but the changing values are known."""

    __slots__ = ("_cache", "_changing", "_layout", "_mark", "_mask", "_type")

    def __init__(
        self, layout: Layout, places: dict[str, slice], header_type: type[msgspec.Struct], cache: LayoutCache
    ) -> None:
        self._layout = layout
        self._type = header_type
        self._cache = cache
        self._changing = tuple(
            (attribute, places[name], digits)
            for attribute, name, digits in _changing_fields(header_type)
            if name in places
        )
        self._mask = _mask(layout.size_bytes, [place for _, place, _ in self._changing])
        cache.readers += 1
        self._mark = cache.readers << 8 * layout.size_bytes

    def read(self, area: bytes, number: int) -> msgspec.Struct:
        """The header in the ASCII `area`, which `number` is; msgspec's errors when a field is missing or mistyped."""
        key = number & self._mask | self._mark
        prototype = self._cache.prototypes.get(key)
        if prototype is None:
            prototype = msgspec.convert(self._layout.fields(area), self._type, strict=False)
            self._cache.keep(key, prototype)
        # `copy.copy` takes three times as long to find out that the type copies itself.
        copied: msgspec.Struct = prototype.__copy__()  # type: ignore[attr-defined] # there, but not declared
        for attribute, place, digits in self._changing:
            value = area[place]
            if not digits:
                setattr(copied, attribute, value.decode())
            elif value.isdigit() and len(value) <= digits:
                setattr(copied, attribute, int(value))
            else:
                return msgspec.convert(self._layout.fields(area), self._type, strict=False)
        return copied


class BinaryFields(msgspec.Struct, eq=False):
    """The fields of an incoming binary header that has a known layout and is ASCII; decoded when asked for."""

    area: bytes
    number: int
    layout: Layout

    def fields(self) -> dict[str, str]:
        """All of them as text."""
        return self.layout.fields(self.area)

    def header(self, header_type: type[HeaderT]) -> HeaderT:
        """Them as a typed header of its own; msgspec's errors when one is missing or mistyped."""
        reader = self.layout.readers.get(header_type) or self.layout.reader(header_type)
        return reader.read(self.area, self.number)  # type: ignore[return-value] # keyed by the type that it reads


class LayoutCache:
    """One layout for each size of the field area, learnt when it pays; and the typed headers that are copied."""

    __slots__ = ("_layouts", "_walked", "prototypes", "readers")

    def __init__(self) -> None:
        self._layouts: dict[int, Layout] = {}
        self._walked: dict[int, int] = {}
        self.prototypes: dict[int, msgspec.Struct] = {}
        """Headers by the bytes that do not change in them and the number of their reader."""
        self.readers = 0
        """How many readers were made: the next one's number."""

    def __len__(self) -> int:
        return len(self._layouts)

    def fields(self, area: bytes) -> BinaryFields | dict[str, str] | None:
        """The fields of `area`, or None when they must be walked over; UnicodeDecodeError for a value not in UTF-8."""
        layout = self._layouts.get(len(area))
        if layout is None:
            return None
        number = int.from_bytes(area, "little")
        if number & layout.mask != layout.common:
            return None
        return BinaryFields(area, number, layout) if area.isascii() else layout.fields(area)

    def keep(self, key: int, header: msgspec.Struct) -> None:
        """Keep a header to be copied for areas with the same `key`."""
        if len(self.prototypes) >= PROTOTYPES_MAX:
            self.prototypes.clear()
        self.prototypes[key] = header

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
            self.prototypes.clear()
        self._layouts[len(area)] = Layout(area, names, values, self)


def _mask(size_bytes: int, holes: Sequence[slice]) -> int:
    """A number of `size_bytes` with all bits set but those in `holes`."""
    mask = bytearray(b"\xff" * size_bytes)
    for hole in holes:
        mask[hole] = bytes(hole.stop - hole.start)
    return int.from_bytes(mask, "little")


def _changing_fields(header_type: type[msgspec.Struct]) -> list[tuple[str, str, int]]:
    """(attribute, wire name, most digits, 0 for a text) of the fields that differ from one header to the next."""
    found: list[tuple[str, str, int]] = []
    for field in msgspec.structs.fields(header_type):
        if _is_long(msgspec.inspect.type_info(field.type)):
            found.append((field.name, field.encode_name, LONG_DIGITS_MAX))
        elif field.name == "queue_id":
            found.append((field.name, field.encode_name, INT_DIGITS_MAX))
        elif field.name == "properties":
            found.append((field.name, field.encode_name, 0))
    return found


def _is_long(kind: msgspec.inspect.Type) -> bool:
    if isinstance(kind, msgspec.inspect.UnionType):
        return any(_is_long(part) for part in kind.types)
    return isinstance(kind, msgspec.inspect.IntType) and (kind.le is None or kind.le > 2**32)
