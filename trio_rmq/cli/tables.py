"""How commands that list things print them: in columns, one value where brokers agree, times of this machine's zone."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime


def joined(texts: Iterable[str]) -> str:
    """Each different text once, in order, with slashes between."""
    return "/".join(dict.fromkeys(texts))


def time_text(timestamp_ms: int) -> str:
    """Milliseconds since 1970 as local time, to the second; `-` for 0."""
    if not timestamp_ms:
        return "-"
    return datetime.fromtimestamp(timestamp_ms / 1000).isoformat(" ", "seconds")


def print_table(heads: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> None:
    """Columns as wide as their widest cell; numbers to the right."""
    lines = [tuple(map(str, row)) for row in rows]
    widths = [max(len(line[column]) for line in [heads, *lines]) for column in range(len(heads))]
    for line in [heads, *lines]:
        cells = (
            cell.rjust(width) if cell.lstrip("-").isdigit() else cell.ljust(width)
            for cell, width in zip(line, widths, strict=True)
        )
        print("  ".join(cells).rstrip())
