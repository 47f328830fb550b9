"""The JSON header encoding of a remoting command.

Keys are written in the order in which Apache's serializer does (by name), so that equal commands are equal bytes.
Source: RocketMQ RemotingCommand, RemotingSerializable; protocol/layouts.md.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from trio_rmq.errors import ProtocolError
from trio_rmq.wire.command import Command, SerializeType, header_texts

_Int = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]


_ABSENT = msgspec.Raw(b"")


class _Envelope(msgspec.Struct, gc=False):
    """The header object; extFields stays undecoded until a handler asks for it."""

    code: _Int
    opaque: _Int = 0
    flag: _Int = 0
    language: str | None = None
    version: _Int = 0
    remark: str | None = None
    ext_fields: msgspec.Raw = msgspec.field(default=_ABSENT, name="extFields")


_envelope_decoder = msgspec.json.Decoder(_Envelope)
_lenient_envelope_decoder = msgspec.json.Decoder(_Envelope, strict=False)
_encode = msgspec.json.Encoder().encode
_JSON = SerializeType.JSON
_NO_FIELDS = (_ABSENT, msgspec.Raw(b"null"))


def decode_json_header(header: bytes, body: bytes) -> Command:
    """The command with this JSON header; ProtocolError when it is no JSON object of the known shape."""
    try:
        envelope = _envelope_decoder.decode(header)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        try:
            envelope = _lenient_envelope_decoder.decode(header)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolError(f"malformed JSON header: {error}", fatal=True) from None
    raw = envelope.ext_fields
    return Command(
        envelope.code,
        flag=envelope.flag,
        opaque=envelope.opaque,
        language=envelope.language or "JAVA",
        version=envelope.version,
        remark=envelope.remark,
        body=body,
        serialize_type=_JSON,
        raw_ext=None if raw in _NO_FIELDS else raw,
    )


def encode_json_header(command: Command) -> bytes:
    """The JSON header of a command; absent (None) parts are left out, as RocketMQ does."""
    fields = command.ext
    if command.header is not None:
        fields = header_texts(command.header)
        if command.ext:
            fields.update(command.ext)
    elif fields is None and command.raw_ext is not None:
        fields = command.ext_fields()
    text = b'{"code":%d,' % command.code
    if fields is not None:
        text += b'"extFields":%b,' % _encode(fields)
    if command.remark is None:
        return text + b'"flag":%d,"language":"%b","opaque":%d,"serializeTypeCurrentRPC":"JSON","version":%d}' % (
            command.flag,
            command.language.encode(),
            command.opaque,
            command.version,
        )
    return (
        text
        + b'"flag":%d,"language":"%b","opaque":%d,"remark":%b,"serializeTypeCurrentRPC":"JSON","version":%d}'
        % (
            command.flag,
            command.language.encode(),
            command.opaque,
            _encode(command.remark),
            command.version,
        )
    )
