"""The bloom filter by which a broker remembers which groups a message is for, in a few bytes beside its queue entry.

Each group and topic has some positions in a map of bits; those of the filters that are true of a message are set.  A
clear bit proves that a filter is not true of it; a set one proves nothing.  Invariant: the same settings give the same
positions as RocketMQ's, for maps lie on disk.  Source: RocketMQ's BloomFilter and BitsArray; murmur3 x64 128 is Austin
Appleby's published algorithm, with seed 0.
"""

from __future__ import annotations

import math
from typing import Self

import msgspec

BITS_MAX = 2**31 - 8
"""Largest map in bits, Java's int."""

_MASK = 2**64 - 1
_C1, _C2 = 0x87C37B91114253D5, 0x4CF5AD432745937F


class BitsArray:
    """Bits by position; bit 0 is the lowest of the first byte."""

    __slots__ = ("_data", "bit_length")

    def __init__(self, bit_length: int) -> None:
        self.bit_length = bit_length
        self._data = bytearray((bit_length + 7) // 8)

    @classmethod
    def of(cls, data: bytes) -> Self:
        """The bits of these bytes; a copy."""
        bits = cls(len(data) * 8)
        bits._data[:] = data
        return bits

    def __bytes__(self) -> bytes:
        return bytes(self._data)

    def get(self, position: int) -> bool:
        """Whether the bit is set; IndexError outside the array."""
        return bool(self._data[self._checked(position) >> 3] & 1 << (position & 7))

    def set(self, position: int, value: bool = True) -> None:
        """Set the bit, or clear it; IndexError outside the array."""
        index, bit = self._checked(position) >> 3, 1 << (position & 7)
        self._data[index] = self._data[index] | bit if value else self._data[index] & ~bit

    def _checked(self, position: int) -> int:
        if not 0 <= position < self.bit_length:
            raise IndexError(f"bit {position} of {self.bit_length}")
        return position


class BloomFilterData(msgspec.Struct, kw_only=True, frozen=True, rename="camel"):
    """The positions of one name in a map of `bit_num` bits."""

    bit_num: int = 0
    bit_pos: tuple[int, ...] = ()


class BloomFilter:
    """Positions for an error rate and a number of names (maxErrorRateOfBloomFilter, expectConsumerNumUseFilter).

    `hash_count` positions a name, `bit_count` bits a map, a multiple of 8.  ValueError for a rate outside 1 to 99, and
    for a number below 1 or so large that a map would need more than BITS_MAX bits.
    """

    __slots__ = ("bit_count", "hash_count")

    def __init__(self, error_rate_percent: int = 20, expected_names: int = 32) -> None:
        if not 1 <= error_rate_percent < 100:
            raise ValueError(f"the error rate of a bloom filter is 1 to 99 percent, not {error_rate_percent}")
        if expected_names < 1:
            raise ValueError(f"a bloom filter expects at least one name, not {expected_names}")
        rate = error_rate_percent / 100.0
        self.hash_count = math.ceil(math.log(rate) / math.log(0.5))
        doublings = math.log(1 / rate) / math.log(2)
        bits = math.ceil(expected_names * doublings * (math.log(math.e) / math.log(2)))
        self.bit_count = 8 * math.ceil(bits / 8)
        if self.bit_count > BITS_MAX:
            raise ValueError(f"a bloom filter for {expected_names} names needs more than {BITS_MAX} bits")

    def positions(self, name: str) -> tuple[int, ...]:
        """The positions of a name, which may repeat."""
        half = murmur3_first_half(name.encode("utf-8", "surrogatepass"))
        low, high = half & 0xFFFFFFFF, half >> 32
        return tuple(self._position(low + turn * high) for turn in range(1, self.hash_count + 1))

    def _position(self, combined: int) -> int:
        """`combined` as a signed 32-bit number, complemented when negative, within the map."""
        combined &= 0xFFFFFFFF
        return (combined ^ 0xFFFFFFFF if combined >> 31 else combined) % self.bit_count

    def generate(self, name: str) -> BloomFilterData:
        """The data of a name, as a registration keeps it."""
        return BloomFilterData(bit_num=self.bit_count, bit_pos=self.positions(name))

    def is_valid(self, data: BloomFilterData | None) -> bool:
        """Whether `data` is of a filter with these counts; positions outside the map are not."""
        return (
            data is not None
            and data.bit_num == self.bit_count
            and len(data.bit_pos) == self.hash_count
            and all(0 <= position < self.bit_count for position in data.bit_pos)
        )

    def new_map(self) -> BitsArray:
        """An empty map."""
        return BitsArray(self.bit_count)

    def hash_to(self, data: BloomFilterData, bits: BitsArray) -> None:
        """Set the positions of `data`; ValueError unless map and data are of this filter."""
        self._check(data, bits)
        for position in data.bit_pos:
            bits.set(position)

    def is_hit(self, data: BloomFilterData, bits: BitsArray) -> bool:
        """Whether all positions of `data` are set; ValueError unless map and data are of this filter."""
        self._check(data, bits)
        return all(map(bits.get, data.bit_pos))

    def _check(self, data: BloomFilterData, bits: BitsArray) -> None:
        if not self.is_valid(data) or bits.bit_length != self.bit_count:
            raise ValueError(f"{data} and a map of {bits.bit_length} bits are not both of a filter of {self.bit_count}")


def murmur3_first_half(data: bytes) -> int:
    """The first 64 bits of murmur3 x64 128 with seed 0, unsigned."""
    first = second = 0
    tail_start = len(data) & ~15
    for start in range(0, tail_start, 16):
        first ^= _mixed_first(int.from_bytes(data[start : start + 8], "little"))
        first = ((_rotated(first, 27) + second) * 5 + 0x52DCE729) & _MASK
        second ^= _mixed_second(int.from_bytes(data[start + 8 : start + 16], "little"))
        second = ((_rotated(second, 31) + first) * 5 + 0x38495AB5) & _MASK
    second ^= _mixed_second(int.from_bytes(data[tail_start + 8 :], "little"))
    first ^= _mixed_first(int.from_bytes(data[tail_start : tail_start + 8], "little"))
    first, second = first ^ len(data), second ^ len(data)
    first = (first + second) & _MASK
    second = (second + first) & _MASK
    return (_avalanched(first) + _avalanched(second)) & _MASK


def _rotated(word: int, bits: int) -> int:
    return (word << bits | word >> 64 - bits) & _MASK


def _mixed_first(word: int) -> int:
    return _rotated(word * _C1 & _MASK, 31) * _C2 & _MASK


def _mixed_second(word: int) -> int:
    return _rotated(word * _C2 & _MASK, 33) * _C1 & _MASK


def _avalanched(word: int) -> int:
    word = (word ^ word >> 33) * 0xFF51AFD7ED558CCD & _MASK
    word = (word ^ word >> 33) * 0xC4CEB9FE1A85EC53 & _MASK
    return word ^ word >> 33
