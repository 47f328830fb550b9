"""The ROCKETMQ (binary) header encoding of a remoting command.

short code, byte language, short version, int opaque, int flag, int-counted remark, int-counted fields; a field is a
short-counted name and an int-counted value.  Zero length means none.  A code over 32,767 is cut to 16 bits by writers;
it is given back where it cannot be mistaken for another.  Source: RocketMQSerializable; protocol/layouts.md.
"""

from __future__ import annotations

import struct

from trio_rmq.errors import ProtocolError
from trio_rmq.limits import EXT_FIELDS_MAX
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command, SerializeType, header_texts

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
_HEAD_SIZE = _HEAD.size
_INT = struct.Struct(">i")
_ROCKETMQ = SerializeType.ROCKETMQ


def _cut(code: int) -> int:
    return ((code & 0xFFFF) ^ 0x8000) - 0x8000


_known = {*map(int, RequestCode), *map(int, ResponseCode)}
_restored_codes = {_cut(code): code for code in map(int, RequestCode) if code > 32_767 and _cut(code) not in _known}


def decode_binary_header(header: bytes, body: bytes) -> Command:
    """The command with this binary header; ProtocolError when a length leads outside it."""
    size = len(header)
    if size < _HEAD_SIZE + 4:
        raise ProtocolError(f"binary header of {size} bytes is shorter than its fixed part", fatal=True)
    code, language, version, opaque, flag, remark_size = _HEAD.unpack_from(header)
    position = _HEAD_SIZE + remark_size
    if remark_size < 0 or position + 4 > size:
        raise ProtocolError(f"binary header states a remark of {remark_size} bytes", fatal=True)
    try:
        remark = header[_HEAD_SIZE:position].decode() if remark_size else None
        fields = _decode_fields(header, position, size)
    except UnicodeDecodeError as error:
        raise ProtocolError(f"binary header holds text that is not UTF-8: {error}", fatal=True) from None
    return Command(
        code if code in _known else _restored_codes.get(code, code),
        flag=flag,
        opaque=opaque,
        language=LANGUAGES[language] if language < len(LANGUAGES) else "OTHER",
        version=version,
        remark=remark,
        body=body,
        serialize_type=_ROCKETMQ,
        raw_ext=fields,
    )


def _decode_fields(header: bytes, position: int, size: int) -> dict[str, str] | None:
    fields_size = int.from_bytes(header[position : position + 4], "big", signed=True)
    position += 4
    if fields_size < 0 or position + fields_size > size:
        raise ProtocolError(f"binary header states {fields_size} bytes of fields", fatal=True)
    if not fields_size:
        return None
    end = position + fields_size
    fields: dict[str, str] = {}
    try:
        while position < end:
            value_at = position + 6 + (header[position] << 8 | header[position + 1])
            next_at = value_at + int.from_bytes(header[value_at - 4 : value_at], "big")
            if next_at > end:
                raise ProtocolError("a field of the binary header ends outside it", fatal=True)
            fields[header[position + 2 : value_at - 4].decode()] = header[value_at:next_at].decode()
            position = next_at
    except IndexError:
        raise ProtocolError("a field of the binary header ends outside it", fatal=True) from None
    if len(fields) > EXT_FIELDS_MAX:
        raise ProtocolError(f"{len(fields)} header fields; at most {EXT_FIELDS_MAX}", fatal=True)
    return fields


def encode_binary_header(command: Command) -> bytes:
    """The binary header of a command; None and absent parts have length 0."""
    if command.header is not None:
        fields = header_texts(command.header)
        if command.ext:
            fields.update(command.ext)
    else:
        fields = command.ext if command.ext is not None else command.ext_fields()
    parts = []
    for name, value in fields.items():
        name_bytes = name.encode()
        value_bytes = value.encode()
        parts.append(b"%b%b%b%b" % (_SHORTS[len(name_bytes)], name_bytes, _INT.pack(len(value_bytes)), value_bytes))
    field_bytes = b"".join(parts)
    remark = command.remark.encode() if command.remark else b""
    return b"%b%b%b%b" % (
        _HEAD.pack(
            _cut(command.code),
            _LANGUAGE_NUMBERS.get(command.language, 7),
            _cut(command.version),
            command.opaque,
            command.flag,
            len(remark),
        ),
        remark,
        _INT.pack(len(field_bytes)),
        field_bytes,
    )


_SHORTS = tuple(struct.pack(">H", size) for size in range(256))
