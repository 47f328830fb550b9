"""The stored-record codec against what Apache stored, and against arbitrary bytes."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_rmq.errors import ProtocolError
from trio_rmq.wire import record as codec
from trio_rmq.wire.hashing import body_crc, tags_code
from trio_rmq.wire.ids import host_text, pack_host
from trio_rmq.wire.record import RecordKind, StoredMessage

VECTORS = Path(__file__).parents[2] / "protocol" / "vectors"
VALUES = json.loads((VECTORS / "values.json").read_text())
RECORDS = json.loads((VECTORS / "store" / "store-records.json").read_text())
FILE_SIZE_BYTES = 32_768


def log_files(folder: str) -> list[bytes]:
    """The commit log files of `store` or `unclean`, in order."""
    with tarfile.open(VECTORS / "store" / "store.tar.gz") as archive:
        names = sorted(name for name in archive.getnames() if name.startswith(f"{folder}/commitlog/"))
        files = [archive.extractfile(name) for name in names if archive.getmember(name).isfile()]
        return [file.read() for file in files if file is not None]


def message(**changes: Any) -> StoredMessage:
    fields: dict[str, Any] = {
        "size_bytes": 0,
        "magic": codec.MAGIC_V1,
        "body_crc": 0,
        "queue_id": 3,
        "flag": 7,
        "queue_offset": 42,
        "physical_offset": 1_234_567_890_123,
        "sys_flag": 0,
        "born_timestamp_ms": 1_700_000_000_000,
        "born_host": pack_host("10.0.0.1", 5555),
        "store_timestamp_ms": 1_700_000_000_123,
        "store_host": pack_host("127.0.0.1", 10911),
        "reconsume_times": 2,
        "prepared_transaction_offset": 99,
        "body": b"hello",
        "topic": "TopicTest",
        "properties": b"KEYS\x01k1 k2\x02TAGS\x01TagA\x02",
    }
    fields.update(changes)
    return StoredMessage(**fields)


def test_the_bytes_of_java_record_v1() -> None:
    encoded = codec.encode_stored(message())
    assert encoded.hex() == VALUES["record_v1"]["hex"]
    decoded = codec.decode_record(encoded, check_crc=True)
    assert decoded.offset_message_id == VALUES["record_v1"]["offsetMsgId"]
    assert decoded.tags == "TagA"
    assert decoded.unique_key is None
    assert decoded.property_map() == {"KEYS": "k1 k2", "TAGS": "TagA"}


def test_the_bytes_of_java_record_with_ipv6_hosts() -> None:
    encoded = codec.encode_stored(
        message(
            queue_id=0,
            flag=0,
            queue_offset=0,
            physical_offset=0,
            born_timestamp_ms=1,
            born_host=pack_host("::1", 1),
            store_timestamp_ms=2,
            store_host=pack_host("::1", 2),
            reconsume_times=0,
            prepared_transaction_offset=0,
            body=b"x",
            topic="T6",
            properties=b"",
        )
    )
    assert encoded.hex() == VALUES["record_v6"]["hex"]
    decoded = codec.decode_record(encoded)
    assert decoded.sys_flag == 0x30
    assert decoded.born_host == pack_host("::1", 1)
    assert decoded.offset_message_id == VALUES["record_v6"]["offsetMsgId"]


def test_every_record_and_filler_of_apaches_store() -> None:
    """Decoded as Apache's decoder saw it; encoded again to the same bytes; whole files rebuilt from the parts."""
    expected = iter(RECORDS)
    last_offset = RECORDS[-1]["offset"]
    for number, data in enumerate(log_files("store")):
        position = 0
        rebuilt: list[bytes] = []
        while position < len(data) and number * FILE_SIZE_BYTES + position <= last_offset:
            entry = next(expected)
            assert entry["offset"] == number * FILE_SIZE_BYTES + position
            checked = codec.check_record(data, position)
            if "filler" in entry:
                assert checked.kind is RecordKind.BLANK
                assert checked.size_bytes == entry["filler"]
                rebuilt.append(codec.encode_blank(checked.size_bytes).ljust(checked.size_bytes, b"\0"))
                position += checked.size_bytes
                continue
            assert checked.kind is RecordKind.RECORD, checked.reason
            record = codec.decode_record(data, position, check_crc=True)
            compare(record, entry)
            rebuilt.append(codec.encode_stored(record))
            position += record.size_bytes
        assert b"".join(rebuilt) == data[:position]
    assert next(expected, None) is None


def compare(record: StoredMessage, entry: dict[str, Any]) -> None:
    assert record.size_bytes == entry["size"]
    assert record.physical_offset == entry["offset"]
    assert record.topic == entry["topic"]
    assert record.queue_id == entry["queue"]
    assert record.queue_offset == entry["queueOffset"]
    assert record.body_crc == entry["bodyCrc"] == body_crc(record.body)
    assert len(record.body) == entry["storedBodyLength"]
    if not record.sys_flag & 1:
        assert hashlib.sha256(record.body).hexdigest() == entry["bodySha256"]
    assert record.flag == entry["flag"]
    assert record.sys_flag == entry["sysFlag"]
    assert record.born_timestamp_ms == entry["bornTime"]
    assert host_text(record.born_host) == entry["bornHost"]
    assert record.store_timestamp_ms == entry["storeTime"]
    assert host_text(record.store_host) == entry["storeHost"]
    assert record.reconsume_times == entry["reconsumeTimes"]
    assert record.prepared_transaction_offset == entry["preparedTransactionOffset"]
    assert record.property_map() == entry["properties"]
    if record.topic != "SCHEDULE_TOPIC_XXXX":  # its entries hold the deliver time
        assert tags_code(record.tags) == entry["queueEntryTagsCode"]


def test_the_log_of_a_killed_broker_reads_the_same() -> None:
    records = 0
    for data in log_files("unclean"):
        position = 0
        while (checked := codec.check_record(data, position)).kind is RecordKind.RECORD:
            assert codec.encode_stored(codec.decode_record(data, position)) == data[position:][: checked.size_bytes]
            position += checked.size_bytes
            records += 1
    assert records == sum("filler" not in entry for entry in RECORDS)


def test_a_long_topic_takes_format_v2() -> None:
    encoded = codec.encode_stored(message(topic="t" * 128))
    decoded = codec.decode_record(encoded, check_crc=True)
    assert decoded.magic == codec.MAGIC_V2
    assert decoded.topic == "t" * 128
    short = codec.encode_stored(message(magic=codec.MAGIC_V2))
    assert codec.decode_record(short).topic == "TopicTest"
    assert codec.encode_stored(codec.decode_record(short)) == short
    with pytest.raises(ProtocolError):
        codec.encode_topic("t" * 40_000)


def test_ipv6_bits_follow_the_hosts() -> None:
    encoded = codec.encode_stored(message(sys_flag=0x30 | 0x301))
    assert codec.decode_record(encoded).sys_flag == 0x301
    with pytest.raises(ProtocolError):
        codec.encode_stored(message(born_host=(b"123", 1)))


@pytest.mark.parametrize(
    "changes",
    [{"flag": 1 << 31}, {"queue_id": -(1 << 31) - 1}, {"queue_offset": 1 << 63}, {"properties": b"x" * 32_768}],
)
def test_a_field_that_does_not_fit_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError) as caught:
        codec.encode_stored(message(**changes))
    assert caught.value.response_code == 13


@pytest.mark.parametrize("born", ["10.0.0.1", "::1"])
def test_offsets_assigned_later_equal_offsets_given(born: str) -> None:
    given_now = message(born_host=pack_host(born, 1))
    later = message(born_host=given_now.born_host, queue_offset=0, physical_offset=0, store_timestamp_ms=0)
    buffer = bytearray(b"--" + codec.encode_stored(later))
    codec.assign_offsets(buffer, given_now.queue_offset, given_now.physical_offset, given_now.store_timestamp_ms, at=2)
    assert buffer[2:] == codec.encode_stored(given_now)


def test_recovery_says_what_is_wrong() -> None:
    good = codec.encode_stored(message())
    assert codec.check_record(good).kind is RecordKind.RECORD
    assert "checksum" in codec.check_record(good.replace(b"hello", b"hellp")).reason
    assert codec.check_record(good.replace(b"hello", b"hellp"), check_body_crc=False).kind is RecordKind.RECORD
    assert "cut short" in codec.check_record(good[:-1]).reason
    assert "magic" in codec.check_record(b"\0" * 100).reason
    assert "eight bytes" in codec.check_record(b"\0" * 7).reason
    assert "not that of its parts" in codec.check_record(codec.encode_blank(len(good) + 1)[:4] + good[4:] + b"x").reason
    assert codec.check_record(codec.encode_blank(77)) == codec.CheckedRecord(RecordKind.BLANK, 77)
    assert codec.peek_record(good) == (len(good), codec.MAGIC_V1)
    with pytest.raises(ProtocolError):
        codec.peek_record(good, len(good) - 7)


ints = st.integers(-(1 << 31), (1 << 31) - 1)
longs = st.integers(-(1 << 63), (1 << 63) - 1)
hosts = st.tuples(st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16), ints)
messages = st.builds(
    message,
    queue_id=ints,
    flag=ints,
    queue_offset=longs,
    physical_offset=longs,
    sys_flag=ints,
    born_timestamp_ms=longs,
    born_host=hosts,
    store_timestamp_ms=longs,
    store_host=hosts,
    reconsume_times=ints,
    prepared_transaction_offset=longs,
    body=st.binary(max_size=300),
    topic=st.text(st.characters(codec="utf-8"), max_size=200),
    properties=st.binary(max_size=200),
    magic=st.sampled_from([codec.MAGIC_V1, codec.MAGIC_V2]),
)


@given(messages, st.binary(max_size=5), st.binary(max_size=5))
def test_what_is_encoded_is_decoded(original: StoredMessage, before: bytes, after: bytes) -> None:
    encoded = codec.encode_stored(original)
    topic_field, _ = codec.encode_topic(original.topic)
    size = codec.record_size(topic_field, original.body, original.properties, original.born_host, original.store_host)
    assert len(encoded) in (size, size + 1)  # a short topic in a V2 record takes one byte more
    for buffer in (before + encoded + after, memoryview(before + encoded + after), bytearray(before + encoded + after)):
        decoded = codec.decode_record(buffer, len(before), check_crc=True)
        assert codec.encode_stored(decoded) == encoded
    assert (decoded.topic, decoded.body, decoded.properties) == (original.topic, original.body, original.properties)
    assert (decoded.born_host, decoded.store_host) == (original.born_host, original.store_host)
    assert decoded.queue_offset == original.queue_offset
    assert codec.decode_records(encoded + encoded) == [codec.decode_record(encoded)] * 2


@given(st.binary(max_size=300), st.integers(-3, 310))
def test_arbitrary_bytes_raise_only_protocol_errors(data: bytes, position: int) -> None:
    codec.check_record(data, max(position, 0))
    for decode in (lambda: codec.decode_record(data, position), lambda: codec.decode_records(data)):
        try:
            decode()
        except ProtocolError:
            continue


@given(messages, st.data())
def test_mutated_records_raise_only_protocol_errors(original: StoredMessage, data: st.DataObject) -> None:
    encoded = bytearray(codec.encode_stored(original))
    for _ in range(data.draw(st.integers(1, 3))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(encoded[: data.draw(st.integers(0, len(encoded)))])
    for candidate in (bytes(encoded), cut):
        checked = codec.check_record(candidate)
        try:
            decoded = codec.decode_record(candidate, check_crc=True)
        except ProtocolError:
            assert checked.kind is not RecordKind.RECORD
        else:
            assert checked.kind is RecordKind.RECORD
            assert decoded.size_bytes <= len(candidate)


@pytest.mark.parametrize("magic", [codec.MAGIC_V1, codec.MAGIC_V2])
@pytest.mark.parametrize("flags", [0, 1 << 4, 1 << 5, 1 << 4 | 1 << 5])
@pytest.mark.parametrize("text", [b"", b"KEYS\x01k"])
def test_properties_are_found_in_the_whole_record(magic: int, flags: int, text: bytes) -> None:
    born, store = ("::1" if flags & 1 << 4 else "10.0.0.1"), ("::2" if flags & 1 << 5 else "10.0.0.2")
    record = message(
        magic=magic, sys_flag=flags, properties=text, born_host=pack_host(born, 1), store_host=pack_host(store, 2)
    )
    assert codec.record_properties(codec.encode_stored(record)) == text
