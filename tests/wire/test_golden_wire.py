"""Every frame that Apache 4.9.7 exchanged: decoded, read as its typed header, and encoded again to the same bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from trio_rmq.wire import headers
from trio_rmq.wire.command import Command, SerializeType, header_texts
from trio_rmq.wire.frame import FrameSplitter, encode_frame

PROTOCOL = Path(__file__).parents[2] / "protocol"
REQUESTS = {entry["number"]: entry for entry in json.loads((PROTOCOL / "request_codes.json").read_text())["requests"]}


def load() -> list[tuple[str, dict[str, Any], str, bytes]]:
    """(name, index entry, `request` or `response`, bytes) of each recorded frame."""
    frames = []
    for folder in ("wire-json", "wire-rocketmq", "wire-slave"):
        for entry in json.loads((PROTOCOL / "vectors" / folder / "index.json").read_text()):
            for side in ("request", "response"):
                if entry.get(side):
                    path = PROTOCOL / "vectors" / folder / entry[side]
                    frames.append((f"{folder}/{entry[side]}", entry, side, path.read_bytes()))
    return frames


FRAMES = load()


def decode(frame: bytes) -> Command:
    """The command of one whole frame, length word included."""
    [command] = FrameSplitter().feed(frame)
    return command


def header_type_of(code: int, side: str) -> type[msgspec.Struct] | None:
    """The header class of a request code's request or response."""
    name = REQUESTS[code].get(f"{side}_header")
    return getattr(headers, name) if name else None


def test_all_are_there() -> None:
    assert len(FRAMES) == 309


@pytest.mark.parametrize(("name", "entry", "side", "frame"), FRAMES, ids=[frame[0] for frame in FRAMES])
class TestFrame:
    def test_leaves_as_it_came(self, name: str, entry: dict[str, Any], side: str, frame: bytes) -> None:
        assert encode_frame(decode(frame)) == frame

    def test_is_what_the_recorder_saw(self, name: str, entry: dict[str, Any], side: str, frame: bytes) -> None:
        command = decode(frame)
        expected = entry[f"{side}Header"]
        assert command.code == expected["code"]
        assert command.opaque == expected["opaque"]
        assert command.flag == expected["flag"]
        assert command.language == (expected["language"] or "JAVA")  # a number, 0, in the index of wire-rocketmq
        assert command.version == expected["version"]
        assert command.remark == expected.get("remark")
        assert command.ext_fields() == expected.get("extFields", {})
        assert len(command.body) == entry[f"{side}Body"]
        assert command.is_response == (side == "response")
        assert command.is_oneway == (side == "request" and entry["oneway"])

    def test_text_fields_give_the_same_bytes(self, name: str, entry: dict[str, Any], side: str, frame: bytes) -> None:
        command = decode(frame)
        if command.raw_ext is not None:
            command.ext, command.raw_ext = command.ext_fields(), None
        assert encode_frame(command) == frame

    def test_typed_header_holds_every_field(self, name: str, entry: dict[str, Any], side: str, frame: bytes) -> None:
        command = decode(frame)
        header_type = header_type_of(entry["code"], side)
        known = REQUESTS[entry["code"]].get(f"{side}_ext", [])
        texts = command.ext_fields()
        others = {*known, "bname", "ReqT", "MSG_REGION", "TRACE_ON"}
        if header_type is None or (side == "response" and command.code not in (0, 19, 20, 21, 22)):
            assert texts.keys() <= others
            return
        if side == "response" and not texts:
            return  # carried out without a header: the class's fields are all optional or the caller asked for none
        typed = command.decode_header(header_type)
        outside = texts.keys() - set(header_type.__struct_encode_fields__)
        assert outside <= others
        again = header_texts(typed)
        assert {key: again[key] for key in texts.keys() - outside} == {
            key: text for key, text in texts.items() if key not in outside
        }
        sent = Command(command.code, header=typed, opaque=7, serialize_type=command.serialize_type)
        assert decode(encode_frame(sent)).decode_header(header_type) == typed

    def test_other_encodings_hold_the_same(self, name: str, entry: dict[str, Any], side: str, frame: bytes) -> None:
        command = decode(frame)
        texts = command.ext_fields()
        for serialize_type in (SerializeType.JSON, SerializeType.ROCKETMQ):
            command.serialize_type = serialize_type
            other = decode(encode_frame(command))
            assert other.serialize_type is serialize_type
            assert other.ext_fields() == texts
            assert (other.code, other.opaque, other.flag) == (command.code, command.opaque, command.flag)
            assert (other.language, other.version, other.body) == (command.language, command.version, command.body)
            assert other.remark == command.remark
