"""The bits of a record's sysFlag, of a pull request's sysFlag and of a topic's permission, and what they mean.

Invariant: bits this package does not know pass through unchanged (LZ4 and Zstandard bits of newer clients included).
Source: RocketMQ MessageSysFlag, PullSysFlag, PermName, TopicSysFlag.
"""

from __future__ import annotations

COMPRESSED = 0x1
MULTI_TAGS = 0x2
TRANSACTION_NONE = 0x0
TRANSACTION_PREPARED = 0x4
TRANSACTION_COMMIT = 0x8
TRANSACTION_ROLLBACK = 0xC
TRANSACTION_MASK = 0xC
BORN_HOST_V6 = 0x10
STORE_HOST_V6 = 0x20
NEED_UNWRAP = 0x40
INNER_BATCH = 0x80
COMPRESSION_MASK = 0x700
COMPRESSION_LZ4 = 0x100
COMPRESSION_ZSTD = 0x200
COMPRESSION_ZLIB = 0x300
"""Compression type bits; 0 is zlib too, as clients before 4.9.5 and all of other languages leave them."""

PULL_COMMIT_OFFSET = 0x1
PULL_SUSPEND = 0x2
PULL_SUBSCRIPTION = 0x4
PULL_CLASS_FILTER = 0x8
PULL_LITE = 0x10

PERMISSION_INHERIT = 0x1
PERMISSION_WRITE = 0x2
PERMISSION_READ = 0x4
PERMISSION_PRIORITY = 0x8
PERMISSION_DEFAULT = PERMISSION_READ | PERMISSION_WRITE

TOPIC_UNIT = 0x1
TOPIC_UNIT_SUBSCRIPTION = 0x2


def transaction_type(sys_flag: int) -> int:
    """The transaction bits of a record's sysFlag: TRANSACTION_NONE, _PREPARED, _COMMIT or _ROLLBACK."""
    return sys_flag & TRANSACTION_MASK


def is_consumable(sys_flag: int) -> bool:
    """Whether a record with this sysFlag gets a consume-queue entry: only plain and committed ones do."""
    return not sys_flag & TRANSACTION_PREPARED


def permission_text(permission: int) -> str:
    """A topic permission as RocketMQ's tools print it: `RW-`, `R--`, `-W-`, with `X` in the last place for inherit."""
    return (
        ("R" if permission & PERMISSION_READ else "-")
        + ("W" if permission & PERMISSION_WRITE else "-")
        + ("X" if permission & PERMISSION_INHERIT else "-")
    )
