"""JSON headers: Apache's bytes, what other clients send, and what is no header."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_rmq.errors import ProtocolError
from trio_rmq.wire.command import FLAG_RESPONSE, Command
from trio_rmq.wire.headers import GetRouteInfoRequestHeader, SendMessageResponseHeader
from trio_rmq.wire.json_codec import decode_json_header, encode_json_header

INT32 = st.integers(-(2**31), 2**31 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


class TestEncoding:
    def test_keys_in_apaches_order(self) -> None:
        command = Command(17, remark='no "topic"', ext={"a": "1"}, flag=1, opaque=5, language="JAVA", version=407)
        assert encode_json_header(command) == (
            b'{"code":17,"extFields":{"a":"1"},"flag":1,"language":"JAVA","opaque":5,'
            b'"remark":"no \\"topic\\"","serializeTypeCurrentRPC":"JSON","version":407}'
        )

    def test_reply(self) -> None:
        request = Command(310, opaque=9)
        header = SendMessageResponseHeader(msg_id="7F", queue_id=1, queue_offset=2**40)
        assert encode_json_header(request.reply(header=header, ext={"TRACE_ON": "true"})) == (
            b'{"code":0,"extFields":{"msgId":"7F","queueId":"1","queueOffset":"1099511627776","TRACE_ON":"true"},"flag":1,'
            b'"language":"PYTHON","opaque":9,"serializeTypeCurrentRPC":"JSON","version":409}'
        )

    def test_no_fields_is_not_empty_fields(self) -> None:
        assert b"extFields" not in encode_json_header(Command(1))
        assert b'"extFields":{}' in encode_json_header(Command(1, ext={}))

    def test_text_is_escaped_as_json_asks(self) -> None:
        command = Command(1, ext={"p": 'K\x01v\x02"\\/\n\x00é漢\U0001f600'}, remark="\x1f", language='"')
        assert b"\\u0001v\\u0002" in encode_json_header(command)
        value = json.loads(encode_json_header(command))
        assert value["extFields"] == command.ext
        assert (value["remark"], value["language"]) == ("\x1f", '"')

    def test_a_command_passed_on_keeps_its_fields_as_they_came(self) -> None:
        header = b'{"code":1,"extFields":{"b": "1","a":2},"flag":0,"language":"JAVA","opaque":1}'
        command = decode_json_header(header, b"")
        assert b'"extFields":{"b": "1","a":2},' in encode_json_header(command)
        command.ext = {**command.ext_fields(), "c": "3"}
        assert b'"extFields":{"b":"1","a":"2","c":"3"},' in encode_json_header(command)


class TestDecoding:
    def test_defaults(self) -> None:
        command = decode_json_header(b'{"code":34}', b"body")
        assert (command.code, command.flag, command.opaque, command.version) == (34, 0, 0, 0)
        assert (command.remark, command.language, command.body) == (None, "JAVA", b"body")
        assert command.ext_fields() == {}

    @pytest.mark.parametrize("fields", [b"null", b"{}"])
    def test_fields_that_hold_nothing(self, fields: bytes) -> None:
        command = decode_json_header(b'{"code":34,"extFields":%b}' % fields, b"")
        assert command.ext_fields() == {}
        with pytest.raises(ProtocolError, match="topic of GetRouteInfoRequestHeader is missing"):
            command.decode_header(GetRouteInfoRequestHeader)

    def test_any_order_blanks_and_unknown_keys(self) -> None:
        command = decode_json_header(
            b' { "x" : [ {} ] , "opaque" : 7 , "code" : 34 , "serializeTypeCurrentRPC" : 0 } ', b""
        )
        assert (command.code, command.opaque) == (34, 7)

    def test_numbers_as_text(self) -> None:
        command = decode_json_header(b'{"code":"34","opaque":"-7","flag":"2","version":"121"}', b"")
        assert (command.code, command.opaque, command.flag, command.version) == (34, -7, 2, 121)

    def test_raw_separators_of_properties(self) -> None:
        command = decode_json_header(b'{"code":310,"extFields":{"i":"TAGS\x01a\x02"}}', b"")
        assert command.ext_fields() == {"i": "TAGS\x01a\x02"}

    @pytest.mark.parametrize(
        "header",
        [
            b"",
            b"{",
            b"[]",
            b"null",
            b"5",
            b"{}",
            b'{"code":null}',
            b'{"code":1.5}',
            b'{"code":2147483648}',
            b'{"code":1,"opaque":-2147483649}',
            b'{"code":1,"flag":99999999999999999999999999}',
            b'{"code":true}',
            b'{"code":1,"remark":5}',
            b'{"code":1,"remark":"\xff"}',
            b'{"code":1,"remark":"\\ud800"}',
            b'{"code":1}{"code":1}',
            b'{"code":1,"x":\xff}',
            b'{"code":1,"x":' + b"[" * 100_000,
            b'{"code":1,"x":' + b'{"a":' * 100_000,
        ],
        ids=range(19),
    )
    def test_no_header(self, header: bytes) -> None:
        with pytest.raises(ProtocolError, match="malformed JSON") as caught:
            decode_json_header(header, b"")
        assert caught.value.fatal

    @pytest.mark.parametrize("fields", [b"[]", b"5", b'"x"', b'{"a":[]}', b'{"a":{}}', b'{"topic":"\xff"}'])
    def test_fields_that_are_no_flat_map(self, fields: bytes) -> None:
        command = decode_json_header(b'{"code":105,"extFields":%b}' % fields, b"")
        with pytest.raises(ProtocolError, match="flat map") as caught:
            command.ext_fields()
        assert not caught.value.fatal
        with pytest.raises(ProtocolError):
            command.decode_header(GetRouteInfoRequestHeader)

    def test_number_of_fields_is_bounded(self) -> None:
        fields = json.dumps({f"f{number}": "" for number in range(257)}).encode()
        with pytest.raises(ProtocolError, match="at most 256"):
            decode_json_header(b'{"code":1,"extFields":%b}' % fields, b"").ext_fields()


@given(INT32, INT32, INT32, INT32, st.none() | TEXT, st.none() | st.dictionaries(TEXT, TEXT), TEXT)
def test_round_trip(
    code: int, flag: int, opaque: int, version: int, remark: str | None, ext: dict[str, str] | None, language: str
) -> None:
    command = Command(
        code, flag=flag, opaque=opaque, version=version, remark=remark, ext=ext, language=language, body=b"x"
    )
    again = decode_json_header(encode_json_header(command), b"x")
    assert (again.code, again.flag, again.opaque, again.version) == (code, flag, opaque, version)
    assert (again.remark, again.language) == (remark, language or "JAVA")
    assert again.ext_fields() == (ext or {})
    assert again.is_response == bool(flag & FLAG_RESPONSE)
    assert encode_json_header(again) == encode_json_header(command) or not language
