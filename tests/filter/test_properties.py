"""Property text as filters see it: the same mapping as parsed whole, whatever the bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_rmq.filter.compile import compile_expression
from trio_rmq.filter.properties import PropertyText
from trio_rmq.wire.properties import parse_properties

TEXTS = st.lists(
    st.sampled_from([b"a", b"b", b"ab", b"", b"\x01", b"\x02", b"\x01", b"\x02", b"\xff", b"7"]), max_size=20
)


@given(TEXTS.map(b"".join))
def test_a_look_up_finds_what_parsing_finds(text: bytes) -> None:
    whole, looked = parse_properties(text), PropertyText(text)
    assert dict(looked) == whole
    assert len(looked) == len(whole)
    for name in ("a", "b", "ab", "7", "aa", "\ufffd"):
        assert looked.get(name) == whole.get(name)
        assert (name in looked) == (name in whole)
    assert looked.get("absent", "x") == "x"
    with pytest.raises(KeyError):
        looked["absent"]


@given(TEXTS.map(b"".join))
def test_a_filter_answers_alike_on_both(text: bytes) -> None:
    compiled = compile_expression("a = '7' OR b > 3 OR ab IS NULL AND a NOT IN ('b', 'ab')")
    assert compiled.matches(PropertyText(text)) == compiled.matches(parse_properties(text))
