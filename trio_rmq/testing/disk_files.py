"""The files of `faulty_disk`: what readers see of each, what the platter holds, and the writes between the two."""

from __future__ import annotations

from collections.abc import Callable

SECTOR_BYTES = 512
"""What reaches the platter whole or not at all."""


class File:
    """One inode: what a reader sees, what the platter holds, and the writes between the two."""

    __slots__ = ("allocated", "done", "durable", "live", "modified_ms", "pending")

    def __init__(self) -> None:
        self.live = bytearray()
        self.durable = bytearray()
        self.pending: list[tuple[int, bytes] | int] = []
        """Since the last sync, in order: (offset, bytes) of a write, or a new length."""
        self.done = 0
        """How many changes came before those."""
        self.allocated: set[int] = set()
        """Sectors that take space."""
        self.modified_ms = 0

    def survivor(self, keep: Callable[[], bool]) -> File:
        """The file after a power loss: each pending sector and length change persists when `keep` says so."""
        image = bytearray(self.durable)
        for change in self.pending:
            if isinstance(change, int):
                if keep():
                    resize(image, change)
                continue
            offset, data = change
            position = offset
            while position < offset + len(data):
                end = min(position - position % SECTOR_BYTES + SECTOR_BYTES, offset + len(data))
                if keep() and end <= len(image):
                    image[position:end] = data[position - offset : end - offset]
                position = end
        return _settled(image, self.allocated)


def _settled(content: bytearray, allocated: set[int]) -> File:
    file = File()
    file.live = bytearray(content)
    file.durable = bytearray(content)
    file.allocated = set(allocated)
    return file


def resize(content: bytearray, size: int) -> None:
    """Let `content` have `size` bytes; new ones are zero."""
    if size < len(content):
        del content[size:]
    else:
        content.extend(bytes(size - len(content)))


def copied(file: File, copies: dict[File, File]) -> File:
    """The copy of `file` among `copies` (by what they are of), made when missing."""
    copy = copies.get(file)
    if copy is None:
        copy = copies[file] = File()
        copy.live = bytearray(file.live)
        copy.durable = bytearray(file.durable)
        copy.pending = list(file.pending)
        copy.allocated = set(file.allocated)
        copy.modified_ms = file.modified_ms
    return copy
