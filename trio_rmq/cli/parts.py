"""Cuts a byte stream into the parts between separators, as they come, and joins them again."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Callable

import anyio.to_thread

from trio_rmq.errors import ConfigError

READ_BYTES = 256 * 1024

_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|.?)", re.DOTALL)
_ESCAPES = {"n": b"\n", "r": b"\r", "t": b"\t", "0": b"\0", "\\": b"\\"}


def separator_bytes(text: str) -> bytes:
    r"""A separator as typed: `\n`, `\r`, `\t`, `\0`, `\\` and `\xHH` stand for those bytes; ConfigError for others."""
    done, parts = 0, []
    for found in _ESCAPE.finditer(text):
        parts.append(text[done : found.start()].encode())
        what = found[1]
        if len(what) == 3:
            parts.append(bytes([int(what[1:], 16)]))
        elif what in _ESCAPES:
            parts.append(_ESCAPES[what])
        else:
            raise ConfigError(f"--separator {text!r}: \\{what} is none of \\n \\r \\t \\0 \\\\ \\xHH")
        done = found.end()
    parts.append(text[done:].encode())
    return b"".join(parts)


class Splitter:
    """Parts without their separators; what follows the last separator is a part unless it is empty.

    An empty separator means that the whole stream is one part.
    """

    def __init__(self, separator: bytes) -> None:
        self._separator = separator
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The parts that `data` ends."""
        if not self._separator:
            self._rest += data
            return []
        *parts, self._rest = (self._rest + data).split(self._separator)
        return parts

    def end(self) -> list[bytes]:
        """The part after the last separator, if there is one."""
        rest, self._rest = self._rest, b""
        return [rest] if rest else []


async def read_parts(
    file: int, separator: bytes, *, on_read: Callable[[int], None] | None = None
) -> AsyncIterator[list[bytes]]:
    """The parts of what the file descriptor gives, as they come (a pipe's lines are not held back).

    `on_read(bytes)` is called after each read.
    """
    splitter = Splitter(separator)
    while data := await anyio.to_thread.run_sync(os.read, file, READ_BYTES, abandon_on_cancel=True):
        if parts := splitter.feed(data):
            yield parts
        if on_read is not None:
            on_read(len(data))
    if parts := splitter.end():
        yield parts
