"""The answer to a send that is encoded at once has the bytes of the answer encoded by parts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_rmq.wire.command import FLAG_RESPONSE, Command, SerializeType
from trio_rmq.wire.frame import encode_frame
from trio_rmq.wire.headers import SendMessageResponseHeader
from trio_rmq.wire.ids import NO_HOST, Host, encode_offset_id
from trio_rmq.wire.send_reply import SendReplyEncoder

HOST_ADDRESSES = st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16)
EXT = {"MSG_REGION": "Region %d of 9, 99, 999 or 7654321", "TRACE_ON": "true"}


@pytest.mark.parametrize("serialize_type", [SerializeType.JSON, SerializeType.ROCKETMQ])
@given(
    opaque=st.integers(-(2**31), 2**31 - 1),
    physical_offset=st.integers(0, 2**63 - 1),
    store_host=st.tuples(
        st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16), st.integers(1, 65535)
    ),
    queue_id=st.integers(0, 2**31 - 1),
    queue_offset=st.integers(0, 2**63 - 1),
)
def test_bytes_are_those_of_the_command(
    serialize_type: SerializeType,
    opaque: int,
    physical_offset: int,
    store_host: Host,
    queue_id: int,
    queue_offset: int,
) -> None:
    msg_id = encode_offset_id(store_host, physical_offset)
    header = SendMessageResponseHeader(msg_id=msg_id, queue_id=queue_id, queue_offset=queue_offset)
    reply = Command(0, header=header, ext=EXT, flag=FLAG_RESPONSE, opaque=opaque, serialize_type=serialize_type)
    encoded = SendReplyEncoder(store_host, EXT).encode(serialize_type, opaque, physical_offset, queue_id, queue_offset)
    assert encoded == encode_frame(reply)


@pytest.mark.parametrize("serialize_type", [SerializeType.JSON, SerializeType.ROCKETMQ])
@given(st.lists(st.tuples(st.integers(0, 1030), st.integers(0, 101)), min_size=1, max_size=30))
def test_one_encoder_for_many(serialize_type: SerializeType, places: list[tuple[int, int]]) -> None:
    encode = SendReplyEncoder(NO_HOST, EXT).encode
    for opaque, (queue_id, queue_offset) in enumerate([*places, *places]):
        once = SendReplyEncoder(NO_HOST, EXT).encode(serialize_type, opaque, 77, queue_id, queue_offset)
        assert encode(serialize_type, opaque, 77, queue_id, queue_offset) == once


def test_cbor_has_no_frames() -> None:
    assert SendReplyEncoder(NO_HOST, EXT).encode(SerializeType.CBOR, 1, 0, 0, 0) is None


def test_many_queues_are_answered_by_one_encoder() -> None:
    encode = SendReplyEncoder(NO_HOST, EXT).encode
    places = [(queue_id, 3) for queue_id in [*range(1500), 0, 700, 1499]]
    places += [(1499, 9), (1499, 10), (12_345, 10), (99_999, 99), (100_000, 99), (100_000, 100), (0, 10), (1000, 9)]
    for queue_id, offset in places:
        once = SendReplyEncoder(NO_HOST, EXT).encode(SerializeType.ROCKETMQ, 5, 77, queue_id, offset)
        assert encode(SerializeType.ROCKETMQ, 5, 77, queue_id, offset) == once
