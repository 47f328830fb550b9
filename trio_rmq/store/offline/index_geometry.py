"""How many slots and items an index file has, told by its content: nothing in the file says it.

The file's length is one equation for two numbers; where the newest item stands is the other, and the header says what
that item holds.
"""

from __future__ import annotations

from trio_rmq.store.disk import Disk
from trio_rmq.store.index_file import HEADER_SIZE_BYTES, ITEM_SIZE_BYTES, SLOT_SIZE_BYTES, header_of, item_of

_BLOCK_BYTES = 1024 * 1024
_PHYSICAL_AT = 4


def index_geometry(disk: Disk, handle: int) -> tuple[int, int] | None:
    """(slots, items) of the index file at `handle`; None when it has no items, or nothing fits.

    Right is where the newest item would hold what the header says of it, and the first one, too, leading on to none.
    """
    size = disk.size(handle)
    if size < HEADER_SIZE_BYTES:
        return None
    header = header_of(disk.pread(handle, HEADER_SIZE_BYTES, 0))
    if header.count <= 1:
        return None
    wanted = header.end_physical.to_bytes(8, "big", signed=True)
    for start, end in disk.data_extents(handle, HEADER_SIZE_BYTES, size):
        for position in range(start, end, _BLOCK_BYTES):
            block = disk.pread(handle, min(_BLOCK_BYTES, end - position) + len(wanted) - 1, position)
            at = block.find(wanted)
            while at >= 0:
                items_at = position + at - _PHYSICAL_AT - (header.count - 1) * ITEM_SIZE_BYTES
                slot_bytes, item_bytes = items_at - HEADER_SIZE_BYTES, size - items_at
                if slot_bytes > 0 and not slot_bytes % SLOT_SIZE_BYTES and not item_bytes % ITEM_SIZE_BYTES:
                    first = disk.pread(handle, ITEM_SIZE_BYTES, items_at + ITEM_SIZE_BYTES)
                    before_first = disk.pread(handle, ITEM_SIZE_BYTES, items_at)
                    if len(first) == ITEM_SIZE_BYTES and not before_first.strip(b"\0"):
                        _, physical, _, before = item_of(first, 0)
                        if physical == header.begin_physical and not before:
                            return slot_bytes // SLOT_SIZE_BYTES, item_bytes // ITEM_SIZE_BYTES
                at = block.find(wanted, at + 1)
    return None
