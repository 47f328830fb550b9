"""How pieces that wait to be written to one connection are joined; both halves of the room use it."""

from __future__ import annotations

from collections import deque

JOINED_WRITE_BYTES = 1024 * 1024
"""Queued pieces are joined into writes of at most this size; so joined commands, of 17 bytes at least, are never more
than a message may have (COMMANDS_PER_MESSAGE_MAX)."""


def next_write(outgoing: deque[bytes]) -> bytes:
    """Take the next write out of the queue, which must not be empty: its first piece, and those that fit behind it."""
    first = outgoing.popleft()
    if not outgoing:
        return first
    pieces, size = [first], len(first)
    while outgoing and size + len(outgoing[0]) <= JOINED_WRITE_BYTES:
        piece = outgoing.popleft()
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces)
