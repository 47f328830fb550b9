"""Binary headers that are copies of earlier ones say what a walk over their fields says."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_rmq.errors import ProtocolError
from trio_rmq.wire import binary_codec
from trio_rmq.wire.binary_codec import decode_binary_header, encode_binary_header
from trio_rmq.wire.binary_layouts import LEARN_AFTER, LIKENESSES_MAX, LayoutCache, LikeFields
from trio_rmq.wire.command import Command, SerializeType
from trio_rmq.wire.headers import PullMessageRequestHeader, SendMessageRequestHeaderV2


def _fields(**changes: str) -> dict[str, str]:
    fields = {
        "a": "group", "b": "Orders", "c": "TBW102", "d": "4", "e": "1", "f": "0", "g": "1795248218445", "h": "0",
        "i": "KEYS\x01k1", "j": "0", "k": "false", "m": "false",
    }  # fmt: skip
    return fields | changes


def _header(fields: dict[str, str]) -> bytes:
    return encode_binary_header(Command(310, ext=fields, serialize_type=SerializeType.ROCKETMQ))


@pytest.fixture(autouse=True)
def learnt(monkeypatch: pytest.MonkeyPatch) -> LayoutCache:
    """A cache that has met the layout of `_fields`."""
    cache = LayoutCache()
    monkeypatch.setattr(binary_codec, "layouts", cache)
    for _ in range(LEARN_AFTER + 1):
        decode_binary_header(_header(_fields()), b"").decode_header(SendMessageRequestHeaderV2)
    assert len(cache) == cache.likenesses == 1
    return cache


def _expected(fields: dict[str, str]) -> SendMessageRequestHeaderV2:
    return msgspec.convert(fields, SendMessageRequestHeaderV2, strict=False)


def test_a_copy_has_its_own_time_properties_and_queue() -> None:
    seen = []
    for queue_id, time, key in (
        ("1", "1795248218445", "k1"),
        ("2", "1795248218446", "k2"),
        ("1", "1795248218447", "k3"),
    ):
        fields = _fields(e=queue_id, g=time, i=f"KEYS\x01{key}")
        command = decode_binary_header(_header(fields), b"")
        assert isinstance(command.raw_ext, LikeFields)
        assert command.ext_fields() == fields
        header = command.decode_header(SendMessageRequestHeaderV2)
        assert header == _expected(fields)
        seen.append(header)
    assert [header.queue_id for header in seen] == [1, 2, 1]  # later copies left the earlier ones alone


def test_what_a_handler_changes_in_its_header_is_not_in_the_next() -> None:
    first = decode_binary_header(_header(_fields()), b"").decode_header(SendMessageRequestHeaderV2)
    first.topic = "Changed"
    again = decode_binary_header(_header(_fields()), b"")
    assert again.decode_header(SendMessageRequestHeaderV2).topic == "Orders"
    assert again.decode_header(SendMessageRequestHeaderV2) is not again.decode_header(SendMessageRequestHeaderV2)


@pytest.mark.parametrize("time", ["17952482184x5", "1795248218.45", " 179524821844", "1_95248218445"])
def test_a_time_that_is_no_number_is_refused_with_its_name(time: str) -> None:
    decode_binary_header(_header(_fields()), b"").decode_header(SendMessageRequestHeaderV2)
    command = decode_binary_header(_header(_fields(g=time)), b"")
    with pytest.raises(ProtocolError, match="born_timestamp"):
        command.decode_header(SendMessageRequestHeaderV2)


def test_another_header_type_of_the_same_bytes_is_told_apart() -> None:
    command = decode_binary_header(_header(_fields()), b"")
    command.decode_header(SendMessageRequestHeaderV2)
    with pytest.raises(ProtocolError, match="PullMessageRequestHeader"):
        command.decode_header(PullMessageRequestHeader)


def test_the_headers_kept_are_bounded(learnt: LayoutCache) -> None:
    for number in range(10_000, 10_000 + LIKENESSES_MAX + 10):
        fields = _fields(a=f"{number}")
        decode_binary_header(_header(fields), b"").decode_header(SendMessageRequestHeaderV2)
    assert learnt.likenesses <= LIKENESSES_MAX


_texts = st.text(st.characters(codec="utf-8"), max_size=6)
_values = st.fixed_dictionaries(
    {
        "a": st.sampled_from(["group", "other", "g"]),
        "b": _texts,
        "e": st.sampled_from(["0", "1", "7", "", "x", "true"]),
        "g": st.one_of(st.integers(-(2**64), 2**64).map(str), st.sampled_from(["1795248218445", "1795248218446", ""])),
        "i": _texts,
        "k": st.sampled_from(["true", "false", "1"]),
    }
)


@given(st.lists(_values, min_size=1, max_size=30))
def test_any_run_of_headers_reads_as_if_each_were_the_first(runs: list[dict[str, str]]) -> None:
    for changes in [changes for changes in runs for _ in range(LEARN_AFTER + 1)]:
        header = _header(_fields(**changes))
        command = decode_binary_header(header, b"")
        assert _told(header) == _told(header, LayoutCache())
        alone = Command(310, serialize_type=SerializeType.ROCKETMQ, raw_ext=_fields(**changes))
        assert command.ext_fields() == alone.ext_fields()
        assert _outcome(command) == _outcome(alone)


def _outcome(command: Command) -> SendMessageRequestHeaderV2 | str:
    try:
        return command.decode_header(SendMessageRequestHeaderV2)
    except ProtocolError as error:
        return str(error).split(" (<")[0]


@given(st.data())
def test_any_bytes_in_a_known_header_are_what_a_walk_over_them_says(data: st.DataObject) -> None:
    changed = bytearray(_header(_fields()))
    for at in data.draw(st.lists(st.integers(0, len(changed) - 1), min_size=1, max_size=4)):
        changed[at] = data.draw(st.one_of(st.integers(0, 255), st.sampled_from(b"019x ")))
    frame = bytes(changed)
    assert _told(frame) == _told(frame, LayoutCache())
    assert _told(frame[:-1]) == _told(frame[:-1], LayoutCache())
    assert _told(frame + b"x") == _told(frame + b"x", LayoutCache())


def test_two_forms_of_one_size_take_turns(learnt: LayoutCache) -> None:
    longer = {"b": "Orders1", "e": "", "i": "KEYS\x01k1"}
    for _ in range(3 * LEARN_AFTER):
        for fields in (_fields(), _fields(**longer)):
            assert _told(_header(fields)) == _told(_header(fields), LayoutCache())


def test_a_header_type_is_looked_at_once_however_many_headers_are_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[object] = []
    fields_of = msgspec.structs.fields

    def counted(kind: type[msgspec.Struct]) -> object:
        looked_at.append(kind)
        return fields_of(kind)

    monkeypatch.setattr(msgspec.structs, "fields", counted)
    for number in range(100, 120):
        decode_binary_header(_header(_fields(b=f"Ord{number}")), b"").decode_header(SendMessageRequestHeaderV2)
    assert len(looked_at) <= 1


def _told(header: bytes, cache: LayoutCache | None = None) -> tuple[object, ...]:
    """All that a header says, with these layouts, or how it is refused."""
    with pytest.MonkeyPatch.context() as patch:
        if cache is not None:
            patch.setattr(binary_codec, "layouts", cache)
        try:
            command = decode_binary_header(b"before" + header + b"behind", b"body", 6, 6 + len(header))
        except ProtocolError as error:
            return error.fatal, str(error)
        return (
            command.code, command.flag, command.opaque, command.language, command.version, command.remark, command.body,
            command.serialize_type, command.ext_fields(), _outcome(command),
        )  # fmt: skip
