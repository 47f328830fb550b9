"""What is in the page cache and what is not: reads that would wait for the disk go to a thread first.

The page cache is the store's only cache, and a read of what is in it costs microseconds; one of what is not may take
milliseconds, in which the event loop would serve nobody.  So whoever reads an old place asks here before.  Blocks
found cached lately are taken to be so still; what was written lately is not asked for at all.

Source of the idea: RocketMQ's cold-data reads (5.x asks mincore); where a system cannot tell, all counts as cached.
"""

from __future__ import annotations

from collections.abc import Iterable

from trio_rmq.store.disk import Disk
from trio_rmq.store.log_files import FileHandles, LogFiles

BLOCK_BYTES = 128 * 1024
"""What is asked for and fetched at once: what a kernel usually reads ahead."""

RECENT_BYTES = 64 * 1024 * 1024
"""So much before the log's end is not asked for: it was written a moment ago, or is being written back."""

RECENT_ENTRIES = 100_000
"""The same for a queue: two megabytes of entries."""

_BLOCKS_KNOWN_MAX = 256
"""Blocks taken to be still cached: 32 MiB, too little for a kernel to have dropped many of them."""

Block = tuple[str, int, int]
"""Path of a file, where in it the block begins, and its length in bytes."""


class ColdReadError(Exception):
    """The answer is not in the page cache: `await` the store's `warm` with this, then ask again."""

    def __init__(self, blocks: list[Block]) -> None:
        super().__init__(f"{len(blocks)} blocks would have to be read from the disk")
        self.blocks = blocks


class PageCache:
    """Asks the page cache about places of `LogFiles`."""

    def __init__(self, disk: Disk, handles: FileHandles) -> None:
        self._disk = disk
        self._handles = handles
        self._known: set[tuple[str, int]] = set()
        self._spans: dict[LogFiles, tuple[int, int]] = {}
        self.warmed_blocks = 0
        """Blocks that had to be read from the disk."""

    def require_span(self, files: LogFiles, offset: int, size: int) -> None:
        """`require` of one place; costs next to nothing while it lies where the one before it lay."""
        begin, end = self._spans.get(files, (0, 0))
        if begin <= offset and offset + size <= end:
            return
        self.require(files, ((offset, size),))
        start = files.locate(offset)
        if start is not None:
            begin = offset - (offset - start) % BLOCK_BYTES
            blocks_end = begin - (begin - offset - size) // BLOCK_BYTES * BLOCK_BYTES
            self._spans[files] = begin, min(blocks_end, start + files.file_size)

    def require(self, files: LogFiles, places: Iterable[tuple[int, int]]) -> None:
        """Raise ColdReadError unless all of these (offset, size) are in the page cache, or in no file."""
        known, directory = self._known, files.directory
        cold: dict[Block, None] = {}
        for offset, size in places:
            start = files.locate(offset)
            if start is None:
                continue
            first = offset - start
            last = min(first + size, files.file_size) - 1
            for at in range(first - first % BLOCK_BYTES, last + 1, BLOCK_BYTES):
                if (directory, start + at) in known:
                    continue
                path = files.path(start)
                length = min(BLOCK_BYTES, files.file_size - at)
                try:
                    cached = self._disk.is_cached(self._handles.get(path), length, at)
                except FileNotFoundError:  # whoever reads it says so
                    continue
                if cached:
                    self._know(directory, start + at)
                else:
                    cold[path, at, length] = None
        if cold:
            raise ColdReadError([*cold])

    async def warm(self, error: ColdReadError) -> None:
        """Read the blocks in a thread, so that asking again finds them; what cannot be read is left to the reader."""
        await self._disk.read_ahead(error.blocks)
        self.warmed_blocks += len(error.blocks)
        for path, at, _ in error.blocks:
            directory, _, name = path.rpartition("/")
            self._know(directory, int(name) + at)

    def _know(self, directory: str, offset: int) -> None:
        if len(self._known) >= _BLOCKS_KNOWN_MAX:
            self._known.clear()
            self._spans.clear()
        self._known.add((directory, offset))
