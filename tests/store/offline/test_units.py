"""`verify` and `rebuild` on stores whose queue entries lead to units in extension files."""

from __future__ import annotations

import struct

import pytest
import trio

from tests.store.offline.helpers import fill
from tests.store.offline.test_rebuild import UNITS, queue_files, rebuild, remove
from trio_rmq.store.consume_queue_ext import is_address
from trio_rmq.store.offline.folder import StoreFolder
from trio_rmq.store.offline.inspect import inspect_store
from trio_rmq.store.offline.verify import Verified, verify_store
from trio_rmq.testing.bit_flips import SETTINGS, sample_store
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.testing.stores import FILE_SIZE, Place, new_message, small_config, stored

FIRST = "consumequeue_ext/T/0/00000000000000000000"
ENTRIES = "consumequeue/T/0/00000000000000000000"
UNIT_BYTES = 20 + 3
UNITS_A_FILE = (512 - 4) // UNIT_BYTES


def verify(place: Place, **settings: object) -> Verified:
    return verify_store(small_config(place.root, **settings), disk=place.disk)


def damages(place: Place) -> list[tuple[str, str, int]]:
    """Kind, path below the store's folder, and byte of each damage."""
    found = verify(place)
    assert found.damages == len([finding for finding in found.findings if finding.damage])
    return [
        (finding.kind, finding.path.removeprefix(f"{place.root}/"), finding.at)
        for finding in found.findings
        if finding.damage
    ]


async def fill_with_maps(place: Place, count: int) -> None:
    """One queue, tags TagA, units of UNIT_BYTES."""
    async with place.open(**UNITS) as store:
        store.bit_map_of = lambda topic, properties: b"map"
        stored(store.append([new_message(b"%d" % number, tags="TagA") for number in range(count)]))


@pytest.mark.trio
async def test_a_whole_store(place: Place) -> None:
    await fill_with_maps(place, 100)
    done = verify(place)
    assert (done.findings, done.units, done.queue_records) == ([], 100, 100)
    folder = StoreFolder(place.disk, small_config(place.root))
    try:
        assert inspect_store(folder).unit_files == -(-100 // UNITS_A_FILE)
    finally:
        folder.close()


def test_every_kind_of_record_and_what_rebuild_makes_of_it() -> None:
    disk = sample_store(11, 200, **UNITS)
    place = Place(disk, "store")
    assert any("SCHEDULE_TOPIC_XXXX" in name for name in queue_files(place, "consumequeue_ext"))
    done = verify(place, **SETTINGS)
    assert done.findings == []
    assert 0 < done.units < done.queue_records  # entries of light queues have none
    entries, units = queue_files(place), queue_files(place, "consumequeue_ext")
    for settings in (SETTINGS, {**SETTINGS, **UNITS}):  # without the setting the folder tells
        made = trio.run(lambda: rebuild(place, **settings))  # noqa: B023 - used at once
        assert made.unit_files == len(units)
        assert queue_files(place) == entries
        assert queue_files(place, "consumequeue_ext") == units
    assert verify(place, **SETTINGS).units == done.units


@pytest.mark.trio
async def test_every_bit_of_a_unit_but_its_map_is_told(place: Place) -> None:
    await fill_with_maps(place, 30)
    unit = place.read(FIRST)[UNIT_BYTES : 2 * UNIT_BYTES]
    for bit in range(8 * UNIT_BYTES):
        at = bit // 8
        place.write(FIRST, bytes([unit[at] ^ 1 << bit % 8]), UNIT_BYTES + at)
        wanted = [] if at >= 20 else [("unit", FIRST, UNIT_BYTES)]
        assert damages(place) == wanted, bit
        place.write(FIRST, unit[at : at + 1], UNIT_BYTES + at)
    assert damages(place) == []


@pytest.mark.trio
async def test_entries_that_lead_to_a_wrong_unit_or_none(place: Place) -> None:
    await fill_with_maps(place, 30)
    entries = place.read(ENTRIES)
    first, second = entries[12:20], entries[32:40]
    place.write(ENTRIES, second, 12)
    place.write(ENTRIES, first, 32)
    assert damages(place) == [("unit", FIRST, 0)]  # behind the one that comes before it in the queue
    place.write(ENTRIES, first, 12)
    place.write(ENTRIES, struct.pack(">q", -(2**63) + UNIT_BYTES + 1), 32)
    assert damages(place) == [("unit", FIRST, UNIT_BYTES + 1)]
    place.write(ENTRIES, struct.pack(">q", -(2**62)), 32)
    assert damages(place) == [("unit", "consumequeue_ext/T/0", 0)]


@pytest.mark.trio
async def test_lost_files(place: Place) -> None:
    await fill_with_maps(place, 3 * UNITS_A_FILE)
    second = FIRST[:-3] + "512"
    place.disk.unlink(f"{place.root}/{second}")
    found = damages(place)
    assert found[0] == ("missing-file", second, 0)
    assert found[1:] == [("unit", "consumequeue_ext/T/0", 0)] * UNITS_A_FILE
    await rebuild(place)
    done = verify(place)
    assert (done.findings, done.units) == ([], 3 * UNITS_A_FILE)
    async with place.open(**UNITS) as store:
        stored(store.append([new_message()]))
    assert verify(place).units == 3 * UNITS_A_FILE + 1


@pytest.mark.trio
async def test_what_no_entry_leads_to_is_a_note(place: Place) -> None:
    await fill_with_maps(place, UNITS_A_FILE + 1)
    unused = 512 - UNITS_A_FILE * UNIT_BYTES
    for name, at in ((FIRST, 512 - unused + 2), (FIRST, 511), (FIRST[:-3] + "512", UNIT_BYTES + 100)):
        place.write(name, b"x", at)
        done = verify(place)
        assert done.whole
        assert [(finding.kind, finding.path, finding.at) for finding in done.findings] == [
            ("unused", f"{place.root}/{name}", at)
        ]
        place.write(name, b"\0", at)


@pytest.mark.trio
async def test_units_of_a_queue_that_is_gone(place: Place) -> None:
    await fill_with_maps(place, 10)
    await fill(place, 10, topic="U", settings=UNITS)
    remove(place, "consumequeue/T")
    done = verify(place)
    assert [(finding.kind, finding.damage) for finding in done.findings] == [("queue-missing", True), ("unused", False)]
    place.write("consumequeue_ext/T/x", b"?")
    assert verify(place).by_kind["stray"] == 1


@pytest.mark.trio
@pytest.mark.parametrize("disk", [FaultyDisk()], ids=["twin"])
async def test_after_a_kill_only_notes(disk: FaultyDisk) -> None:
    place = Place(disk, "store")
    await fill_with_maps(place, 50)
    async with place.open(**UNITS) as store:
        stored(store.append([new_message(b"%d" % number) for number in range(50)]))
        await store._queue_flusher.write_out()
        stored(store.append([new_message(b"%d" % number) for number in range(5)]))
        killed = Place(disk.survivor_of_kill(), "store")
    done = verify(killed)
    assert (done.whole, done.units, done.unwritten_entries) == (True, 100, 5)
    last = max(queue_files(killed, "consumequeue_ext"))
    used = len(killed.read(last).rstrip(b"\0"))
    killed.write(last, bytes(60), used - 60)
    done = verify(killed)
    assert (done.whole, done.by_kind["unit"], done.units) == (True, 3, 97)
    async with killed.open(**UNITS) as store:
        stored(store.append([new_message()]))
    done = verify(killed)
    assert (done.findings, done.units) == ([], 106)


@pytest.mark.trio
async def test_a_rebuild_makes_units_where_they_are_wanted_or_were(place: Place) -> None:
    await fill(place, 40)
    assert (await rebuild(place)).unit_files == 0
    assert not place.exists("consumequeue_ext")
    assert (await rebuild(place, **UNITS)).unit_files == 3
    assert [is_address(code) for _, _, code in struct.iter_unpack(">qiq", place.read(ENTRIES)[: 14 * 20])] == [
        True
    ] * 14
    assert verify(place).units == 40
    async with place.open(mapped_file_size_consume_queue_ext=512) as store:  # off again: entries without units
        stored(store.append([new_message(tags="t0") for _ in range(10)]))
    assert verify(place).units == 40
    assert (await rebuild(place)).unit_files == 3
    done = verify(place)
    assert (done.findings, done.units) == ([], 50)


@pytest.mark.trio
async def test_queues_without_a_record_in_the_log_keep_their_units(place: Place) -> None:
    await fill(place, 40, topic="Old", settings=UNITS)
    await fill(place, 160, settings=UNITS)
    place.disk.unlink(f"{place.root}/commitlog/{0:020d}")
    kept = queue_files(place, "consumequeue_ext/Old")
    assert verify(place).findings == []
    done = await rebuild(place)
    assert done.kept_queues == ["Old-0", "Old-1", "Old-2"]
    assert queue_files(place, "consumequeue_ext/Old") == kept
    assert verify(place).findings == []
    assert done.end_offset > FILE_SIZE
