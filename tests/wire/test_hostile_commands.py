"""Arbitrary and mutated bytes through every command decoder: only ProtocolError may come out, at any step.

A command that decodes is used as a server would use it: its header read as the class of its code (and as others), its
fields as text, its encodings written.  The seeds are Apache's own frames and the CBOR vectors.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trio_rmq.errors import ProtocolError
from trio_rmq.wire import headers
from trio_rmq.wire.cbor_codec import decode_commands, encode_commands
from trio_rmq.wire.command import Command, SerializeType
from trio_rmq.wire.frame import FrameSplitter, encode_frame

PROTOCOL = Path(__file__).parents[2] / "protocol"
VECTORS = PROTOCOL / "vectors"
HEADER_TYPES: dict[int, list[type[msgspec.Struct]]] = {
    entry["number"]: [getattr(headers, entry[side]) for side in ("request_header", "response_header") if side in entry]
    for entry in json.loads((PROTOCOL / "request_codes.json").read_text())["requests"]
}
ALWAYS: list[type[msgspec.Struct]] = [
    headers.SendMessageRequestHeaderV2,
    headers.PullMessageRequestHeader,
    headers.CreateTopicRequestHeader,
    headers.PopMessageRequestHeader,
]
GOLDEN_FRAMES = [
    path.read_bytes()
    for folder in ("wire-json", "wire-rocketmq", "wire-slave")
    for path in sorted((VECTORS / folder).glob("*.re[qs]*"))
    if path.stat().st_size < 3000
]
GOLDEN_CBOR = [
    bytes.fromhex(vector["hex"])
    for kind in ("commands", "refused")
    for vector in json.loads((VECTORS / "cbor.json").read_text())[kind]
]
TELLING_BYTES = st.sampled_from(list(b'\x00\x01\x02\x7f\x80\xff{}[]":,\\u0123456789-+.eE ntf\xa0\xbf\x5f\x7b\x1b\xf6'))


def check_error(error: ProtocolError, *, fatal: bool) -> None:
    """That an error closes the connection or not, and is a sentence, not a copy of the input."""
    assert error.fatal is fatal
    assert len(str(error)) < 2000


def use(command: Command) -> None:
    """What a server does with a command; ProtocolError is all that may come out of reading it."""
    repr(command)
    try:
        texts = command.ext_fields()
    except ProtocolError:
        texts = None
    for header_type in HEADER_TYPES.get(command.code, []) + ALWAYS:
        try:
            header = command.decode_header(header_type)
        except ProtocolError as error:
            check_error(error, fatal=False)
        else:
            encode_frame(Command(0, header=header))
            encode_frame(Command(0, header=header, serialize_type=SerializeType.ROCKETMQ))
            encode_commands([Command(0, header=header)])
    if texts is not None:
        for serialize_type in (SerializeType.JSON, SerializeType.ROCKETMQ):
            command.serialize_type = serialize_type
            [again] = FrameSplitter().feed(encode_frame(command))
            assert again.ext_fields() == texts
        encode_commands([command])


def decode_stream(*chunks: bytes) -> list[Command] | None:
    """All commands of a stream, or None where it is refused."""
    splitter = FrameSplitter()
    commands: list[Command] = []
    try:
        for chunk in chunks:
            commands += splitter.feed(chunk)
        if splitter.failure is not None:
            raise splitter.failure
    except ProtocolError as error:
        check_error(error, fatal=True)
        return None
    return commands


def mutated(data: st.DataObject, seeds: list[bytes]) -> bytes:
    """One of the seeds with some bytes replaced, removed, inserted or doubled."""
    changed = bytearray(data.draw(st.sampled_from(seeds)))
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, max(len(changed) - 1, 0)))
        match data.draw(st.sampled_from(["replace", "remove", "insert", "double", "cut"])):
            case "replace" if changed:
                changed[at] = data.draw(TELLING_BYTES | st.integers(0, 255))
            case "remove":
                del changed[at : at + data.draw(st.integers(1, 8))]
            case "insert":
                changed[at:at] = data.draw(st.binary(max_size=8) | st.lists(TELLING_BYTES, max_size=8).map(bytes))
            case "double":
                changed[at:at] = changed[at : at + data.draw(st.integers(1, 40))]
            case _:
                del changed[at:]
    return bytes(changed)


def with_length(frame: bytes) -> bytes:
    """A frame whose length word is right again, so that what is inside gets looked at."""
    return len(frame[4:]).to_bytes(4, "big") + frame[4:]


@given(st.binary(max_size=200))
def test_arbitrary_stream(data: bytes) -> None:
    for command in decode_stream(data) or []:
        use(command)


@given(st.integers(0, 3), st.integers(0, 300), st.binary(max_size=300))
def test_arbitrary_header(serialize_type: int, header_size: int, rest: bytes) -> None:
    word = (serialize_type << 24 | min(header_size, len(rest))).to_bytes(4, "big")
    for command in decode_stream(with_length(bytes(4) + word + rest)) or []:
        use(command)


@settings(max_examples=400)
@given(st.data())
def test_mutated_frames(data: st.DataObject) -> None:
    frame = mutated(data, GOLDEN_FRAMES)
    for command in decode_stream(with_length(frame)) or []:
        use(command)


@settings(max_examples=200)
@given(st.data())
def test_mutated_stream_however_it_is_cut(data: st.DataObject) -> None:
    stream = b"".join(data.draw(st.lists(st.sampled_from(GOLDEN_FRAMES), max_size=2)))
    stream += mutated(data, GOLDEN_FRAMES) + data.draw(st.sampled_from(GOLDEN_FRAMES))
    whole = decode_stream(stream)
    places = sorted({0, len(stream), *data.draw(st.lists(st.integers(0, len(stream)), max_size=5))})
    pieces = decode_stream(*(stream[start:end] for start, end in pairwise(places)))
    if whole is None or pieces is None:
        assert whole is pieces
    else:
        assert [*map(encode_frame, whole)] == [*map(encode_frame, pieces)]


@given(st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
))  # fmt: skip
@example(10**400)
def test_any_json_value_in_any_place(value: object) -> None:
    envelope = {"code": 310, "opaque": 1, "flag": 0, "language": "JAVA", "version": 407, "remark": "r", "extFields": {}}
    names = ["a", "b", "d", "e", "g", "i", "k", "topic", "queueId", "order"]
    for key in envelope:
        header = json.dumps(envelope | {key: value}).encode()
        for command in decode_stream(with_length(bytes(4) + len(header).to_bytes(4, "big") + header)) or []:
            use(command)
    header = json.dumps(envelope | {"extFields": dict.fromkeys(names, value)}).encode()
    for command in decode_stream(with_length(bytes(4) + len(header).to_bytes(4, "big") + header)) or []:
        use(command)


@given(st.binary(max_size=200))
def test_arbitrary_message(message: bytes) -> None:
    try:
        commands = decode_commands(message)
    except ProtocolError as error:
        check_error(error, fatal=True)
    else:
        for command in commands:
            use(command)


@settings(max_examples=400)
@given(st.data())
def test_mutated_messages(data: st.DataObject) -> None:
    message = mutated(data, GOLDEN_CBOR)
    try:
        commands = decode_commands(message)
    except ProtocolError as error:
        check_error(error, fatal=True)
    else:
        for command in commands:
            use(command)


def test_all_of_apaches_frames_in_one_stream_byte_by_byte() -> None:
    stream = b"".join(GOLDEN_FRAMES)
    commands = decode_stream(*(stream[at : at + 1] for at in range(len(stream))))
    assert commands is not None
    assert b"".join(map(encode_frame, commands)) == stream
