"""CBOR commands: the vectors of protocol/, agreement with a general CBOR library, and everything else refused."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_rmq import limits
from trio_rmq.errors import ProtocolError
from trio_rmq.wire.cbor_codec import SAFE_INTEGER_MAX, SUB_PROTOCOL, decode_commands, encode_commands
from trio_rmq.wire.command import Command, SerializeType
from trio_rmq.wire.headers import LONG_NAMES, SendMessageRequestHeaderV2

PROTOCOL = Path(__file__).parents[2] / "protocol"
VECTORS = json.loads((PROTOCOL / "vectors" / "cbor.json").read_text())

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
INT32 = st.integers(-(2**31), 2**31 - 1)
VALUES = st.integers(-(2**63), 2**63 - 1) | st.booleans() | TEXT
ITEMS = st.fixed_dictionaries(
    {"code": INT32.filter(lambda code: code not in (310, 320, 325))},
    optional={
        "opaque": INT32,
        "flag": INT32,
        "version": INT32,
        "language": TEXT.filter(bool),
        "remark": st.none() | TEXT,
        "extFields": st.none() | st.dictionaries(TEXT, VALUES | st.none(), max_size=30),
        "body": st.none() | st.binary(max_size=300),
    },
)


def check(command: Command, item: dict[str, Any]) -> None:
    """That a decoded command holds what a general library reads."""
    assert command.serialize_type is SerializeType.CBOR
    assert command.code == item["code"]
    for name, default in {"opaque": 0, "flag": 0, "version": 0, "language": "OTHER", "remark": None}.items():
        assert getattr(command, name) == item.get(name, default)
    assert command.body == (item.get("body") or b"")
    fields = item.get("extFields")
    given_fields = {name: value for name, value in (fields or {}).items() if value is not None}
    short = {long: name for name, long in LONG_NAMES.items()} if command.code == 310 else {}
    came = command.raw_ext or {}
    assert isinstance(came, dict)
    assert came == {short.get(name, name): value for name, value in given_fields.items()}
    assert [type(value) for value in came.values()] == [
        int if isinstance(value, float) else type(value) for value in given_fields.values()
    ]


def refused(message: bytes) -> str:
    """The reason a message is refused with."""
    with pytest.raises(ProtocolError, match="malformed CBOR") as caught:
        decode_commands(message)
    assert caught.value.fatal
    return str(caught.value)


class TestVectors:
    @pytest.mark.parametrize("vector", VECTORS["commands"], ids=lambda vector: vector["name"])
    def test_command(self, vector: dict[str, Any]) -> None:
        message = bytes.fromhex(vector["hex"])
        [command] = decode_commands(message)
        item = dict(vector["command"])
        if item.get("body") is not None:
            item["body"] = bytes.fromhex(item["body"])
        check(command, item)
        [again] = decode_commands(encode_commands([command]))
        assert again.raw_ext == (command.raw_ext or None)
        assert (again.code, again.body, again.remark) == (command.code, command.body, command.remark)

    def test_all_in_one_message(self) -> None:
        messages = [bytes.fromhex(vector["hex"]) for vector in VECTORS["commands"]]
        commands = decode_commands(b"".join(messages))
        assert [command.code for command in commands] == [vector["command"]["code"] for vector in VECTORS["commands"]]

    @pytest.mark.parametrize("vector", VECTORS["refused"], ids=lambda vector: vector["name"])
    def test_refused(self, vector: dict[str, Any]) -> None:
        message = bytes.fromhex(vector["hex"])
        refused(message)
        refused(encode_commands([Command(1)]) + message)

    def test_sub_protocol_is_the_documented_one(self) -> None:
        assert f'"{SUB_PROTOCOL}"' in (PROTOCOL / "command.cddl").read_text()

    def test_limits_are_the_documented_ones(self) -> None:
        text = (PROTOCOL / "command.cddl").read_text()
        for limit in (
            limits.FRAME_SIZE_MAX_BYTES,
            limits.COMMANDS_PER_MESSAGE_MAX,
            limits.HEADER_SIZE_MAX_BYTES,
            limits.EXT_FIELDS_MAX,
            limits.BODY_SIZE_MAX_BYTES,
        ):
            assert f"{limit:,} " in text


class TestAgreement:
    @given(st.lists(ITEMS, max_size=4))
    def test_reads_what_a_library_writes(self, items: list[dict[str, Any]]) -> None:
        commands = decode_commands(b"".join(map(cbor2.dumps, items)))
        assert len(commands) == len(items)
        for command, item in zip(commands, items, strict=True):
            check(command, {key: value for key, value in item.items() if value is not None})

    @given(st.permutations(["code", "opaque", "extFields", "body", "remark"]))
    def test_keys_in_any_order(self, order: list[str]) -> None:
        item = {"code": 310, "opaque": 1, "extFields": {"topic": "t", "e": 1}, "body": b"x", "remark": "r"}
        [command] = decode_commands(cbor2.dumps({key: item[key] for key in order}))
        assert command.raw_ext == {"b": "t", "e": 1}
        assert (command.code, command.opaque, command.body, command.remark) == (310, 1, b"x", "r")

    @given(ITEMS)
    def test_a_library_reads_what_is_written(self, item: dict[str, Any]) -> None:
        [command] = decode_commands(cbor2.dumps(item))
        again = cbor2.loads(encode_commands([command]))
        assert again.get("extFields", {}) == (command.raw_ext or {})
        assert (again["code"], again["opaque"], again["flag"]) == (command.code, command.opaque, command.flag)
        assert again.get("body", b"") == command.body

    @pytest.mark.parametrize("size", [1, 22, 23, 24, 25, 255, 256, 257, 65_535, 65_536])
    def test_lengths_around_the_forms_of_a_head(self, size: int) -> None:
        item = {"code": 1, "remark": "r" * size, "extFields": {"n" * size: "v" * size}, "body": b"b" * size}
        [command] = decode_commands(cbor2.dumps(item))
        check(command, item)
        filled = {"opaque": 0, "flag": 0, "language": "OTHER", "version": 0}
        assert cbor2.loads(encode_commands([command])) == item | filled

    @pytest.mark.parametrize(
        "head",
        ["05", "1805", "190005", "1a00000005", "1b0000000000000005", "f94500", "fa40a00000", "fb4014000000000000"],
    )
    def test_any_form_of_a_number(self, head: str) -> None:
        [command] = decode_commands(bytes.fromhex("a264636f6465" + head + "696578744669656c6473a1616e" + head))
        assert (command.code, command.raw_ext) == (5, {"n": 5})

    def test_floats_of_javascript(self) -> None:
        for number in (SAFE_INTEGER_MAX, -SAFE_INTEGER_MAX, 0):
            [command] = decode_commands(cbor2.dumps({"code": 1, "extFields": {"n": float(number)}}))
            assert command.raw_ext == {"n": number}
        for real in (2.0**53, 1e300, float("inf"), float("-inf"), float("nan"), 1.25):
            refused(cbor2.dumps({"code": 1, "extFields": {"n": real}}))

    def test_undefined_is_null(self) -> None:
        [command] = decode_commands(
            cbor2.dumps({"code": 1, "remark": cbor2.undefined, "body": cbor2.undefined, "extFields": cbor2.undefined})
        )
        assert (command.remark, command.body, command.raw_ext) == (None, b"", None)


class TestLongNames:
    def test_a_send_travels_under_long_names(self) -> None:
        header = SendMessageRequestHeaderV2(
            producer_group="p", topic="t", default_topic="d", default_topic_queue_nums=4, queue_id=1, sys_flag=0,
            born_timestamp=5, flag=0, batch=True,
        )  # fmt: skip
        item = cbor2.loads(encode_commands([Command(310, header=header)]))
        assert item["extFields"] == {
            "producerGroup": "p", "topic": "t", "defaultTopic": "d", "defaultTopicQueueNums": 4, "queueId": 1,
            "sysFlag": 0, "bornTimestamp": 5, "flag": 0, "batch": True,
        }  # fmt: skip
        for fields in (item["extFields"], {short: item["extFields"].get(long) for short, long in LONG_NAMES.items()}):
            [command] = decode_commands(cbor2.dumps(item | {"extFields": fields}))
            assert command.decode_header(SendMessageRequestHeaderV2) == header

    def test_only_where_the_class_has_letters(self) -> None:
        [command] = decode_commands(cbor2.dumps({"code": 10, "extFields": {"topic": "t"}}))
        assert command.raw_ext == {"topic": "t"}
        assert cbor2.loads(encode_commands([command]))["extFields"] == {"topic": "t"}


class TestRefused:
    def test_every_cut(self) -> None:
        message = b"".join(bytes.fromhex(vector["hex"]) for vector in VECTORS["commands"])
        ends = {0}
        for vector in VECTORS["commands"]:
            ends.add(max(ends) + len(vector["hex"]) // 2)
        for cut in range(len(message)):
            if cut in ends:
                decode_commands(message[:cut])
            else:
                refused(message[:cut])

    def test_claims_take_no_memory(self) -> None:
        claims = [
            "a164626f64795b7fffffffffffffff",
            "a164636f64657b7fffffffffffffff61",
            "a1696578744669656c6473bb7fffffffffffffff",
            "a1696578744669656c6473a17b7fffffffffffffff61",
            "bb7fffffffffffffff",
        ]
        tracemalloc.start()
        try:
            for claim in claims:
                refused(bytes.fromhex(claim))
            refused(b"\xa0" * limits.FRAME_SIZE_MAX_BYTES)
            refused(b"\x81" * 1_000_000)
            refused(bytes.fromhex("a1696578744669656c6473") + b"\xa1\x61a" * 300_000)
            refused(bytes.fromhex("a1696578744669656c6473ba00100000") + b"\x61a\x01" * 2**20)
            assert tracemalloc.get_traced_memory()[1] < 2 * limits.FRAME_SIZE_MAX_BYTES
        finally:
            tracemalloc.stop()

    def test_sizes(self) -> None:
        assert "at most 16777216" in refused(bytes(limits.FRAME_SIZE_MAX_BYTES + 1))
        assert "65536 commands" in refused(cbor2.dumps({"code": 1}) * (limits.COMMANDS_PER_MESSAGE_MAX + 1))
        long_header = cbor2.dumps({"code": 1, "remark": "x" * limits.HEADER_SIZE_MAX_BYTES})
        assert "header takes more" in refused(long_header)
        [command] = decode_commands(cbor2.dumps({"code": 1, "body": bytes(limits.HEADER_SIZE_MAX_BYTES + 1)}))
        assert len(command.body) > limits.HEADER_SIZE_MAX_BYTES

    @pytest.mark.parametrize("key", ["code", "opaque", "flag", "version"])
    @pytest.mark.parametrize("value", [None, True, "1", b"1", [], {}, 2**31, -(2**31) - 1, 0.5])
    def test_numbers_of_a_command(self, key: str, value: object) -> None:
        refused(cbor2.dumps({"code": 1} | {key: value}))

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("language", 1),
            ("remark", b""),
            ("remark", False),
            ("body", ""),
            ("body", 1),
            ("body", []),
            ("extFields", []),
        ],
    )
    def test_other_parts_of_a_command(self, key: str, value: object) -> None:
        refused(cbor2.dumps({"code": 1, key: value}))
