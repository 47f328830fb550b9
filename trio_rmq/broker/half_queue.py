"""Which half messages are still open: a bit of memory for each, and what a restart needs.

A half message is open until an op message names its queue offset.  One that is asked about, or carried forward, is
stored again and its older place is ended, so a transaction has one open place at a time: `place_of` leads from any of
its places to it.

Invariants: `base` is the lowest open offset, or the end; everything before `op_base` in the op queue names offsets
below `base`.  Nothing here reads or writes anything.
"""

from __future__ import annotations

from collections import deque

_SAMPLES_MAX = 4096
"""Most remembered pairs of (op offset, half offset); when full, every second one is dropped."""

_TRIM_BYTES = 8192


class HalfQueue:
    """The open places of the half queue from `base` on."""

    def __init__(self, base: int, op_base: int) -> None:
        self.base = base
        self.op_base = op_base
        """Where a restart has to begin reading op messages."""
        self._start = base - base % 8
        self._bits = bytearray()
        """A set bit for each ended offset from `_start` on; what lies beyond is open."""
        for offset in range(self._start, base):
            self._set(offset)
        self._places: dict[int, int] = {}
        """From the first offset of a transaction to its open one, where those differ."""
        self._samples: deque[tuple[int, int]] = deque()

    def is_ended(self, offset: int) -> bool:
        """Whether the message at this offset was committed, rolled back, parked or stored again."""
        if offset < self.base:
            return True
        byte, bit = divmod(offset - self._start, 8)
        return byte < len(self._bits) and bool(self._bits[byte] >> bit & 1)

    def place_of(self, origin: int, offset: int) -> int | None:
        """The open place of the transaction that began at `origin` and was once at `offset`; None when it ended."""
        if not self.is_ended(offset):
            return offset
        place = self._places.get(origin)
        return None if place is None or self.is_ended(place) else place

    def end(self, offset: int, origin: int) -> None:
        """The transaction that began at `origin` ends; `offset` is its open place."""
        self._places.pop(origin, None)
        self.end_place(offset)

    def move(self, origin: int, old: int, new: int) -> None:
        """The transaction that began at `origin` goes on at `new` instead of `old`."""
        self._places[origin] = new
        self.end_place(old)

    def found(self, origin: int, offset: int) -> int | None:
        """An open place was read: it is its transaction's, or an older one is.

        Returns the place that must be ended, because a crash came before its end was written; None when there is none.
        """
        before = self._places.get(origin, origin)
        if before > offset:
            return offset
        if offset != origin:
            self._places[origin] = offset
        return before if before < offset and not self.is_ended(before) else None

    def end_place(self, offset: int) -> None:
        """The message at `offset` counts no more."""
        if offset < self.base:
            return
        self._set(offset)
        if offset == self.base:
            self._advance()

    def _set(self, offset: int) -> None:
        byte, bit = divmod(offset - self._start, 8)
        bits = self._bits
        if byte >= len(bits):
            bits.extend(bytes(byte - len(bits) + 1))
        bits[byte] |= 1 << bit

    def _advance(self) -> None:
        bits = self._bits
        byte = (self.base - self._start) // 8
        while byte < len(bits) and bits[byte] == 0xFF:
            byte += 1
        low = 0
        if byte < len(bits):
            while bits[byte] >> low & 1:
                low += 1
        self.base = self._start + byte * 8 + low
        if byte > _TRIM_BYTES:
            del bits[:byte]
            self._start += byte * 8
        samples = self._samples
        while samples and samples[0][1] <= self.base:
            self.op_base = samples.popleft()[0]

    def open_from_base(self, end: int, count_max: int) -> list[int]:
        """The lowest open offsets below `end`, at most `count_max`."""
        found: list[int] = []
        offset = self.base
        while offset < end and len(found) < count_max:
            byte, bit = divmod(offset - self._start, 8)
            if byte < len(self._bits) and bit == 0 and self._bits[byte] == 0xFF:
                offset += 8
                continue
            if not self.is_ended(offset):
                found.append(offset)
            offset += 1
        return found

    def sample(self, op_end: int, half_end: int) -> None:
        """Now the op queue ends at `op_end` and the half queue at `half_end`: those ops name lower offsets only."""
        samples = self._samples
        if samples and samples[-1][0] == op_end:
            return
        if half_end <= self.base and not samples:
            self.op_base = op_end
            return
        samples.append((op_end, half_end))
        if len(samples) > _SAMPLES_MAX:
            self._samples = deque(list(samples)[1::2])
