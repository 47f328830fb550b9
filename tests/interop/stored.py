"""What stands in the log of a store whose broker has ended, ours or Apache's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trio_rmq.wire.record import MAGIC_BLANK, StoredMessage, decode_record, peek_record


def stored_records(store: Path) -> Iterator[StoredMessage]:
    """Every record, in order."""
    for path in sorted((store / "commitlog").iterdir()):
        log, position = path.read_bytes(), 0
        while position + 8 <= len(log):
            size, magic = peek_record(log, position)
            if not size or magic == MAGIC_BLANK:
                break
            yield decode_record(log, position)
            position += size
