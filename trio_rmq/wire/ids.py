"""Host addresses as records hold them, offset message ids and unique message ids.

A `Host` is (4 or 16 address bytes, port).  An offset message id names one record of one broker: its store host and
physical offset.  A unique id is made by the producer before it sends, so that a retried send can be recognised.
Invariant: no clock and no counter of the process lives here; they come as arguments.
Source: RocketMQ MessageDecoder.createMessageId, MessageClientIDSetter.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache
from ipaddress import ip_address

import msgspec

from trio_rmq.errors import ProtocolError

Host = tuple[bytes, int]
"""4 or 16 address bytes in network order, and a port."""

NO_HOST: Host = (b"\0\0\0\0", 0)
"""0.0.0.0:0, for a record whose producer is unknown."""

_UNIQUE_TAIL = struct.Struct(">HIIH")
_HEX = [f"{byte:02X}" for byte in range(256)]
"""The digits of each byte: a third of the time of formatting a number."""


@lru_cache(maxsize=4096)
def pack_host(address: str, port: int) -> Host:
    """`address` (IPv4 or IPv6 text, a zone is dropped; IPv4-mapped IPv6 becomes IPv4) and `port` as a Host.

    Raises ProtocolError when `address` is no IP address: names are resolved by those who connect.
    """
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        raise ProtocolError(f"{address!r} is no IP address; a host in a record must be numeric") from None
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (mapped or parsed).packed, port


def parse_host(text: str) -> Host:
    """`1.2.3.4:10911` or `[::1]:10911` (also `::1:10911`, as Java writes it) as a Host; ProtocolError otherwise."""
    address, separator, port = text.rpartition(":")
    if not separator or not port.isascii() or not port.isdigit() or len(port) > 5:
        raise ProtocolError(f"{text!r} is no address:port")
    return pack_host(address.removeprefix("/").strip("[]"), int(port))


def host_address(host: Host) -> str:
    """The address of `host` as text, without its port."""
    try:
        return str(ip_address(host[0]))
    except ValueError:
        raise ProtocolError(f"a host of {len(host[0])} address bytes is neither IPv4 nor IPv6") from None


def host_text(host: Host) -> str:
    """`host` as `1.2.3.4:10911` or `[::1]:10911`."""
    address = host_address(host)
    return f"[{address}]:{host[1]}" if ":" in address else f"{address}:{host[1]}"


@lru_cache(maxsize=256)
def _host_hex(host: Host) -> str:
    return (host[0] + struct.pack(">i", host[1])).hex().upper()


def encode_offset_id(store_host: Host, physical_offset: int) -> str:
    """The offset message id: upper-case hex of store host and physical offset, 32 (IPv4) or 56 (IPv6) characters."""
    return f"{_host_hex(store_host)}{physical_offset:016X}"


def encode_offset_ids(store_host: Host, physical_offsets: Iterable[int]) -> list[str]:
    """The offset message ids of records of one store."""
    start = _host_hex(store_host)
    return [f"{start}{offset:016X}" for offset in physical_offsets]


def decode_offset_id(text: str) -> tuple[Host, int]:
    """(store host, physical offset) of an offset message id; ProtocolError when `text` is none."""
    raw = _from_hex(text)
    address, rest = raw[:-12], raw[-12:]
    port, offset = struct.unpack(">iq", rest)
    if offset < 0 or not 0 <= port <= 65535:
        raise ProtocolError(f"{text!r} is no offset message id: its port or offset is out of range")
    return (address, port), offset


def _from_hex(text: str) -> bytes:
    if len(text) not in (32, 56) or not text.isalnum():
        raise ProtocolError("a message id has 32 or 56 hexadecimal digits")
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise ProtocolError("a message id has 32 or 56 hexadecimal digits") from None


class UniqueId(msgspec.Struct, frozen=True):
    """The parts of a unique message id; `milliseconds` counts from the first of the month, local time."""

    address: bytes
    process_id: int
    salt: int
    milliseconds: int
    counter: int


def encode_unique_id(unique_id: UniqueId) -> str:
    """The 32 (IPv4) or 56 (IPv6) upper-case hex digits of the UNIQ_KEY property; numbers wrap as Java's do."""
    tail = _UNIQUE_TAIL.pack(
        unique_id.process_id & 0xFFFF,
        unique_id.salt & 0xFFFFFFFF,
        unique_id.milliseconds & 0xFFFFFFFF,
        unique_id.counter & 0xFFFF,
    )
    return (unique_id.address + tail).hex().upper()


def decode_unique_id(text: str) -> UniqueId:
    """The parts of a UNIQ_KEY as RocketMQ's clients make it; ProtocolError for anything else."""
    raw = _from_hex(text)
    return UniqueId(raw[:-12], *_UNIQUE_TAIL.unpack(raw[-12:]))


def month_start_ms(wall_ms: int) -> int:
    """Milliseconds since 1970 at which the local-time month of `wall_ms` began.

    Local, because Apache's tools look a unique id up in the index around the time they read from it.
    """
    moment = datetime.fromtimestamp(wall_ms / 1000)
    start = moment.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return int(start.timestamp() * 1000)


class UniqueIdGenerator:
    """Makes the unique ids of one producer process: a fixed part, the time in the month, and a 16-bit counter.

    Two generators are kept apart by (address, process_id, salt); one repeats itself only after 65,536 ids in one
    millisecond, or when the wall clock is set back.
    """

    __slots__ = ("_counter", "_month_start_ms", "_next_month_ms", "_prefix", "_stem", "_stem_ms")

    def __init__(self, address: bytes, process_id: int, salt: int) -> None:
        self._prefix = encode_unique_id(UniqueId(address, process_id, salt, 0, 0))[:-12]
        self._counter = 0
        self._month_start_ms = 0
        self._next_month_ms = -1
        self._stem_ms = -1
        self._stem = ""

    def next_id(self, wall_ms: int) -> str:
        """The next id at wall clock `wall_ms`."""
        if wall_ms != self._stem_ms:
            self._move_to(wall_ms)
        counter = self._counter
        self._counter = (counter + 1) & 0xFFFF
        return f"{self._stem}{_HEX[counter >> 8]}{_HEX[counter & 0xFF]}"

    def next_ids(self, wall_ms: int, count: int) -> list[str]:
        """The next `count` ids, all at wall clock `wall_ms`."""
        if wall_ms != self._stem_ms:
            self._move_to(wall_ms)
        stem, first = self._stem, self._counter
        self._counter = (first + count) & 0xFFFF
        return [f"{stem}{_HEX[counter >> 8 & 0xFF]}{_HEX[counter & 0xFF]}" for counter in range(first, first + count)]

    def _move_to(self, wall_ms: int) -> None:
        if not self._month_start_ms <= wall_ms < self._next_month_ms:
            self._month_start_ms = month_start_ms(wall_ms)
            self._next_month_ms = month_start_ms(self._month_start_ms + 32 * 86_400_000)
        self._stem = f"{self._prefix}{(wall_ms - self._month_start_ms) & 0xFFFFFFFF:08X}"
        self._stem_ms = wall_ms


def unique_id_time_ms(text: str, now_ms: int) -> int:
    """When the unique id `text` was made, milliseconds since 1970: the latest fitting month before `now_ms`."""
    milliseconds = decode_unique_id(text).milliseconds
    start = month_start_ms(now_ms)
    if start + milliseconds >= now_ms:
        start = month_start_ms(start - 1)
    return start + milliseconds
