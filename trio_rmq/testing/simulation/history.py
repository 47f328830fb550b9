"""What was seen in a run, in order, as JSON lines; equal runs have equal hashes.

`invoke`, `ok`, `info` and `fail` of a send (info: no answer that tells, so it may be stored or not), `consumed`, the
faults, and the starts and ends of programs.  Times are microseconds of virtual time.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import msgspec
import trio


class Event(msgspec.Struct, frozen=True):
    """One thing that happened; `value` depends on `what`."""

    time_us: int
    process: str
    what: str
    value: dict[str, Any]


class History:
    """The events of one run."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._begin = trio.current_time()

    def add(self, process: str, what: str, **value: Any) -> None:
        """Note what happens now."""
        self.events.append(Event(round((trio.current_time() - self._begin) * 1e6), process, what, value))

    def lines(self) -> bytes:
        """All of it as JSON lines."""
        return b"".join(msgspec.json.encode(event) + b"\n" for event in self.events)

    def hash(self) -> str:
        """The same for the same history, in every process."""
        return sha256(self.lines()).hexdigest()
