"""Hashes against Java's values and against the definition."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from trio_rmq.wire import hashing

VALUES = json.loads((Path(__file__).parents[2] / "protocol" / "vectors" / "values.json").read_text())


def test_the_values_of_java() -> None:
    for text, expected in VALUES["java_string_hash"].items():
        assert hashing.java_string_hash(text) == expected
    for text, expected in VALUES["body_crc"].items():
        assert hashing.body_crc(text.encode()) == expected


@given(st.text() | st.text("ab\U0001f600", min_size=250, max_size=900))
def test_the_definition(text: str) -> None:
    expected = 0
    raw = text.encode("utf-16-be", "surrogatepass")
    for index in range(0, len(raw), 2):
        expected = (expected * 31 + (raw[index] << 8 | raw[index + 1])) & 0xFFFFFFFF
    assert hashing.java_string_hash(text) & 0xFFFFFFFF == expected
    assert -(1 << 31) <= hashing.java_string_hash(text) < 1 << 31
    assert hashing.index_key_hash(text) >= 0


def test_edges() -> None:
    assert hashing.java_string_hash("") == 0
    assert hashing.tags_code(None) == hashing.tags_code("") == 0
    assert hashing.index_key_hash("polygenelubricants") == 0  # hashes to -2**31, whose absolute value Java cannot hold
    assert hashing.index_key_hash("TagA") == 2598919
