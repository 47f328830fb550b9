"""The index files that Apache's broker wrote: ours are equal, byte for byte, and theirs find every message."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
from trio.testing import MockClock

from trio_rmq.config import MessageStoreConfig
from trio_rmq.store.message_store import MessageStore, open_message_store
from trio_rmq.testing.stores import HOST, new_message, stored
from trio_rmq.wire.record import decode_record

VECTORS = Path(__file__).parents[2] / "protocol" / "vectors" / "store"
RECORDS: list[dict[str, Any]] = json.loads((VECTORS / "store-records.json").read_text())
CHECK: dict[str, Any] = json.loads((VECTORS / "store-check.json").read_text())
EVER = 2**63 - 1


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


def index_files(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((folder / "index").iterdir())]


def keys_of(record: dict[str, Any]) -> list[str]:
    properties = record["properties"]
    keys = [properties["UNIQ_KEY"]] if "UNIQ_KEY" in properties else []
    return [*keys, *(word for word in properties.get("KEYS", "").split(" ") if word)]


async def check_queries(store: MessageStore) -> int:
    """Every record is found by each of its keys, and what is found has the key; returns how many keys were asked."""
    asked = 0
    for record in RECORDS:
        if record.get("filler") or "topic" not in record or record["sysFlag"] & 0xC == 0xC:
            continue
        for key in keys_of(record):
            answer = await store.query(record["topic"], key, max_count=64, begin_ms=0, end_ms=EVER)
            found = [decode_record(data) for data in answer.records]
            assert record["offset"] in [message.physical_offset for message in found]
            offsets = [message.physical_offset for message in found]
            assert offsets == sorted(set(offsets), reverse=True)
            for message in found:
                properties = message.property_map()
                assert message.topic == record["topic"]
                assert key in [properties.get("UNIQ_KEY"), *properties.get("KEYS", "").split(" ")]
            asked += 1
    return asked


@pytest.mark.trio
async def test_what_apache_indexed_is_found(folder: Path, autojump_clock: MockClock) -> None:
    before = index_files(folder)
    async with open_message_store(config(folder), store_host=HOST) as store:
        assert await check_queries(store) >= CHECK["index"]["asked"] - 2 * CHECK["appended"]
    assert index_files(folder) == before


@pytest.mark.trio
async def test_the_files_we_make_are_apaches(folder: Path, autojump_clock: MockClock) -> None:
    """The index made from nothing but the log has the bytes that Apache's broker wrote: headers, slots, items."""
    before = index_files(folder)
    shutil.rmtree(folder / "index")
    async with open_message_store(config(folder), store_host=HOST) as store:
        assert await check_queries(store) > 0
    assert index_files(folder) == before
    assert len({path.name for path in (folder / "index").iterdir()}) == len(before)


@pytest.mark.trio
async def test_groups_of_any_size_make_the_same_files(folder: Path, autojump_clock: MockClock) -> None:
    before = index_files(folder)
    names = sorted((folder / "index").iterdir())
    for name in names[1:]:
        name.unlink()
    async with open_message_store(config(folder), store_host=HOST) as store:
        index = store._index
        assert index is not None
        while index.gather():
            assert await index.flush()
    assert index_files(folder) == before


@pytest.mark.trio
async def test_we_go_on_in_apaches_file(folder: Path, autojump_clock: MockClock) -> None:
    async with open_message_store(config(folder), store_host=HOST) as store:
        stored(store.append([new_message(topic="GoldNormal", properties=b"KEYS\x01ours%d" % n) for n in range(300)]))
        await check_queries(store)
    async with open_message_store(config(folder), store_host=HOST) as store:
        await check_queries(store)
        for number in range(300):
            answer = await store.query("GoldNormal", f"ours{number}", max_count=64, begin_ms=0, end_ms=EVER)
            assert len(answer.records) == 1
    assert len(index_files(folder)) == 4
