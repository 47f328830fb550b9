"""`rebuild` makes from the log what the broker had made, whatever happens on the way, and never touches a bad log."""

from __future__ import annotations

import io
import tarfile
from functools import partial
from pathlib import Path
from random import Random

import pytest
import trio
from trio.testing import MockClock

from tests.store.offline.helpers import RECORD_SIZE, START_MS, fill
from trio_rmq.errors import StoreCorruptError, StoreError, StoreLockedError
from trio_rmq.store.disk import Disk
from trio_rmq.store.messages import GetStatus
from trio_rmq.store.offline.rebuild import Rebuilt, rebuild_store
from trio_rmq.store.offline.verify import verify_store
from trio_rmq.testing.bit_flips import SETTINGS, sample_store
from trio_rmq.testing.faulty_disk import FaultyDisk, SimulatedCrash
from trio_rmq.testing.stores import FILE_SIZE, Place, small_config
from trio_rmq.wire.record import decode_records

VECTORS = Path(__file__).parents[3] / "protocol" / "vectors" / "store"
LOG = "commitlog/00000000000000000000"
UNITS: dict[str, object] = {"enable_consume_queue_ext": True, "mapped_file_size_consume_queue_ext": 512}


async def rebuild(place: Place, **settings: object) -> Rebuilt:
    return await rebuild_store(small_config(place.root, **settings), disk=place.disk)


def queue_files(place: Place, folder: str = "consumequeue") -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for name in place.disk.list_directory(f"{place.root}/{folder}"):
        path = f"{folder}/{name}"
        if place.disk.is_directory(f"{place.root}/{path}"):
            found.update(queue_files(place, path))
        else:
            found[path] = place.read(path)
    return found


def remove(place: Place, *folders: str) -> None:
    for folder in folders:
        for path in queue_files(place, folder):
            place.disk.unlink(f"{place.root}/{path}")


@pytest.mark.trio
async def test_queues_and_index_come_back_byte_for_byte(place: Place) -> None:
    await fill(place, 200)
    queues, index = queue_files(place), queue_files(place, "index")
    remove(place, "consumequeue", "index")
    done = await rebuild(place)
    assert (done.records, done.entries, done.queues, done.index_keys, done.index_files) == (200, 200, 3, 200, 2)
    assert queue_files(place) == queues
    assert [*queue_files(place, "index").values()] == [*index.values()]
    assert not place.exists("abort")
    assert verify_store(small_config(place.root), disk=place.disk).findings == []
    await rebuild(place)
    assert queue_files(place) == queues


@pytest.mark.trio
async def test_queue_files_have_the_times_of_their_records(place: Place) -> None:
    await fill(place, 200)
    await rebuild(place)
    for queue_id in range(3):
        folder = f"{place.root}/consumequeue/T/{queue_id}"
        names = place.disk.list_directory(folder)
        assert len(names) == 4
        for number, name in enumerate(names):
            last = min((number + 1) * 20, (200 - queue_id + 2) // 3) - 1
            assert place.disk.modified_ms(f"{folder}/{name}") == START_MS + (last * 3 + queue_id) * 1000


@pytest.mark.trio
async def test_wrong_entries_and_items_are_made_right(place: Place) -> None:
    await fill(place, 200)
    queues = queue_files(place)
    place.write("consumequeue/T/1/00000000000000000000", b"\1\2\3\4\5\6\7" * 9, 60)
    place.write("consumequeue/T/2/00000000000000000400", b"short")
    [name, _] = place.disk.list_directory(f"{place.root}/index")
    place.write(f"index/{name}", b"short")
    assert not verify_store(small_config(place.root), disk=place.disk).whole
    await rebuild(place)
    assert queue_files(place) == queues
    assert verify_store(small_config(place.root), disk=place.disk).findings == []


@pytest.mark.trio
async def test_queues_without_a_record_in_the_log_keep_their_next_offset(place: Place) -> None:
    await fill(place, 40, topic="Old")
    await fill(place, 160)
    place.disk.unlink(f"{place.root}/{LOG}")
    place.write("consumequeue/T/0/00000000000000000000", bytes(400))
    done = await rebuild(place)
    assert done.kept_queues == ["Old-0", "Old-1", "Old-2"]
    assert verify_store(small_config(place.root), disk=place.disk).findings == []
    async with place.open() as store:
        assert store.max_offset("Old", 0) == 14
        first = FILE_SIZE // RECORD_SIZE - 40  # messages of T that went with the first file
        assert store.min_offset("T", 0) == (first + 2) // 3
        answer = store.get_messages("T", 0, store.min_offset("T", 0), max_count=1)
        assert decode_records(answer.body)[0].queue_offset == store.min_offset("T", 0)


@pytest.mark.trio
async def test_a_deleted_topic_stays_deleted(place: Place) -> None:
    await fill(place, 60)
    async with place.open() as store:
        await store.delete_topic("T")
    await fill(place, 10)
    assert (await rebuild(place)).entries == 10
    async with place.open() as store:
        assert [store.max_offset("T", n) for n in range(3)] == [4, 3, 3]


def test_every_kind_of_record_and_light_queues() -> None:
    disk = sample_store(5, 120)
    place = Place(disk, "store")
    before = queue_files(place)
    remove(place, "consumequeue", "index")
    for settings in (SETTINGS, {**SETTINGS, "enable_multi_dispatch": False}):  # the folders tell of light queues
        trio.run(partial(rebuild, place, **settings))
        assert queue_files(place) == before
        assert verify_store(small_config("store", **SETTINGS), disk=disk).findings == []


@pytest.mark.trio
@pytest.mark.parametrize("name", ["store", "unclean"])
async def test_apaches_folders(name: str, tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO((VECTORS / "store.tar.gz").read_bytes())) as archive:
        if hasattr(tarfile, "data_filter"):  # Python 3.11.4 and newer
            archive.extraction_filter = tarfile.data_filter
        archive.extractall(tmp_path)
    place = Place(Disk(), str(tmp_path / name))
    queues, index = queue_files(place), queue_files(place, "index")
    done = await rebuild(place)
    assert (done.entries, done.index_keys) == (291, 438)
    assert queue_files(place) == queues
    assert [*queue_files(place, "index").values()] == [*index.values()]


@pytest.mark.trio
async def test_a_damaged_log_is_left_alone(place: Place) -> None:
    await fill(place, 100)
    place.write(LOG, b"\xff", 7 * RECORD_SIZE + 200)
    remove(place, "index")
    before = [queue_files(place), queue_files(place, "commitlog"), place.read("checkpoint")]
    with pytest.raises(StoreCorruptError, match=f"physical offset {7 * RECORD_SIZE}.*checksum.*copy or a replica"):
        await rebuild(place)
    assert [queue_files(place), queue_files(place, "commitlog"), place.read("checkpoint")] == before
    assert not place.exists("abort")


@pytest.mark.trio
async def test_a_stray_file_is_named_before_anything_changes(place: Place) -> None:
    await fill(place, 10)
    place.write("consumequeue/T/0/notes.txt", b"?")
    before = queue_files(place)
    with pytest.raises(StoreError, match=r"notes\.txt does not belong there"):
        await rebuild(place)
    assert queue_files(place) == before


@pytest.mark.trio
async def test_a_torn_tail_is_cut_as_a_start_would(place: Place) -> None:
    await fill(place, 30)
    place.crash()
    place.write(LOG, b"\xff" * 300, 30 * RECORD_SIZE)
    assert (await rebuild(place)).end_offset == 30 * RECORD_SIZE
    assert not place.exists("abort")
    assert verify_store(small_config(place.root), disk=place.disk).findings == []


@pytest.mark.trio
async def test_a_store_in_use_is_refused(place: Place) -> None:
    async with place.open():
        before = queue_files(place)
        with pytest.raises(StoreLockedError, match="stop it first"):
            await rebuild(place)
        assert queue_files(place) == before
    with pytest.raises(StoreError, match="is no store folder"):
        await rebuild(Place(place.disk, f"{place.root}/consumequeue"))


@pytest.mark.parametrize("settings", [{}, UNITS], ids=["plain", "units"])
@pytest.mark.parametrize("loss", ["kill", "power"])
def test_cut_short_anywhere_the_next_start_finishes_it(loss: str, settings: dict[str, object]) -> None:
    """Every changing call of a rebuild is where the process dies, or the power fails; a broker starts afterwards."""

    async def made(disk: FaultyDisk) -> None:
        await fill(Place(disk, "store"), 100, settings=settings)

    async def serve(place: Place) -> None:
        async with place.open(**settings) as store:
            for queue_id in range(3):
                offset, numbers = 0, []
                while (answer := store.get_messages("T", queue_id, offset, max_count=32)).status is GetStatus.FOUND:
                    numbers += [int(record.body) for record in decode_records(answer.body, check_crc=True)]
                    offset = answer.next_begin_offset
                assert numbers == [*range(queue_id, 100, 3)]
            found = await store.query("T", "k077", max_count=9, begin_ms=0, end_ms=2**62)
            assert len(found.records) == 1
        done = verify_store(small_config("store"), disk=place.disk)
        assert (done.findings, done.units) == ([], 100 if settings else 0)

    def run(job: object) -> None:
        trio.run(job, clock=MockClock(autojump_threshold=0))  # type: ignore[arg-type]  # an async function

    whole = FaultyDisk()
    run(partial(made, whole))
    probe = whole.survivor_of_kill()
    before = probe.operations
    run(partial(rebuild, Place(probe, "store")))
    points = probe.operations - before
    assert points > 50
    for point in range(1, points + 1):
        disk = whole.survivor_of_kill()
        disk.crash_at, disk.crash_rng = point, Random(point)
        with pytest.raises(SimulatedCrash):
            run(partial(rebuild, Place(disk, "store")))
        rng = Random(point)
        disk = disk.survivor_of_kill() if loss == "kill" else disk.survivor_of_power_loss(rng)
        run(partial(serve, Place(disk, "store")))
