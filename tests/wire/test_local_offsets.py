"""Local offsets: Java's files, byte for byte, and what is no such file."""

from __future__ import annotations

from pathlib import Path

import pytest

from trio_rmq.errors import ProtocolError
from trio_rmq.wire.groups import MessageQueue
from trio_rmq.wire.local_offsets import decode_local_offsets, encode_local_offsets

VECTORS = Path(__file__).parents[2] / "protocol" / "vectors" / "local-offsets"
OFFSETS = {
    MessageQueue(topic="%RETRY%g", broker_name='b"x', queue_id=3): 12345678901,
    MessageQueue(topic="T\u00f6pic", broker_name="broker-a", queue_id=0): 5,
}


@pytest.mark.parametrize("version", ["4.9.8", "5.3.3"])
def test_javas_file(version: str) -> None:
    data = (VECTORS / f"offsets-{version}.json").read_bytes()
    assert version in {path.stem.removeprefix("offsets-") for path in VECTORS.glob("*.json")}
    assert decode_local_offsets(data) == OFFSETS
    assert encode_local_offsets(OFFSETS) == data


def test_no_queues() -> None:
    assert decode_local_offsets(encode_local_offsets({})) == {}
    assert decode_local_offsets(b"{}") == {}


@pytest.mark.parametrize(
    "data", [b"", b" \n", b"{", b"[]", b'{"offsetTable":{{"queueId":"x"}:1}}', b'{"offsetTable":3}']
)
def test_what_is_no_such_file(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_local_offsets(data)


def test_every_torn_file_is_refused() -> None:
    data = encode_local_offsets(OFFSETS)
    for length in range(len(data)):
        with pytest.raises(ProtocolError):
            decode_local_offsets(data[:length])
