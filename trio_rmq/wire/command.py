"""One remoting command - request or response - as a value, whatever encoding it came in or leaves by.

Invariants: a response carries its request's `opaque` and `serialize_type`; a header field of an incoming command is
looked at only through `decode_header` or `ext_fields`; nothing here knows a transport.
Source of names and flag bits: RocketMQ remoting/protocol/RemotingCommand (see protocol/README.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import TypeVar

import msgspec

from trio_rmq.errors import ProtocolError
from trio_rmq.limits import EXT_FIELDS_MAX

HeaderT = TypeVar("HeaderT", bound=msgspec.Struct)
Scalar = str | int | float | bool | None

FLAG_RESPONSE = 1
FLAG_ONEWAY = 2
PROTOCOL_VERSION = 409
"""MQVersion ordinal we announce: V4_9_8. Java clients enable SQL92 from 232 and strict-JSON routes from 401."""


class SerializeType(IntEnum):
    """How a command's header travels; JSON and ROCKETMQ are the frame's type byte, CBOR exists only on WebSocket."""

    JSON = 0
    ROCKETMQ = 1
    CBOR = 2


_header_decoders: dict[type, msgspec.json.Decoder[msgspec.Struct]] = {}
_flat_map_decoder = msgspec.json.Decoder(dict[str, Scalar])
_header_fields: dict[type, tuple[tuple[str, str], ...]] = {}


class Command:
    """A request or response.

    `header` (typed, outgoing) and `ext` (text fields, outgoing extras) leave together as extFields; an incoming
    command has `raw_ext`: JSON text, or a mapping from the binary and CBOR decoders, decoded only when asked for.
    """

    __slots__ = (
        "body",
        "code",
        "ext",
        "flag",
        "header",
        "language",
        "opaque",
        "raw_ext",
        "remark",
        "serialize_type",
        "version",
    )

    def __init__(
        self,
        code: int,
        *,
        header: msgspec.Struct | None = None,
        ext: dict[str, str] | None = None,
        body: bytes = b"",
        remark: str | None = None,
        flag: int = 0,
        opaque: int = 0,
        language: str = "PYTHON",
        version: int = PROTOCOL_VERSION,
        serialize_type: SerializeType = SerializeType.JSON,
        raw_ext: bytes | msgspec.Raw | Mapping[str, Scalar] | None = None,
    ) -> None:
        self.code = code
        self.header = header
        self.ext = ext
        self.body = body
        self.remark = remark
        self.flag = flag
        self.opaque = opaque
        self.language = language
        self.version = version
        self.serialize_type = serialize_type
        self.raw_ext = raw_ext

    def __repr__(self) -> str:
        kind = "response" if self.is_response else "oneway" if self.is_oneway else "request"
        return f"<{kind} {self.code} opaque={self.opaque} {self.serialize_type.name} body={len(self.body)}>"

    @property
    def is_response(self) -> bool:
        """Whether flag bit 0 is set."""
        return bool(self.flag & FLAG_RESPONSE)

    @property
    def is_oneway(self) -> bool:
        """Whether flag bit 1 is set: nobody waits for an answer, and none is sent."""
        return bool(self.flag & FLAG_ONEWAY)

    def decode_header(self, header_type: type[HeaderT]) -> HeaderT:
        """The header fields as `header_type`; ProtocolError (code 1) names a missing or mistyped field.

        Text stands for a number or truth value as RocketMQ writes them, and a scalar stands for its text (Node's client
        sends numbers unquoted). A null field counts as absent. A locally made command gives its own header back.
        """
        raw = self.raw_ext
        if raw is None:
            if isinstance(self.header, header_type) and self.ext is None:
                return self.header
            raw = self.ext_fields() if self.header is not None or self.ext else {}
        try:
            if isinstance(raw, Mapping):
                return msgspec.convert(raw, header_type, strict=False)
            decoder = _header_decoders.get(header_type)
            if decoder is None:
                decoder = _header_decoders[header_type] = msgspec.json.Decoder(header_type, strict=False)
            return decoder.decode(raw)  # type: ignore[return-value] # the table is keyed by the type decoded to
        except (msgspec.MsgspecError, UnicodeDecodeError):
            pass
        try:
            return msgspec.convert(self.ext_fields(), header_type, strict=False)
        except msgspec.ValidationError as error:
            raise ProtocolError(f"request {self.code}: header field of {header_type.__name__}: {error}") from None

    def ext_fields(self) -> dict[str, str]:
        """All header fields as text, as RocketMQ's extFields; ProtocolError when they are no flat map of scalars."""
        raw = self.raw_ext
        if raw is None:
            fields = header_texts(self.header) if self.header is not None else {}
            if self.ext:
                fields.update(self.ext)
            return fields
        if not isinstance(raw, Mapping):
            try:
                raw = _flat_map_decoder.decode(raw)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise ProtocolError(f"extFields of command {self.code} is no flat map: {error}") from None
            if len(raw) > EXT_FIELDS_MAX:
                raise ProtocolError(f"command {self.code} has {len(raw)} header fields; at most {EXT_FIELDS_MAX}")
        return {name: value if type(value) is str else _text(value) for name, value in raw.items() if value is not None}

    def reply(
        self,
        code: int = 0,
        *,
        header: msgspec.Struct | None = None,
        ext: dict[str, str] | None = None,
        body: bytes = b"",
        remark: str | None = None,
    ) -> Command:
        """The response to this request: same opaque, same encoding, response bit set."""
        return Command(
            code,
            header=header,
            ext=ext,
            body=body,
            remark=remark,
            flag=FLAG_RESPONSE,
            opaque=self.opaque,
            serialize_type=self.serialize_type,
        )


def header_items(header: msgspec.Struct) -> tuple[tuple[str, str], ...]:
    """(attribute, wire name) of each field of a header's type, in order of definition."""
    kind = type(header)
    items = _header_fields.get(kind)
    if items is None:
        items = tuple(zip(header.__struct_fields__, header.__struct_encode_fields__, strict=True))
        _header_fields[kind] = items
    return items


def header_texts(header: msgspec.Struct) -> dict[str, str]:
    """The fields of a typed header by wire name, as RocketMQ writes them; None is left out."""
    fields: dict[str, str] = {}
    for attribute, name in header_items(header):
        value = getattr(header, attribute)
        if value is not None:
            fields[name] = value if type(value) is str else _text(value)
    return fields


def _text(value: Scalar) -> str:
    if value is True:
        return "true"
    if value is False:
        return "false"
    return str(value)
