"""Flips single bits of a stored log, one at a time, and asks `store verify` whether it sees them.

`sample_store` makes a store with every kind of record that a broker writes; `field_at` says which field of a record a
byte is of; `flip` looks at one bit.  What verification cannot see - because nothing in RocketMQ's format tells it - is
what the tests derive with this and docs/store.md lists.
"""

from __future__ import annotations

from bisect import bisect_right
from random import Random
from zlib import compress

import trio
from trio.testing import MockClock

from trio_rmq.clock import use_wall_clock
from trio_rmq.store.consume_queue import DELAY_TOPIC
from trio_rmq.store.messages import NewMessage
from trio_rmq.store.offline.findings import Finding
from trio_rmq.store.offline.verify import verify_store
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.testing.stores import Place, new_message, small_config, stored
from trio_rmq.wire.record import MAGIC_BLANK, MAGIC_V2, StoredMessage, decode_record, peek_record
from trio_rmq.wire.sysflag import COMPRESSED, COMPRESSION_ZLIB, TRANSACTION_COMMIT

ROOT = "store"
LOG_FILE_BYTES = 8192
SETTINGS: dict[str, object] = {
    "mapped_file_size_commit_log": LOG_FILE_BYTES,
    "mapped_file_size_consume_queue": 400,
    "enable_multi_dispatch": True,
    "enable_lmq": True,
    "max_index_num": 60,
    "max_hash_slot_num": 40,
}
UNCOVERED: dict[str, tuple[int, str]] = {
    "flag": (0xFFFFFFFF, "all of it: it is the sender's own number"),
    "sysFlag": (0x7C3, "the bits for a compressed body and its kind, for several tags, and 0x40 and 0x80 of 5.x"),
    "born time": ((1 << 39) - 1, "while it stays within ten years of the store time"),
    "born address": (-1, "all of it"),
    "born port": (0xFFFF, "the low 16 bits; the high ones must be 0"),
    "reconsume times": (0x7FFFFFFF, "all of it but the sign"),
    "store time": ((1 << 40) - 1, "while it stays between its neighbours' and in the second that the index has"),
    "properties": (
        0,
        "all but KEYS, UNIQ_KEY, INNER_MULTI_DISPATCH, INNER_MULTI_QUEUE_OFFSET and TAGS (in the delay topic DELAY), "
        "while the text stays UTF-8 and its parts have names",
    ),
}
"""Field of a stored record -> the bits of it that neither a checksum nor a comparison tells, and when."""

_COMPARED = ("KEYS", "UNIQ_KEY", "INNER_MULTI_DISPATCH", "INNER_MULTI_QUEUE_OFFSET")

_HALF_TOPIC = "RMQ_SYS_TRANS_HALF_TOPIC"
_START_MS = 1_790_000_000_000
_V6 = (bytes(range(16)), 4711)


def sample_store(seed: int, records: int, **more: object) -> FaultyDisk:
    """A store of about so many records, stopped in order; `more` settings than SETTINGS.

    Plain, tagged, keyed, delayed, compressed, half and committed ones, such that are dispatched to light queues, have
    IPv6 born hosts or came in batches; log, queue and index files are rolled.
    """
    disk = FaultyDisk()
    rng = Random(seed)
    now = _START_MS

    async def main() -> None:
        nonlocal now
        async with Place(disk, ROOT).open(**SETTINGS, **more) as store:
            number = 0
            while number < records:
                kind = rng.choice(
                    ("plain", "plain", "keys", "keys", "delay", "transaction", "lmq", "v6", "batch", "zip")
                )
                with use_wall_clock(lambda: now):  # noqa: B023 - used at once
                    for messages in _messages(kind, rng, number):
                        if kind == "batch":
                            stored(store.append_together(messages))
                        else:
                            placed = stored(store.append(messages))
                            if kind == "transaction":
                                stored(store.append([_committed(rng, placed[0].physical_offset)]))
                        number += len(messages)
                now += rng.choice((0, 0, 3, 700, 5000))
                await trio.lowlevel.checkpoint()

    trio.run(main, clock=MockClock(autojump_threshold=0))
    return disk


def _messages(kind: str, rng: Random, number: int) -> list[list[NewMessage]]:
    body = rng.randbytes(rng.choice((1, 20, 300)))
    text = f"UNIQ_KEY\x01{number:032X}\x02"
    tags = rng.choice((None, "TagA", "TagB"))
    if tags is not None:
        text += f"TAGS\x01{tags}\x02"
    if kind == "keys":
        text += f"KEYS\x01order-{number} user-{number % 7}\x02"
    if kind == "lmq":
        text += "INNER_MULTI_DISPATCH\x01%LMQ%a,%LMQ%b\x02"
    if kind == "delay":
        delayed = f"DELAY\x01{rng.randint(1, 18)}\x02REAL_TOPIC\x01T\x02REAL_QID\x010\x02{text}"
        return [[new_message(body, topic=DELAY_TOPIC, queue_id=2, properties=delayed)]]
    if kind == "transaction":
        half = f"TRAN_MSG\x01true\x02PGROUP\x01group\x02REAL_TOPIC\x01T\x02{text}"
        message = new_message(body, topic=_HALF_TOPIC, tags=tags)
        message.properties = half
        return [[message]]
    message = new_message(body, topic=rng.choice("TU"), queue_id=rng.randrange(2), tags=tags, flag=rng.randrange(9))
    message.properties = text + rng.choice(("", "city\x01Zürich\x02", "__SHARDINGKEY\x017\x02"))
    if kind == "zip":
        message.body, message.sys_flag = compress(body), COMPRESSED | COMPRESSION_ZLIB
    if kind == "v6":
        message.born_host = _V6
    if kind == "batch":
        return [[message, new_message(b"second", topic=message.topic, queue_id=message.queue_id)]]
    return [[message]]


def _committed(rng: Random, half_at: int) -> NewMessage:
    return new_message(
        rng.randbytes(30),
        topic="T",
        sys_flag=TRANSACTION_COMMIT,
        prepared_transaction_offset=half_at,
        properties=b"PGROUP\x01group\x02",
    )


class Flips:
    """The log of a store on `disk`, byte for byte, and what each byte is."""

    def __init__(self, disk: FaultyDisk) -> None:
        self.disk = disk
        self.config = small_config(ROOT, **SETTINGS)
        folder = f"{ROOT}/commitlog"
        self.names = disk.list_directory(folder)
        self.content = b"".join(disk.read_file(f"{folder}/{name}") for name in self.names)
        self.starts: list[int] = []
        self.records: dict[int, StoredMessage] = {}
        self.end = self._find_records()

    def _find_records(self) -> int:
        """Where each record and filler begins; returns the log's end."""
        offset = 0
        while offset < len(self.content):
            size, magic = peek_record(self.content, offset)
            if not size:
                break
            self.starts.append(offset)
            if magic != MAGIC_BLANK:
                self.records[offset] = decode_record(self.content, offset, check_crc=True)
            offset += size
        return offset

    def field_at(self, offset: int) -> str:
        """What the byte at this physical offset is of: a field of a record, of a filler, or nothing."""
        if offset >= self.end:
            return "after the end"
        start = self.starts[bisect_right(self.starts, offset) - 1]
        record = self.records.get(start)
        if record is None:
            return "filler" if offset - start < 8 else "after a filler"
        return field_at(record, offset - start)

    def uncovered(self, offset: int, bit: int) -> str | None:
        """The row of UNCOVERED that excuses it when nobody sees this bit flipped; None when it must be seen."""
        field = self.field_at(offset)
        name, _, rest = field.partition("[")
        number = bisect_right(self.starts, offset) - 1
        record = self.records.get(self.starts[number])
        if field.startswith("properties"):
            compared = (*_COMPARED, "DELAY" if record is not None and record.topic == DELAY_TOPIC else "TAGS")
            is_compared = any(field.startswith(f"properties: {name} ") for name in compared)
            return None if is_compared else "properties"
        if record is None or name not in UNCOVERED:
            return None
        mask, _ = UNCOVERED[name]
        size = {"born time": 8, "store time": 8, "born address": len(record.born_host[0])}.get(name, 4)
        shift = (size - 1 - int(rest.rstrip("]"))) * 8 + bit
        if name == "store time":
            return name if self._fits_between(number, record.store_timestamp_ms ^ 1 << shift) else None
        return name if mask >> shift & 1 else None

    def _fits_between(self, number: int, time_ms: int) -> bool:
        before = [self.records[start] for start in self.starts[:number] if start in self.records]
        after = [self.records[start] for start in self.starts[number + 1 :] if start in self.records]
        return not (before and time_ms < before[-1].store_timestamp_ms) and not (
            after and time_ms > after[0].store_timestamp_ms
        )

    def flip(self, offset: int, bit: int) -> list[Finding]:
        """What verification says of the store while this one bit (0: the lowest) of the byte at `offset` is flipped."""
        path = f"{ROOT}/commitlog/{offset - offset % LOG_FILE_BYTES:020d}"
        byte = self.content[offset]
        self.disk.corrupt(path, offset % LOG_FILE_BYTES, bytes([byte ^ 1 << bit]))
        try:
            return verify_store(self.config, disk=self.disk).findings
        finally:
            self.disk.corrupt(path, offset % LOG_FILE_BYTES, bytes([byte]))


def field_at(record: StoredMessage, at: int) -> str:
    """The field that byte `at` of a record is of; a number's bytes count from its highest: `flag[3]` is the lowest.

    Of properties the name of the property whose name, value or separators the byte is of.
    """
    position = 0
    for name, size in _fields(record):
        if at < position + size:
            if name == "properties":
                return f"properties: {_property_at(record.properties, at - position)}"
            return name if name in ("body", "topic") else f"{name}[{at - position}]"
        position += size
    raise AssertionError(f"byte {at} of a record of {record.size_bytes} bytes")


def _fields(record: StoredMessage) -> list[tuple[str, int]]:
    return [
        ("size", 4), ("magic", 4), ("body CRC", 4), ("queue id", 4), ("flag", 4), ("queue offset", 8),
        ("physical offset", 8), ("sysFlag", 4), ("born time", 8), ("born address", len(record.born_host[0])),
        ("born port", 4), ("store time", 8), ("store address", len(record.store_host[0])), ("store port", 4),
        ("reconsume times", 4), ("prepared transaction offset", 8), ("body size", 4), ("body", len(record.body)),
        ("topic size", 2 if record.magic == MAGIC_V2 else 1), ("topic", len(record.topic.encode())),
        ("properties size", 2), ("properties", len(record.properties)),
    ]  # fmt: skip


def _property_at(properties: bytes, at: int) -> str:
    start = properties.rfind(b"\x02", 0, at) + 1
    name = properties[start:].partition(b"\x01")[0].decode()
    end = start + len(name)
    if at < end:
        return f"{name} (name)"
    if at == end or properties[at] == 2:
        return f"{name} (separator)"
    return f"{name} (value)"
