"""Packs large bodies and unpacks them: zlib always, LZ4 and Zstandard with the `compression` extra.

Source: RocketMQ CompressionType; the type stands in three bits of the record's sysFlag, 0 meaning zlib.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from enum import Enum

from trio_rmq.errors import ClientError
from trio_rmq.wire.record import StoredMessage
from trio_rmq.wire.sysflag import COMPRESSED, COMPRESSION_LZ4, COMPRESSION_MASK, COMPRESSION_ZLIB, COMPRESSION_ZSTD

THRESHOLD_BYTES = 4096
"""Bodies of at least so many bytes are packed (compressMsgBodyOverHowmuch)."""
LEVEL = 5
"""How hard zlib and Zstandard try (msgCompressLevel)."""


class CompressionType(Enum):
    """How bodies are packed, with its bits in the system flags."""

    ZLIB = COMPRESSION_ZLIB
    LZ4 = COMPRESSION_LZ4
    ZSTD = COMPRESSION_ZSTD


def _packer(kind: CompressionType, level: int) -> Callable[[bytes], bytes]:
    """What packs one body; ImportError without its library."""
    if kind is CompressionType.LZ4:
        import lz4.frame

        lz4_compress = lz4.frame.compress
        return lambda body: bytes(lz4_compress(body))
    if kind is CompressionType.ZSTD:
        import zstandard

        return zstandard.ZstdCompressor(level=level).compress
    return lambda body: zlib.compress(body, level)


class Compression:
    """Packs bodies of `threshold_bytes` and more; ClientError when the library for `kind` is not installed.

    Old readers know zlib only: Java reads LZ4 and Zstandard from 4.9.5 on, Go and Node do not.
    """

    def __init__(
        self,
        kind: CompressionType = CompressionType.ZLIB,
        *,
        threshold_bytes: int = THRESHOLD_BYTES,
        level: int = LEVEL,
    ) -> None:
        if threshold_bytes < 1 or not 0 <= level <= 9:
            raise ClientError(f"a threshold of {threshold_bytes} and level {level}: give 1 byte or more, and 0 to 9")
        self.kind = kind
        self.threshold_bytes = threshold_bytes
        try:
            self._packed = _packer(kind, level)
        except ImportError as error:
            raise ClientError(f"to send {kind.name}: pip install 'trio-rmq[compression]' ({error})") from None

    def pack(self, body: bytes) -> tuple[bytes, int]:
        """The body as it leaves and its bits of the system flags; as it is, and 0, when packing gains nothing."""
        packed = self._packed(body)
        if len(packed) >= len(body):
            return body, 0
        return packed, COMPRESSED | self.kind.value


def plain_body(message: StoredMessage) -> bytes:
    """The body as its producer gave it; ClientError for bytes that do not unpack or a missing library."""
    if not message.sys_flag & COMPRESSED:
        return message.body
    kind = message.sys_flag & COMPRESSION_MASK
    try:
        if kind == COMPRESSION_LZ4:
            import lz4.frame

            return bytes(lz4.frame.decompress(message.body))
        if kind == COMPRESSION_ZSTD:
            import zstandard

            return zstandard.ZstdDecompressor().decompressobj().decompress(message.body)
        return zlib.decompress(message.body)
    except ImportError as error:
        raise ClientError(f"the body is compressed; pip install 'trio-rmq[compression]' to read it ({error})") from None
    except (zlib.error, RuntimeError, ValueError) as error:
        raise ClientError(f"the body of {message.offset_message_id} does not unpack: {error}") from None
