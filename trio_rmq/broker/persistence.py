"""Writes the broker's tables to config/*.json: topics and groups when they change, consumed offsets every interval.

Invariants: what `load` read or the last save wrote is what the file holds, whole; at the end everything unsaved is
written.  A save that fails is said once, until it works again, and tried at the next interval; the table in memory
stays right.
"""

from __future__ import annotations

import logging
from typing import Protocol

import trio

from trio_rmq.store.disk import Disk
from trio_rmq.store.json_files import ConfigFile

logger = logging.getLogger(__name__)


class SavedTable(Protocol):
    """A table that knows whether it differs from its file."""

    unsaved: bool

    def encode(self) -> bytes:
        """The file's content; the table counts as saved."""
        ...

    def load(self, content: bytes) -> None:
        """Take the file's content; ProtocolError when it is none."""
        ...


class _Round:
    """One look at all tables: who began to wait before it began learns from it, later ones from the round after."""

    def __init__(self) -> None:
        self.begun = False
        self.done = trio.Event()
        self.problem: str | None = None
        self._after: _Round | None = None

    @property
    def after(self) -> _Round:
        """The next round."""
        if self._after is None:
            self._after = _Round()
        return self._after

    def begin(self) -> None:
        """Tables are encoded from now on."""
        self.begun = True

    def end(self) -> _Round:
        """All are written, or the problem is known; the next round."""
        self.done.set()
        return self.after


class Persistence:
    """The tables of one broker and their files."""

    def __init__(
        self, folder: str, tables: dict[str, SavedTable], *, interval_seconds: float, disk: Disk | None
    ) -> None:
        self._files = [(ConfigFile(f"{folder}/{name}", disk=disk), table) for name, table in tables.items()]
        self._interval_seconds = interval_seconds
        self._wake = trio.Event()
        self._round = _Round()
        self._failing: set[str] = set()

    def load(self) -> None:
        """Read every file that exists.  StoreError when one cannot be used and has no usable `.bak`."""
        for file, table in self._files:
            file.load(table.load)

    def save_soon(self) -> None:
        """A table changed that should not wait for the interval."""
        self._wake.set()

    async def saved(self) -> str | None:
        """Wait until every table is written as it is now; why one could not be, else None.  Cancelled: written soon."""
        if not any(table.unsaved for _, table in self._files) and not self._round.begun:
            return None
        current = self._round.after if self._round.begun else self._round
        self._wake.set()
        await current.done.wait()
        return current.problem

    async def run(self) -> None:
        """Save for ever.  Cancelled, it writes what is unsaved before it ends."""
        try:
            while True:
                with trio.move_on_after(self._interval_seconds):
                    await self._wake.wait()
                self._wake = trio.Event()
                current = self._round
                current.begin()
                for file, table in self._files:
                    if table.unsaved:
                        await self._save(file, table, current)
                self._round = current.end()
        finally:
            for file, table in self._files:
                if table.unsaved:
                    try:
                        file.save_now(table.encode())
                    except OSError as error:
                        logger.error("%s cannot be written: %s; its last changes are lost", file.path, error)

    async def _save(self, file: ConfigFile, table: SavedTable, current: _Round) -> None:
        try:
            await file.save(table.encode())
        except OSError as error:
            table.unsaved = True
            current.problem = f"{file.path} cannot be written: {error}"
            if file.path not in self._failing:
                self._failing.add(file.path)
                logger.error(
                    "%s cannot be written: %s; its table is kept in memory, and written as soon as that is possible",
                    file.path, error,
                )  # fmt: skip
        except trio.Cancelled:
            table.unsaved = True
            raise
        else:
            if file.path in self._failing:
                self._failing.discard(file.path)
                logger.warning("%s can be written again, and is up to date", file.path)
