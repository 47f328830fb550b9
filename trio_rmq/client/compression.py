"""Unpacks compressed bodies: zlib always, LZ4 and Zstandard with the `compression` extra.

Source: RocketMQ CompressionType; the type stands in three bits of the record's sysFlag, 0 meaning zlib.
"""

from __future__ import annotations

import zlib

from trio_rmq.errors import ClientError
from trio_rmq.wire.record import StoredMessage
from trio_rmq.wire.sysflag import COMPRESSED, COMPRESSION_LZ4, COMPRESSION_MASK, COMPRESSION_ZSTD


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
