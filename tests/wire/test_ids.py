"""Hosts, offset message ids and unique ids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_rmq.errors import ProtocolError
from trio_rmq.wire import ids

RECORDS = json.loads((Path(__file__).parents[2] / "protocol" / "vectors" / "store" / "store-records.json").read_text())
hosts = st.tuples(st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16), st.integers(0, 65535))


def test_hosts_as_text() -> None:
    assert ids.pack_host("1.2.3.4", 10911) == (b"\1\2\3\4", 10911)
    assert ids.pack_host("::ffff:1.2.3.4", 1) == (b"\1\2\3\4", 1)
    assert ids.pack_host("fe80::1%eth0", 1)[0][:2] == b"\xfe\x80"
    assert ids.host_text((b"\1\2\3\4", 10911)) == "1.2.3.4:10911"
    assert ids.host_text(ids.pack_host("::1", 80)) == "[::1]:80"
    assert ids.parse_host("/1.2.3.4:5") == (b"\1\2\3\4", 5)
    assert ids.parse_host("[::1]:80") == ids.parse_host("0:0:0:0:0:0:0:1:80") == ids.pack_host("::1", 80)


@pytest.mark.parametrize("text", ["", "localhost:1", "1.2.3.4", "1.2.3.4:", "1.2.3.4:x", "1.2.3.4:999999", ":1"])
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError):
        ids.parse_host(text)


@given(hosts, st.integers(0, (1 << 63) - 1))
def test_offset_ids_read_back(host: ids.Host, offset: int) -> None:
    text = ids.encode_offset_id(host, offset)
    assert len(text) == (32 if len(host[0]) == 4 else 56)
    assert text == text.upper()
    assert ids.decode_offset_id(text) == (host, offset)
    assert ids.decode_offset_id(text.lower()) == (host, offset)


@given(st.text(max_size=60) | st.text("0123456789abcdefABCDEFx ", min_size=32, max_size=32))
def test_only_protocol_errors_come_out(text: str) -> None:
    for decode in (ids.decode_offset_id, ids.decode_unique_id, ids.parse_host):
        try:
            decode(text)
        except ProtocolError:
            continue


@given(hosts)
def test_host_text_reads_back(host: ids.Host) -> None:
    mapped = len(host[0]) == 16 and host[0].startswith(b"\0" * 10 + b"\xff\xff")
    if not mapped:
        assert ids.parse_host(ids.host_text(host)) == host


def test_the_unique_ids_of_java_read_and_encode_again() -> None:
    keys = {entry["properties"]["UNIQ_KEY"] for entry in RECORDS if "UNIQ_KEY" in entry.get("properties", {})}
    assert len(keys) > 200
    for key in keys:
        parts = ids.decode_unique_id(key)
        assert parts.address == b"\x7f\0\0\1"
        assert ids.encode_unique_id(parts) == key


def test_a_generator_counts_and_starts_each_month_anew() -> None:
    generator = ids.UniqueIdGenerator(b"\x7f\0\0\1", 77, -1)
    start = ids.month_start_ms(1_795_247_922_133)
    first, second = generator.next_id(start + 5), generator.next_id(start + 5)
    assert ids.decode_unique_id(first) == ids.UniqueId(b"\x7f\0\0\1", 77, 0xFFFFFFFF, 5, 0)
    assert ids.decode_unique_id(second).counter == 1
    next_month = ids.month_start_ms(start + 40 * 86_400_000)
    assert ids.decode_unique_id(generator.next_id(next_month - 1)).milliseconds == next_month - 1 - start
    assert ids.decode_unique_id(generator.next_id(next_month)).milliseconds == 0
    assert ids.decode_unique_id(generator.next_id(start - 1)).milliseconds > 27 * 86_400_000
    for _ in range(65_536 - 5):
        last = generator.next_id(start)
    assert ids.decode_unique_id(last).counter == 65_535
    assert ids.decode_unique_id(generator.next_id(start)).counter == 0


def test_ids_made_together_are_those_made_one_by_one() -> None:
    start = ids.month_start_ms(1_795_247_922_133)
    one, many = (ids.UniqueIdGenerator(b"\x7f\0\0\1", 77, 1) for _ in range(2))
    for count in (0, 1, 65_000, 1000):  # past the end of the counter
        assert many.next_ids(start + count, count) == [one.next_id(start + count) for _ in range(count)]
    assert ids.decode_unique_id(many.next_id(start)).counter == 66_001 - 65_536


def test_a_unique_id_tells_its_time() -> None:
    start = ids.month_start_ms(1_795_247_922_133)
    key = ids.UniqueIdGenerator(b"\x7f\0\0\1", 77, 1).next_id(start + 1000)
    assert ids.unique_id_time_ms(key, start + 2000) == start + 1000
    assert ids.unique_id_time_ms(key, start + 500) == ids.month_start_ms(start - 1) + 1000
