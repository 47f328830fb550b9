"""Heartbeats of clients in several languages, and subscriptions as Java builds them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_rmq.errors import ProtocolError
from trio_rmq.wire import heartbeat as codec
from trio_rmq.wire.hashing import java_string_hash


@pytest.mark.parametrize("expression", [None, "", "*"])
def test_all_messages(expression: str | None) -> None:
    built = codec.build_subscription("T", expression, sub_version=5)
    assert built == codec.SubscriptionData(topic="T", sub_string="*", sub_version=5)


@pytest.mark.parametrize(
    ("expression", "tags"),
    [
        ("TagA", ["TagA"]),
        ("TagA || TagB", ["TagA", "TagB"]),
        ("TagA||\tTagB\n|| ||TagA", ["TagA", "TagB"]),
        ("a|b", ["a|b"]),
        ("|| a", ["a"]),
        (" ", []),
        ("\u00a0a", ["\u00a0a"]),  # Java's trim leaves a no-break space
        ("中文 || \U0001f600", ["中文", "\U0001f600"]),
    ],
)
def test_tags(expression: str, tags: list[str]) -> None:
    built = codec.build_subscription("T", expression)
    assert built.sub_string == expression
    assert built.tags_set == tags
    assert built.code_set == [java_string_hash(tag) for tag in tags]
    assert built.expression_type == "TAG"


def test_tags_with_one_hash_share_a_code() -> None:
    built = codec.build_subscription("T", "Aa || BB")
    assert built.tags_set == ["Aa", "BB"]
    assert built.code_set == [2112]


@pytest.mark.parametrize(("expression", "kind"), [("||", "TAG"), ("||||", None), ("", "SQL92"), (None, "SQL92")])
def test_what_java_refuses(expression: str | None, kind: str | None) -> None:
    with pytest.raises(ProtocolError) as caught:
        codec.build_subscription("T", expression, expression_type=kind)
    assert caught.value.response_code == 23


def test_other_expressions_are_kept_as_text() -> None:
    built = codec.build_subscription("T", "a > 1 || b", expression_type="SQL92")
    assert (built.sub_string, built.expression_type, built.tags_set) == ("a > 1 || b", "SQL92", [])


def test_numbers_for_enumerations_nulls_and_text_for_numbers() -> None:
    decoded = codec.decode_heartbeat(
        b'{"clientID":"c","producerDataSet":null,"consumerDataSet":[{"groupName":"g","consumeType":1,"messageModel":0,'
        b'"consumeFromWhere":4,"unitMode":null,"subscriptionDataSet":[{"topic":"T","subString":"*","subVersion":"7",'
        b'"codeSet":["1",2],"tagsSet":null,"extra":{1:2}}]}]}'
    )
    (consumer,) = decoded.consumer_data_set
    assert (consumer.consume_type, consumer.message_model) == (codec.CONSUME_PASSIVELY, codec.BROADCASTING)
    assert consumer.consume_from_where == codec.CONSUME_FROM_FIRST_OFFSET
    assert consumer.subscription_data_set == [codec.SubscriptionData(topic="T", sub_version=7, code_set=[1, 2])]


def test_a_heartbeat_of_5_x_keeps_its_two_fields() -> None:
    data = b'{"clientID":"c","consumerDataSet":[],"heartbeatFingerprint":0,"producerDataSet":[],"withoutSub":false}'
    decoded = codec.decode_heartbeat(data)
    assert decoded.heartbeat_fingerprint == 0
    assert codec.encode_heartbeat(decoded) == data


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"7", b'{"consumerDataSet":[7]}', b'{"consumerDataSet":{"a":1}}', b'{"clientID":7.5}']
)
def test_what_is_no_heartbeat_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        codec.decode_heartbeat(data)


texts = st.text(st.characters(codec="utf-8"), max_size=10)
subscriptions = st.builds(
    codec.build_subscription, texts, st.text("ab| *", max_size=8).filter(lambda text: text.strip("|"))
)
consumers = st.builds(
    codec.ConsumerData,
    group_name=texts,
    subscription_data_set=st.lists(subscriptions, max_size=2),
    unit_mode=st.booleans(),
)
heartbeats = st.builds(
    codec.HeartbeatData,
    client_id=texts,
    consumer_data_set=st.lists(consumers, max_size=2),
    producer_data_set=st.lists(st.builds(codec.ProducerData, group_name=texts), max_size=2),
    heartbeat_fingerprint=st.none() | st.integers(-(1 << 31), (1 << 31) - 1),
)


@given(heartbeats)
def test_what_is_encoded_is_decoded(heartbeat: codec.HeartbeatData) -> None:
    assert codec.decode_heartbeat(codec.encode_heartbeat(heartbeat)) == heartbeat


@given(heartbeats, st.data())
def test_mutated_bytes_raise_only_protocol_errors(heartbeat: codec.HeartbeatData, data: st.DataObject) -> None:
    encoded = bytearray(codec.encode_heartbeat(heartbeat))
    for _ in range(data.draw(st.integers(1, 3))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    try:
        codec.decode_heartbeat(bytes(encoded[: data.draw(st.integers(0, len(encoded)))]))
    except ProtocolError:
        return
