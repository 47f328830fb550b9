"""The remoting frame: int length, then a word of serialize type (8 bits) and header size (24 bits), header, body.

Invariants: a length is checked before anything is kept for it; after a fatal ProtocolError the stream's framing is lost
and nothing more may be fed.  Source: RocketMQ NettyDecoder, RemotingCommand; protocol/layouts.md.
"""

from __future__ import annotations

import struct

from trio_rmq.errors import ProtocolError
from trio_rmq.limits import FRAME_SIZE_MAX_BYTES, HEADER_SIZE_MAX_BYTES
from trio_rmq.wire.binary_codec import decode_binary_header, encode_binary_header
from trio_rmq.wire.command import Command, SerializeType
from trio_rmq.wire.json_codec import decode_json_header, encode_json_header

FRAME_LENGTH_MIN_BYTES = 4
"""A frame holds at least its header word."""

_INT = struct.Struct(">i")
_WORDS = struct.Struct(">ii")
_ROCKETMQ = SerializeType.ROCKETMQ


class FrameSplitter:
    """Cuts a byte stream into frames; holds at most one unfinished frame."""

    __slots__ = ("_have", "_need", "_parts", "failure")

    def __init__(self) -> None:
        self.failure: ProtocolError | None = None
        """What is wrong with the bytes after the frames that came last; the next `feed` raises it."""
        self._parts: list[bytes] = []
        self._have = 0
        self._need = 0

    @property
    def pending_bytes(self) -> int:
        """Bytes kept of a frame that has not ended yet."""
        return self._have

    def feed(self, data: bytes) -> list[bytes]:
        """All frames that `data` completes, each without its length word.

        Raises ProtocolError(fatal=True) for a length below 4 or over FRAME_SIZE_MAX_BYTES.  Whole frames before such a
        length are returned first; then `failure` has the error, and nothing after it is kept.
        """
        if self.failure is not None:
            raise self.failure
        if self._parts:
            self._parts.append(data)
            self._have += len(data)
            if self._have < self._need:
                return []
            data = b"".join(self._parts)
            self._parts = []
        frames: list[bytes] = []
        add = frames.append
        unpack = _INT.unpack_from
        position = 0
        size = len(data)
        while size - position >= 4:
            (length,) = unpack(data, position)
            if not FRAME_LENGTH_MIN_BYTES <= length <= FRAME_SIZE_MAX_BYTES:
                self.failure = ProtocolError(
                    f"frame length {length} is not within {FRAME_LENGTH_MIN_BYTES}..{FRAME_SIZE_MAX_BYTES}", fatal=True
                )
                if not frames:
                    raise self.failure
                position = size
                break
            end = position + 4 + length
            if end > size:
                break
            add(data[position + 4 : end])
            position = end
        self._have = size - position
        if self._have:
            self._parts = [data[position:]] if position else [data]
            self._need = 4 + unpack(data, position)[0] if self._have >= 4 else 4
        return frames


def decode_frame(frame: bytes) -> Command:
    """The command in a frame (without its length word); ProtocolError(fatal=True) when its header cannot be read.

    Apache closes the connection on such a frame; with no opaque known, no answer is possible.
    """
    if len(frame) < FRAME_LENGTH_MIN_BYTES:
        raise ProtocolError(f"frame of {len(frame)} bytes has no header word", fatal=True)
    (word,) = _INT.unpack_from(frame)
    end = 4 + (word & 0xFFFFFF)
    if end > len(frame):
        raise ProtocolError(f"header length {end - 4} leads outside a frame of {len(frame)} bytes", fatal=True)
    if end - 4 > HEADER_SIZE_MAX_BYTES:
        raise ProtocolError(f"header of {end - 4} bytes; at most {HEADER_SIZE_MAX_BYTES}", fatal=True)
    serialize_type = word >> 24 & 0xFF
    if serialize_type == 0:
        return decode_json_header(frame[4:end], frame[end:])
    if serialize_type == 1:
        return decode_binary_header(frame[4:end], frame[end:])
    raise ProtocolError(f"unknown serialize type {serialize_type}; JSON is 0 and ROCKETMQ 1", fatal=True)


def encode_frame(command: Command) -> bytes:
    """The whole frame of a command, length word included; its `serialize_type` chooses the header encoding.

    ProtocolError when the header does not fit its 24-bit length (only fields passed on from elsewhere can be as long).
    """
    if command.serialize_type is _ROCKETMQ:
        header = encode_binary_header(command)
        word = 1 << 24 | len(header)
    else:
        header = encode_json_header(command)
        word = len(header)
    if word & 0xFFFFFF != len(header):
        raise ProtocolError(f"header of {len(header)} bytes; at most {0xFFFFFF} fit a frame")
    body = command.body
    return b"".join((_WORDS.pack(4 + len(header) + len(body), word), header, body))
