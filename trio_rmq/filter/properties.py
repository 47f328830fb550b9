"""A stored message's properties for filters: looked up in the text, so that only those a filter names are taken out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from trio_rmq.wire.properties import parse_properties, property_of


class PropertyText(Mapping[str, str]):
    """The mapping that property text stands for, by Java's rules, without taking the text apart for a look-up."""

    __slots__ = ("_text",)

    def __init__(self, text: bytes) -> None:
        self._text = text.decode("utf-8", "replace")

    def get(self, name: str, default: str | None = None) -> str | None:  # type: ignore[override]  # texts only
        """The value of a property, or `default`."""
        value = property_of(self._text, name)
        return default if value is None else value

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and property_of(self._text, name) is not None

    def __getitem__(self, name: str) -> str:
        value = property_of(self._text, name)
        if value is None:
            raise KeyError(name)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(parse_properties(self._text))

    def __len__(self) -> int:
        return len(parse_properties(self._text))
