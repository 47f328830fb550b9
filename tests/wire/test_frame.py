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

FRAMES = st.lists(st.binary(min_size=4, max_size=60), max_size=8)


def stream(frames: list[bytes]) -> bytes:
    """The frames with their length words."""
    return b"".join(struct.pack(">i", len(frame)) + frame for frame in frames)


def fed(*chunks: bytes) -> list[bytes]:
    """All frames that a new splitter gives for `chunks`."""
    splitter = FrameSplitter()
    return [frame for chunk in chunks for frame in splitter.feed(chunk)]


class TestSplitting:
    @given(FRAMES)
    def test_whole_byte_by_byte_and_with_trailing_data(self, frames: list[bytes]) -> None:
        data = stream(frames)
        assert fed(data) == frames
        assert fed(*(data[at : at + 1] for at in range(len(data)))) == frames
        splitter = FrameSplitter()
        assert splitter.feed(data + b"\0\0\0\x09abc") == frames
        assert splitter.pending_bytes == 7
        assert splitter.feed(b"defghi" + data) == [b"abcdefghi", *frames]
        assert splitter.pending_bytes == 0

    @given(FRAMES, st.lists(st.integers(0, 600)))
    def test_any_cut(self, frames: list[bytes], cuts: list[int]) -> None:
        data = stream(frames)
        places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
        assert fed(*(data[start:end] for start, end in pairwise(places))) == frames

    def test_nothing(self) -> None:
        assert fed() == fed(b"") == fed(b"\0\0\0") == []

    @pytest.mark.parametrize("length", [-(2**31), -1, 0, 3, limits.FRAME_SIZE_MAX_BYTES + 1, 2**31 - 1])
    def test_bad_length_is_fatal_before_anything_is_kept(self, length: int) -> None:
        for chunks in (
            [struct.pack(">i", length)],
            [stream([b"good"]), struct.pack(">i", length)],
            [bytes([byte]) for byte in struct.pack(">i", length)],
        ):
            with pytest.raises(ProtocolError, match=str(length)) as caught:
                fed(*chunks)
            assert caught.value.fatal

    def test_frames_before_a_bad_length_come_first(self) -> None:
        splitter = FrameSplitter()
        assert splitter.feed(stream([b"one.", b"two."]) + struct.pack(">i", -5) + stream([b"lost"])) == [
            b"one.",
            b"two.",
        ]
        assert "-5" in str(splitter.failure)
        assert splitter.pending_bytes == 0
        for data in (b"", stream([b"more"])):
            with pytest.raises(ProtocolError, match="-5") as caught:
                splitter.feed(data)
            assert caught.value.fatal

    def test_lengths_at_the_bounds(self) -> None:
        largest = bytes(limits.FRAME_SIZE_MAX_BYTES)
        assert fed(stream([bytes(FRAME_LENGTH_MIN_BYTES)])) == [bytes(4)]
        assert fed(stream([largest])) == [largest]

    def test_a_large_frame_in_small_pieces_is_joined_once(self) -> None:
        frame = bytes(range(256)) * 4096
        data = stream([frame])
        splitter = FrameSplitter()
        pieces = [data[at : at + 1000] for at in range(0, len(data), 1000)]
        for piece in pieces[:-1]:
            assert splitter.feed(piece) == []
        assert splitter.pending_bytes == len(data) - len(pieces[-1])
        assert splitter.feed(pieces[-1]) == [frame]


class TestFrame:
    @pytest.mark.parametrize("serialize_type", [SerializeType.JSON, SerializeType.ROCKETMQ])
    def test_body_of_any_size(self, serialize_type: SerializeType) -> None:
        for size in (0, 1, 1000):
            body = bytes(size)
            command = Command(10, opaque=-1, body=body, serialize_type=serialize_type)
            [frame] = FrameSplitter().feed(encode_frame(command))
            again = decode_frame(frame)
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
            decode_frame(frame)
        assert caught.value.fatal

    def test_header_size_is_bounded(self) -> None:
        size = limits.HEADER_SIZE_MAX_BYTES + 1
        with pytest.raises(ProtocolError, match="at most"):
            decode_frame(struct.pack(">i", size) + b" " * size)

    def test_header_that_does_not_fit_its_length(self) -> None:
        with pytest.raises(ProtocolError, match="fit a frame"):
            encode_frame(Command(10, ext={"a": "x" * 2**24}))
