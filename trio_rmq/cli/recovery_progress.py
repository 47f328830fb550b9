"""How far a store's recovery is, for whoever waits for the server: a line on a terminal, else a line in the log.

Nothing is said in the first second, which is more than most starts take; no library is loaded for it.
"""

from __future__ import annotations

import logging
import sys
from types import TracebackType
from typing import TextIO

import trio

logger = logging.getLogger("trio_rmq")

QUIET_SECONDS = 1.0
"""From the recovery's first report to the first line."""
LOGGED_SECONDS = 10.0
"""Between two lines in a log."""
_BAR_CELLS = 30
_MIB = 1024 * 1024


class RecoveryProgress:
    """Called by the store with (bytes read, bytes to read at most); as a context it leaves no half line behind."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._begun_at: float | None = None
        self._said_at: float | None = None
        self._shown = False

    def __call__(self, done: int, total: int) -> None:
        """Say it when it is time to; `done` equal to `total` ends the line."""
        now = trio.current_time()
        if self._begun_at is None:
            self._begun_at = now
        if done >= total:
            self._clear()
        elif now - self._begun_at >= QUIET_SECONDS:
            if self._terminal:
                self._draw(done, total)
            elif self._said_at is None or now - self._said_at >= LOGGED_SECONDS:
                self._said_at = now
                logger.info("recovering the store: %d of at most %d MiB of log read", done // _MIB, total // _MIB)

    def _draw(self, done: int, total: int) -> None:
        cells = done * _BAR_CELLS // total
        bar = "=" * cells + " " * (_BAR_CELLS - cells)
        self._stream.write(f"\rrecovering the store [{bar}] {done // _MIB} of at most {total // _MIB} MiB\033[K")
        self._stream.flush()
        self._shown = True

    def _clear(self) -> None:
        if self._shown:
            self._stream.write("\r\033[K")
            self._stream.flush()
            self._shown = False

    def __enter__(self) -> RecoveryProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._clear()
