"""Numbers by the time at which each is due, millions of them in little memory: eight bytes each until their time nears.

Numbers (queue offsets) lie in arrays, one for every two seconds of the future, unsorted; only the array whose time has
come is made a heap.  So adding is an append, the order costs nothing before it is needed, and no step takes long.
Both transactions (when to ask back) and timers (when to deliver) keep their pending messages here.
"""

from __future__ import annotations

from array import array
from heapq import heapify, heappop, heappush

_BUCKET_MS = 2000
_NUMBER_BITS = 50
"""Of the 64 bits of an entry 11 say the millisecond inside its bucket."""

_NUMBER_MASK = (1 << _NUMBER_BITS) - 1


class Deadlines:
    """A multiset of (due ms, number); numbers are from 0 to 2**50 - 1.  Times are wall-clock ms, compared as given."""

    __slots__ = ("_buckets", "_count", "_near", "_opened", "_order")

    def __init__(self) -> None:
        self._buckets: dict[int, array[int]] = {}
        self._order: list[int] = []
        """A heap of the keys of `_buckets`."""
        self._near: list[int] = []
        """A heap of (due ms << 50 | number) of all buckets up to `_opened`."""
        self._opened = -1
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, due_ms: int, number: int) -> None:
        """Enter `number`; a due time before 1970 counts as 1970."""
        due_ms = max(due_ms, 0)
        self._count += 1
        key = due_ms // _BUCKET_MS
        if key <= self._opened:
            heappush(self._near, due_ms << _NUMBER_BITS | number)
            return
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = array("q")
            heappush(self._order, key)
        bucket.append(due_ms % _BUCKET_MS << _NUMBER_BITS | number)

    def next_ms(self, now_ms: int) -> int | None:
        """When to look again: the first due time, or an earlier one while that is far; None when there is nothing."""
        self._open(now_ms)
        if self._near:
            return self._near[0] >> _NUMBER_BITS
        return self._order[0] * _BUCKET_MS if self._order else None

    def take(self, now_ms: int, count_max: int) -> list[tuple[int, int]]:
        """Remove and return the (due ms, number) that are due, at most `count_max`, the earliest first."""
        self._open(now_ms)
        near = self._near
        end = (now_ms + 1) << _NUMBER_BITS
        taken: list[tuple[int, int]] = []
        while near and near[0] < end and len(taken) < count_max:
            entry = heappop(near)
            taken.append((entry >> _NUMBER_BITS, entry & _NUMBER_MASK))
        self._count -= len(taken)
        return taken

    def first_due(self, now_ms: int) -> int | None:
        """The due time of the earliest entry when it is due by `now_ms`, else None."""
        self._open(now_ms)
        if not self._near:
            return None
        due_ms = self._near[0] >> _NUMBER_BITS
        return due_ms if due_ms <= now_ms else None

    def drop_far(self, keep: int) -> int | None:
        """Forget the latest entries until at most `keep` are left, whole buckets at a time, none that is near.

        Returns the time from which on everything was forgotten, or None when nothing was.
        """
        horizon = None
        for key in sorted(self._buckets, reverse=True):
            if self._count <= keep:
                break
            self._count -= len(self._buckets.pop(key))
            horizon = key * _BUCKET_MS
        if horizon is not None:
            self._order = sorted(self._buckets)
        return horizon

    def remove_below(self, number: int, after_ms: int) -> list[tuple[int, int]]:
        """Remove and return the entries with a smaller number than this that are due after `after_ms`."""
        removed = []
        for key in sorted(self._buckets):
            start = key * _BUCKET_MS
            if start <= after_ms:
                continue
            bucket = self._buckets[key]
            kept = array("q")
            for entry in bucket:
                if entry & _NUMBER_MASK < number:
                    removed.append((start + (entry >> _NUMBER_BITS), entry & _NUMBER_MASK))
                else:
                    kept.append(entry)
            if len(kept) < len(bucket):
                self._buckets[key] = kept
        self._count -= len(removed)
        return removed

    def _open(self, now_ms: int) -> None:
        """Move the buckets whose time has come into the heap."""
        key = now_ms // _BUCKET_MS
        if key <= self._opened:
            return
        self._opened = key
        order, near = self._order, self._near
        before = len(near)
        while order and order[0] <= key:
            opened = heappop(order)
            start = opened * _BUCKET_MS << _NUMBER_BITS
            near.extend([start + entry for entry in self._buckets.pop(opened)])
        if len(near) > before:
            heapify(near)
