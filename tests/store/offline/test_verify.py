"""`verify` says yes to every store that is whole, names every damage, and changes nothing."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from tests.store.offline.helpers import RECORD_SIZE, START_MS, fill
from trio_rmq.clock import use_wall_clock
from trio_rmq.errors import StoreError, StoreLockedError
from trio_rmq.store.disk import ReadOnlyDisk
from trio_rmq.store.offline.findings import Finding
from trio_rmq.store.offline.verify import Verified, verify_store
from trio_rmq.testing.bit_flips import SETTINGS, sample_store
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.testing.stores import FILE_SIZE, Place, new_message, small_config, stored
from trio_rmq.wire.record import encode_blank
from trio_rmq.wire.sysflag import TRANSACTION_COMMIT

VECTORS = Path(__file__).parents[3] / "protocol" / "vectors" / "store"
LOG = "commitlog/00000000000000000000"
QUEUE = "consumequeue/T/0/00000000000000000000"


def verify(place: Place, **settings: object) -> Verified:
    disk = place.disk
    before = disk.operations if isinstance(disk, FaultyDisk) else 0
    done = verify_store(
        small_config(place.root, **settings), disk=disk if isinstance(disk, FaultyDisk) else ReadOnlyDisk()
    )
    assert not isinstance(disk, FaultyDisk) or disk.operations == before, "it changed something"
    return done


def damages(place: Place) -> list[Finding]:
    found = verify(place)
    assert found.damages == len([finding for finding in found.findings if finding.damage])
    return [finding for finding in found.findings if finding.damage]


@pytest.mark.trio
async def test_a_whole_store(place: Place) -> None:
    await fill(place, 200)
    done = verify(place)
    assert (done.whole, done.findings, done.clean_stop) == (True, [], True)
    assert (done.records, done.record_bytes, done.fillers) == (200, 200 * RECORD_SIZE, 3)
    assert (done.queues, done.queue_records, done.index_items, done.index_files) == (3, 200, 200, 2)
    assert (done.first_time_ms, done.last_time_ms) == (1_790_000_000_000, 1_790_000_199_000)
    assert done.end_offset == 3 * FILE_SIZE + (200 - 3 * (FILE_SIZE // RECORD_SIZE)) * RECORD_SIZE


@pytest.mark.trio
async def test_an_empty_store(place: Place) -> None:
    async with place.open():
        pass
    assert verify(place).findings == []


def test_every_kind_of_record(tmp_path: Path) -> None:
    disk = sample_store(7, 200)
    done = verify_store(small_config("store", **SETTINGS), disk=disk)
    assert done.findings == []
    assert done.queue_records > done.records  # light queues


@pytest.mark.parametrize("name", ["store", "unclean"])
def test_apaches_folders(name: str, tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO((VECTORS / "store.tar.gz").read_bytes())) as archive:
        if hasattr(tarfile, "data_filter"):  # Python 3.11.4 and newer
            archive.extraction_filter = tarfile.data_filter
        archive.extractall(tmp_path)
    done = verify_store(small_config(str(tmp_path / name)), disk=ReadOnlyDisk())
    assert done.findings == []
    assert (done.records, done.index_items, done.clean_stop) == (291, 438, name == "store")


@pytest.mark.trio
async def test_a_topic_that_was_deleted_and_made_anew(place: Place) -> None:
    await fill(place, 60)
    async with place.open() as store:
        await store.delete_topic("T")
    await fill(place, 10)
    done = verify(place)
    assert done.whole
    assert done.queue_records == 10
    place.disk.unlink(f"{place.root}/config/topicFences.json")  # as Apache's broker leaves it
    done = verify(place)
    assert done.whole
    assert done.by_kind == {"queue-anew": 3}


@pytest.mark.trio
async def test_old_log_files_are_gone(place: Place) -> None:
    await fill(place, 200)
    place.disk.unlink(f"{place.root}/{LOG}")
    done = verify(place)
    assert done.findings == []
    assert (done.min_offset, done.records) == (FILE_SIZE, 200 - FILE_SIZE // RECORD_SIZE)


@pytest.mark.trio
@pytest.mark.parametrize("disk", [FaultyDisk()], ids=["twin"])
async def test_after_a_kill_only_notes(disk: FaultyDisk) -> None:
    place = Place(disk, "store")
    await fill(place, 30)
    async with place.open() as store:
        stored(store.append([new_message(b"x", queue_id=n % 3) for n in range(9)]))
        killed = Place(disk.survivor_of_kill(), "store")
    done = verify(killed)
    assert (done.whole, done.clean_stop, done.records) == (True, False, 39)
    assert done.unwritten_entries == 9
    killed.write(LOG, b"\xff" * 100, done.end_offset)
    torn = verify(killed)
    assert (torn.whole, torn.by_kind["tail"], torn.end_offset) == (True, 1, done.end_offset)


@pytest.mark.trio
async def test_damage_before_a_synced_record_is_no_torn_tail(place: Place) -> None:
    await fill(place, 30)
    place.write(LOG, b"\xff", 4 * RECORD_SIZE + 200)
    place.crash()
    [found] = damages(place)
    assert (found.kind, found.physical_offset, found.size_bytes) == ("record", 4 * RECORD_SIZE, RECORD_SIZE)


@pytest.mark.trio
@pytest.mark.parametrize(
    ("at", "data", "reason"),
    [
        (0, b"\0\0\0\1", "no size of a record"),
        (0, (RECORD_SIZE + 1).to_bytes(4, "big"), "size is not that of its parts"),
        (4, b"\xff", "no magic number"),
        (8, b"\x11\x22", "checksum"),
        (300, b"\xff", "checksum"),
        (28, b"\x01", "says it stands at"),
        (56, bytes(8), "no store time"),
        (0, bytes(RECORD_SIZE), "zeros stand"),
    ],
)
async def test_a_damaged_record_is_named_with_its_place(place: Place, at: int, data: bytes, reason: str) -> None:
    await fill(place, 100)
    position = 3 * RECORD_SIZE
    place.write(f"commitlog/{FILE_SIZE:020d}", data, position + at)
    [found] = damages(place)
    assert (found.kind, found.at, found.size_bytes) == ("record", position, RECORD_SIZE)
    assert found.path.endswith(f"commitlog/{FILE_SIZE:020d}")
    assert found.physical_offset == FILE_SIZE + position
    assert reason in found.what
    assert verify(place).records == 99


@pytest.mark.trio
async def test_the_last_record_and_what_follows_it(place: Place) -> None:
    await fill(place, 20)
    place.write(LOG, b"\xff", 19 * RECORD_SIZE + 200)
    place.write(LOG, b"\xff", 25 * RECORD_SIZE)
    [found] = damages(place)
    assert (found.at, found.size_bytes) == (19 * RECORD_SIZE, 6 * RECORD_SIZE + 1)
    place.write(LOG, b" ", 19 * RECORD_SIZE + 200)
    [found] = damages(place)
    assert (found.at, found.size_bytes, found.what) == (
        20 * RECORD_SIZE,
        5 * RECORD_SIZE + 1,
        "bytes after the log's end are not zero",
    )


@pytest.mark.trio
async def test_fillers(place: Place) -> None:
    await fill(place, 100)
    filler = FILE_SIZE // RECORD_SIZE * RECORD_SIZE
    place.write(LOG, b"\1", filler + 20)
    done = verify(place)
    assert (done.whole, done.by_kind) == (True, {"unused": 1})
    place.write(LOG, bytes(40), filler)
    [found] = damages(place)
    assert "without a filler" in found.what
    place.write(LOG, encode_blank(7), filler)
    [found] = damages(place)
    assert "a filler says that 7 bytes are left" in found.what


@pytest.mark.trio
@pytest.mark.parametrize("settings", [{}, {"enable_consume_queue_ext": True}], ids=["in the entry", "in its unit"])
async def test_a_time_of_delivery_may_be_early_where_the_clock_was_set_back(
    place: Place, settings: dict[str, object]
) -> None:
    """Times of delivery go by the clock, store times never back: entries are earlier than their records tell."""
    async with place.open(**settings) as store:
        for now_ms in (START_MS, START_MS - 60_000, START_MS + 5000, START_MS + 6000):
            with use_wall_clock(lambda: now_ms):  # noqa: B023 - used at once
                stored(store.append([new_message(topic="SCHEDULE_TOPIC_XXXX", properties="DELAY\x012")]))
    assert damages(place) == []
    if settings:
        return
    for changed_ms in (START_MS + 10_001, START_MS - 86_400_000):
        queue = f"consumequeue/SCHEDULE_TOPIC_XXXX/0/{0:020d}"
        place.write(queue, changed_ms.to_bytes(8, "big"), 2 * 20 + 12)
        [found] = damages(place)
        assert (found.kind, found.at) == ("tags-code", 40)


@pytest.mark.trio
async def test_queue_entries(place: Place) -> None:
    await fill(place, 60)
    entry = (3 * RECORD_SIZE * 5).to_bytes(8, "big") + RECORD_SIZE.to_bytes(4, "big")
    assert place.read(QUEUE)[100:112] == entry
    place.write(QUEUE, b"\1", 100 + 11)
    [found] = damages(place)
    assert (found.kind, found.at, found.physical_offset) == ("queue-entry", 100, 15 * RECORD_SIZE)
    assert "entry 5 of T-0: it says the record has" in found.what
    place.write(QUEUE, entry[8:] + b"\1", 108)
    [found] = damages(place)
    assert (found.kind, found.at) == ("tags-code", 100)
    place.write(QUEUE, bytes(20), 100)
    assert [(found.kind, found.at) for found in damages(place)] == [("queue-gap", 100), ("queue-entry", 100)]


@pytest.mark.trio
async def test_a_queue_that_lost_its_end(place: Place) -> None:
    await fill(place, 30)
    place.write(QUEUE, bytes(60), 140)
    [found] = damages(place)
    wanted = f"entry 7 of T-0: the record at {7 * 3 * RECORD_SIZE} should have this entry, which is empty; 2 more"
    assert found.what.startswith(wanted)


@pytest.mark.trio
async def test_a_queue_that_is_gone(place: Place) -> None:
    await fill(place, 30)
    place.disk.unlink(f"{place.root}/{QUEUE}")
    [found] = damages(place)
    assert (found.kind, found.path) == ("queue-missing", f"{place.root}/consumequeue/T/0")
    place.disk.make_directories(f"{place.root}/config")
    place.write("config/topics.json", b'{"topicConfigTable":{"Other":{"perm":6}}}')
    done = verify(place)
    assert done.whole
    assert "is not in config/topics.json, so it was deleted" in done.findings[0].what


@pytest.mark.trio
async def test_entries_beyond_the_log_and_two_with_one_offset(place: Place) -> None:
    await fill(place, 30)
    place.write(QUEUE, (10**6).to_bytes(8, "big") + RECORD_SIZE.to_bytes(4, "big") + bytes(8), 200)
    [found] = damages(place)
    assert "entry 10 of T-0: it leads to 1000000, beyond the log's end" in found.what
    place.write(QUEUE, bytes(20), 200)
    place.write(LOG, (3).to_bytes(8, "big"), 12 * RECORD_SIZE + 20)  # the fifth record of queue 0
    kinds = [finding.what for finding in damages(place)]
    assert len(kinds) == 2
    assert f"entry 3 of T-0: it leads to {9 * RECORD_SIZE}, but the record at {12 * RECORD_SIZE}" in kinds[0]
    assert f"entry 4 of T-0: it leads to {12 * RECORD_SIZE}" in kinds[1]


@pytest.mark.trio
async def test_index_items_slots_and_header(place: Place) -> None:
    await fill(place, 60)
    [name] = place.disk.list_directory(f"{place.root}/index")
    items_at = 40 + 50 * 4
    whole = place.read(f"index/{name}")
    for at, kind in (
        (items_at + 7 * 20, "index-item"),
        (items_at + 7 * 20 + 11, "index-item"),
        (items_at + 7 * 20 + 4, "index-item"),
        (items_at + 7 * 20 + 15, "index-item"),
        (items_at + 7 * 20 + 19, "index-item"),
        (40 + 3, "index-slot"),
        (3, "index-header"),
        (15, "index-header"),
        (20, "index-header"),
        (31, "index-header"),
        (35, "index-header"),
    ):
        place.write(f"index/{name}", bytes([whole[at] ^ 0x40]), at)
        assert kind in {finding.kind for finding in damages(place)}, at
        place.write(f"index/{name}", whole[at : at + 1], at)
    assert damages(place) == []


@pytest.mark.trio
async def test_a_lost_index_is_no_damage(place: Place) -> None:
    await fill(place, 60, settings={"max_index_num": 30})
    names = place.disk.list_directory(f"{place.root}/index")
    place.disk.unlink(f"{place.root}/index/{names[0]}")
    done = verify(place, max_index_num=30)
    assert done.whole
    assert done.by_kind == {"index-gap": 1}


@pytest.mark.trio
async def test_files_that_are_missing_stray_or_of_another_length(place: Place) -> None:
    await fill(place, 200)
    place.disk.unlink(f"{place.root}/commitlog/{FILE_SIZE:020d}")
    place.write("commitlog/notes.txt", b"?")
    place.write(f"{QUEUE[:-1]}9", b"?")
    found = damages(place)
    assert sorted({finding.kind for finding in found}) == ["length", "missing-file", "stray"]
    assert [finding.path for finding in found if finding.kind == "missing-file"] == [
        f"{place.root}/commitlog/{FILE_SIZE:020d}"
    ]


@pytest.mark.trio
async def test_metadata_that_cannot_be_read(place: Place) -> None:
    await fill(place, 60)
    async with place.open() as store:
        await store.delete_topic("T")
    place.write("config/topicFences.json", b'{"T":')
    assert [(finding.kind, finding.path) for finding in damages(place)][:1] == [
        ("metadata", f"{place.root}/config/topicFences.json")
    ]


@pytest.mark.trio
async def test_odd_hosts_times_and_fields(place: Place) -> None:
    await fill(place, 30)
    place.write(LOG, b"\x08", 5 * RECORD_SIZE + 64)
    done = verify(place)
    assert (done.whole, done.by_kind) == (True, {"store-host": 1})
    for at, kind in ((60, "store-time"), (52, "field"), (72, "field"), (83, "field")):
        before = place.read(LOG)[5 * RECORD_SIZE + at]
        place.write(LOG, bytes([before ^ 0x80]), 5 * RECORD_SIZE + at)
        assert kind in {finding.kind for finding in damages(place)}
        place.write(LOG, bytes([before]), 5 * RECORD_SIZE + at)


@pytest.mark.trio
async def test_a_store_in_use_is_refused_and_a_verified_one_is_kept(place: Place) -> None:
    async with place.open():
        with pytest.raises(StoreLockedError, match="stop it first, or verify a copy"):
            verify(place)

    opened: list[str] = []

    def try_to_open(what: str, done: int, total: int) -> None:
        if not opened:
            with pytest.raises(BlockingIOError):
                place.disk.lock(f"{place.root}/lock")
            opened.append(what)

    await fill(place, 10)
    verify_store(small_config(place.root), disk=place.disk, progress=try_to_open)
    assert opened == ["log"]
    await fill(place, 10)


def test_no_store(place: Place) -> None:
    with pytest.raises(StoreError, match="is no store folder"):
        verify(place)


def test_a_disk_for_looking_changes_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    Path(path).write_bytes(b"hello")
    disk = ReadOnlyDisk()
    handle = disk.open(path, create=True)
    assert disk.pread(handle, 5, 0) == b"hello"
    for change in (
        lambda: disk.pwrite(handle, b"x", 0),
        lambda: disk.truncate(handle, 0),
        lambda: disk.write_file(path, b""),
        lambda: disk.unlink(path),
        lambda: disk.rename(path, f"{path}2"),
        lambda: disk.make_directories(f"{path}s"),
        lambda: disk.remove_directory(str(tmp_path)),
        lambda: disk.set_modified_ms(path, 0),
        lambda: disk.lock(path),
    ):
        with pytest.raises(OSError, match="reading only"):
            change()
    with pytest.raises(FileNotFoundError):
        disk.open(f"{path}2", create=True)
    disk.close(handle)
    assert Path(path).read_bytes() == b"hello"


@pytest.mark.trio
@pytest.mark.parametrize("topic", ["SCHEDULE_TOPIC_XXXX", "rmq_sys_wheel_timer"])
async def test_a_delivered_copy_names_the_record_that_waited(topic: str, place: Place) -> None:
    async with place.open() as store:
        stored(store.append([new_message()]))
        [waited] = stored(store.append([new_message(b"waits", topic=topic)]))
        for sys_flag in (0, TRANSACTION_COMMIT):
            copy = new_message(b"waits", sys_flag=sys_flag, prepared_transaction_offset=waited.physical_offset)
            stored(store.append([copy]))
    assert damages(place) == []


@pytest.mark.trio
async def test_a_half_message_that_was_put_away_keeps_its_old_place(place: Place) -> None:
    async with place.open() as store:
        stored(store.append([new_message()]))
        [half] = stored(store.append([new_message(b"half", topic="RMQ_SYS_TRANS_HALF_TOPIC")]))
        for at in (half.physical_offset, half.physical_offset + half.size_bytes):
            put_away = new_message(b"half", topic="TRANS_CHECK_MAX_TIME_TOPIC", prepared_transaction_offset=at)
            stored(store.append([new_message(b"between"), put_away]))
    [found] = damages(place)
    assert found.kind == "field"
    assert (
        f"names a half or delayed message at {half.physical_offset + half.size_bytes}, where none stands" in found.what
    )
