"""Offset stores: where a read looks, what an update may do, and a file that survives being cut off at any write."""

from __future__ import annotations

from pathlib import Path

import pytest

from trio_rmq.client.offset_store import LocalOffsetStore, OffsetTable, ReadOffset, local_offsets_path
from trio_rmq.errors import ClientError
from trio_rmq.wire.groups import MessageQueue
from trio_rmq.wire.local_offsets import decode_local_offsets, encode_local_offsets

pytestmark = pytest.mark.anyio
ONE, TWO = (MessageQueue(topic="T", broker_name="b", queue_id=number) for number in (1, 2))


@pytest.fixture(params=["trio", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return local_offsets_path("group", folder=tmp_path)


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def content(path: Path) -> bytes:
    return path.read_bytes()


def remove(path: Path) -> None:
    path.unlink()


def test_the_path_is_javas(tmp_path: Path) -> None:
    expected = tmp_path / "10.0.0.1@mine" / "g" / "offsets.json"
    assert local_offsets_path("g", client_id="10.0.0.1@mine", folder=tmp_path) == expected
    assert local_offsets_path("g").is_relative_to(Path.home() / ".rocketmq_offsets")


def test_updates_go_back_only_when_asked_to() -> None:
    table = OffsetTable()
    table.update(ONE, 5, increase_only=True)
    table.update(ONE, 3, increase_only=True)
    assert table.get(ONE) == 5
    table.update(ONE, 3, increase_only=False)
    assert table.get(ONE) == 3
    table.update_and_freeze(ONE, 1)
    table.update(ONE, 9, increase_only=False)
    assert table.get(ONE) == 1
    table.forget(ONE)
    assert table.get(ONE) is None
    table.update(ONE, 2, increase_only=True)
    table.update(MessageQueue(topic="other"), 4, increase_only=True)
    assert table.snapshot("T") == {ONE: 2}


async def test_reads_look_where_they_are_told(path: Path) -> None:
    store = LocalOffsetStore(path)
    await store.load()
    for where in ReadOffset:
        assert await store.read(ONE, where) is None
    store.table.update(ONE, 7, increase_only=True)
    await store.persist([ONE, TWO])
    store.table.update(ONE, 9, increase_only=True)
    assert await store.read(ONE, ReadOffset.FROM_MEMORY) == 9
    assert await store.read(ONE, ReadOffset.MEMORY_FIRST) == 9
    assert await store.read(ONE, ReadOffset.FROM_STORE) == 7
    assert await store.read(ONE, ReadOffset.FROM_MEMORY) == 7  # as Java's: what was read is what is remembered
    other = LocalOffsetStore(path)
    assert await other.read(ONE, ReadOffset.FROM_MEMORY) is None
    assert await other.read(ONE) == 7


async def test_only_named_queues_are_written_and_others_kept(path: Path) -> None:
    first = LocalOffsetStore(path)
    first.table.update(ONE, 1, increase_only=True)
    await first.persist([ONE])
    second = LocalOffsetStore(path)
    second.table.update(ONE, 5, increase_only=True)
    second.table.update(TWO, 2, increase_only=True)
    await second.persist([TWO])
    third = LocalOffsetStore(path)
    await third.load()
    assert third.table.snapshot() == {ONE: 1, TWO: 2}
    backup = path.with_name("offsets.json.bak")
    assert decode_local_offsets(content(backup)) == {ONE: 1}
    assert sorted(item.name for item in path.parent.iterdir()) == ["offsets.json", "offsets.json.bak"]


async def test_the_backup_stands_in_for_a_file_cut_off_anywhere(path: Path) -> None:
    store = LocalOffsetStore(path)
    for offset in (1, 2):
        store.table.update(ONE, offset, increase_only=True)
        await store.persist([ONE])
    whole = content(path)
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        put(path, whole[:length])
        assert await LocalOffsetStore(path).read(ONE) == 1
    again = LocalOffsetStore(path)
    again.table.update(TWO, 3, increase_only=True)
    await again.persist([TWO])  # the torn file must not become the backup
    remove(path)
    assert await LocalOffsetStore(path).read(ONE) == 1


async def test_files_that_cannot_be_used_are_named(path: Path, tmp_path: Path) -> None:
    put(path, b"{")
    put(path.with_name("offsets.json.bak"), encode_local_offsets({ONE: 1})[:-1])
    store = LocalOffsetStore(path)
    with pytest.raises(ClientError, match=r"offsets\.json.*offsets\.json\.bak.*mend or remove"):
        await store.load()
    put(tmp_path / "file", b"")
    blocked = LocalOffsetStore(tmp_path / "file" / "offsets.json")
    blocked.table.update(ONE, 1, increase_only=True)
    with pytest.raises(ClientError, match="offsets"):
        await blocked.persist([ONE])
