"""What a look into a store found amiss: where, how much of it, and in words.

A finding is *damage* when something stored reads back otherwise than it was written, is missing, or leads wrong; it is
a *note* when the next start makes up for it (a torn tail after a crash), when it costs nothing (bytes that nobody
reads), or when it may be right.
"""

from __future__ import annotations

import msgspec

from trio_rmq.limits import FINDINGS_MAX


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """One place.  `at` and `size_bytes` count bytes of the file at `path`; `physical_offset` is a place in the log."""

    kind: str
    """What sort: a word of docs/store.md's table."""
    damage: bool
    path: str
    at: int
    what: str
    size_bytes: int = 0
    """How many bytes it covers; 0 where that has no meaning."""
    physical_offset: int | None = None

    def sentence(self) -> str:
        """The finding for a person, on one line."""
        place = f"{self.path} byte {self.at}"
        if self.size_bytes:
            place += f", {self.size_bytes} bytes"
        if self.physical_offset is not None:
            place += f" (physical offset {self.physical_offset})"
        return f"{place}: {self.what} [{self.kind}]"


class Findings:
    """A list of findings that is bounded; all are counted."""

    def __init__(self) -> None:
        self.kept: list[Finding] = []
        """The first FINDINGS_MAX, in the order in which they were met."""
        self.damages = 0
        self.notes = 0
        self.by_kind: dict[str, int] = {}

    def add(
        self,
        kind: str,
        path: str,
        at: int,
        what: str,
        *,
        damage: bool = True,
        size_bytes: int = 0,
        physical_offset: int | None = None,
    ) -> None:
        """Add one; see `Finding`."""
        if damage:
            self.damages += 1
        else:
            self.notes += 1
        self.by_kind[kind] = self.by_kind.get(kind, 0) + 1
        if len(self.kept) < FINDINGS_MAX:
            self.kept.append(Finding(kind, damage, path, at, what, size_bytes, physical_offset))
