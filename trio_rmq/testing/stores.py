"""Stores for tests: small files, easy messages, a place to crash and reopen a store in, on a real disk or its twin."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager

import trio
from trio.testing import MockClock

from trio_rmq.config import MessageStoreConfig
from trio_rmq.store.disk import Disk
from trio_rmq.store.message_store import MessageStore, open_message_store
from trio_rmq.store.messages import AppendResult, AppendStatus, NewBatch, NewMessage
from trio_rmq.testing.faulty_disk import SimulatedCrash
from trio_rmq.wire.hashing import tags_code

FILE_SIZE = 32768
"""Length of a test store's log files; its queue files hold 20 entries."""

HOST = (b"\x7f\0\0\1", 10911)

"""The store host and born host of test messages."""


def small_config(root: str, **settings: object) -> MessageStoreConfig:
    """A store's configuration with small files; `settings` are fields of MessageStoreConfig."""
    values: dict[str, object] = {
        "store_path_root_dir": root,
        "mapped_file_size_commit_log": FILE_SIZE,
        "mapped_file_size_consume_queue": 400,
        "max_hash_slot_num": 50,
        "max_index_num": 200,
        **settings,
    }
    return MessageStoreConfig(**values)  # type: ignore[arg-type]  # the values are those of the keys above


def survives(job: Callable[[], Awaitable[None]]) -> bool:
    """Run `job` on virtual time; False when the disk's simulated process died in it, and nothing else went wrong."""
    try:
        trio.run(job, clock=MockClock(autojump_threshold=0))
    except SimulatedCrash:
        return False
    except BaseExceptionGroup as group:
        if group.split(SimulatedCrash)[1] is not None:
            raise
        return False
    return True


def new_message(
    body: bytes = b"hello", *, topic: str = "T", queue_id: int = 0, tags: str | None = None, **fields: object
) -> NewMessage:
    """A message with the given body and tags; `fields` are fields of NewMessage."""
    values: dict[str, object] = {
        "properties": b"" if tags is None else f"TAGS\x01{tags}".encode(),
        "tags_code": tags_code(tags),
        "born_timestamp_ms": 1_700_000_000_000,
        "born_host": HOST,
        **fields,
    }
    return NewMessage(topic, queue_id, body, **values)  # type: ignore[arg-type]  # see above


def stored(results: Sequence[AppendResult]) -> Sequence[AppendResult]:
    """`results`, all of which must be PUT_OK."""
    for result in results:
        if result.status is not AppendStatus.PUT_OK:
            raise AssertionError(result)
    return results


def append_batch(store: MessageStore, messages: Sequence[NewMessage]) -> list[AppendResult]:
    """Append messages that are alike but for body, properties, flag and tags as one batch; one result a message."""
    first = messages[0]
    result = store.append_batch(
        NewBatch(
            first.topic,
            first.queue_id,
            [(message.flag, message.body, _as_bytes(message.properties)) for message in messages],
            [message.tags_code for message in messages],
            first.sys_flag,
            first.born_timestamp_ms,
            first.born_host,
            first.reconsume_times,
        )
    )
    if result.status is not AppendStatus.PUT_OK:
        return [AppendResult(result.status, remark=result.remark) for _ in messages]
    ends = [*result.physical_offsets[1:], result.end_physical_offset]
    return [
        AppendResult(result.status, start, end - start, result.queue_offset + number, result.store_timestamp_ms)
        for number, (start, end) in enumerate(zip(result.physical_offsets, ends, strict=True))
    ]


def _as_bytes(properties: str | bytes) -> bytes:
    return properties.encode() if isinstance(properties, str) else properties


class Place:
    """A disk and a folder on it, in which a test opens stores one after another."""

    def __init__(self, disk: Disk, root: str) -> None:
        self.disk = disk
        self.root = root

    def open(self, **settings: object) -> AbstractAsyncContextManager[MessageStore]:
        """Open the store; `settings` are fields of MessageStoreConfig."""
        return open_message_store(small_config(self.root, **settings), disk=self.disk, store_host=HOST)

    def exists(self, name: str) -> bool:
        """Whether the store's folder has `name`."""
        return self.disk.exists(f"{self.root}/{name}")

    def read(self, name: str) -> bytes:
        """The content of a file below the store's folder."""
        return self.disk.read_file(f"{self.root}/{name}")

    def write(self, name: str, content: bytes, offset: int | None = None) -> None:
        """Replace the file, or only what stands at `offset`."""
        path = f"{self.root}/{name}"
        if offset is None:
            self.disk.write_file(path, content)
            return
        handle = self.disk.open(path)
        self.disk.pwrite(handle, content, offset)
        self.disk.close(handle)

    def crash(self, *, marked: bool = False) -> None:
        """What a killed process leaves behind beyond its files: the mark of a running store.

        Without `marked` the checkpoint has only its times, as RocketMQ writes it.
        """
        self.write("abort", b"")
        if not marked and self.exists("checkpoint"):
            self.write("checkpoint", bytes(64), 256)
