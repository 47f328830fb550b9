"""Commands as CBOR: a WebSocket message is a sequence of maps, one a command (protocol/command.cddl).

A map has the JSON header's own keys; values in extFields are typed (int, bool, text), the body is a byte string.
Strict: known keys of the right type only, no tags, no duplicate keys, no deep nesting; the size is checked first.
"""

from __future__ import annotations

from io import BytesIO

import cbor2

from trio_rmq.errors import ProtocolError
from trio_rmq.limits import EXT_FIELDS_MAX, FRAME_SIZE_MAX_BYTES, HEADER_DEPTH_MAX
from trio_rmq.wire.command import Command, Scalar, SerializeType, header_items

SUB_PROTOCOL = "rmq.cbor.v1"
"""The WebSocket sub-protocol that stands for this encoding."""

_CBOR = SerializeType.CBOR
_KEYS = frozenset({"code", "opaque", "flag", "language", "version", "remark", "extFields", "body"})
_INT32 = range(-(2**31), 2**31)
_INT64 = range(-(2**63), 2**63)


def decode_commands(message: bytes) -> list[Command]:
    """All commands of one message; ProtocolError(fatal=True) when it is no sequence of valid command maps."""
    if len(message) > FRAME_SIZE_MAX_BYTES:
        raise ProtocolError(f"message of {len(message)} bytes; at most {FRAME_SIZE_MAX_BYTES}", fatal=True)
    source = BytesIO(message)
    decoder = cbor2.CBORDecoder(
        source, max_depth=HEADER_DEPTH_MAX, allow_duplicate_keys=False, allow_indefinite=False, tag_hook=_refuse_tag
    )
    commands: list[Command] = []
    size = len(message)
    try:
        while source.tell() < size:
            commands.append(_command(decoder.decode()))
    except (cbor2.CBORDecodeError, ValueError, TypeError, OverflowError, EOFError, RecursionError) as error:
        raise ProtocolError(f"malformed CBOR: {error}", fatal=True) from None
    return commands


def _refuse_tag(decoder: object, tag: object) -> object:
    raise ProtocolError("a CBOR tag has no place in a command", fatal=True)


def _command(item: object) -> Command:
    if type(item) is not dict or not item.keys() <= _KEYS:
        raise ProtocolError("a command is a map with the keys of protocol/command.cddl", fatal=True)
    get = item.get
    code = get("code", _INT32.stop)
    opaque = get("opaque", 0)
    flag = get("flag", 0)
    version = get("version", 0)
    for name, number in (("code", code), ("opaque", opaque), ("flag", flag), ("version", version)):
        if type(number) is not int or number not in _INT32:
            raise ProtocolError(f"{name} of a command must be a 32-bit integer", fatal=True)
    language = get("language", "OTHER")
    remark = get("remark")
    body = get("body", b"")
    if type(language) is not str or not (remark is None or type(remark) is str) or type(body) is not bytes:
        raise ProtocolError("language and remark of a command are text, its body is a byte string", fatal=True)
    fields = get("extFields")
    return Command(
        code,
        flag=flag,
        opaque=opaque,
        language=language,
        version=version,
        remark=remark,
        body=body,
        serialize_type=_CBOR,
        raw_ext=None if fields is None else _fields(fields),
    )


def _fields(fields: object) -> dict[str, Scalar]:
    if type(fields) is not dict or len(fields) > EXT_FIELDS_MAX:
        raise ProtocolError(f"extFields is a map with at most {EXT_FIELDS_MAX} entries", fatal=True)
    for name, value in fields.items():
        kind = type(value)
        if type(name) is not str or not (kind is str or kind is bool or (kind is int and value in _INT64)):
            raise ProtocolError("extFields maps text to 64-bit integers, booleans or text", fatal=True)
    return fields


def encode_commands(commands: list[Command]) -> bytes:
    """One message with all `commands`, in order."""
    return b"".join([cbor2.dumps(_item(command)) for command in commands])


def _item(command: Command) -> dict[str, object]:
    item: dict[str, object] = {"code": int(command.code), "opaque": command.opaque, "flag": command.flag}
    item["language"] = command.language
    item["version"] = command.version
    if command.remark is not None:
        item["remark"] = command.remark
    fields: dict[str, object] = {}
    header = command.header
    if header is not None:
        for attribute, name in header_items(header):
            value = getattr(header, attribute)
            if value is not None:
                fields[name] = value
    elif command.ext is None and command.raw_ext is not None:
        fields.update(command.ext_fields())
    if command.ext:
        fields.update(command.ext)
    if fields:
        item["extFields"] = fields
    if command.body:
        item["body"] = bytes(command.body)
    return item
