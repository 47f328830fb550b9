"""Commands as CBOR: a WebSocket message is a sequence of maps, one a command (protocol/command.cddl).

A map has the JSON header's own keys; values in extFields are typed (integer, boolean, text), the body is a byte string.
The decoder is written out here because it must refuse before it builds: no tags, no indefinite lengths, no nesting but
the one known, no unknown or repeated key, a bounded count of everything.  A general decoder would first make objects of
16 MiB of small items; checking its result as well, it would save a third of the time.  Source: RFC 8949.
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
_INT64_MAX = 2**63 - 1
_NULL = 0xF6
_CONSTANTS = {0xF4: False, 0xF5: True, 0xF6: None, 0xF7: None}  # undefined, which JavaScript writes, is null
_FLOATS = {0xF9: struct.Struct(">e"), 0xFA: struct.Struct(">f"), 0xFB: struct.Struct(">d")}
_KEYS_MAX = 8


def _key(name: str) -> bytes:
    """Text of less than 24 bytes with its length before it, as it stands in a message."""
    return bytes([0x60 + len(name)]) + name.encode()


_CODE, _OPAQUE, _FLAG, _LANGUAGE = _key("code"), _key("opaque"), _key("flag"), _key("language")
_VERSION, _REMARK, _FIELDS, _BODY = _key("version"), _key("remark"), _key("extFields"), _key("body")
_MAY_BE_NULL = frozenset({_LANGUAGE, _REMARK, _FIELDS, _BODY})
_SHORT_NAMES = {long: short for short, long in LONG_NAMES.items()}
_NAMES = {
    _key(name): name
    for header_type in vars(headers).values()
    if isinstance(header_type, type) and issubclass(header_type, msgspec.Struct)
    for name in header_type.__struct_encode_fields__
    if len(name) < 24
}
_NAMES_FROM_LONG = _NAMES | {_key(long): short for short, long in LONG_NAMES.items()}
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
    position = start + 1
    if not 0 <= keys <= _KEYS_MAX:  # libraries that write maps before they know their size give it two bytes
        keys, position = _length(message, start, 0xA0, "a command is a map (protocol/command.cddl)")
        if keys > _KEYS_MAX:
            raise _malformed("a command is a map with at most 8 keys (protocol/command.cddl)")
    code = opaque = flag = version = language = remark = body = fields = None
    long_names = False
    for _ in range(keys):
        key_end = position + message[position] - 0x5F
        key = message[position:key_end]
        head = message[key_end]
        if key == _FIELDS and fields is None and head < _NULL:
            long_names = code in NUMBERS_WITH_LONG_NAMES
            fields, position = _fields(message, key_end, _NAMES_FROM_LONG if long_names else _NAMES)
        elif key == _BODY and body is None and head < _NULL:
            length, value_at = _length(message, key_end, 0x40, "body of a command must be a byte string")
            position = value_at + length
            body = message[value_at:position]
        else:
            if head < 0x18:
                value: Scalar = head
                position = key_end + 1
            else:
                value, position = _scalar(message, key_end)
            if value is None and key in _MAY_BE_NULL:
                continue
            if key == _OPAQUE and opaque is None:
                opaque = _int32(value, "opaque")
            elif key == _CODE and code is None:
                code = _int32(value, "code")
            elif key == _FLAG and flag is None:
                flag = _int32(value, "flag")
            elif key == _VERSION and version is None:
                version = _int32(value, "version")
            elif key == _LANGUAGE and language is None:
                language = _text(value, "language")
            elif key == _REMARK and remark is None:
                remark = _text(value, "remark")
            else:
                raise _malformed("a command has a key twice, or one that protocol/command.cddl does not know")
    if code is None:
        raise _malformed("a command must have a code")
    body = body or b""
    if position - start - len(body) > HEADER_SIZE_MAX_BYTES:
        raise _malformed(f"a command's header takes more than {HEADER_SIZE_MAX_BYTES} bytes")
    if fields and code in NUMBERS_WITH_LONG_NAMES and not long_names:  # they came before the code
        fields = {_SHORT_NAMES.get(name, name): value for name, value in fields.items()}
    return (
        Command(
            code,
            None,
            None,
            body,
            remark,
            flag or 0,
            opaque or 0,
            language or "OTHER",
            version or 0,
            _CBOR,
            fields,
        ),
        position,
    )


def _int32(value: Scalar, name: str) -> int:
    if type(value) is not int or not -0x8000_0000 <= value <= 0x7FFF_FFFF:
        raise _malformed(f"{name} of a command must be a 32-bit integer")
    return value


def _text(value: Scalar, name: str) -> str:
    if type(value) is not str:
        raise _malformed(f"{name} of a command must be text")
    return value


def _fields(message: bytes, position: int, names: Mapping[bytes, str]) -> tuple[dict[str, Scalar], int]:
    """extFields at `position`: text to integer, boolean or text, a null left out; `names` saves decoding names."""
    count, position = _length(message, position, 0xA0, "extFields of a command must be a map")
    if count > EXT_FIELDS_MAX:
        raise _malformed(f"{count} header fields; at most {EXT_FIELDS_MAX}")
    fields: dict[str, Scalar] = {}
    known = names.get
    nulls = False
    for _ in range(count):
        value_at = position + message[position] - 0x5F
        name = known(message[position:value_at])
        if name is None:
            length, name_at = _length(message, position, 0x60, "names of extFields must be text")
            value_at = name_at + length
            name = message[name_at:value_at].decode()
        head = message[value_at]
        if head < 0x18:
            fields[name] = head
            position = value_at + 1
        elif 0x60 <= head < 0x78:
            position = value_at + head - 0x5F
            fields[name] = message[value_at + 1 : position].decode()
        else:
            fields[name], position = _scalar(message, value_at)
            nulls = nulls or fields[name] is None
    if len(fields) != count:
        raise _malformed("extFields has a name twice")
    if nulls:
        fields = {name: value for name, value in fields.items() if value is not None}
    return fields, position


def _scalar(message: bytes, position: int) -> tuple[str | int | bool | None, int]:
    """The integer, text, boolean or null at `position` and where it ends."""
    head = message[position]
    if head < 0x40:
        number, position = _length(message, position, head & 0x20, "")
        if number > _INT64_MAX:
            raise _malformed("an integer of a command must fit 64 bits")
        return (number if head < 0x20 else -1 - number), position
    if head & 0xE0 == 0x60:
        length, value_at = _length(message, position, 0x60, "")
        end = value_at + length
        return message[value_at:end].decode(), end
    if head in _CONSTANTS:
        return _CONSTANTS[head], position + 1
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
    short = head - kind
    if 0 <= short < 24:
        return short, position + 1
    if short == 24:
        return message[position + 1], position + 2
    if short == 25:
        return message[position + 1] << 8 | message[position + 2], position + 3
    if not 0 <= short < 32:
        raise _malformed(complaint)
    if short > 27:
        raise _malformed("indefinite lengths have no place in a command")
    end = position + (5 if short == 26 else 9)
    message[end - 1]  # IndexError when the head is cut off
    return int.from_bytes(message[position + 1 : end], "big"), end


def encode_commands(commands: Sequence[Command]) -> bytes:
    """One message with all `commands`, in order, however long."""
    return b"".join([cbor2.dumps(_item(command)) for command in commands])


def encode_messages(commands: Sequence[Command]) -> list[bytes]:
    """All `commands`, in order, in as few messages as the bounds of a message allow, which `decode_commands` keeps.

    A command that is too long by itself has a message of its own.
    """
    items = [cbor2.dumps(_item(command)) for command in commands]
    message = b"".join(items)
    if len(message) <= FRAME_SIZE_MAX_BYTES and len(items) <= COMMANDS_PER_MESSAGE_MAX:
        return [message]
    messages: list[bytes] = []
    first = size = 0
    for index, item in enumerate(items):
        if index > first and (size + len(item) > FRAME_SIZE_MAX_BYTES or index - first >= COMMANDS_PER_MESSAGE_MAX):
            messages.append(b"".join(items[first:index]))
            first, size = index, 0
        size += len(item)
    messages.append(b"".join(items[first:]))
    return messages


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
