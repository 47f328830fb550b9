"""Commands as CBOR: a WebSocket message is a sequence of maps, one a command (protocol/command.cddl).

A map has the JSON header's own keys; values in extFields are typed (integer, boolean, text), the body is a byte string.
The decoder is written out here because it must refuse before it builds: no tags, no indefinite lengths, no nesting but
the one known, no unknown or repeated key, a bounded count of everything; a general decoder would first make objects of
16 MiB of one-byte items.  It is as fast as one, knowing what to expect.  Source: RFC 8949; names: headers.json.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import cbor2
import msgspec

from trio_rmq.errors import ProtocolError
from trio_rmq.limits import COMMANDS_PER_MESSAGE_MAX, EXT_FIELDS_MAX, FRAME_SIZE_MAX_BYTES, HEADER_SIZE_MAX_BYTES
from trio_rmq.wire import headers
from trio_rmq.wire.command import FLAG_RESPONSE, Command, Scalar, SerializeType, header_items
from trio_rmq.wire.headers import LONG_NAMES, NUMBERS_WITH_LONG_NAMES

SUB_PROTOCOL = "rmq.cbor.v1"
"""The WebSocket sub-protocol that stands for this encoding."""

SAFE_INTEGER_MAX = 2**53 - 1
"""Largest whole float taken for an integer: JavaScript libraries write numbers over 32 bits as floats."""

_CBOR = SerializeType.CBOR
_INT32 = range(-(2**31), 2**31)
_INT64_MAX = 2**63 - 1
_FALSE, _TRUE, _NULL, _UNDEFINED = 0xF4, 0xF5, 0xF6, 0xF7
_FLOATS = {0xF9: struct.Struct(">e"), 0xFA: struct.Struct(">f"), 0xFB: struct.Struct(">d")}
_LENGTHS = {24: 1, 25: 2, 26: 4, 27: 8}
_KEYS = {
    name.encode(): name for name in ("code", "opaque", "flag", "language", "version", "remark", "extFields", "body")
}
_NAMES = {
    name.encode(): name
    for kind in vars(headers).values()
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct)
    for name in kind.__struct_encode_fields__
}
_SHORT_NAMES = {long: short for short, long in LONG_NAMES.items()}
_NAMES_FROM_LONG = _NAMES | {long.encode(): short for long, short in _SHORT_NAMES.items()}
_typed_items: dict[type[msgspec.Struct], tuple[tuple[str, str], ...]] = {}


def decode_commands(message: bytes) -> list[Command]:
    """All commands of one message; ProtocolError(fatal=True) when it is no sequence of valid command maps."""
    size = len(message)
    if size > FRAME_SIZE_MAX_BYTES:
        raise _malformed(f"message of {size} bytes; at most {FRAME_SIZE_MAX_BYTES}")
    commands: list[Command] = []
    position = 0
    try:
        while position < size:
            command, position = _command(message, position)
            commands.append(command)
            if len(commands) > COMMANDS_PER_MESSAGE_MAX:
                raise _malformed(f"more than {COMMANDS_PER_MESSAGE_MAX} commands in a message")
    except (IndexError, struct.error):
        position = size + 1
    except UnicodeDecodeError as error:
        raise _malformed(f"text that is not UTF-8: {error}") from None
    if position > size:
        raise _malformed(f"a command is cut off, the message has {size} bytes")
    return commands


def _malformed(reason: str) -> ProtocolError:
    return ProtocolError(f"malformed CBOR: {reason}", fatal=True)


def _command(message: bytes, start: int) -> tuple[Command, int]:
    """The command at `start` and where it ends, which may lie behind the message: then it is cut off."""
    keys = message[start] - 0xA0
    if not 0 <= keys <= len(_KEYS):
        raise _malformed("a command is a map with at most 8 keys (protocol/command.cddl)")
    position = start + 1
    code = None
    opaque = flag = version = 0
    language = "OTHER"
    remark = fields = None
    body = b""
    seen = set()
    long_names = False
    for _ in range(keys):
        key_end = position + message[position] - 0x5F
        key = _KEYS.get(message[position + 1 : key_end])
        if key is None or not 0x60 < message[position] < 0x78:
            raise _malformed("a command has a key that protocol/command.cddl does not know")
        if key in seen:
            raise _malformed(f"a command has the key {key} twice")
        seen.add(key)
        position = key_end
        if key == "extFields":
            long_names = code in NUMBERS_WITH_LONG_NAMES
            fields, position = _fields(message, position, _NAMES_FROM_LONG if long_names else _NAMES)
        elif key == "body":
            if message[position] in (_NULL, _UNDEFINED):
                position += 1
                continue
            length, value_at = _length(message, position, 0x40, "body of a command must be a byte string")
            position = value_at + length
            body = message[value_at:position]
        else:
            value, position = _scalar(message, position)
            if key == "language" or key == "remark":
                if value is None:
                    continue
                if type(value) is not str:
                    raise _malformed(f"{key} of a command must be text")
                if key == "remark":
                    remark = value
                else:
                    language = value
                continue
            if type(value) is not int or value not in _INT32:
                raise _malformed(f"{key} of a command must be a 32-bit integer")
            if key == "code":
                code = value
            elif key == "opaque":
                opaque = value
            elif key == "flag":
                flag = value
            else:
                version = value
    if code is None:
        raise _malformed("a command must have a code")
    if position - start - len(body) > HEADER_SIZE_MAX_BYTES:
        raise _malformed(f"a command's header takes more than {HEADER_SIZE_MAX_BYTES} bytes")
    if fields and code in NUMBERS_WITH_LONG_NAMES and not long_names:  # extFields came before code
        fields = {_SHORT_NAMES.get(name, name): value for name, value in fields.items()}
    return Command(code, None, None, body, remark, flag, opaque, language, version, _CBOR, fields), position


def _fields(message: bytes, position: int, names: Mapping[bytes, str]) -> tuple[dict[str, Scalar] | None, int]:
    """extFields at `position`: text to integer, boolean or text; a null value counts as absent."""
    head = message[position]
    if head in (_NULL, _UNDEFINED):
        return None, position + 1
    count, position = (
        (head - 0xA0, position + 1)
        if 0xA0 <= head < 0xB8
        else _length(message, position, 0xA0, "extFields of a command must be a map")
    )
    if count > EXT_FIELDS_MAX:
        raise _malformed(f"{count} header fields; at most {EXT_FIELDS_MAX}")
    fields: dict[str, Scalar] = {}
    known = names.get
    for _ in range(count):
        head = message[position]
        if 0x60 <= head < 0x78:
            name_end = position + head - 0x5F
        else:
            length, name_at = _length(message, position, 0x60, "names of extFields must be text")
            position, name_end = name_at - 1, name_at + length
        name_bytes = message[position + 1 : name_end]
        name = known(name_bytes) or name_bytes.decode()
        if name in fields:
            raise _malformed(f"header field {name} comes twice")
        head = message[name_end]
        if head < 0x18:
            fields[name] = head
            position = name_end + 1
        elif 0x60 <= head < 0x78:
            position = name_end + head - 0x5F
            fields[name] = message[name_end + 1 : position].decode()
        elif head in (_FALSE, _TRUE):
            fields[name] = head == _TRUE
            position = name_end + 1
        else:
            fields[name], position = _scalar(message, name_end)
    return fields, position


def _scalar(message: bytes, position: int) -> tuple[str | int | bool | None, int]:
    """The integer, text, boolean or null at `position` and where it ends."""
    head = message[position]
    kind = head & 0xE0
    if kind == 0x60:
        length, value_at = _length(message, position, 0x60, "")
        return message[value_at : value_at + length].decode(), value_at + length
    if kind <= 0x20:
        number, position = _length(message, position, kind, "")
        if number > _INT64_MAX:
            raise _malformed("an integer of a command must fit 64 bits")
        return (number if kind == 0 else -1 - number), position
    if head in (_FALSE, _TRUE):
        return head == _TRUE, position + 1
    if head in (_NULL, _UNDEFINED):
        return None, position + 1
    if head in _FLOATS:
        form = _FLOATS[head]
        (real,) = form.unpack_from(message, position + 1)
        if not (-SAFE_INTEGER_MAX <= real <= SAFE_INTEGER_MAX and real == int(real)):
            raise _malformed("a number of a command must be whole and within 53 bits, or an integer")
        return int(real), position + 1 + form.size
    raise _malformed("a value of a command must be an integer, a boolean, text or null")


def _length(message: bytes, position: int, kind: int, complaint: str) -> tuple[int, int]:
    """The argument of the item head at `position`, which must be of `kind`, and where the head ends."""
    head = message[position]
    short = head & 0x1F
    if head & 0xE0 != kind:
        raise ProtocolError(complaint, fatal=True)
    if short < 24:
        return short, position + 1
    size = _LENGTHS.get(short)
    if size is None:
        raise _malformed("indefinite lengths have no place in a command")
    end = position + 1 + size
    message[end - 1]  # IndexError when the head is cut off
    return int.from_bytes(message[position + 1 : end], "big"), end


def encode_commands(commands: Sequence[Command]) -> bytes:
    """One message with all `commands`, in order."""
    return b"".join([cbor2.dumps(_item(command)) for command in commands])


def _item(command: Command) -> dict[str, object]:
    item: dict[str, object] = {"code": int(command.code), "opaque": command.opaque, "flag": command.flag}
    item["language"] = command.language
    item["version"] = command.version
    if command.remark is not None:
        item["remark"] = command.remark
    fields = _typed_fields(command)
    if fields:
        item["extFields"] = fields
    if command.body:
        item["body"] = bytes(command.body)
    return item


def _typed_fields(command: Command) -> Mapping[str, Scalar]:
    fields: dict[str, Scalar] = {}
    header = command.header
    if header is not None:
        for attribute, name in _typed_items.get(type(header)) or _items_with_long_names(type(header)):
            value = getattr(header, attribute)
            if value is not None:
                fields[name] = value
        if command.ext:
            fields.update(command.ext)
        return fields
    if command.ext is not None:
        fields.update(command.ext)
    elif isinstance(command.raw_ext, Mapping):
        fields.update(command.raw_ext)
    elif command.raw_ext is not None:
        fields.update(command.ext_fields())
    if command.code in NUMBERS_WITH_LONG_NAMES and not command.flag & FLAG_RESPONSE:
        return {LONG_NAMES.get(name, name): value for name, value in fields.items()}
    return fields


def _items_with_long_names(header_type: type[msgspec.Struct]) -> tuple[tuple[str, str], ...]:
    items = tuple((attribute, LONG_NAMES.get(name, name)) for attribute, name in header_items(header_type))
    _typed_items[header_type] = items
    return items
