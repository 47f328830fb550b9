"""JSON headers of sends that are like earlier ones say what the parser says of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_rmq.errors import ProtocolError
from trio_rmq.wire import json_codec
from trio_rmq.wire.binary_layouts import LEARN_AFTER, LIKENESSES_MAX, LikeFields
from trio_rmq.wire.command import Command
from trio_rmq.wire.headers import SendMessageRequestHeader, SendMessageRequestHeaderV2
from trio_rmq.wire.json_codec import decode_json_header, encode_json_header
from trio_rmq.wire.json_forms import LEARN_PAUSE_MAX, SEND_CODE, JsonForms


def _fields(**changes: str) -> dict[str, str]:
    fields = {
        "a": "group", "b": "Orders", "c": "TBW102", "d": "4", "e": "1", "f": "0", "g": "1795248218445", "h": "0",
        "i": "UNIQ_KEY\x01AC12\x02WAIT\x01true\x02k\x01a\"\\b", "j": "0", "k": "false", "m": "false",
    }  # fmt: skip
    return fields | changes


def _header(fields: dict[str, str], opaque: int = 12) -> bytes:
    return encode_json_header(Command(SEND_CODE, ext=fields, opaque=opaque, language="JAVA", version=399))


def _new() -> JsonForms:
    return JsonForms(encode_json_header)


@pytest.fixture(autouse=True)
def learnt(monkeypatch: pytest.MonkeyPatch) -> JsonForms:
    """Forms that have met `_fields`."""
    forms = _new()
    monkeypatch.setattr(json_codec, "forms", forms)
    for _ in range(LEARN_AFTER):
        decode_json_header(_header(_fields()), b"")
    assert forms.likenesses == 1
    return forms


def _told(header: bytes, forms: JsonForms | None = None) -> tuple[object, ...]:
    """All that a header says, with these forms, or how it is refused."""
    with pytest.MonkeyPatch.context() as patch:
        if forms is not None:
            patch.setattr(json_codec, "forms", forms)
        try:
            command = decode_json_header(header, b"body")
            said = (
                command.code, command.flag, command.opaque, command.language, command.version, command.remark,
                command.body, command.serialize_type, command.ext_fields(),
            )  # fmt: skip
        except ProtocolError as error:
            return error.fatal, str(error)
        return *said, _read(command, SendMessageRequestHeaderV2), _read(command, SendMessageRequestHeader)


def _read(command: Command, header_type: type[SendMessageRequestHeader | SendMessageRequestHeaderV2]) -> object:
    try:
        return command.decode_header(header_type)
    except ProtocolError as error:
        return error.fatal, str(error)


def test_queue_time_unique_id_and_opaque_are_its_own() -> None:
    for queue_id, time, unique_id, opaque in (("2", "1795248218446", "AC13", 99), ("7", "0000000000000", "zzzz", 10)):
        fields = _fields(e=queue_id, g=time, i=_fields()["i"].replace("AC12", unique_id))
        command = decode_json_header(_header(fields, opaque), b"")
        assert isinstance(command.raw_ext, LikeFields)
        assert (command.opaque, command.ext_fields()) == (opaque, fields)
        header = command.decode_header(SendMessageRequestHeaderV2)
        assert (header.queue_id, header.born_timestamp) == (int(queue_id), int(time))
        assert header.properties == fields["i"]
        assert _told(_header(fields, opaque)) == _told(_header(fields, opaque), _new())


@pytest.mark.parametrize(
    "value", [b'"1"', b"1", b'"x"', b'"\\u0031"', b'"1" ', b'""', b"null", b"true", b'"1","e":"3"', b'"-1"', b'"\xff"']
)
@pytest.mark.parametrize("name", [b"e", b"g", b"i", b"x"])
def test_odd_values_are_read_as_ever(name: bytes, value: bytes) -> None:
    plain = _header(_fields(x="1", i="1"))
    at = plain.index(b'"%b":"' % name) + len(name) + 3
    header = plain[:at] + value + plain[plain.index(b'"', at + 1) + 1 :]
    expected = _told(header, _new())
    for _ in range(3 * LEARN_AFTER):
        assert _told(header) == expected


@given(st.data())
def test_any_bytes_in_a_known_header_are_what_the_parser_says(data: st.DataObject) -> None:
    known = _header(_fields())
    changed = bytearray(known)
    interesting = [
        at
        for key in (b'"e":"', b'"g":"', b"KEY", b'"opaque":')
        for at in range(known.index(key), known.index(key) + 24)
    ]
    places = st.one_of(st.integers(0, len(changed) - 1), st.sampled_from(interesting))
    for at in data.draw(st.lists(places, min_size=1, max_size=4)):
        if at < len(changed):
            changed[at] = data.draw(st.one_of(st.integers(0, 255), st.sampled_from(b'019xZ "\\,:')))
    assert _told(bytes(changed)) == _told(bytes(changed), _new())


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "b": st.sampled_from(["Orders", "Others", "é"]),
                "e": st.sampled_from(["0", "1", "07", "x"]),
                "g": st.integers(-(2**63), 2**63).map(str),
                "i": st.sampled_from(
                    [
                        "UNIQ_KEY\x01AC\x02",
                        "UNIQ_KEY\x01AD\x02",
                        "UNIQ_KEY\x01é",
                        "",
                        "WAIT\x01true",
                        "UNIQ_KEY\x01A\x02\x02",
                    ]
                ),
            }
        ),
        min_size=1,
        max_size=10,
    )
)
def test_any_run_of_headers_reads_as_if_each_were_the_first(runs: list[dict[str, str]]) -> None:
    for number, changes in enumerate(changes for changes in runs for _ in range(LEARN_AFTER + 1)):
        header = _header(_fields(**changes), number)
        assert _told(header) == _told(header, _new())


def test_of_two_headers_of_one_size_each_keeps_its_opaque_where_it_stands(learnt: JsonForms) -> None:
    """A digit more in the opaque and a letter less in a field that is no slot: all slots but the opaque stay."""
    long, short = _header(_fields(i=_fields()["i"] + "bb"), 9), _header(_fields(i=_fields()["i"] + "b"), 10)
    assert len(long) == len(short) != len(_header(_fields()))
    for header, opaque in ((long, 9), (short, 10)):
        for _ in range(8 * LEARN_AFTER):
            assert decode_json_header(header, b"").opaque == opaque


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0, 9, 10, 99, 100, 999])), min_size=1, max_size=10))
def test_fields_and_opaques_of_any_length(kinds: list[tuple[int, int]]) -> None:
    for letters, opaque in (kind for kind in kinds for _ in range(2 * LEARN_AFTER)):
        header = _header(_fields(i=_fields()["i"] + "b" * letters), opaque)
        assert _told(header) == _told(header, _new())


def test_what_a_handler_changes_in_its_header_is_not_in_the_next() -> None:
    decode_json_header(_header(_fields()), b"").decode_header(SendMessageRequestHeaderV2).topic = "Changed"
    assert decode_json_header(_header(_fields()), b"").decode_header(SendMessageRequestHeaderV2).topic == "Orders"


def test_headers_that_never_come_again_are_seldom_learnt_and_the_headers_kept_are_bounded(learnt: JsonForms) -> None:
    for number in range(10_000, 10_000 + 20 * LEARN_PAUSE_MAX):
        decode_json_header(_header(_fields(a=f"{number}")), b"")
    assert 20 <= learnt.likenesses <= 30
    learnt.likenesses = LIKENESSES_MAX
    for number in range(10_000, 10_000 + LEARN_PAUSE_MAX):
        decode_json_header(_header(_fields(a=f"{number}")), b"")
    assert learnt.likenesses == 1
