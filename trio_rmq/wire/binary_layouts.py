"""Layouts of binary headers met before: names and lengths of all fields at once, where they repeat.

A client sends the same fields with values of the same lengths most of the time: two headers then differ only in the
bytes of the values.  A layout holds all other bytes as one number and cuts the values out in one step, in half the time
of a walk over the fields.  Invariants: a layout answers exactly what the walk would, or None; what it answers for was
walked once without error; the cache is bounded, and nothing but speed depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter

LAYOUTS_MAX = 512
"""Most layouts kept, one for each size; all are dropped when one more is learnt."""

LAYOUT_SIZE_MAX_BYTES = 2048
"""Largest field area that gets a layout: larger ones gain little."""

LEARN_AFTER = 8
"""Areas of one size that were walked in vain before the next one's layout is learnt (it costs ten walks)."""


class Layout:
    """What field areas of one layout have in common; an area is all fields together, without their size."""

    __slots__ = ("_common", "_cut", "_mask", "_names")

    def __init__(self, area: bytes, names: Sequence[str], values: Sequence[slice]) -> None:
        """`values` are the places in `area` of the values of `names`."""
        mask = bytearray(b"\xff" * len(area))
        for place in values:
            mask[place] = bytes(place.stop - place.start)
        self._mask = int.from_bytes(mask, "little")
        self._common = int.from_bytes(area, "little") & self._mask
        self._cut = itemgetter(*values)
        self._names = tuple(names)

    def fields(self, area: bytes) -> dict[str, str] | None:
        """The fields of an area as long as the one learnt from, or None when its layout is another."""
        if int.from_bytes(area, "little") & self._mask != self._common:
            return None
        text = area.decode("latin-1")
        values = self._cut(text)
        if not text.isascii():
            values = [value if value.isascii() else value.encode("latin-1").decode() for value in values]
        return dict(zip(self._names, values, strict=True))


class LayoutCache:
    """One layout for each size of the field area, learnt when it pays."""

    __slots__ = ("_layouts", "_walked")

    def __init__(self) -> None:
        self._layouts: dict[int, Layout] = {}
        self._walked: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._layouts)

    def fields(self, area: bytes) -> dict[str, str] | None:
        """The fields of `area`, or None when they must be walked over."""
        layout = self._layouts.get(len(area))
        return None if layout is None else layout.fields(area)

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
        self._layouts[len(area)] = Layout(area, names, values)
