"""What goes into the store and what comes out of it, as plain values.

`NewMessage` is a message before it has a place; `AppendResult` says which place it got, or why it got none;
`GetResult` is a pull's answer.  Statuses carry RocketMQ's names (PutMessageStatus, GetMessageStatus), because handlers
translate them into response codes by name.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec

from trio_rmq.wire.ids import Host


class NewMessage(msgspec.Struct, gc=False):
    """A message to append.

    `properties` is the stored text as text or UTF-8 bytes; `tags_code` is what its consume-queue entry will carry
    (`wire.hashing.tags_code`; ignored on the delay topic, whose entries carry the time of delivery).
    `wait_for_store` False means that nobody waits for the sync of this message; the store itself treats both alike.
    """

    topic: str
    queue_id: int
    body: bytes
    properties: bytes | str = b""
    flag: int = 0
    sys_flag: int = 0
    born_timestamp_ms: int = 0
    born_host: Host = (b"\0\0\0\0", 0)
    reconsume_times: int = 0
    prepared_transaction_offset: int = 0
    tags_code: int = 0
    wait_for_store: bool = True


class NewBatch(msgspec.Struct, gc=False):
    """Messages of one batch send: all are stored back to back in one log file, in one queue, or none is.

    `items` are (user flag, body, stored properties in UTF-8); `tags_codes` has their tags codes.
    """

    topic: str
    queue_id: int
    items: list[tuple[int, bytes, bytes]]
    tags_codes: list[int]
    sys_flag: int = 0
    born_timestamp_ms: int = 0
    born_host: Host = (b"\0\0\0\0", 0)
    reconsume_times: int = 0

    def messages(self) -> list[NewMessage]:
        """The same as single messages."""
        return [
            NewMessage(
                self.topic,
                self.queue_id,
                body,
                properties,
                flag,
                self.sys_flag,
                self.born_timestamp_ms,
                self.born_host,
                self.reconsume_times,
                tags_code=code,
            )
            for (flag, body, properties), code in zip(self.items, self.tags_codes, strict=True)
        ]


class AppendStatus(IntEnum):
    """How one message of an append fared (RocketMQ PutMessageStatus)."""

    PUT_OK = 0
    """Written; durable only after `wait_durable`."""
    SERVICE_NOT_AVAILABLE = 4
    """Nothing of it is stored: the disk is full, or the log failed for good.  Clients take it to another broker."""
    MESSAGE_ILLEGAL = 6
    """Topic or body too long, or the record fits no log file."""
    PROPERTIES_SIZE_EXCEEDED = 7
    """The properties do not fit the record's 16-bit length."""
    LMQ_CONSUME_QUEUE_NUM_EXCEEDED = 10
    """It is to go to more `%LMQ%` queues than there may be."""


class AppendResult(msgspec.Struct, gc=False):
    """Where one message went.  All numbers are -1 when `status` is not PUT_OK; `remark` then is a sentence."""

    status: AppendStatus
    physical_offset: int = -1
    size_bytes: int = -1
    queue_offset: int = -1
    store_timestamp_ms: int = -1
    remark: str = ""


class BatchResult(msgspec.Struct, gc=False):
    """Where a batch went: the physical offset of each record, the first's queue offset, and where the last one ends.

    Nothing of it is stored when `status` is not PUT_OK; `remark` then is a sentence.
    """

    status: AppendStatus
    physical_offsets: list[int] = []
    queue_offset: int = -1
    end_physical_offset: int = 0
    store_timestamp_ms: int = -1
    remark: str = ""


class GetStatus(IntEnum):
    """What a pull met (RocketMQ GetMessageStatus)."""

    FOUND = 0
    NO_MATCHED_MESSAGE = 1
    """Entries were there, none matched; go on at `next_begin_offset`."""
    MESSAGE_WAS_REMOVING = 2
    """The records' log file is gone; go on at `next_begin_offset`."""
    OFFSET_FOUND_NULL = 3
    """The entry could not be read; go on at `next_begin_offset`."""
    OFFSET_OVERFLOW_BADLY = 4
    """Past the end by more than one."""
    OFFSET_OVERFLOW_ONE = 5
    """Exactly at the end: nothing new yet."""
    OFFSET_TOO_SMALL = 6
    """Before the oldest message still kept."""
    NO_MATCHED_LOGIC_QUEUE = 7
    """The store has no such queue."""
    NO_MESSAGE_IN_QUEUE = 8
    """The queue exists and never held a message."""


class GetResult(msgspec.Struct, gc=False):
    """A pull's answer: `body` is `count` whole records back to back; the offsets are queue offsets."""

    status: GetStatus
    next_begin_offset: int
    min_offset: int
    max_offset: int
    body: bytes = b""
    count: int = 0


class QueryResult(msgspec.Struct, frozen=True):
    """What the index found: whole records, the newest first, and the store time (ms) and physical offset it reaches."""

    records: list[bytes]
    last_update_timestamp_ms: int = 0
    last_update_physical_offset: int = 0


class StoreStatistics(msgspec.Struct, frozen=True):
    """A snapshot of the store.  Offsets are physical; what is before `synced_offset` survives a power loss."""

    min_physical_offset: int
    max_physical_offset: int
    synced_offset: int
    messages_appended: int
    bytes_appended: int
    appends: int
    messages_read: int
    bytes_read: int
    reads_found: int
    reads_missed: int
    syncs: int
    queues: int
    queue_entries_unwritten: int
    log_files: int
    open_files: int
    last_store_timestamp_ms: int
    failed: bool
