"""ROCKETMQ headers, and the layouts that save walking over the fields: they never answer otherwise than the walk."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_rmq import limits
from trio_rmq.errors import ProtocolError
from trio_rmq.wire import binary_codec
from trio_rmq.wire.binary_codec import decode_binary_header, encode_binary_header
from trio_rmq.wire.binary_layouts import LAYOUT_SIZE_MAX_BYTES, LAYOUTS_MAX, LEARN_AFTER, LayoutCache
from trio_rmq.wire.codes import RequestCode
from trio_rmq.wire.command import Command, SerializeType

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
FIELDS = st.dictionaries(TEXT, TEXT, max_size=6)


@pytest.fixture(autouse=True)
def _no_layouts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binary_codec, "layouts", LayoutCache())


def command(fields: dict[str, str] | None = None, **changes: object) -> Command:
    made = Command(310, ext=fields, serialize_type=SerializeType.ROCKETMQ)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def header_of(*fields: tuple[bytes, bytes], code: int = 10, remark: bytes = b"") -> bytes:
    """A header written here, by the layout in protocol/layouts.md."""
    field_bytes = b"".join(
        struct.pack(">h", len(name)) + name + struct.pack(">i", len(value)) + value for name, value in fields
    )
    return (
        struct.pack(">hBhiii", code, 0, 407, 7, 0, len(remark))
        + remark
        + struct.pack(">i", len(field_bytes))
        + field_bytes
    )


class TestLayout:
    def test_bytes(self) -> None:
        made = command({"topic": "t", "é": "漢"}, opaque=7, flag=1, remark="no", language="GO", version=317)
        assert encode_binary_header(made) == bytes.fromhex(
            "0136 09 013d 00000007 00000001 00000002 6e6f 000000170005 746f706963 00000001 74 0002 c3a9 00000003 e6bca2"
        )

    @given(st.integers(-(2**15), 2**15 - 1), st.none() | TEXT, FIELDS, st.integers(-(2**31), 2**31 - 1))
    def test_round_trip(self, version: int, remark: str | None, fields: dict[str, str], opaque: int) -> None:
        made = command(fields, remark=remark, version=version, opaque=opaque)
        again = decode_binary_header(encode_binary_header(made), b"")
        assert (again.version, again.remark, again.opaque) == (version, remark or None, opaque)
        assert again.ext_fields() == fields

    def test_zero_length_means_none(self) -> None:
        again = decode_binary_header(header_of(), b"")
        assert (again.remark, again.raw_ext) == (None, None)

    def test_languages(self) -> None:
        for number, name in enumerate(binary_codec.LANGUAGES):
            header = bytearray(header_of())
            header[2] = number
            assert decode_binary_header(bytes(header), b"").language == name
        for number in (14, 127, 128, 255):
            header[2] = number
            assert decode_binary_header(bytes(header), b"").language == "OTHER"
        assert encode_binary_header(command(language="COBOL"))[2] == 7

    def test_codes_over_16_bits_are_cut_and_restored(self) -> None:
        high = [code for code in RequestCode if code > 32_767]
        assert len(high) == 8
        for code in high:
            header = encode_binary_header(command(code=code))
            assert header[:2] == (code & 0xFFFF).to_bytes(2, "big")
            assert decode_binary_header(header, b"").code == code
        assert decode_binary_header(header_of(code=3442), b"").code == RequestCode.POP_MESSAGE
        for low in (-1006, -1, 0, 10, 32_767):
            assert decode_binary_header(header_of(code=low), b"").code == low

    def test_a_name_that_does_not_fit(self) -> None:
        assert decode_binary_header(encode_binary_header(command({"n" * 32_767: ""})), b"").ext_fields() == {
            "n" * 32_767: ""
        }
        with pytest.raises(ProtocolError, match="32767"):
            encode_binary_header(command({"n" * 32_768: ""}))

    @pytest.mark.parametrize(
        "header",
        [
            b"",
            header_of()[:-1],
            header_of(remark=b"abc")[:-5],
            header_of(remark=b"\xff"),
            header_of((b"\xff", b"1")),
            header_of((b"a", b"\xff")),
            header_of((b"a", b"1"))[:-1],
            header_of((b"a", b"1"))[:-6],
            struct.pack(">hBhiii", 1, 0, 0, 0, 0, -1) + bytes(4),
            struct.pack(">hBhiii", 1, 0, 0, 0, 0, 2**31 - 1) + bytes(4),
            struct.pack(">hBhiiii", 1, 0, 0, 0, 0, 0, -1),
            struct.pack(">hBhiiii", 1, 0, 0, 0, 0, 0, 1),
            struct.pack(">hBhiiii", 1, 0, 0, 0, 0, 0, 1) + b"\0",
            struct.pack(">hBhiiii", 1, 0, 0, 0, 0, 0, 8) + b"\0\x01a" + struct.pack(">i", -1) + b"x",
            struct.pack(">hBhiiii", 1, 0, 0, 0, 0, 0, 8) + b"\0\x01a" + struct.pack(">i", 2) + b"xyz",
            struct.pack(">hBhiiii", 1, 0, 0, 0, 0, 0, 8) + b"\xff\xffa" + struct.pack(">i", 1) + b"x",
        ],
        ids=range(16),
    )
    def test_malformed(self, header: bytes) -> None:
        with pytest.raises(ProtocolError) as caught:
            decode_binary_header(header, b"")
        assert caught.value.fatal

    def test_number_of_fields_is_bounded(self) -> None:
        fields = [(f"f{number}".encode(), b"") for number in range(limits.EXT_FIELDS_MAX + 1)]
        decode_binary_header(header_of(*fields[:-1]), b"")
        with pytest.raises(ProtocolError, match="at most 256"):
            decode_binary_header(header_of(*fields), b"")

    def test_the_last_of_a_repeated_name_counts_walked_or_not(self) -> None:
        header = header_of((b"a", b"1"), (b"a", b"2"), (b"b", b"3"))
        for _ in range(LEARN_AFTER + 3):
            assert decode_binary_header(header, b"").ext_fields() == {"a": "2", "b": "3"}
        assert len(binary_codec.layouts) == 1


class TestLearntLayouts:
    @given(st.lists(st.tuples(TEXT, TEXT), min_size=2, max_size=5), st.data())
    def test_answers_as_the_walk_does(self, fields: list[tuple[str, str]], data: st.DataObject) -> None:
        cache = binary_codec.layouts = LayoutCache()
        header = header_of(*((name.encode(), value.encode()) for name, value in fields))
        for _ in range(LEARN_AFTER):
            decode_binary_header(header, b"")
        assert len(cache) == 1
        assert decode_binary_header(header, b"").ext_fields() == dict(fields)
        changed = bytearray(header)
        for at in data.draw(st.lists(st.integers(0, len(header) - 1), max_size=4)):
            changed[at] = data.draw(st.integers(0, 255))
        assert outcome(bytes(changed), cache) == outcome(bytes(changed), LayoutCache())

    def test_other_values_of_the_same_lengths_are_not_walked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for number in range(LEARN_AFTER):
            decode_binary_header(header_of((b"a", b"%d" % number), (b"b", b"x")), b"")
        monkeypatch.setattr(binary_codec, "_walk", None)
        assert decode_binary_header(header_of((b"a", b"9"), (b"b", b"y")), b"").ext_fields() == {
            "a": "9",
            "b": "y",
        }

    def test_text_that_is_not_ascii(self) -> None:
        for number in range(LEARN_AFTER + 2):
            header = header_of((b"a", f"é{number}".encode()), (b"b", b"x" * 200))
            assert decode_binary_header(header, b"").ext_fields() == {"a": f"é{number}", "b": "x" * 200}
        with pytest.raises(ProtocolError, match="UTF-8"):
            decode_binary_header(header_of((b"a", b"\xff\xfe1"), (b"b", b"x" * 200)), b"")

    def test_another_layout_of_the_same_size_takes_over(self) -> None:
        one, two = header_of((b"a", b"12"), (b"b", b"3")), header_of((b"a", b"1"), (b"b", b"23"))
        for _ in range(3 * LEARN_AFTER):
            assert decode_binary_header(one, b"").ext_fields() == {"a": "12", "b": "3"}
            assert decode_binary_header(two, b"").ext_fields() == {"a": "1", "b": "23"}

    def test_is_bounded(self) -> None:
        cache = binary_codec.layouts
        for size in range(LAYOUTS_MAX + 10):
            header = header_of((b"a", b"x" * size), (b"b", b""))
            for _ in range(LEARN_AFTER):
                decode_binary_header(header, b"")
            assert 1 <= len(cache) <= LAYOUTS_MAX
        before = len(cache)
        for _ in range(2 * LEARN_AFTER):
            decode_binary_header(header_of((b"a", bytes(LAYOUT_SIZE_MAX_BYTES)), (b"b", b"")), b"")
        assert len(cache) == before


def outcome(header: bytes, cache: LayoutCache) -> object:
    """The fields a header gives with these layouts, or the kind of error."""
    binary_codec.layouts = cache
    try:
        return decode_binary_header(header, b"").ext_fields()
    except ProtocolError as error:
        return type(error)
