"""The store folders that Apache's broker wrote, after a clean stop and under a running broker, open in ours."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from trio_rmq.config import MessageStoreConfig
from trio_rmq.store.disk import Disk
from trio_rmq.store.message_store import MessageStore, open_message_store
from trio_rmq.store.messages import GetStatus
from trio_rmq.testing.stores import HOST, new_message, stored
from trio_rmq.wire.ids import host_text
from trio_rmq.wire.record import StoredMessage, decode_record, decode_records

VECTORS = Path(__file__).parents[2] / "protocol" / "vectors" / "store"
RECORDS: list[dict[str, Any]] = json.loads((VECTORS / "store-records.json").read_text())
CHECK: dict[str, Any] = json.loads((VECTORS / "store-check.json").read_text())


@pytest.fixture(params=["store", "unclean"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    with tarfile.open(fileobj=io.BytesIO((VECTORS / "store.tar.gz").read_bytes())) as archive:
        if hasattr(tarfile, "data_filter"):  # Python 3.11.4 and newer
            archive.extraction_filter = tarfile.data_filter
        archive.extractall(tmp_path)
    return tmp_path / str(request.param)


def config(folder: Path) -> MessageStoreConfig:
    return MessageStoreConfig(
        store_path_root_dir=str(folder),
        mapped_file_size_commit_log=32768,
        mapped_file_size_consume_queue=400,
        max_hash_slot_num=50,
        max_index_num=200,
    )


def all_messages(store: MessageStore, topic: str, queue_id: int) -> list[StoredMessage]:
    messages: list[StoredMessage] = []
    offset = 0
    while (answer := store.get_messages(topic, queue_id, offset, max_count=32)).status is GetStatus.FOUND:
        messages += decode_records(answer.body, check_crc=True)
        offset = answer.next_begin_offset
    return messages


def check_records(store: MessageStore) -> None:
    """Every record that Apache's store reads is found by its physical and by its queue offset."""
    by_queue: dict[tuple[str, int], dict[int, StoredMessage]] = defaultdict(dict)
    for key in store.queues():
        for message in all_messages(store, *key):
            by_queue[key][message.queue_offset] = message
    expected = [record for record in RECORDS if not record.get("filler") and "topic" in record]
    assert len(expected) == CHECK["messages"]
    for record in expected:
        raw = store.record_at(record["offset"])
        assert raw is not None
        message = decode_record(raw, check_crc=True)
        assert (message.size_bytes, message.topic, message.queue_id) == (
            record["size"],
            record["topic"],
            record["queue"],
        )
        assert (message.queue_offset, message.sys_flag) == (record["queueOffset"], record["sysFlag"])
        assert (message.body_crc, message.store_timestamp_ms) == (record["bodyCrc"], record["storeTime"])
        assert (host_text(message.born_host), host_text(message.store_host)) == (
            record["bornHost"],
            record["storeHost"],
        )
        assert message.property_map() == record["properties"]
        if not record["sysFlag"] & 0x1:
            assert hashlib.sha256(message.body).hexdigest() == record["bodySha256"]
        if not record["sysFlag"] & 0x4:
            assert by_queue[message.topic, message.queue_id][message.queue_offset] == message


def entries(folder: Path) -> dict[str, bytes]:
    queues = folder / "consumequeue"
    return {str(path.relative_to(queues)): path.read_bytes() for path in queues.rglob("0*") if path.is_file()}


@pytest.mark.trio
async def test_every_record_is_found(folder: Path) -> None:
    async with open_message_store(config(folder), store_host=HOST) as store:
        check_records(store)
        assert store.max_physical_offset == CHECK["log"]["max"]
        for topic, told in CHECK["topics"].items():
            for queue_id, numbers in told["queues"].items():
                assert store.min_offset(topic, int(queue_id)) == numbers["min"]
                assert store.max_offset(topic, int(queue_id)) == numbers["max"]


@pytest.mark.trio
async def test_the_entries_we_make_are_apaches(folder: Path) -> None:
    """Queues made from nothing but the log have, byte for byte, the files that Apache's broker wrote."""
    apache = entries(folder)
    for path in (folder / "consumequeue").rglob("0*"):
        if path.is_file():
            path.unlink()
    (folder / "abort").touch()
    (folder / "checkpoint").write_bytes(bytes(4096))
    async with open_message_store(config(folder), store_host=HOST) as store:
        check_records(store)
    assert entries(folder) == apache


@pytest.mark.trio
async def test_we_append_to_it_and_recover_it(folder: Path) -> None:
    for life in range(3):
        async with open_message_store(config(folder), store_host=HOST) as store:
            check_records(store)
            before = store.max_offset("GoldNormal", 0)
            results = stored(store.append([new_message(b"ours" * 100, topic="GoldNormal") for _ in range(100)]))
            assert results[0].queue_offset == before
            assert len(all_messages(store, "GoldNormal", 0)) == before + 100
        if life == 1:
            Disk().write_file(f"{folder}/abort", b"")
    assert {path.stat().st_size for path in (folder / "commitlog").iterdir()} == {32768}
    assert {path.stat().st_size for path in (folder / "consumequeue").rglob("0*") if path.is_file()} == {400}
