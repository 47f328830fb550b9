"""The ROCKETMQ (binary) header encoding of a remoting command.

short code, byte language, short version, int opaque, int flag, int-counted remark, int-counted fields; a field is a
short-counted name and an int-counted value.  Zero length means none.  A code over 32,767 is cut to 16 bits by writers;
it is given back where it cannot be mistaken for another.  Source: RocketMQSerializable; protocol/layouts.md.
"""

from __future__ import annotations

import struct
from functools import lru_cache

from trio_rmq.errors import ProtocolError
from trio_rmq.limits import EXT_FIELDS_MAX
from trio_rmq.wire.binary_layouts import AREA_AT, BinaryFields, LayoutCache, LikeFields
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command, SerializeType, outgoing_texts

LANGUAGES = (
    "JAVA",
    "CPP",
    "DOTNET",
    "PYTHON",
    "DELPHI",
    "ERLANG",
    "RUBY",
    "OTHER",
    "HTTP",
    "GO",
    "PHP",
    "OMS",
    "RUST",
    "NODE_JS",
)
"""RocketMQ's LanguageCode: the index is the number on the wire."""

_LANGUAGE_NUMBERS = {name: number for number, name in enumerate(LANGUAGES)}
_HEAD = struct.Struct(">hBhiii")
_HEAD_WITHOUT_REMARK = struct.Struct(">hBhiiii")
_unpack_head = _HEAD_WITHOUT_REMARK.unpack_from
_REMARK_AT = _HEAD.size
_INT = struct.Struct(">i")
_ROCKETMQ = SerializeType.ROCKETMQ
_LANGUAGE_OTHER = LANGUAGES.index("OTHER")
layouts = LayoutCache()


def _cut(code: int) -> int:
    return ((code & 0xFFFF) ^ 0x8000) - 0x8000


_known = {*map(int, RequestCode), *map(int, ResponseCode)}
_restored_codes = {_cut(code): code for code in map(int, RequestCode) if code > 32_767 and _cut(code) not in _known}


def decode_binary_header(data: bytes, body: bytes, at: int = 0, end: int | None = None) -> Command:
    """The command with the binary header data[at:end]; ProtocolError when a length leads outside it."""
    if end is None:
        end = len(data)
    form = layouts.forms.get(end - at)
    if form is not None:
        pieces = form.unpack(data, at)
        literals = pieces[::2]
        likeness = form.newest if literals == form.literals else form.find(literals)
        if likeness is not None and data[at + AREA_AT : end].isascii():
            values = pieces[1::2]
            return Command(
                likeness.code,
                None,
                None,
                body,
                None,
                likeness.flag,
                values[0],
                likeness.language,
                likeness.version,
                _ROCKETMQ,
                LikeFields(likeness, values),
            )
    if end - at < _HEAD_WITHOUT_REMARK.size:
        raise ProtocolError(f"binary header of {end - at} bytes is shorter than its fixed part", fatal=True)
    code, language, version, opaque, flag, remark_size, fields_size = _unpack_head(data, at)
    fields_at = at + _REMARK_AT + remark_size + 4
    if remark_size:
        if remark_size < 0 or fields_at > end:
            raise ProtocolError(f"binary header states a remark of {remark_size} bytes", fatal=True)
        (fields_size,) = _INT.unpack_from(data, fields_at - 4)
    if fields_size < 0 or fields_at + fields_size > end:
        raise ProtocolError(f"binary header states {fields_size} bytes of fields", fatal=True)
    fields_end = fields_at + fields_size
    area = data[fields_at:fields_end]
    fields: BinaryFields | dict[str, str] | None
    try:
        remark = data[at + _REMARK_AT : fields_at - 4].decode() if remark_size else None
        layout = layouts.layout(area)
        if layout is None:
            fields = _walk(area)
        elif area.isascii() and not remark_size and fields_end == end:
            fields = BinaryFields(data[at:end], layout)
        else:
            fields = layout.fields(area)
    except UnicodeDecodeError as error:
        raise ProtocolError(f"binary header holds text that is not UTF-8: {error}", fatal=True) from None
    return Command(
        _restored_codes.get(code, code),
        None,
        None,
        body,
        remark,
        flag,
        opaque,
        LANGUAGES[language] if language < len(LANGUAGES) else "OTHER",
        version,
        _ROCKETMQ,
        fields,
    )


def _walk(area: bytes) -> dict[str, str] | None:
    """The fields that fill `area`, one by one; None when there are none."""
    unpack = _INT.unpack_from
    position = 0
    end = len(area)
    fields: dict[str, str] = {}
    learn = layouts.wants(len(area))
    names: list[str] = []
    places: list[slice] = []
    text = area.decode("latin-1")  # a character a byte, cut far faster than bytes are decoded
    try:
        while position < end:
            name_end = position + 2 + (area[position] << 8 | area[position + 1])
            value_at = name_end + 4
            name = text[position + 2 : name_end]
            position = value_at + unpack(area, name_end)[0]
            if not value_at <= position <= end:
                raise ProtocolError("a field of the binary header ends outside it", fatal=True)
            value = text[value_at:position]
            if not name.isascii():
                name = name.encode("latin-1").decode()
            fields[name] = value if value.isascii() else value.encode("latin-1").decode()
            if learn:
                names.append(name)
                places.append(slice(value_at, position))
    except (IndexError, struct.error):
        raise ProtocolError("a field of the binary header ends outside it", fatal=True) from None
    if len(fields) > EXT_FIELDS_MAX:
        raise ProtocolError(f"{len(fields)} header fields; at most {EXT_FIELDS_MAX}", fatal=True)
    if learn:
        layouts.learn(area, names, places)
    return fields or None


def encode_binary_header(command: Command) -> bytes:
    """The binary header of a command; None and absent parts have length 0."""
    fields = outgoing_texts(command)
    area = _area(fields) if fields else b""
    remark = command.remark.encode() if command.remark else b""
    code = command.code
    version = command.version
    head = _HEAD.pack(
        code if -32_768 <= code <= 32_767 else _cut(code),
        _LANGUAGE_NUMBERS.get(command.language, _LANGUAGE_OTHER),
        version if -32_768 <= version <= 32_767 else _cut(version),
        command.opaque,
        command.flag,
        len(remark),
    )
    return b"".join((head, remark, _INT.pack(len(area)), area))


def _area(fields: dict[str, str]) -> bytes:
    """All fields, each a counted name and a counted value; made as one text where all is ASCII and short."""
    try:
        text = "".join([f"{_counted_text(name)}{_SHORT_SIZES[len(value)]}{value}" for name, value in fields.items()])
        if text.isascii():
            return text.encode()
    except IndexError:
        pass  # a value of 128 characters or more
    parts: list[bytes] = []
    for name, value in fields.items():
        value_bytes = value.encode()
        parts += (_counted(name), _INT.pack(len(value_bytes)), value_bytes)
    return b"".join(parts)


def _counted(name: str) -> bytes:
    """A name with its length before it."""
    name_bytes = name.encode()
    if len(name_bytes) > 32_767:
        raise ProtocolError(f"a header field's name has {len(name_bytes)} bytes; at most 32767 fit")
    return len(name_bytes).to_bytes(2, "big") + name_bytes


@lru_cache(256)
def _counted_text(name: str) -> str:
    return _counted(name).decode("latin-1")


_SHORT_SIZES = tuple(f"\0\0\0{chr(size)}" for size in range(128))
