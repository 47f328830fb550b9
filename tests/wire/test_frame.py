"""The frame splitter and the frame: every cut of a stream gives the same frames, and a bad length ends it."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_rmq import limits
from trio_rmq.errors import ProtocolError
from trio_rmq.wire.command import Command, SerializeType
from trio_rmq.wire.frame import FRAME_LENGTH_MIN_BYTES, FrameSplitter, decode_frame, encode_frame

COMMANDS = st.lists(
    st.builds(
        Command,
        st.integers(0, 400),
        opaque=st.integers(-(2**31), 2**31 - 1),
        body=st.binary(max_size=60),
        ext=st.one_of(st.none(), st.just({"a": "1"})),
        serialize_type=st.sampled_from([SerializeType.JSON, SerializeType.ROCKETMQ]),
    ),
    max_size=8,
)


def stream(commands: list[Command]) -> bytes:
    """The frames of the commands."""
    return b"".join(map(encode_frame, commands))


def framed(frame: bytes) -> bytes:
    """A frame's content with its length word before it."""
    return struct.pack(">i", len(frame)) + frame


def shown(commands: list[Command]) -> list[bytes]:
    """Commands as what tells them apart."""
    return [encode_frame(command) for command in commands]


def fed(*chunks: bytes) -> list[bytes]:
    """All commands that a new splitter gives for `chunks`, as `shown`."""
    splitter = FrameSplitter()
    return shown([command for chunk in chunks for command in splitter.feed(chunk)])


class TestSplitting:
    @given(COMMANDS)
    def test_whole_byte_by_byte_and_with_trailing_data(self, commands: list[Command]) -> None:
        data = stream(commands)
        assert fed(data) == shown(commands)
        assert fed(*(data[at : at + 1] for at in range(len(data)))) == shown(commands)
        splitter = FrameSplitter()
        one = Command(7, body=b"last")
        frame = encode_frame(one)
        assert shown(splitter.feed(data + frame[:7])) == shown(commands)
        assert splitter.pending_bytes == 7
        assert shown(splitter.feed(frame[7:] + data)) == shown([one, *commands])
        assert splitter.pending_bytes == 0

    @given(COMMANDS, st.lists(st.integers(0, 1600)))
    def test_any_cut(self, commands: list[Command], cuts: list[int]) -> None:
        data = stream(commands)
        places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
        assert fed(*(data[start:end] for start, end in pairwise(places))) == shown(commands)

    def test_nothing(self) -> None:
        assert fed() == fed(b"") == fed(b"\0\0\0") == fed(b"\0\0\0\x09\0\0\0") == []

    @pytest.mark.parametrize("length", [-(2**31), -1, 0, 3, limits.FRAME_SIZE_MAX_BYTES + 1, 2**31 - 1])
    def test_bad_length_is_fatal_before_anything_is_kept(self, length: int) -> None:
        for chunks in (
            [struct.pack(">i", length)],
            [struct.pack(">i", length) + b"more than a header word"],
            [stream([Command(1)]), struct.pack(">i", length)],
            [bytes([byte]) for byte in struct.pack(">i", length)],
        ):
            with pytest.raises(ProtocolError, match=str(length)) as caught:
                fed(*chunks)
            assert caught.value.fatal

    @pytest.mark.parametrize("rest", [struct.pack(">i", -5), framed(b"\2\0\0\2{}"), framed(b"\0\0\0\0")])
    @pytest.mark.parametrize("more", [b"", stream([Command(3)])])
    def test_commands_before_what_is_bad_come_first(self, rest: bytes, more: bytes) -> None:
        splitter = FrameSplitter()
        good = [Command(1, body=b"one."), Command(2, body=b"two.")]
        assert shown(splitter.feed(stream(good) + rest + more)) == shown(good)
        assert splitter.failure is not None
        assert splitter.failure.fatal
        assert splitter.pending_bytes == 0
        for data in (b"", stream(good)):
            with pytest.raises(ProtocolError) as caught:
                splitter.feed(data)
            assert caught.value is splitter.failure

    def test_lengths_at_the_bounds(self) -> None:
        frame = b"\0\0\0\x0a" + b'{"code":1}'
        assert len(FrameSplitter().feed(framed(frame))) == 1
        largest = frame + bytes(limits.FRAME_SIZE_MAX_BYTES - len(frame))
        [command] = FrameSplitter().feed(framed(largest))
        assert len(command.body) == limits.FRAME_SIZE_MAX_BYTES - len(frame)
        with pytest.raises(ProtocolError, match="JSON"):
            fed(framed(bytes(FRAME_LENGTH_MIN_BYTES)))

    def test_a_large_frame_in_small_pieces_is_joined_once(self) -> None:
        large = Command(1, body=bytes(range(256)) * 4096)
        data = stream([large])
        splitter = FrameSplitter()
        pieces = [data[at : at + 1000] for at in range(0, len(data), 1000)]
        for piece in pieces[:-1]:
            assert splitter.feed(piece) == []
        assert splitter.pending_bytes == len(data) - len(pieces[-1])
        assert shown(splitter.feed(pieces[-1])) == [data]


class TestFrame:
    @pytest.mark.parametrize("serialize_type", [SerializeType.JSON, SerializeType.ROCKETMQ])
    def test_body_of_any_size(self, serialize_type: SerializeType) -> None:
        for size in (0, 1, 1000):
            body = bytes(size)
            again = decode_frame(encode_frame(Command(10, opaque=-1, body=body, serialize_type=serialize_type)))
            assert (again.body, again.opaque, again.serialize_type) == (body, -1, serialize_type)

    @pytest.mark.parametrize(
        ("frame", "reason"),
        [
            (b"", "no header word"),
            (b"\0\0\0", "no header word"),
            (b"\0\0\0\x01", "outside"),
            (b"\0\xff\xff\xff" + bytes(100), "outside"),
            (b"\x02\0\0\x02{}", "serialize type 2"),
            (b"\xff\0\0\x02{}", "serialize type 255"),
            (b"\0\0\0\0", "JSON"),
            (b"\x01\0\0\0", "shorter"),
        ],
    )
    def test_malformed(self, frame: bytes, reason: str) -> None:
        with pytest.raises(ProtocolError, match=reason) as caught:
            decode_frame(framed(frame))
        assert caught.value.fatal

    def test_a_length_that_is_not_the_frames(self) -> None:
        with pytest.raises(ProtocolError, match="gives its length as 9"):
            decode_frame(struct.pack(">i", 9) + b"\0\0\0\2{}")

    def test_header_size_is_bounded(self) -> None:
        size = limits.HEADER_SIZE_MAX_BYTES + 1
        with pytest.raises(ProtocolError, match="at most"):
            decode_frame(framed(struct.pack(">i", size) + b" " * size))

    def test_header_that_does_not_fit_its_length(self) -> None:
        with pytest.raises(ProtocolError, match="fit a frame"):
            encode_frame(Command(10, ext={"a": "x" * 2**24}))
