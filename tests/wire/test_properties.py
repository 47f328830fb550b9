"""Property text against a plain transcription of Java's parser."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trio_rmq.wire import properties as codec

texts = st.text("aBWAITé\x01\x02", max_size=40)
names = st.sampled_from(["a", "B", "WAIT", "aB", "é"])


def java_parse(text: str) -> dict[str, str]:
    """How RocketMQ's MessageDecoder walks the text, index by index."""
    result: dict[str, str] = {}
    index = 0
    while index < len(text):
        end = text.find("\x02", index)
        end = len(text) if end < 0 else end
        if end - index >= 3:
            middle = text.find("\x01", index)
            if index < middle < end - 1:
                result[text[index:middle]] = text[middle + 1 : end]
        index = end + 1
    return result


@given(texts)
def test_parsed_as_java_parses(text: str) -> None:
    assert codec.parse_properties(text) == java_parse(text)
    assert codec.parse_properties(text.encode()) == java_parse(text)


@given(texts, names)
def test_one_property_is_found_without_parsing(text: str, name: str) -> None:
    expected = java_parse(text).get(name)
    assert codec.property_of(text, name) == expected
    found = codec.property_of_bytes(text.encode(), name.encode())
    assert (None if found is None else found.decode()) == expected


@given(texts, names)
def test_an_appended_property_overrides(text: str, name: str) -> None:
    appended = codec.append_property(text, name, "value")
    assert java_parse(appended) == java_parse(text) | {name: "value"}


@given(texts, names)
def test_a_removed_property_is_gone_and_others_stay(text: str, name: str) -> None:
    expected = java_parse(text)
    expected.pop(name, None)
    assert java_parse(codec.remove_property(text, name)) == expected


@given(texts, texts)
def test_batch_properties_override_those_of_the_item(item: str, batch: str) -> None:
    joined = codec.join_properties(item.encode(), batch.encode()).decode()
    assert java_parse(joined) == java_parse(item) | java_parse(batch)


@given(st.dictionaries(st.text("abé", min_size=1), st.text("xyé", min_size=1)))
def test_formatted_text_reads_back(properties: dict[str, str]) -> None:
    assert codec.parse_properties(codec.format_properties(properties)) == properties


def test_the_text_of_java() -> None:
    assert codec.format_properties({"A": "1", "none": None, "B": "2"}) == "A\x011\x02B\x012"
    assert codec.parse_properties(bytes.fromhex("4101310242013202")) == {"A": "1", "B": "2"}
    assert codec.parse_properties(b"A\x01\xff") == {"A": "\ufffd"}


def test_true_and_false() -> None:
    assert codec.flag_property("WAIT\x01FALSE", "WAIT", True) is False
    assert codec.flag_property("WAIT\x01True", "WAIT", False) is True
    assert codec.flag_property("", "WAIT", True) is True
