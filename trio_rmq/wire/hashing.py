"""The hashes that RocketMQ's files and filters hold: Java's string hash, tag codes, index keys, body checksums.

Invariant: equal to Java for every string, characters outside the Basic Multilingual Plane included: Java hashes UTF-16
code units, so such a character counts as two.  Source: java.lang.String.hashCode; RocketMQ UtilAll.crc32, IndexFile.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from operator import mul

from trio_rmq.wire.checksum import crc32

_UTF_16 = "utf-16-le" if sys.byteorder == "little" else "utf-16-be"
_CHUNK_UNITS = 256
_INT_MIN = -(1 << 31)


def _powers() -> tuple[int, ...]:
    ascending = [1]
    for _ in range(_CHUNK_UNITS):
        ascending.append(ascending[-1] * 31 & 0xFFFFFFFF)
    return tuple(reversed(ascending))


_POWERS = _powers()
"""31 to the power of 256, 255 ... 1, 0, modulo 2**32."""


def java_string_hash(text: str) -> int:
    """Java's `String.hashCode`: a signed 32-bit number."""
    units = text.encode() if text.isascii() else memoryview(text.encode(_UTF_16, "surrogatepass")).cast("H")
    result = 0
    for start in range(0, len(units), _CHUNK_UNITS):
        chunk = units[start : start + _CHUNK_UNITS]
        powers = _POWERS[-len(chunk) :]
        result = result * _POWERS[-len(chunk) - 1] + sum(map(mul, chunk, powers))
    result &= 0xFFFFFFFF
    return result - 0x100000000 if result & 0x80000000 else result


@lru_cache(maxsize=4096)
def tags_code(tags: str | None) -> int:
    """What a consume-queue entry holds for a record's TAGS property: its hash, 0 when there is none."""
    return java_string_hash(tags) if tags else 0


def index_key_hash(key: str) -> int:
    """The hash under which the index files keep `key` (already `topic#key`): not negative; 0 for -2**31."""
    result = java_string_hash(key)
    if result >= 0:
        return result
    return 0 if result == _INT_MIN else -result


def body_crc(body: bytes | bytearray | memoryview) -> int:
    """CRC-32 of a record's or request's body with the top bit cleared, as RocketMQ keeps it."""
    return crc32(body) & 0x7FFFFFFF
