"""The forms of a broker's registration that no recording holds, and hostile ones."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_rmq.errors import ProtocolError
from trio_rmq.limits import INFLATED_BODY_MAX_BYTES
from trio_rmq.wire import registration as codec
from trio_rmq.wire import topics

names = st.text("abc%-_", min_size=1, max_size=8)
ints = st.integers(-(1 << 31), (1 << 31) - 1)
topic_configs = st.builds(
    topics.TopicConfig,
    topic_name=names,
    read_queue_nums=ints,
    write_queue_nums=ints,
    perm=ints,
    attributes=st.none() | st.dictionaries(names, st.text("ab é", max_size=5), max_size=2),
)
versions = st.builds(topics.DataVersion, counter=ints, timestamp=ints, state_version=st.none() | st.integers(0, 9))
bodies = st.builds(
    codec.RegisterBrokerBody,
    filter_server_list=st.lists(names, max_size=2),
    topic_config_serialize_wrapper=st.builds(
        topics.TopicConfigSerializeWrapper,
        data_version=versions,
        topic_config_table=st.lists(topic_configs, max_size=4, unique_by=lambda topic: topic.topic_name).map(
            lambda found: {topic.topic_name: topic for topic in found}
        ),
    ),
)


@given(bodies, st.booleans(), st.sampled_from([37, 407, 479]))
def test_what_is_encoded_is_decoded(body: codec.RegisterBrokerBody, compressed: bool, version: int) -> None:
    encoded = codec.encode_register_body(body, compressed=compressed, version=version)
    decoded = codec.decode_register_body(encoded, compressed=compressed, version=version)
    if compressed and version >= codec.VERSION_5_0_0:
        assert decoded.topic_config_serialize_wrapper.topic_queue_mapping_info_map == {}
        decoded.topic_config_serialize_wrapper.topic_queue_mapping_info_map = None
    assert decoded == body


@given(bodies)
def test_a_deflated_body_is_known_by_its_first_byte(body: codec.RegisterBrokerBody) -> None:
    encoded = codec.encode_register_body(body, compressed=True, version=407)
    assert codec.decode_register_body(encoded, compressed=False, version=479) == body


def test_a_body_from_before_3_0_11_is_the_topic_table_alone() -> None:
    body = codec.RegisterBrokerBody()
    body.topic_config_serialize_wrapper.topic_config_table["T"] = topics.TopicConfig(topic_name="T")
    encoded = codec.encode_register_body(body, version=36)
    assert encoded.startswith(b'{"dataVersion"')
    assert codec.decode_register_body(encoded, version=36) == body


def test_no_body_is_an_empty_table() -> None:
    assert codec.decode_register_body(b"") == codec.RegisterBrokerBody()


def test_static_topics_keep_their_mapping() -> None:
    body = codec.RegisterBrokerBody()
    mapping = {"topic": "S", "bname": "b", "currIdMap": {"0": 0}, "dirty": False, "epoch": 1, "totalQueues": 1}
    body.topic_config_serialize_wrapper.topic_queue_mapping_info_map = {"S": mapping}
    encoded = codec.encode_register_body(body, compressed=True, version=413)
    assert codec.decode_register_body(encoded, compressed=True, version=413) == body
    assert codec.decode_register_body(encoded, compressed=True, version=409) == codec.RegisterBrokerBody()


def test_a_topic_of_5_x_may_end_in_a_space_or_hold_spaces() -> None:
    assert topics.decode_topic_text("T 4 4 6 SINGLE_TAG ").attributes is None
    assert topics.decode_topic_text('T 4 4 6 SINGLE_TAG {"a":"b c"}').attributes == {"a": "b c"}
    assert topics.decode_topic_text("T 4 5 6 MULTI_TAG") == topics.TopicConfig(
        topic_name="T", read_queue_nums=4, write_queue_nums=5, perm=6, topic_filter_type="MULTI_TAG"
    )


@pytest.mark.parametrize("text", ["", "T 4 4 6", "T x 4 6 SINGLE_TAG", "T 4 4 6 SINGLE_TAG {", "T 4 4 ²² S"])
def test_a_broken_topic_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError):
        topics.decode_topic_text(text)


def test_a_deflate_bomb_is_refused() -> None:
    bomb = zlib.compress(b"\0" * (INFLATED_BODY_MAX_BYTES + 1), 9)
    assert len(bomb) < 100_000
    with pytest.raises(ProtocolError, match="inflates to more"):
        codec.decode_register_body(bomb, compressed=True)


@given(bodies, st.binary(max_size=60), st.data())
def test_arbitrary_and_mutated_bytes_raise_only_protocol_errors(
    body: codec.RegisterBrokerBody, arbitrary: bytes, data: st.DataObject
) -> None:
    inflated = bytearray(zlib.decompress(codec.encode_register_body(body, compressed=True, version=413)))
    inflated[data.draw(st.integers(0, len(inflated) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(inflated[: data.draw(st.integers(0, len(inflated)))])
    plain = bytearray(codec.encode_register_body(body))
    plain[data.draw(st.integers(0, len(plain) - 1))] = data.draw(st.integers(0, 255))
    for candidate in (zlib.compress(cut), zlib.compress(arbitrary), arbitrary, bytes(plain), b"\x78" + arbitrary):
        for version in (36, 407, 479):
            try:
                codec.decode_register_body(candidate, version=version)
            except ProtocolError:
                continue


def test_versions_of_4_x_and_5_x_compare() -> None:
    old = topics.DataVersion(counter=1, timestamp=2)
    assert old.same_as(topics.DataVersion(counter=1, timestamp=2, state_version=0))
    assert not old.same_as(old.next_version(3))
    assert not old.same_as(None)
    assert old.next_version(3) == topics.DataVersion(counter=2, timestamp=3)
