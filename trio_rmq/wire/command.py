"""One remoting command - request or response - as a value, whatever encoding it came in or leaves by.

Invariants: a response carries its request's `opaque` and `serialize_type`; a header field of an incoming command is
looked at only through `decode_header` or `ext`; nothing here knows a transport.
Source of names and flag bits: RocketMQ remoting/protocol/RemotingCommand (see protocol/README.md).
"""

from __future__ import annotations

from enum import IntEnum
from typing import TypeVar

import msgspec

from trio_rmq.errors import ProtocolError

HeaderT = TypeVar("HeaderT", bound=msgspec.Struct)

FLAG_RESPONSE = 1
FLAG_ONEWAY = 2
PROTOCOL_VERSION = 409
"""MQVersion ordinal we announce: V4_9_8. Java clients enable SQL92 from 232 and strict-JSON routes from 401."""


class SerializeType(IntEnum):
    """How a command's header travels; JSON and ROCKETMQ are the frame's type byte, CBOR exists only on WebSocket."""

    JSON = 0
    ROCKETMQ = 1
    CBOR = 2


class Command:
    """A request or response.

    `header` (typed, outgoing) and `ext` (text fields, outgoing extras) leave together as extFields; an incoming
    command has `raw_ext`: JSON bytes, or a mapping from the binary and CBOR decoders, decoded only when asked for.
    `body` is bytes-like and never copied on its way through.
    """

    __slots__ = (
        "body", "code", "ext", "flag", "header", "language", "opaque", "raw_ext", "remark", "serialize_type", "version",
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
        self.raw_ext: bytes | dict[str, object] | None = None

    @property
    def is_response(self) -> bool:
        """Whether flag bit 0 is set."""
        return bool(self.flag & FLAG_RESPONSE)

    @property
    def is_oneway(self) -> bool:
        """Whether flag bit 1 is set: nobody waits for an answer, and none is sent."""
        return bool(self.flag & FLAG_ONEWAY)

    def decode_header(self, header_type: type[HeaderT]) -> HeaderT:
        """The incoming header fields as `header_type`; ProtocolError names a missing or mistyped field."""
        raise ProtocolError("not built yet")  # the wire room fills this in

    def ext_fields(self) -> dict[str, str]:
        """All incoming header fields as text, as RocketMQ's extFields; ProtocolError when they are no flat map."""
        raise ProtocolError("not built yet")  # the wire room fills this in

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
