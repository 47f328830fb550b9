"""One remoting command - request or response - as a value, whatever encoding it came in or leaves by.

Invariants: a response carries its request's `opaque` and `serialize_type`; a header field of an incoming command is
looked at only through `decode_header` or `ext_fields`; nothing here knows a transport.
Source of names and flag bits: RocketMQ remoting/protocol/RemotingCommand (see protocol/README.md).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import TypeVar

import msgspec

from trio_rmq.errors import ProtocolError
from trio_rmq.limits import EXT_FIELDS_MAX
from trio_rmq.wire.binary_layouts import BinaryFields, LikeFields

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


class Command(msgspec.Struct, eq=False):
    """A request or response; all but `code` are given by keyword.

    `header` (typed, outgoing) and `ext` (text fields, outgoing extras) leave together as extFields; an incoming
    command has `raw_ext` instead: JSON text, binary fields, or a mapping from the binary and CBOR decoders, decoded
    only when asked for.  A command that has only `raw_ext` can be sent on as it came.  A Struct because it is made in
    C, not compared.
    """

    code: int
    header: msgspec.Struct | None = None
    ext: dict[str, str] | None = None
    body: bytes = b""
    remark: str | None = None
    flag: int = 0
    opaque: int = 0
    language: str = "PYTHON"
    version: int = PROTOCOL_VERSION
    serialize_type: SerializeType = SerializeType.JSON
    raw_ext: bytes | msgspec.Raw | Mapping[str, Scalar] | BinaryFields | LikeFields | None = None

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

        Fields that `header_type` does not know are ignored.  In the text encodings a number may stand unquoted and a
        text be given as a number (Node's client), and a truth value is read as Java does: anything but true (or 1) is
        false.  A null field counts as absent, in ROCKETMQ an empty number too.  CBOR fields have their type; decimal
        digits stand for a number.  A locally made command gives its own header back.
        """
        raw = self.raw_ext
        try:
            if type(raw) is LikeFields:
                return raw.header(header_type)
            if type(raw) is BinaryFields:
                return raw.header(header_type, self)
            if type(raw) is dict:
                return msgspec.convert(raw, header_type, strict=False)
            if raw is not None:
                decoder = _header_decoders.get(header_type)
                if decoder is None:
                    decoder = _header_decoders[header_type] = msgspec.json.Decoder(header_type, strict=False)
                return decoder.decode(raw)  # type: ignore[return-value, arg-type] # keyed by the type decoded to
            if isinstance(self.header, header_type) and self.ext is None:
                return self.header
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            if self.serialize_type is SerializeType.CBOR:
                raise _header_error(self, header_type, error) from None
        try:
            return msgspec.convert(
                _lenient_fields(self.ext_fields(), header_type, self.serialize_type), header_type, strict=False
            )
        except (msgspec.MsgspecError, ValueError) as error:
            raise _header_error(self, header_type, error) from None

    def ext_fields(self) -> dict[str, str]:
        """All header fields as text, as RocketMQ's extFields; ProtocolError when they are no flat map of scalars."""
        raw = self.raw_ext
        if raw is None:
            fields = header_texts(self.header) if self.header is not None else {}
            if self.ext:
                fields.update(self.ext)
            return fields
        if isinstance(raw, BinaryFields | LikeFields):
            return raw.fields()
        if not isinstance(raw, Mapping):
            try:
                raw = _flat_map_decoder.decode(raw) or {}
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
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
            header,
            ext,
            body,
            remark,
            FLAG_RESPONSE,
            self.opaque,
            "PYTHON",
            PROTOCOL_VERSION,
            self.serialize_type,
        )


def header_items(header_type: type[msgspec.Struct]) -> tuple[tuple[str, str], ...]:
    """(attribute, wire name) of each field of a header type, in order of definition."""
    items = _header_items.get(header_type)
    if items is None:
        items = tuple(zip(header_type.__struct_fields__, header_type.__struct_encode_fields__, strict=True))
        _header_items[header_type] = items
    return items


def header_texts(header: msgspec.Struct) -> dict[str, str]:
    """The fields of a typed header by wire name, as RocketMQ writes them; None is left out."""
    writer = _text_writers.get(type(header))
    if writer is None:
        writer = _text_writers[type(header)] = getattr(type(header), "to_texts", _any_header_texts)
    return writer(header)


def outgoing_texts(command: Command) -> dict[str, str] | None:
    """The text fields that leave with a command; None when it has none at all, as opposed to an empty header."""
    header = command.header
    if header is not None:
        fields = (_text_writers.get(type(header)) or header_texts)(header)
        if command.ext:
            fields.update(command.ext)
        return fields
    if command.ext is not None:
        return command.ext
    return None if command.raw_ext is None else command.ext_fields()


def _any_header_texts(header: msgspec.Struct) -> dict[str, str]:
    fields: dict[str, str] = {}
    for attribute, name in header_items(type(header)):
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


def _lenient_fields(
    texts: dict[str, str], header_type: type[msgspec.Struct], serialize_type: SerializeType
) -> dict[str, str]:
    """`texts` with what Java's parsers take and msgspec does not in the form that both take."""
    fields = dict(texts)
    for name, kind in _field_kinds(header_type).items():
        text = fields.get(name)
        if text is None:
            continue
        if kind is bool:
            fields[name] = "true" if text.lower() in ("true", "1") else "false"
        elif kind is int:
            if not text and serialize_type is SerializeType.ROCKETMQ:
                del fields[name]  # zero length means null there
            elif _JAVA_NUMBER.fullmatch(text):
                fields[name] = str(int(text))
            else:
                fields[name] = "no number"  # neither 1e3 nor null
    return fields


def _field_kinds(header_type: type[msgspec.Struct]) -> dict[str, type]:
    kinds = _header_kinds.get(header_type)
    if kinds is None:
        kinds = _header_kinds[header_type] = {}
        for field in msgspec.structs.fields(header_type):
            written = str(field.type)
            kinds[field.encode_name] = bool if "bool" in written else int if "int" in written else str
    return kinds


def _header_error(command: Command, header_type: type[msgspec.Struct], error: Exception) -> ProtocolError:
    """Names the field by its wire name and, where that is one letter, by its meaning."""
    reason = str(error)
    if found := re.search(r"(?:field `|at `\$\.)(\w+)`", reason):
        wire_name = found[1]
        meaning = next((attribute for attribute, name in header_items(header_type) if name == wire_name), wire_name)
        if reason.startswith("Object missing"):
            reason = "is missing"
        else:
            reason = "is " + reason.split(" - at ")[0].replace("Expected", "not")
        field = wire_name if len(wire_name) > 1 else f"{wire_name} ({meaning})"
        return ProtocolError(f"header field {field} of {header_type.__name__} {reason} ({command!r})")
    return ProtocolError(f"header fields of {command!r} cannot be read as {header_type.__name__}: {reason}")


_JAVA_NUMBER = re.compile(r"[+-]?[0-9]{1,40}")
_flat_map_decoder = msgspec.json.Decoder(dict[str, Scalar] | None)
_header_decoders: dict[type, msgspec.json.Decoder[msgspec.Struct]] = {}
_header_items: dict[type, tuple[tuple[str, str], ...]] = {}
_header_kinds: dict[type, dict[str, type]] = {}
_text_writers: dict[type, Callable[[msgspec.Struct], dict[str, str]]] = {}
