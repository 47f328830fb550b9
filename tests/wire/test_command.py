"""What a handler sees of a command: typed headers from any encoding, and errors that name the field."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_rmq.errors import ProtocolError
from trio_rmq.wire.cbor_codec import decode_commands, encode_commands
from trio_rmq.wire.command import FLAG_ONEWAY, FLAG_RESPONSE, Command, Scalar, SerializeType, header_texts
from trio_rmq.wire.frame import decode_frame, encode_frame
from trio_rmq.wire.headers import (
    LONG_NAMES,
    CreateTopicRequestHeader,
    GetMaxOffsetRequestHeader,
    PullMessageRequestHeader,
    PullMessageResponseHeader,
    SearchOffsetRequestHeader,
    SendMessageRequestHeaderV2,
    SendMessageResponseHeader,
    UpdateConsumerOffsetRequestHeader,
)

SEND = SendMessageRequestHeaderV2(
    producer_group="p",
    topic="t",
    default_topic="TBW102",
    default_topic_queue_nums=4,
    queue_id=3,
    sys_flag=0,
    born_timestamp=1_795_248_218_445,
    flag=-5,
    properties="TAGS\x01é\x02",
    unit_mode=False,
    batch=True,
)
OFFSET = {"consumerGroup": "g", "topic": "t", "queueId": "1", "commitOffset": "5"}


def through(command: Command, serialize_type: SerializeType) -> Command:
    """The command as the peer gets it in that encoding."""
    command.serialize_type = serialize_type
    if serialize_type is SerializeType.CBOR:
        [again] = decode_commands(encode_commands([command]))
        return again
    return decode_frame(encode_frame(command))


def json_command(fields: bytes, code: int = 15) -> Command:
    """An incoming JSON command with these extFields."""
    header = b'{"code":%d,"opaque":3,"extFields":%b}' % (code, fields)
    return decode_frame((4 + len(header)).to_bytes(4, "big") + len(header).to_bytes(4, "big") + header)


def with_text(name: str, text: str, serialize_type: SerializeType) -> Command:
    """An incoming UPDATE_CONSUMER_OFFSET with one field replaced."""
    return through(Command(15, ext=OFFSET | {name: text}), serialize_type)


class TestTypedHeaders:
    @pytest.mark.parametrize("serialize_type", SerializeType)
    def test_arrive_as_they_left(self, serialize_type: SerializeType) -> None:
        for number, header in (
            (310, SEND),
            (0, SendMessageResponseHeader(msg_id="7F", queue_id=1, queue_offset=2**62)),
            (0, PullMessageResponseHeader(suggest_which_broker_id=0, next_begin_offset=1, min_offset=-1, max_offset=9)),
            (30, GetMaxOffsetRequestHeader(topic="t", queue_id=0, committed=False)),
        ):
            again = through(Command(number, header=header, ext={"extra": "1"}), serialize_type)
            assert again.decode_header(type(header)) == header
            assert again.ext_fields() == header_texts(header) | {"extra": "1"}

    def test_a_local_command_gives_its_header_back(self) -> None:
        assert Command(310, header=SEND).decode_header(SendMessageRequestHeaderV2) is SEND
        assert Command(310, header=SEND, ext={"b": "u"}).decode_header(SendMessageRequestHeaderV2).topic == "u"

    def test_texts_of_a_hot_header_are_those_of_any(self) -> None:
        class Same(msgspec.Struct, kw_only=True, rename="camel"):
            msg_id: str
            queue_id: int
            transaction_id: str | None = None
            flag: bool = False

        header = Same(msg_id="a", queue_id=1)
        assert header_texts(header) == {"msgId": "a", "queueId": "1", "flag": "false"}
        response = SendMessageResponseHeader(msg_id="a", queue_id=1, queue_offset=2, transaction_id="x")
        assert header_texts(response) == {"msgId": "a", "queueId": "1", "queueOffset": "2", "transactionId": "x"}
        assert header_texts(SEND)["m"] == "true"
        assert header_texts(SEND)["k"] == "false"
        assert "l" not in header_texts(SEND)

    def test_defaults_are_those_of_apaches_classes(self) -> None:
        assert json_command(b'{"topic":"t","queueId":"1"}').decode_header(GetMaxOffsetRequestHeader).committed is True
        fields = (
            b'{"topic":"t","defaultTopic":"TBW102","readQueueNums":4,"writeQueueNums":4,"perm":6,'
            b'"topicFilterType":"SINGLE_TAG"}'
        )
        assert json_command(fields).decode_header(CreateTopicRequestHeader).order is False  # C++ leaves it out

    def test_unknown_fields_are_ignored(self) -> None:
        command = json_command(b'{"topic":"t","queueId":"1","ns":"n","oway":"true","more":[1,{"a":2}]}')
        assert command.decode_header(GetMaxOffsetRequestHeader).topic == "t"

    def test_node_sends_scalars_unquoted(self) -> None:
        header = json_command(
            b'{"consumerGroup":5,"topic":true,"queueId":1,"commitOffset":7,"junk":null}'
        ).decode_header(UpdateConsumerOffsetRequestHeader)
        assert (header.consumer_group, header.topic, header.queue_id, header.commit_offset) == ("5", "true", 1, 7)

    def test_null_is_absent(self) -> None:
        header = json_command(b'{"topic":"t","queueId":1,"timestamp":"-1","boundaryType":null}').decode_header(
            SearchOffsetRequestHeader
        )
        assert header.boundary_type is None
        assert (
            json_command(b'{"topic":"t","queueId":"1","committed":null}')
            .decode_header(GetMaxOffsetRequestHeader)
            .committed
        )


class TestNumbers:
    @pytest.mark.parametrize("serialize_type", [SerializeType.JSON, SerializeType.ROCKETMQ])
    @pytest.mark.parametrize(("text", "value"), [("-0", 0), ("+5", 5), ("007", 7), ("-2147483648", -(2**31))])
    def test_as_java_reads_them(self, serialize_type: SerializeType, text: str, value: int) -> None:
        command = with_text("queueId", text, serialize_type)
        assert command.decode_header(UpdateConsumerOffsetRequestHeader).queue_id == value

    @pytest.mark.parametrize("serialize_type", SerializeType)
    @pytest.mark.parametrize(
        "text", ["", " 5", "5 ", "0x5", "1_0", "five", "\u0665", "2147483648", "9" * 30, "9" * 5000, "true", "+", "1.5"]
    )
    def test_refused_with_code_1_and_the_fields_name(self, serialize_type: SerializeType, text: str) -> None:
        with pytest.raises(ProtocolError, match="header field queueId of UpdateConsumerOffsetRequestHeader") as caught:
            with_text("queueId", text, serialize_type).decode_header(UpdateConsumerOffsetRequestHeader)
        assert caught.value.response_code == 1
        assert not caught.value.fatal
        assert len(str(caught.value)) < 300

    @pytest.mark.parametrize("text", [str(2**63), str(-(2**63) - 1)])
    def test_long_is_bounded(self, text: str) -> None:
        with pytest.raises(ProtocolError, match="commitOffset"):
            with_text("commitOffset", text, SerializeType.JSON).decode_header(UpdateConsumerOffsetRequestHeader)

    def test_zero_length_is_null_in_rocketmq(self) -> None:
        pull = {
            "consumerGroup": "g", "topic": "t", "queueId": "0", "queueOffset": "0", "maxMsgNums": "1", "sysFlag": "0",
            "commitOffset": "0", "suspendTimeoutMillis": "0", "subVersion": "0", "maxMsgBytes": "",
        }  # fmt: skip
        command = through(Command(11, ext=pull), SerializeType.ROCKETMQ)
        assert command.decode_header(PullMessageRequestHeader).max_msg_bytes is None
        with pytest.raises(ProtocolError, match="maxMsgBytes"):
            through(Command(11, ext=pull), SerializeType.JSON).decode_header(PullMessageRequestHeader)


class TestBooleans:
    @pytest.mark.parametrize("serialize_type", [SerializeType.JSON, SerializeType.ROCKETMQ])
    @pytest.mark.parametrize(
        ("text", "value"),
        [("true", True), ("TRUE", True), ("1", True), ("false", False), ("0", False), ("yes", False), ("", False)],
    )
    def test_as_java_reads_them(self, serialize_type: SerializeType, text: str, value: bool) -> None:
        command = through(Command(30, ext={"topic": "t", "queueId": "0", "committed": text}), serialize_type)
        assert command.decode_header(GetMaxOffsetRequestHeader).committed is value


class TestErrors:
    @pytest.mark.parametrize("serialize_type", SerializeType)
    def test_missing(self, serialize_type: SerializeType) -> None:
        for name in OFFSET:
            command = through(Command(15, ext={k: v for k, v in OFFSET.items() if k != name}), serialize_type)
            with pytest.raises(ProtocolError, match=rf"field {name} of UpdateConsumerOffsetRequestHeader is missing"):
                command.decode_header(UpdateConsumerOffsetRequestHeader)
        with pytest.raises(ProtocolError, match="consumerGroup"):
            through(Command(15), serialize_type).decode_header(UpdateConsumerOffsetRequestHeader)

    def test_a_letter_is_explained(self) -> None:
        with pytest.raises(ProtocolError, match=r"header field e \(queue_id\) of SendMessageRequestHeaderV2 is not"):
            json_command(b'{"a":"p","b":"t","c":"","d":"4","e":"x","f":"0","g":"0","h":"0"}').decode_header(
                SendMessageRequestHeaderV2
            )

    @pytest.mark.parametrize(
        ("name", "value"), [("topic", 5), ("topic", True), ("queueId", True), ("queueId", 2**31), ("queueId", "x")]
    )
    def test_cbor_is_typed(self, name: str, value: Scalar) -> None:
        command = through(Command(15), SerializeType.CBOR)
        command.raw_ext = {"consumerGroup": "g", "topic": "t", "queueId": 1, "commitOffset": 5, name: value}
        with pytest.raises(ProtocolError, match=f"header field {name} ") as caught:
            command.decode_header(UpdateConsumerOffsetRequestHeader)
        assert not caught.value.fatal


class TestCommand:
    @pytest.mark.parametrize("serialize_type", SerializeType)
    def test_reply(self, serialize_type: SerializeType) -> None:
        request = through(Command(34, opaque=77, language="GO", version=317, flag=0), serialize_type)
        reply = request.reply(1, remark="no", body=b"x", ext={"a": "b"})
        assert (reply.code, reply.remark, reply.body, reply.ext, reply.header) == (1, "no", b"x", {"a": "b"}, None)
        assert (reply.opaque, reply.serialize_type, reply.language, reply.version) == (
            77,
            serialize_type,
            "PYTHON",
            409,
        )
        assert reply.is_response
        assert not reply.is_oneway

    def test_flags(self) -> None:
        assert not Command(1).is_response
        assert Command(1, flag=FLAG_RESPONSE | FLAG_ONEWAY).is_response
        assert Command(1, flag=FLAG_RESPONSE | FLAG_ONEWAY).is_oneway

    def test_identity_counts_not_value(self) -> None:
        one, two = Command(1), Command(1)
        assert one != two
        assert len({one, two}) == 2

    def test_repr_is_short(self) -> None:
        assert repr(Command(10, opaque=3, body=bytes(9))) == "<request 10 opaque=3 JSON body=9>"


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NAMES = TEXT.filter(lambda name: name not in {*LONG_NAMES, *LONG_NAMES.values()})


@given(
    st.sampled_from(SerializeType),
    st.sampled_from(SerializeType),
    st.sampled_from([11, 310]),
    st.dictionaries(NAMES, TEXT, max_size=5),
)
def test_passing_on_keeps_the_fields(
    came: SerializeType, left: SerializeType, code: int, fields: dict[str, str]
) -> None:
    command = through(Command(code, ext=fields, opaque=4), came)
    assert through(command, left).ext_fields() == fields


@pytest.mark.parametrize("came", SerializeType)
@pytest.mark.parametrize("left", SerializeType)
def test_passing_on_a_send_translates_its_letters(came: SerializeType, left: SerializeType) -> None:
    command = through(Command(310, header=SEND, body=b"x"), came)
    assert through(command, left).decode_header(SendMessageRequestHeaderV2) == SEND
