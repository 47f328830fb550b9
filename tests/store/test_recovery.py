"""What a start makes of what a stop or a crash left: nothing is lost, nothing torn is served, no damage is hidden."""

from __future__ import annotations

import re
from itertools import count

import pytest

from trio_rmq.clock import use_wall_clock
from trio_rmq.errors import StoreCorruptError, StoreError
from trio_rmq.store.consume_queue import ENTRY, FILLER_SIZE
from trio_rmq.store.messages import AppendStatus, GetStatus
from trio_rmq.testing.stores import FILE_SIZE, Place, new_message, stored
from trio_rmq.wire.hashing import tags_code
from trio_rmq.wire.record import decode_records

LOG = "commitlog/00000000000000000000"


async def fill(place: Place, count: int, *, body_size: int = 500, start: int = 0) -> None:
    async with place.open() as store:
        for n in range(start, start + count):
            stored(store.append([new_message(str(n).encode().ljust(body_size), queue_id=n % 3, tags=f"t{n % 5}")]))


async def check(place: Place, count: int, **settings: object) -> None:
    """The store holds messages 0 to `count` of `fill`, each once."""
    async with place.open(**settings) as store:
        for queue_id in range(3):
            expected = list(range(queue_id, count, 3))
            assert store.max_offset("T", queue_id) == len(expected)
            got, offset = [], 0
            while (answer := store.get_messages("T", queue_id, offset, max_count=32)).status is GetStatus.FOUND:
                got += [
                    (record.queue_offset, int(record.body)) for record in decode_records(answer.body, check_crc=True)
                ]
                offset = answer.next_begin_offset
            assert got == list(enumerate(expected))
            tag = frozenset({tags_code("t0")})
            answer = store.get_messages("T", queue_id, 0, max_count=32, tags_codes=tag)
            assert [int(record.body) for record in decode_records(answer.body)] == [n for n in expected if n % 5 == 0][
                :32
            ]


@pytest.mark.trio
async def test_after_a_clean_stop_only_the_end_is_read(place: Place) -> None:
    await fill(place, 200)
    async with place.open() as store:
        assert store.recovered is not None
        assert (store.recovered.clean, store.recovered.records, store.recovered.dispatched) == (True, 1, 0)
    await check(place, 200)


@pytest.mark.trio
async def test_after_a_crash_all_entries_are_made_again(place: Place) -> None:
    await fill(place, 200)
    place.crash()
    await check(place, 200)
    await check(place, 200)


@pytest.mark.trio
async def test_a_crash_before_any_message(place: Place) -> None:
    async with place.open():
        pass
    place.crash()
    await check(place, 0)


@pytest.mark.trio
async def test_after_a_crash_reading_begins_at_a_file_older_than_the_checkpoint(place: Place) -> None:
    async with place.open() as store:
        for n in range(200):
            with use_wall_clock(lambda: 1_000_000 + n * 1000):  # noqa: B023 - used at once
                stored(store.append([new_message(str(n).encode().ljust(500), queue_id=n % 3, tags=f"t{n % 5}")]))
    place.crash()
    async with place.open() as store:
        assert store.recovered is not None
        assert store.recovered.start_offset == 3 * FILE_SIZE
        assert 0 < store.recovered.records < 60
    await check(place, 200)


@pytest.mark.trio
@pytest.mark.parametrize("first", [False, True])
async def test_an_entry_torn_while_it_was_zeroed_is_made_again(place: Place, first: bool) -> None:
    async with place.open() as store:
        for n in range(200):
            with use_wall_clock(lambda: 1_000_000 + n * 1000):  # noqa: B023 - used at once
                stored(store.append([new_message(str(n).encode().ljust(500), queue_id=n % 3, tags=f"t{n % 5}")]))
        queue = store._queues.table["T", 0]
        torn = next(n for n in range(67) if (entry := queue.entry(n)) is not None and entry[0] >= 3 * FILE_SIZE)
    place.crash()
    start = torn * 20 // 400 * 400
    if first:  # as if the queue began with this file
        for older in range(0, start, 400):
            place.disk.unlink(f"{place.root}/consumequeue/T/0/{older:020d}")
        for n in range(start // 20, torn):
            place.write(f"consumequeue/T/0/{start:020d}", ENTRY.pack(0, FILLER_SIZE, 0), n * 20 - start)
    place.write(f"consumequeue/T/0/{start:020d}", bytes(8), torn * 20 - start)
    if not first:
        await check(place, 200)
        return
    async with place.open() as store:
        assert (store.min_offset("T", 0), store.max_offset("T", 0)) == (torn, 67)
        records = decode_records(store.get_messages("T", 0, torn, max_count=32).body)
        assert [(record.queue_offset, int(record.body)) for record in records] == [(n, n * 3) for n in range(torn, 67)]


@pytest.mark.trio
@pytest.mark.parametrize("clean", [True, False])
async def test_lost_queue_files_are_made_again(place: Place, clean: bool) -> None:
    await fill(place, 200)
    for queue_id in range(3):
        folder = f"{place.root}/consumequeue/T/{queue_id}"
        for name in place.disk.list_directory(folder):
            place.disk.unlink(f"{folder}/{name}")
    if not clean:
        place.crash()
    await check(place, 200)


@pytest.mark.trio
async def test_a_lost_queue_behind_a_late_checkpoint_is_made_again(place: Place) -> None:
    async with place.open() as store:
        for n in range(200):
            with use_wall_clock(lambda: 1_000_000 + n * 1000):  # noqa: B023 - used at once
                stored(store.append([new_message(str(n).encode().ljust(500), queue_id=n % 3, tags=f"t{n % 5}")]))
    folder = f"{place.root}/consumequeue/T/1"
    for name in place.disk.list_directory(folder):
        place.disk.unlink(f"{folder}/{name}")
    place.crash()
    await check(place, 200)


@pytest.mark.trio
async def test_queue_entries_beyond_the_log_are_dropped(place: Place) -> None:
    await fill(place, 30)
    entry = (10**6).to_bytes(8, "big") + (600).to_bytes(4, "big") + bytes(8)
    place.write("consumequeue/T/0/00000000000000000000", entry, 10 * 20)
    place.crash()
    await check(place, 30)
    assert not any(place.read("consumequeue/T/0/00000000000000000000")[200:])


@pytest.mark.trio
@pytest.mark.parametrize("torn", [b"\xff" * 700, b"\0\0\2\x80\xda\xa3\x20\xa7" + b"\1" * 300, b"\0" * 90 + b"x"])
async def test_a_torn_tail_is_cut_and_zeroed(place: Place, torn: bytes) -> None:
    await fill(place, 20)
    end = 20 * (91 + 500 + 1 + len("TAGS\x01t0"))
    place.write(LOG, torn, end)
    place.crash()
    await check(place, 20)
    assert not any(place.read(LOG)[end:])
    assert len(place.read(LOG)) == FILE_SIZE
    await fill(place, 30, start=20)
    place.crash()
    await check(place, 50)


@pytest.mark.trio
async def test_the_last_record_cut_short_is_dropped_and_its_offset_used_again(place: Place) -> None:
    await fill(place, 20)
    size = 91 + 500 + 1 + len("TAGS\x01t0")
    place.write(LOG, bytes(300), 19 * size + 292)
    place.write("checkpoint", bytes(4096))
    place.crash()
    await check(place, 19)
    await fill(place, 20, start=19)
    await check(place, 39)


@pytest.mark.trio
async def test_old_bytes_after_the_end_do_not_come_back(place: Place) -> None:
    """Records of an earlier life of the file, whole but at another place, end the log."""
    await fill(place, 20)
    size = 91 + 500 + 1 + len("TAGS\x01t0")
    place.write(LOG, place.read(LOG)[:size], 20 * size)
    place.crash()
    await check(place, 20)


@pytest.mark.trio
async def test_files_after_the_end_are_removed(place: Place) -> None:
    """Apache's broker makes the next two files ahead of time."""
    await fill(place, 20)
    place.write(f"commitlog/{FILE_SIZE:020d}", bytes(FILE_SIZE))
    place.write(f"commitlog/{2 * FILE_SIZE:020d}", bytes(FILE_SIZE))
    await check(place, 20)
    assert place.disk.list_directory(f"{place.root}/commitlog") == [LOG[-20:]]


@pytest.mark.trio
async def test_a_bad_record_before_unsynced_ones_is_a_torn_tail(place: Place) -> None:
    await fill(place, 100)
    size = 91 + 500 + 1 + len("TAGS\x01t0")
    per_file = FILE_SIZE // size
    place.write(f"commitlog/{FILE_SIZE:020d}", b"\xff\xff", (70 - per_file) * size + 200)
    place.write("checkpoint", bytes(24), 0)
    place.crash()
    await check(place, 70)


@pytest.mark.trio
async def test_damage_before_a_synced_record_is_named(place: Place) -> None:
    await fill(place, 20)
    size = 91 + 500 + 1 + len("TAGS\x01t0")
    place.write(LOG, b"\xff\xff", 4 * size + 200)
    checkpoint = place.read("checkpoint")
    place.write("checkpoint", (int.from_bytes(checkpoint[:8], "big") + 1).to_bytes(8, "big"), 0)
    place.crash()
    before = place.read(LOG)
    for _ in range(2):
        sentence = (
            f"offset {4 * size} is damaged.*checksum.*{5 * size} was synced.*"
            f"`trio-rmq store verify {re.escape(place.root)}` lists all.*copy or a replica.*`trio-rmq store rebuild`"
        )
        with pytest.raises(StoreCorruptError, match=sentence):
            async with place.open():
                pytest.fail("opened")
    assert place.read(LOG) == before


@pytest.mark.trio
@pytest.mark.parametrize("lost", ["end of the properties", "middle of the properties", "topic"])
async def test_a_record_torn_where_no_checksum_covers_it_is_dropped(place: Place, lost: str) -> None:
    await fill(place, 20)
    properties = b"" if lost == "topic" else b"TAGS\x01t0\x02city\x01Zurich\x02"
    topic = "Tt" if lost == "topic" else "T"
    async with place.open() as store:
        stored(store.append([new_message(b"torn", topic=topic, properties=properties)]))
        end = store.max_physical_offset
    at = {"end of the properties": end - 9, "middle of the properties": end - 15, "topic": end - 3}[lost]
    place.write(LOG, bytes(end - at) if lost == "end of the properties" else b"\0", at)
    place.write("checkpoint", bytes(24), 0)
    place.crash()
    await check(place, 20)
    assert not any(place.read(LOG)[20 * (91 + 500 + 1 + len("TAGS\x01t0")) :])


@pytest.mark.trio
async def test_a_synced_record_with_zero_bytes_in_its_properties_stays(place: Place) -> None:
    """Apache's broker stores such; only what may be torn is judged by them."""
    async with place.open() as store:
        for n in range(3):
            stored(store.append([new_message(b"%d" % n, properties=b"city\x01Zurich\x02")]))
    size = 91 + 1 + 1 + len("city\x01Zurich\x02")
    place.write(LOG, b"\0", size + size - 3)
    checkpoint = place.read("checkpoint")
    place.write("checkpoint", (int.from_bytes(checkpoint[:8], "big") + 1).to_bytes(8, "big"), 0)
    place.crash()
    async with place.open() as store:
        assert store.max_offset("T", 0) == 3


@pytest.mark.trio
@pytest.mark.parametrize("together", [False, True])
async def test_zero_bytes_in_properties_are_refused(place: Place, together: bool) -> None:
    async with place.open() as store:
        append = store.append_together if together else store.append
        good, bad = new_message(b"good"), new_message(b"bad", properties="city\x01Zur\0ich\x02")
        results = append([good, bad])
        assert [result.status for result in results] == [
            AppendStatus.MESSAGE_ILLEGAL if together else AppendStatus.PUT_OK,
            AppendStatus.MESSAGE_ILLEGAL,
        ]
        assert "have a zero byte" in results[1].remark
        assert store.max_offset("T", 0) == (0 if together else 1)


@pytest.mark.trio
async def test_a_missing_log_file_in_the_middle_is_named(place: Place) -> None:
    times_ms = count(1_700_000_000_000)  # a record of the very time of the last sync may have come after it
    with use_wall_clock(lambda: next(times_ms)):
        await fill(place, 200)
    place.disk.unlink(f"{place.root}/commitlog/{FILE_SIZE:020d}")
    for _ in range(2):
        with pytest.raises(StoreCorruptError, match=f"{FILE_SIZE:020d} is missing"):
            async with place.open():
                pytest.fail("opened")
        place.crash()


@pytest.mark.trio
async def test_the_oldest_log_files_may_be_gone(place: Place) -> None:
    await fill(place, 200)
    place.disk.unlink(f"{place.root}/{LOG}")
    first = -(-FILE_SIZE // (91 + 500 + 1 + len("TAGS\x01t0"))) - 1  # messages in the first file
    for _ in range(2):
        async with place.open() as store:
            assert store.min_physical_offset == FILE_SIZE
            for queue_id in range(3):
                oldest = len([n for n in range(first) if n % 3 == queue_id])
                assert store.min_offset("T", queue_id) == oldest
                answer = store.get_messages("T", queue_id, 0, max_count=32)
                assert (answer.status, answer.next_begin_offset) == (GetStatus.OFFSET_TOO_SMALL, oldest)
                answer = store.get_messages("T", queue_id, oldest, max_count=32)
                assert decode_records(answer.body)[0].queue_offset == oldest
            assert store.offset_by_time("T", 0, 0) == store.min_offset("T", 0)
        place.crash()


@pytest.mark.trio
async def test_queues_that_begin_late_are_made_with_fillers(place: Place) -> None:
    await fill(place, 200)
    place.disk.unlink(f"{place.root}/{LOG}")
    for queue_id in range(3):
        folder = f"{place.root}/consumequeue/T/{queue_id}"
        for name in place.disk.list_directory(folder):
            place.disk.unlink(f"{folder}/{name}")
    place.crash()
    for _ in range(2):
        async with place.open() as store:
            assert store.min_offset("T", 0) == 18
            assert store.max_offset("T", 0) == 67
            answer = store.get_messages("T", 0, 18, max_count=32)
            assert [record.queue_offset for record in decode_records(answer.body)] == list(range(18, 50))
    queue = place.read("consumequeue/T/0/00000000000000000000")
    assert queue[: 18 * 20] == (bytes(8) + b"\x7f\xff\xff\xff" + bytes(8)) * 18


@pytest.mark.trio
async def test_a_queue_that_lost_its_first_files_in_a_recovery_begins_where_the_log_does(place: Place) -> None:
    """The log begins late, so the queues begin with fillers; power failed before the first file's name was synced."""
    await fill(place, 200)
    place.disk.unlink(f"{place.root}/{LOG}")
    first = -(-FILE_SIZE // (91 + 500 + 1 + len("TAGS\x01t0"))) - 1  # messages in the first file
    oldest = len([n for n in range(first) if n % 3 == 0])
    place.disk.unlink(f"{place.root}/consumequeue/T/0/00000000000000000000")
    place.write("checkpoint", bytes(4096))
    place.crash()
    async with place.open() as store:
        assert (store.min_offset("T", 0), store.max_offset("T", 0)) == (oldest, 67)
        answer = store.get_messages("T", 0, oldest, max_count=32)
        assert [record.queue_offset for record in decode_records(answer.body)] == [*range(oldest, oldest + 32)]


@pytest.mark.trio
async def test_without_a_log_the_queues_go(place: Place) -> None:
    await fill(place, 200)
    for name in place.disk.list_directory(f"{place.root}/commitlog"):
        place.disk.unlink(f"{place.root}/commitlog/{name}")
    async with place.open() as store:
        assert store.max_offset("T", 0) == 0
        assert stored(store.append([new_message()]))[0].physical_offset == 0


@pytest.mark.trio
async def test_a_log_file_without_length_gets_it_after_a_crash(place: Place) -> None:
    await fill(place, 20)
    place.write(f"commitlog/{FILE_SIZE:020d}", b"")
    with pytest.raises(StoreError, match="has 0 bytes"):
        async with place.open():
            pytest.fail("opened")
    place.crash()
    await check(place, 20)


@pytest.mark.trio
async def test_a_short_or_missing_checkpoint_only_makes_the_start_slower(place: Place) -> None:
    await fill(place, 200)
    for content in (b"", b"\0\0\0"):
        place.write("checkpoint", content)
        place.crash()
        await check(place, 200)
    place.disk.unlink(f"{place.root}/checkpoint")
    place.crash()
    await check(place, 200)


@pytest.mark.trio
async def test_the_delay_topics_entries_hold_the_time_of_delivery(place: Place) -> None:
    topic = "SCHEDULE_TOPIC_XXXX"
    with use_wall_clock(lambda: 5_000_000):
        async with place.open() as store:
            stored(
                store.append(
                    [
                        new_message(topic=topic, queue_id=1, properties=b"DELAY\x012"),
                        new_message(topic=topic, queue_id=1, properties=b"DELAY\x0199"),
                        new_message(topic=topic, queue_id=1, properties=b"DELAY\x01x", tags_code=6),
                        new_message(topic=topic, queue_id=1),
                    ]
                )
            )
    due = [5_000_000 + 5_000, 5_000_000 + 7_200_000]
    queue = place.read(f"consumequeue/{topic}/1/00000000000000000000")
    assert [int.from_bytes(queue[at + 12 : at + 20], "big") for at in (0, 20, 40, 60)] == [*due, 6, 0]
    place.crash()
    async with place.open():
        pass
    queue = place.read(f"consumequeue/{topic}/1/00000000000000000000")
    assert [int.from_bytes(queue[at + 12 : at + 20], "big") for at in (0, 20, 40, 60)] == [*due, 0, 0]


@pytest.mark.trio
async def test_a_topic_made_anew_by_others_begins_again(place: Place) -> None:
    """Apache's broker leaves no fence: the record with offset 0 says that the queue began again."""
    await fill(place, 30)
    for queue_id in range(3):
        folder = f"{place.root}/consumequeue/T/{queue_id}"
        for name in place.disk.list_directory(folder):
            place.disk.unlink(f"{folder}/{name}")
        place.disk.remove_directory(folder)
    place.disk.remove_directory(f"{place.root}/consumequeue/T")
    place.write("checkpoint", bytes(4096))
    # another broker appends with offset 0: written by a store that knows of no queue
    async with place.open() as store:
        await store.delete_topic("T")
        stored(store.append([new_message(b"anew")]))
    place.disk.unlink(f"{place.root}/config/topicFences.json")
    place.crash()
    async with place.open() as store:
        assert (store.max_offset("T", 0), store.max_offset("T", 1)) == (1, 10)
        assert decode_records(store.get_messages("T", 0, 0, max_count=9).body)[0].body == b"anew"
