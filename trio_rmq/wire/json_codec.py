"""The JSON header encoding of a remoting command.

Keys are written in the order in which Apache's serializer does (by name), so that equal commands are equal bytes.
Fields of an incoming command stay text until a handler asks for them, and leave again as that text; those of sends like
earlier ones are not even looked at (`json_forms`).
Source: RocketMQ RemotingCommand, RemotingSerializable; protocol/layouts.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from trio_rmq.errors import ProtocolError
from trio_rmq.wire.binary_layouts import BinaryFields, LikeFields
from trio_rmq.wire.command import FLAG_RESPONSE, PROTOCOL_VERSION, Command, SerializeType, outgoing_texts
from trio_rmq.wire.json_forms import SEND_CODE, JsonForms

_Int = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
_ABSENT = msgspec.Raw(b"")


class _Envelope(msgspec.Struct, gc=False):
    """The header object; extFields stays undecoded until a handler asks for it."""

    code: _Int
    ext_fields: msgspec.Raw = msgspec.field(default=_ABSENT, name="extFields")
    flag: _Int = 0
    language: str | None = None
    opaque: _Int = 0
    remark: str | None = None
    version: _Int = 0


_decode = msgspec.json.Decoder(_Envelope).decode
_decode_lenient = msgspec.json.Decoder(_Envelope, strict=False).decode
_encode = msgspec.json.Encoder().encode
_JSON = SerializeType.JSON
_ZERO = ord("0")
_REPLY = b'{"code":%%d,"extFields":%%b,"flag":%d,"language":"PYTHON","opaque":%%d,%b,"version":%d}' % (
    FLAG_RESPONSE,
    b'"serializeTypeCurrentRPC":"JSON"',
    PROTOCOL_VERSION,
)

_REQUEST = (
    b'{"code":%d,"extFields":%b,"flag":%d,"language":"PYTHON","opaque":%d,'
    b'"serializeTypeCurrentRPC":"JSON","version":%d}'
)


def decode_json_header(header: bytes, body: bytes) -> Command:
    """The command with this JSON header; ProtocolError when it is no JSON object of the known shape."""
    form = forms.by_size.get(len(header))
    if form is not None:
        pieces = form.unpack(header)
        literals = pieces[::2]
        likeness = form.newest if literals == form.literals else form.find(literals)
        slots = pieces[1::2]
        if likeness is not None and b"".join(slots).isalnum():
            queue_id, time, unique_id, opaque = slots
            if opaque.isdigit() and (opaque[0] != _ZERO or len(opaque) == 1):
                properties = likeness.before + unique_id + likeness.after
                return Command(
                    likeness.code,
                    None,
                    None,
                    body,
                    None,
                    likeness.flag,
                    int(opaque),
                    likeness.language,
                    likeness.version,
                    _JSON,
                    LikeFields(likeness, (opaque, queue_id, time, properties)),
                )
    try:
        envelope = _decode(header)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        envelope = _decode_odd(header)
    raw = envelope.ext_fields
    command = Command(
        envelope.code,
        None,
        None,
        body,
        envelope.remark,
        envelope.flag,
        envelope.opaque,
        envelope.language or "JAVA",
        envelope.version,
        _JSON,
        None if raw is _ABSENT else raw,
    )
    if envelope.code == SEND_CODE:
        forms.missed(header, command)
    return command


def _decode_odd(header: bytes) -> _Envelope:
    """Numbers as text and the separators of properties as they are: what Apache's parser takes besides strict JSON."""
    try:
        return _decode_lenient(header.replace(b"\x01", b"\\u0001").replace(b"\x02", b"\\u0002"))
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ProtocolError(f"malformed JSON header: {error}", fatal=True) from None


def encode_json_header(command: Command) -> bytes:
    """The JSON header of a command; absent (None) parts are left out, as RocketMQ does."""
    raw = command.raw_ext
    fields: bytes | msgspec.Raw | None
    if (
        raw is None
        or command.header is not None
        or command.ext is not None
        or isinstance(raw, Mapping | BinaryFields | LikeFields)
    ):
        texts = outgoing_texts(command)
        fields = None if texts is None else _encode(texts)
    else:
        fields = raw
    if (
        command.flag == FLAG_RESPONSE
        and fields is not None
        and command.remark is None
        and command.language == "PYTHON"
        and command.version == PROTOCOL_VERSION
    ):
        return _REPLY % (command.code, fields, command.opaque)
    if command.remark is None and fields is not None and command.language == "PYTHON":
        return _REQUEST % (command.code, fields, command.flag, command.opaque, command.version)
    return b'{"code":%d%b,"flag":%d,"language":%b,"opaque":%d%b,"serializeTypeCurrentRPC":"JSON","version":%d}' % (
        command.code,
        b"" if fields is None else b',"extFields":%b' % fields,
        command.flag,
        _encode(command.language),
        command.opaque,
        b"" if command.remark is None else b',"remark":%b' % _encode(command.remark),
        command.version,
    )


forms = JsonForms(encode_json_header)
