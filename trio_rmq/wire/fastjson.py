"""JSON as RocketMQ's fastjson writes it, which is not always JSON: maps whose keys are bare numbers or whole objects.

Reading is strict and fast first (msgspec); only text that fails is rewritten into strict JSON - bare number keys get
quotes, an object key becomes a string that holds its JSON - and read again, nulls dropped and scalars converted.
Writing keeps fastjson's habits: bean keys in name order (structs declare their fields so), nulls left out, non-string
map keys bare.  Invariants: nesting is bounded, and nothing here recurses deeper than that bound; only ProtocolError
leaves a reader.  Source: RocketMQ RemotingSerializable, and what Apache's brokers sent (protocol/vectors).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Generic, TypeVar, cast

import msgspec

from trio_rmq.errors import ProtocolError
from trio_rmq.limits import BODY_DEPTH_MAX, FRAME_SIZE_MAX_BYTES

K = TypeVar("K")
T = TypeVar("T")

_TOKEN = re.compile(
    rb"""[ \t\r\n]*(?:
     (?P<string>"[^"\\]*(?:\\.[^"\\]*)*")
    |(?P<number>-?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)
    |(?P<word>true|false|null)
    |(?P<open>[{[])
    |(?P<close>[]}])
    |(?P<mark>[,:])
    )[ \t\r\n]*""",
    re.VERBOSE | re.DOTALL,
)
_READ_ERRORS = (msgspec.MsgspecError, RecursionError, ValueError)
_encode_value = msgspec.json.Encoder().encode


def shown(value: T) -> T:
    """The default of a struct field that is always written.

    For structs with `omit_defaults=True`, where a plain default (None, for a field only newer versions have) is left
    out as fastjson leaves out nulls: msgspec cannot tell that a factory's value is the default.
    """
    return msgspec.field(default_factory=lambda: value)


def shown_list(*, name: str | None = None) -> list[T]:
    """`shown` for a list: a new empty one each time, written as `[]`; `name` where the wire's is irregular."""
    return msgspec.field(default_factory=_new_list, name=name)


def shown_dict() -> dict[K, T]:
    """`shown` for a mapping: a new empty one each time, written as `{}`."""
    return msgspec.field(default_factory=_new_dict)


def _new_list() -> list[Any]:
    return []  # a function of ours and not `list`: msgspec leaves out an empty list that `list` made


def _new_dict() -> dict[Any, Any]:
    return {}


class BodyReader(Generic[T]):
    """Reads bodies of one type: at msgspec's speed while they are JSON, leniently when they are fastjson.

    `repair` may change the plain tree of a body that only the lenient reading takes, before it becomes a `T`.
    """

    __slots__ = ("_decode", "_name", "_repair", "_type")

    def __init__(self, body_type: type[T], *, repair: Callable[[Any], Any] | None = None) -> None:
        self._decode = msgspec.json.Decoder(body_type).decode
        self._name = getattr(body_type, "__name__", str(body_type))
        self._repair = repair
        self._type = body_type

    def decode(self, data: bytes | bytearray | memoryview, *, size_max_bytes: int = FRAME_SIZE_MAX_BYTES) -> T:
        """The value in `data`; ProtocolError, which names the type and the fault, when there is none."""
        try:
            return self._decode(data)
        except _READ_ERRORS:
            return self._decode_leniently(data, size_max_bytes)

    def _decode_leniently(self, data: bytes | bytearray | memoryview, size_max_bytes: int) -> T:
        strict = to_strict_json(bytes(data), size_max_bytes=size_max_bytes)
        try:
            try:
                return self._decode(strict)
            except msgspec.ValidationError:
                tree = _without_nulls(msgspec.json.decode(strict))
                if self._repair is not None:
                    tree = self._repair(tree)
                return msgspec.convert(tree, self._type, strict=False)
        except _READ_ERRORS as error:
            raise ProtocolError(f"the body is no {self._name}: {error}") from None


def to_strict_json(data: bytes, *, size_max_bytes: int = FRAME_SIZE_MAX_BYTES) -> bytes:
    """fastjson's text with every map key made a string; what else is wrong with it stays for a strict reader to find.

    Raises ProtocolError for text over `size_max_bytes`, nesting over BODY_DEPTH_MAX, an object key inside an object
    key, and characters that no JSON has outside its strings.
    """
    if len(data) > size_max_bytes:
        raise ProtocolError(f"a JSON body of {len(data)} bytes is over the limit of {size_max_bytes}")
    out: list[bytes] = []
    stack: list[bytes] = []
    key_expected = False
    key_start = key_depth = -1
    position, end = 0, len(data)
    while position < end:
        token = _TOKEN.match(data, position)
        if token is None:
            raise ProtocolError(f"the body is no JSON at byte {position}")
        position = token.end()
        kind = token.lastgroup
        text = token[cast(str, kind)]
        if kind == "open":
            if key_expected:
                if key_start >= 0:
                    raise ProtocolError("a JSON object key inside an object key")
                key_start, key_depth = len(out), len(stack)
            if len(stack) == BODY_DEPTH_MAX:
                raise ProtocolError(f"the JSON body is nested deeper than {BODY_DEPTH_MAX} levels")
            stack.append(text)
            key_expected = text == b"{"
        elif kind == "close":
            if not stack:
                raise ProtocolError(f"the body is no JSON at byte {position}")
            stack.pop()
            key_expected = False
            if key_start >= 0 and len(stack) == key_depth:
                out.append(text)
                text = json.dumps(b"".join(out[key_start:]).decode("utf-8", "replace")).encode()
                del out[key_start:]
                key_start = -1
        elif kind == "mark":
            key_expected = text == b"," and bool(stack) and stack[-1] == b"{"
        else:
            if key_expected and kind == "number":
                text = b'"' + text + b'"'
            key_expected = False
        out.append(text)
    return b"".join(out)


def _without_nulls(tree: Any) -> Any:
    """`tree` without the map entries that are null: fastjson reads a null as if it were missing."""
    if isinstance(tree, dict):
        return {key: _without_nulls(value) for key, value in tree.items() if value is not None}
    if isinstance(tree, list):
        return [_without_nulls(value) for value in tree if value is not None]
    return tree


def encode_json(value: object) -> bytes:
    """Strict JSON of a struct, at msgspec's speed; for bodies all of whose maps have string keys."""
    return _encode_value(value)


def encode_fastjson(value: object, *, standard: bool = False, pretty: bool = False) -> bytes:
    """`value` (structs, mappings, sequences, scalars) as fastjson writes it.

    Map keys that are numbers or structs are written bare.  `standard` is the form that newer clients ask for in
    routes: number keys quoted, map keys sorted, non-ASCII characters escaped.  `pretty` is the form of RocketMQ's
    config files: tabs, one entry a line, but entries with bare keys follow one another on their line.
    """
    out: list[bytes] = []
    _write(value, out, standard, 0 if pretty else -1)
    return b"".join(out)


@cache
def _field_names(struct_type: type[msgspec.Struct]) -> tuple[tuple[str, str], ...]:
    return tuple(zip(struct_type.__struct_fields__, struct_type.__struct_encode_fields__, strict=True))


_SCALARS = frozenset({bool, int, float, str, bool | None, int | None, float | None, str | None})


@cache
def _has_only_scalars(struct_type: type[msgspec.Struct]) -> bool:
    """Whether msgspec alone writes this struct as fastjson does, which is ten times as fast."""
    return struct_type.__struct_config__.omit_defaults and all(
        field.type in _SCALARS for field in msgspec.structs.fields(struct_type)
    )


_PLAIN = frozenset({bool, int, float, str, type(None)})


def _write(value: Any, out: list[bytes], standard: bool, depth: int) -> None:
    if type(value) in _PLAIN:  # most are, and abstract classes take long to say no
        out.append(json.dumps(value).encode() if standard and type(value) is str else _encode_value(value))
    elif isinstance(value, msgspec.Struct):
        if depth < 0 and not standard and _has_only_scalars(type(value)):
            out.append(_encode_value(value))
            return
        named = ((name, getattr(value, field)) for field, name in _field_names(type(value)))
        _write_map([(name, item) for name, item in named if item is not None], out, standard, depth)
    elif isinstance(value, Mapping):
        entries = [(key, item) for key, item in value.items() if item is not None]
        if standard:
            entries.sort(key=lambda entry: str(entry[0]))
        _write_map(entries, out, standard, depth)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        inner = depth + 1 if depth >= 0 else -1
        out.append(b"[")
        for index, item in enumerate(value):
            if index:
                out.append(b",")
            _new_line(out, inner)
            _write(item, out, standard, inner)
        if value:
            _new_line(out, depth)
        out.append(b"]")
    elif standard and isinstance(value, str):
        out.append(json.dumps(value).encode())
    else:
        out.append(_encode_value(value))


def _write_map(entries: list[tuple[Any, Any]], out: list[bytes], standard: bool, depth: int) -> None:
    inner = depth + 1 if depth >= 0 else -1
    out.append(b"{")
    for index, (key, item) in enumerate(entries):
        if index:
            out.append(b",")
        if isinstance(key, str):
            _new_line(out, inner)
            _write(key, out, standard, inner)
        elif standard:
            _write(str(key), out, standard, inner)
        else:
            _write(key, out, standard, -1)
        out.append(b":")
        _write(item, out, standard, inner)
    if entries:
        _new_line(out, depth)
    out.append(b"}")


def _new_line(out: list[bytes], depth: int) -> None:
    if depth >= 0:
        out.append(b"\n" + b"\t" * depth)
