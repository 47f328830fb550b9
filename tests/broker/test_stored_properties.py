"""What is remembered of one text's properties holds for its likes, and for no others."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trio_rmq.broker.stored_properties import KNOWN_MAX, StoredProperties
from trio_rmq.wire.hashing import tags_code
from trio_rmq.wire.properties import parse_properties

NAMES = st.sampled_from(["UNIQ_KEY", "WAIT", "TAGS", "CLUSTER", "KEYS", "a"])
VALUES = st.sampled_from(["", "true", "false", "A", "B", "C0FFEE", "WAIT", "x UNIQ_KEY"])
TEXTS = st.builds(
    lambda pairs, end: "\x02".join(f"{name}\x01{value}" for name, value in pairs) + end,
    st.lists(st.tuples(NAMES, VALUES), max_size=4),
    st.sampled_from(["", "\x02"]),
)


@given(st.lists(TEXTS, min_size=1, max_size=12))
def test_remembered_is_what_plain_says(texts: list[str]) -> None:
    stored = StoredProperties("c")
    for text in texts:
        known = stored.known(text.encode())
        plain = stored.plain(text)
        assert known in (None, plain)
        stored.remember(text.encode(), plain)


def test_messages_that_differ_in_their_unique_id_are_known() -> None:
    stored = StoredProperties("c")
    first = b"UNIQ_KEY\x01AA\x02WAIT\x01false\x02TAGS\x01t\x02"
    assert stored.known(first) is None
    stored.remember(first, stored.plain(first.decode()))
    second = first.replace(b"AA", b"BBB")
    expected = (b"UNIQ_KEY\x01BBB\x02TAGS\x01t\x02CLUSTER\x01c", tags_code("t"), False)
    assert stored.known(second) == stored.plain(second.decode()) == expected
    assert stored.known(first.replace(b"UNIQ_KEY", b"OTHER")) is None


def test_the_memory_is_bounded() -> None:
    stored = StoredProperties("c")
    texts = [b"UNIQ_KEY\x01AA\x02KEYS\x01%d\x02" % number for number in range(KNOWN_MAX + 1)]
    for text in texts:
        stored.remember(text, stored.plain(text.decode()))
    assert stored.known(texts[0]) is None
    assert stored.known(texts[-1]) is not None


def test_a_deferred_message_keeps_wait() -> None:
    text, _, waits = StoredProperties("c").deferred("WAIT\x01false\x02DELAY\x013")
    assert parse_properties(text) == {"WAIT": "false", "DELAY": "3", "CLUSTER": "c"}
    assert not waits
