"""A glance at a pull response's records finds what decoding them finds, and nothing where that finds an error."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_rmq.errors import ProtocolError
from trio_rmq.wire.record import decode_records, encode_record, encode_topic, glance_records
from trio_rmq.wire.sysflag import BORN_HOST_V6

V4, V6 = (b"\x7f\0\0\1", 10911), (b"\x01" * 16, 10911)


@st.composite
def records(draw: st.DrawFn) -> bytes:
    topic = draw(st.sampled_from(["T", "%RETRY%group", "t" * 200]))
    field, magic = encode_topic(topic)
    born = draw(st.sampled_from([V4, V6]))
    return encode_record(
        field, draw(st.integers(0, 100)), draw(st.integers(0, 2**40)), draw(st.integers(0, 2**40)), 1, V4,
        draw(st.binary(max_size=40)), draw(st.binary(max_size=20)), 0, BORN_HOST_V6 if born is V6 else 0, 1, born,
        draw(st.integers(0, 20)), magic=magic,
    )  # fmt: skip


def decoded(body: bytes) -> list[tuple[int, int, int, int]]:
    found = []
    position = 0
    for record in decode_records(body):
        found.append((position, record.queue_offset, record.reconsume_times, len(record.body)))
        position += record.size_bytes
    return found


@given(st.lists(records(), max_size=4).map(b"".join))
def test_it_finds_what_decoding_finds(body: bytes) -> None:
    assert glance_records(body) == decoded(body)


@given(st.lists(records(), min_size=1, max_size=3).map(b"".join), st.data())
def test_damage_is_an_error_or_a_topic_that_is_no_text(body: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(body) - 1))
    damaged = body[:at] + bytes([data.draw(st.integers(0, 255))]) + body[at + 1 :]
    for changed in (damaged, body[:at]):
        try:
            wanted = decoded(changed)
        except ProtocolError as error:
            if "UTF-8" not in str(error):
                with pytest.raises(ProtocolError):
                    glance_records(changed)
        else:
            assert glance_records(changed) == wanted
