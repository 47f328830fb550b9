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
_HEADER_AT = 8
"""Where the header begins in a frame: behind its length and its header word."""
_HEADER_END_MAX = _HEADER_AT + HEADER_SIZE_MAX_BYTES
_ROCKETMQ = SerializeType.ROCKETMQ


class FrameSplitter:
    """Cuts a byte stream into commands; holds at most one unfinished frame."""

    __slots__ = ("_have", "_need", "_parts", "failure")

    def __init__(self) -> None:
        self.failure: ProtocolError | None = None
        """What is wrong with the bytes after the commands that came last; the next `feed` raises it."""
        self._parts: list[bytes] = []
        self._have = 0
        self._need = 0

    @property
    def pending_bytes(self) -> int:
        """Bytes kept of a frame that has not ended yet."""
        return self._have

    def feed(self, data: bytes) -> list[Command]:
        """All commands that `data` completes.

        Raises ProtocolError(fatal=True) for a length below 4 or over FRAME_SIZE_MAX_BYTES and for a header that cannot
        be read.  Whole commands before it are returned first; then `failure` has the error, and nothing after it is
        kept.  Apache closes the connection too: with no opaque known, no answer is possible.
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
        commands: list[Command] = []
        add = commands.append
        unpack = _WORDS.unpack_from
        position, size = 0, len(data)
        try:
            while size - position >= _HEADER_AT:
                length, word = unpack(data, position)
                if not FRAME_LENGTH_MIN_BYTES <= length <= FRAME_SIZE_MAX_BYTES:
                    raise _bad_length(length)
                end = position + 4 + length
                if end > size:
                    break
                header_end = position + _HEADER_AT + (word & 0xFFFFFF)
                if word >> 24 == 1 and header_end <= end and header_end - position <= _HEADER_END_MAX:
                    add(decode_binary_header(data, data[header_end:end], position + _HEADER_AT, header_end))
                else:
                    add(_decode(data, position + _HEADER_AT, word, end))
                position = end
            self._have = size - position
            if self._have:
                self._need = _needed(data, position)
                self._parts = [data[position:]] if position else [data]
        except ProtocolError as error:
            self.failure = error
            self._have = 0
            if not commands:
                raise
        return commands


def decode_frame(frame: bytes) -> Command:
    """The command in a whole frame, length word included; ProtocolError(fatal=True) when it cannot be read."""
    if len(frame) < _HEADER_AT:
        raise ProtocolError(f"frame of {len(frame)} bytes has no header word", fatal=True)
    length, word = _WORDS.unpack_from(frame)
    if length != len(frame) - 4:
        raise ProtocolError(f"a frame of {len(frame)} bytes gives its length as {length}", fatal=True)
    return _decode(frame, _HEADER_AT, word, len(frame))


def _decode(data: bytes, at: int, word: int, end: int) -> Command:
    """The command whose header begins at `at`, described by `word`, and whose body ends at `end`."""
    header_end = at + (word & 0xFFFFFF)
    if header_end > end:
        raise ProtocolError(
            f"header length {header_end - at} leads outside a frame of {end - at + 4} bytes", fatal=True
        )
    if header_end - at > HEADER_SIZE_MAX_BYTES:
        raise ProtocolError(f"header of {header_end - at} bytes; at most {HEADER_SIZE_MAX_BYTES}", fatal=True)
    serialize_type = word >> 24
    if serialize_type == 1:
        return decode_binary_header(data, data[header_end:end], at, header_end)
    if serialize_type == 0:
        return decode_json_header(data[at:header_end], data[header_end:end])
    raise ProtocolError(f"unknown serialize type {serialize_type & 0xFF}; JSON is 0 and ROCKETMQ 1", fatal=True)


def _needed(data: bytes, position: int) -> int:
    """How many bytes the frame that begins at `position` has in all, as far as that can be told."""
    if len(data) - position < 4:
        return 4
    (length,) = _INT.unpack_from(data, position)
    if not FRAME_LENGTH_MIN_BYTES <= length <= FRAME_SIZE_MAX_BYTES:
        raise _bad_length(length)
    return 4 + int(length)


def _bad_length(length: int) -> ProtocolError:
    return ProtocolError(
        f"frame length {length} is not within {FRAME_LENGTH_MIN_BYTES}..{FRAME_SIZE_MAX_BYTES}", fatal=True
    )


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
