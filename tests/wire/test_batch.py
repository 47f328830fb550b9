"""Batch bodies: Java's bytes, round trips, arbitrary bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_rmq.errors import ProtocolError
from trio_rmq.wire.batch import BatchItem, decode_batch, encode_batch

VALUES = json.loads((Path(__file__).parents[2] / "protocol" / "vectors" / "values.json").read_text())

items = st.lists(
    st.builds(BatchItem, st.integers(-(1 << 31), (1 << 31) - 1), st.binary(max_size=100), st.binary(max_size=100)),
    max_size=5,
)


def decoded(body: bytes) -> list[BatchItem]:
    """The items of a batch's body."""
    return [BatchItem(*item) for item in decode_batch(body)]


def test_the_bytes_of_java() -> None:
    item = BatchItem(1, b"b", b"WAIT\x01true\x02TAGS\x01TagB\x02")
    assert encode_batch([item]).hex() == VALUES["batch_item"]["hex"]
    assert decoded(bytes.fromhex(VALUES["batch_item"]["hex"])) == [item]


@given(items)
def test_what_is_encoded_is_decoded(batch: list[BatchItem]) -> None:
    assert decoded(encode_batch(batch)) == batch


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_only_protocol_errors(data: bytes) -> None:
    try:
        found = decode_batch(data)
    except ProtocolError:
        return
    assert len(found) <= len(data) / 22


def test_a_lie_is_message_illegal() -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_batch(encode_batch([BatchItem(1, b"b", b"")])[:-1])
    assert caught.value.response_code == 13


@given(items.filter(bool), st.data())
def test_mutated_bytes_raise_only_protocol_errors(batch: list[BatchItem], data: st.DataObject) -> None:
    encoded = bytearray(encode_batch(batch))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode_batch(bytes(encoded[: data.draw(st.integers(0, len(encoded)))]))
    except ProtocolError:
        return


@pytest.mark.parametrize("item", [BatchItem(1 << 31, b"", b""), BatchItem(0, b"", b"x" * 32_768)])
def test_what_does_not_fit_is_refused(item: BatchItem) -> None:
    with pytest.raises(ProtocolError):
        encode_batch([item])
