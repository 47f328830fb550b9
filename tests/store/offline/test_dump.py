"""`dump` finds a record in every way in which a broker does, and `inspect` sums up; both also on a store in use."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import pytest

from tests.store.offline.helpers import RECORD_SIZE, START_MS, fill
from trio_rmq.errors import StoreError
from trio_rmq.store.disk import Disk, ReadOnlyDisk
from trio_rmq.store.offline.dump import Dump, as_json
from trio_rmq.store.offline.folder import StoreFolder
from trio_rmq.store.offline.inspect import inspect_store
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.testing.stores import FILE_SIZE, HOST, Place, new_message, small_config, stored
from trio_rmq.wire.ids import encode_offset_id

LOG = "commitlog/00000000000000000000"


def opened(place: Place, **settings: object) -> StoreFolder:
    disk = ReadOnlyDisk() if type(place.disk) is Disk else place.disk
    return StoreFolder(disk, small_config(place.root, **settings))


def decoded(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in lines]


@pytest.mark.trio
async def test_one_record_in_four_ways(place: Place) -> None:
    await fill(place, 100)
    dump = Dump(opened(place))
    at = FILE_SIZE + 2 * RECORD_SIZE
    number = FILE_SIZE // RECORD_SIZE + 2
    record = msgspec.json.decode(as_json(dump.at(at)))
    assert record == {
        "topic": "T",
        "queueId": number % 3,
        "queueOffset": number // 3,
        "commitLogOffset": at,
        "storeSize": RECORD_SIZE,
        "msgId": None,
        "offsetMsgId": encode_offset_id(HOST, at),
        "storeTimestamp": START_MS + number * 1000,
        "storeHost": "127.0.0.1:10911",
        "bornTimestamp": 1_700_000_000_000,
        "bornHost": "127.0.0.1:10911",
        "flag": 0,
        "sysFlag": 0,
        "reconsumeTimes": 0,
        "preparedTransactionOffset": 0,
        "bodyCRC": record["bodyCRC"],
        "properties": {"TAGS": f"t{number % 5}", "KEYS": f"k{number:03d}"},
        "body": str(number).ljust(500),
    }
    assert msgspec.json.decode(as_json(dump.by_id(encode_offset_id(HOST, at)))) == record
    assert decoded(dump.in_queue("T", number % 3, number // 3, 1)) == [record]
    assert decoded(dump.by_key("T", f"k{number:03d}", 9)) == [record]


@pytest.mark.trio
async def test_ranges(place: Place) -> None:
    await fill(place, 100)
    dump = Dump(opened(place))
    assert [line["queueOffset"] for line in decoded(dump.in_queue("T", 1, 5, 10))] == [*range(5, 15)]
    assert [line["queueOffset"] for line in decoded(dump.in_queue("T", 1, 30, None))] == [30, 31, 32]
    assert [int(line["body"]) for line in decoded(dump.in_log(0, None))] == [*range(100)]
    assert [int(line["body"]) for line in decoded(dump.in_log(RECORD_SIZE + 1, 3))] == [2, 3, 4]  # the next one


@pytest.mark.trio
async def test_what_is_not_there_is_said(place: Place) -> None:
    await fill(place, 30)
    dump = Dump(opened(place))
    other = encode_offset_id((b"\x0a\0\0\1", 10911), RECORD_SIZE)
    for look, sentence in (
        (lambda: dump.at(7), f"no record begins at 7: the next one is at {RECORD_SIZE}"),
        (lambda: dump.at(10**6), "the log has nothing at 1000000"),
        (lambda: dump.by_id("nonsense"), "is no offset message id"),
        (lambda: dump.by_id(other), "was stored by 127.0.0.1:10911, the id names one of 10.0.0.1:10911"),
        (lambda: [*dump.in_queue("T", 9, 0, 1)], "no queue 9 of topic T"),
        (lambda: [*dump.in_queue("T", 0, 10, 1)], "no message with offset 10"),
        (lambda: [*dump.by_key("T", "k999", 1)], "no message of topic T has the key k999"),
        (lambda: [*dump.in_log(31 * RECORD_SIZE, 1)], "no record at"),
    ):
        with pytest.raises(StoreError, match=sentence):
            look()


@pytest.mark.trio
async def test_damage_stands_in_its_place(place: Place) -> None:
    await fill(place, 30)
    place.write(LOG, b"\xff", 3 * RECORD_SIZE + 200)
    dump = Dump(opened(place))
    lines = decoded(dump.in_log(2 * RECORD_SIZE, 2))
    assert [line.get("commitLogOffset") for line in lines] == [2 * RECORD_SIZE, 3 * RECORD_SIZE, 4 * RECORD_SIZE]
    assert lines[1]["storeSize"] == RECORD_SIZE
    assert "checksum" in lines[1]["damaged"]
    lines = decoded(dump.in_queue("T", 0, 0, 3))
    assert [sorted(line)[0] for line in lines] == ["body", "commitLogOffset", "body"]
    with pytest.raises(StoreError, match="checksum"):
        dump.at(3 * RECORD_SIZE)


@pytest.mark.trio
async def test_bodies_that_are_no_text(place: Place) -> None:
    async with place.open() as store:
        stored(store.append([new_message(b"\xff\0\x01")]))
    [line] = decoded(Dump(opened(place)).in_log(0, 1))
    assert line["bodyBase64"] == "/wAB"
    assert "body" not in line


@pytest.mark.trio
async def test_keys_that_the_index_does_not_hold_yet(place: Place) -> None:
    await fill(place, 50)
    for name in place.disk.list_directory(f"{place.root}/index"):
        place.disk.unlink(f"{place.root}/index/{name}")
    assert [line["queueOffset"] for line in decoded(Dump(opened(place)).by_key("T", "k031", 9))] == [10]
    await fill(place, 60, start=50)
    found = decoded(Dump(opened(place)).by_key("T", "k031", 9))
    assert len(found) == 1


@pytest.mark.trio
async def test_inspect(place: Place) -> None:
    await fill(place, 200)
    found = inspect_store(opened(place))
    end = 3 * FILE_SIZE + (200 - 3 * (FILE_SIZE // RECORD_SIZE)) * RECORD_SIZE
    assert (found.in_use, found.clean_stop, found.findings) == (False, True, [])
    assert (found.min_offset, found.end_offset, found.log_files, found.log_file_size) == (0, end, 4, FILE_SIZE)
    assert (found.first_time_ms, found.last_time_ms) == (START_MS, START_MS + 199_000)
    assert [(queue.min_offset, queue.max_offset, queue.messages) for queue in found.queues] == [
        (0, 67, 67),
        (0, 67, 67),
        (0, 66, 66),
    ]
    assert [(queue.first_time_ms, queue.last_time_ms) for queue in found.queues][1] == (
        START_MS + 1000,
        START_MS + 199_000,
    )
    assert (found.messages, found.queue_files, found.mark) == (200, 12, end)
    assert [(file.keys, file.room) for file in found.index] == [(199, 199), (1, 199)]


@pytest.mark.trio
async def test_a_store_in_use_is_looked_into(place: Place) -> None:
    await fill(place, 30)
    async with place.open() as store:
        stored(store.append([new_message(b"new", queue_id=0)]))
        disk = place.disk
        before = disk.operations if isinstance(disk, FaultyDisk) else 0
        folder = opened(place)
        found = inspect_store(folder)
        assert (found.in_use, found.clean_stop) == (True, False)
        assert found.end_offset == store.max_physical_offset  # its entry still waits in memory
        assert (found.messages, found.findings) == (30, [])
        assert [line["body"] for line in decoded(Dump(folder).in_log(30 * RECORD_SIZE, None))] == ["new"]
        assert not isinstance(disk, FaultyDisk) or disk.operations == before


@pytest.mark.trio
async def test_index_files_of_any_size_are_understood(place: Place) -> None:
    await fill(place, 60, settings={"max_index_num": 37, "max_hash_slot_num": 91})
    folder = opened(place, max_index_num=1000, max_hash_slot_num=1000)
    assert [(file.slot_count, file.item_count) for file in folder.index_files] == [(91, 37), (91, 37)]
    assert folder.findings.kept == []
