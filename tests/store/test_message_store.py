"""What the store promises its callers, on the real disk and on its twin."""

from __future__ import annotations

import pytest
import trio

from trio_rmq.clock import use_wall_clock
from trio_rmq.errors import StoreError, StoreLockedError
from trio_rmq.store.messages import AppendStatus, GetStatus
from trio_rmq.testing.stores import FILE_SIZE, HOST, Place, new_message, stored
from trio_rmq.wire.hashing import tags_code
from trio_rmq.wire.record import decode_record, decode_records


@pytest.mark.trio
async def test_a_message_comes_back_as_it_was_stored(place: Place) -> None:
    async with place.open() as store:
        with use_wall_clock(lambda: 1_700_000_000_123):
            [result] = stored(
                store.append([
                    new_message(
                        b"body", topic="Topic", queue_id=3, tags="A", flag=7, sys_flag=1, reconsume_times=2,
                        prepared_transaction_offset=9,
                    )
                ])
            )  # fmt: skip
        assert (result.physical_offset, result.queue_offset, result.store_timestamp_ms) == (0, 0, 1_700_000_000_123)
        answer = store.get_messages("Topic", 3, 0, max_count=32)
        assert (answer.status, answer.count, answer.next_begin_offset) == (GetStatus.FOUND, 1, 1)
        [record] = decode_records(answer.body, check_crc=True)
        assert len(answer.body) == result.size_bytes == record.size_bytes
        assert (record.topic, record.queue_id, record.body, record.properties) == ("Topic", 3, b"body", b"TAGS\x01A")
        assert (record.flag, record.sys_flag, record.reconsume_times) == (7, 1, 2)
        assert (record.prepared_transaction_offset, record.queue_offset, record.physical_offset) == (9, 0, 0)
        assert (record.born_timestamp_ms, record.store_timestamp_ms) == (1_700_000_000_000, 1_700_000_000_123)
        assert (record.born_host, record.store_host) == (HOST, HOST)
        assert store.record_at(0) == answer.body


@pytest.mark.trio
async def test_properties_may_be_text_and_hosts_ipv6(place: Place) -> None:
    v6 = (bytes(range(16)), 1234)
    async with place.open() as store:
        first, second = stored(
            store.append([new_message(properties="KEYS\x01ä", born_host=v6), new_message(b"next", sys_flag=0x10)])
        )
        assert second.physical_offset == first.size_bytes
        one, two = decode_records(store.get_messages("T", 0, 0, max_count=32).body, check_crc=True)
        assert (one.born_host, one.properties, one.sys_flag) == (v6, "KEYS\x01ä".encode(), 0x10)
        assert (two.born_host, two.sys_flag) == (HOST, 0)
        assert store.offset_by_time("T", 0, one.store_timestamp_ms) == 0


@pytest.mark.trio
async def test_offsets_have_no_gap_over_file_ends_and_restarts(place: Place) -> None:
    body = b"x" * 700
    count = 0
    for _ in range(3):
        async with place.open() as store:
            assert store.max_offset("T", 0) == count
            for size in (1, 5, 64):
                results = stored(store.append([new_message(body) for _ in range(size)]))
                assert [result.queue_offset for result in results] == list(range(count, count + size))
                count += size
            seen = []
            offset = 0
            while (answer := store.get_messages("T", 0, offset, max_count=32)).status is GetStatus.FOUND:
                seen += [record.queue_offset for record in decode_records(answer.body, check_crc=True)]
                offset = answer.next_begin_offset
            assert seen == list(range(count))
            assert answer.status is GetStatus.OFFSET_OVERFLOW_ONE
    assert len(place.disk.list_directory(f"{place.root}/commitlog")) > 3


@pytest.mark.trio
async def test_a_file_ends_with_a_filler_and_keeps_its_length(place: Place) -> None:
    async with place.open() as store:
        results = stored(store.append([new_message(b"y" * 1000) for _ in range(40)]))
        rolled = next(result for result in results if result.physical_offset == FILE_SIZE)
        before = results[results.index(rolled) - 1]
        end = before.physical_offset + before.size_bytes
    log = place.read("commitlog/00000000000000000000")
    assert len(log) == FILE_SIZE
    assert log[end : end + 8] == (FILE_SIZE - end).to_bytes(4, "big") + (0xCBD43194).to_bytes(4, "big")
    assert not any(log[end + 8 :])
    assert len(place.read("consumequeue/T/0/00000000000000000000")) == 400


@pytest.mark.trio
async def test_entries_are_rocketmqs_twenty_bytes(place: Place) -> None:
    async with place.open() as store:
        results = stored(store.append([new_message(tags="TagA"), new_message(tags="TagB")]))
    queue = place.read("consumequeue/T/0/00000000000000000000")
    for index, (result, tag) in enumerate(zip(results, ("TagA", "TagB"), strict=True)):
        entry = queue[index * 20 : index * 20 + 20]
        assert entry[:8] == result.physical_offset.to_bytes(8, "big")
        assert entry[8:12] == result.size_bytes.to_bytes(4, "big")
        assert entry[12:] == tags_code(tag).to_bytes(8, "big", signed=True)
    assert not any(queue[40:])


@pytest.mark.trio
async def test_a_bad_message_gets_its_status_and_the_others_go_on(place: Place) -> None:
    async with place.open(max_message_size=20_000) as store:
        results = store.append(
            [
                new_message(b"one"),
                new_message(b"z" * 20_001),
                new_message(properties=b"p" * 32_768),
                new_message(topic="t" * 128),
                new_message(topic="../T"),
                new_message(topic=""),
                new_message(queue_id=-1),
                new_message(flag=2**31),
                new_message(b"z" * 20_000, properties=b"p" * 12_700),
                new_message(b"two"),
            ]
        )
        statuses = [result.status for result in results]
        assert statuses[0] is statuses[9] is AppendStatus.PUT_OK
        assert statuses[2] is AppendStatus.PROPERTIES_SIZE_EXCEEDED
        assert all(status is AppendStatus.MESSAGE_ILLEGAL for status in [statuses[1], *statuses[3:9]])
        assert all(result.remark and result.queue_offset == -1 for result in results[1:9])
        assert [result.queue_offset for result in (results[0], results[9])] == [0, 1]
        assert results[9].physical_offset == results[0].size_bytes
        assert store.append([]) == []


@pytest.mark.trio
async def test_a_batch_stays_in_one_file_or_is_refused_whole(place: Place) -> None:
    async with place.open() as store:
        stored(store.append([new_message(b"a" * 20_000)]))
        batch = stored(store.append_together([new_message(b"b" * 5_000) for _ in range(3)]))
        assert batch[0].physical_offset == FILE_SIZE
        assert [result.queue_offset for result in batch] == [1, 2, 3]
        refused = store.append_together([new_message(b"c" * 9_000) for _ in range(4)])
        assert {result.status for result in refused} == {AppendStatus.MESSAGE_ILLEGAL}
        refused = store.append_together([new_message(), new_message(properties=b"p" * 40_000)])
        assert {result.status for result in refused} == {AppendStatus.PROPERTIES_SIZE_EXCEEDED}
        assert store.max_offset("T", 0) == 4
        assert [result.queue_offset for result in stored(store.append_together([new_message()]))] == [4]


@pytest.mark.trio
async def test_prepared_and_rolled_back_records_have_no_entry(place: Place) -> None:
    async with place.open() as store:
        results = stored(store.append([new_message(sys_flag=flag) for flag in (0, 4, 12, 8)]))
        assert [result.queue_offset for result in results] == [0, 0, 0, 1]
        answer = store.get_messages("T", 0, 0, max_count=32)
        assert [record.sys_flag for record in decode_records(answer.body)] == [0, 8]
    place.crash()
    async with place.open() as store:
        assert store.max_offset("T", 0) == 2


@pytest.mark.trio
async def test_pull_statuses(place: Place) -> None:
    async with place.open() as store:
        answer = store.get_messages("T", 0, 5, max_count=32)
        assert (answer.status, answer.next_begin_offset) == (GetStatus.NO_MATCHED_LOGIC_QUEUE, 0)
        stored(store.append([new_message(sys_flag=4)]))
        answer = store.get_messages("T", 0, 5, max_count=32)
        assert (answer.status, answer.next_begin_offset) == (GetStatus.NO_MESSAGE_IN_QUEUE, 0)
        stored(store.append([new_message() for _ in range(3)]))
        answer = store.get_messages("T", 0, 3, max_count=32)
        assert (answer.status, answer.next_begin_offset) == (GetStatus.OFFSET_OVERFLOW_ONE, 3)
        answer = store.get_messages("T", 0, 9, max_count=32)
        assert (answer.status, answer.next_begin_offset) == (GetStatus.OFFSET_OVERFLOW_BADLY, 3)
        answer = store.get_messages("T", 0, -1, max_count=32)
        assert (answer.status, answer.next_begin_offset) == (GetStatus.OFFSET_TOO_SMALL, 0)
        assert (answer.min_offset, answer.max_offset, answer.body) == (0, 3, b"")


@pytest.mark.trio
async def test_a_pull_is_bounded_by_count_and_bytes(place: Place) -> None:
    async with place.open(max_transfer_bytes_on_message_in_memory=10_000) as store:
        size = stored(store.append([new_message(b"m" * 1000) for _ in range(50)]))[0].size_bytes
        assert store.get_messages("T", 0, 0, max_count=4).count == 4
        assert store.get_messages("T", 0, 0, max_count=100).count == 10_000 // size
        assert store.get_messages("T", 0, 0, max_count=32, max_bytes=3 * size).count == 3
        assert store.get_messages("T", 0, 0, max_count=32, max_bytes=1).count == 1
        stored(store.append([new_message(b"s", queue_id=1) for _ in range(50)]))
        assert store.get_messages("T", 1, 0, max_count=100).count == 32
        assert store.get_messages("T", 1, 40, max_count=32).count == 10


@pytest.mark.trio
async def test_filters(place: Place) -> None:
    async with place.open() as store:
        stored(store.append([new_message(str(n).encode(), tags="even" if n % 2 == 0 else "odd") for n in range(50)]))
        even = frozenset({tags_code("even")})
        answer = store.get_messages("T", 0, 1, max_count=5, tags_codes=even)
        assert [record.body for record in decode_records(answer.body)] == [b"2", b"4", b"6", b"8", b"10"]
        assert answer.next_begin_offset == 11
        answer = store.get_messages("T", 0, 47, max_count=5, tags_codes=even)
        assert (answer.count, answer.next_begin_offset) == (1, 50)
        answer = store.get_messages("T", 0, 49, max_count=5, tags_codes=even)
        assert (answer.status, answer.next_begin_offset) == (GetStatus.NO_MATCHED_MESSAGE, 50)
        answer = store.get_messages("T", 0, 0, max_count=5, accept=lambda record: decode_record(record).body == b"33")
        assert [record.body for record in decode_records(answer.body)] == [b"33"]
        answer = store.get_messages("T", 0, 0, max_count=5, accept=lambda record: False)
        assert (answer.status, answer.next_begin_offset) == (GetStatus.NO_MATCHED_MESSAGE, 50)


@pytest.mark.trio
async def test_interleaved_queues_come_apart_again(place: Place) -> None:
    async with place.open() as store:
        for start in range(0, 300, 10):
            stored(store.append([new_message(str(n).encode() * 50, queue_id=n % 7) for n in range(start, start + 10)]))
        for queue_id in range(7):
            got = []
            offset = 0
            while offset < store.max_offset("T", queue_id):
                answer = store.get_messages("T", queue_id, offset, max_count=32)
                got += [record.body for record in decode_records(answer.body, check_crc=True)]
                offset = answer.next_begin_offset
            assert got == [str(n).encode() * 50 for n in range(queue_id, 300, 7)]


@pytest.mark.trio
async def test_look_ups_by_time(place: Place) -> None:
    times = [100, 100, 200, 150, 300, 300, 300, 250, 400]  # a clock that is set back now and then
    kept = [100, 100, 200, 200, 300, 300, 300, 300, 400]
    async with place.open() as store:
        for time in times:
            with use_wall_clock(lambda: time):  # noqa: B023 - used at once
                stored(store.append([new_message(), new_message(queue_id=1)]))
        assert [store.store_time_at("T", 0, offset) for offset in range(9)] == kept
        for asked, offset in ((0, 0), (100, 0), (101, 2), (200, 2), (201, 4), (300, 4), (400, 8), (401, 9)):
            assert store.offset_by_time("T", 1, asked) == offset
        assert store.offset_by_time("T", 5, 100) == 0
        assert store.store_time_at("T", 0, 9) == store.store_time_at("U", 0, 0) == -1
        assert store.earliest_store_time() == store.earliest_store_time("T", 1) == 100
    with use_wall_clock(lambda: 50):
        async with place.open() as store:
            [result] = stored(store.append([new_message()]))
            assert result.store_timestamp_ms == 400


@pytest.mark.trio
async def test_record_at_takes_only_the_start_of_a_record(place: Place) -> None:
    async with place.open() as store:
        assert store.record_at(0) is None
        first, second = stored(store.append([new_message(b"a" * 300), new_message(b"b")]))
        assert decode_record(store.record_at(second.physical_offset) or b"").body == b"b"
        for offset in (-1, 1, first.size_bytes - 1, first.size_bytes + second.size_bytes, FILE_SIZE, 10**12):
            assert store.record_at(offset) is None


@pytest.mark.trio
async def test_arrivals_are_told_in_order(place: Place) -> None:
    arrived: list[tuple[str, int, int, int]] = []
    async with place.open() as store:
        store.on_arrival = lambda *arrival: arrived.append(arrival)
        stored(store.append([new_message(tags="A"), new_message(queue_id=1), new_message(sys_flag=4)]))
        stored(store.append([new_message()]))
    assert arrived == [("T", 0, 1, tags_code("A")), ("T", 1, 1, 0), ("T", 0, 2, 0)]


@pytest.mark.trio
async def test_where_some_queues_are_awaited_only_their_arrivals_are_told(place: Place) -> None:
    arrived: list[tuple[str, int, int, int]] = []
    awaited: set[tuple[str, int]] = set()
    async with place.open() as store:
        store.on_arrival, store.awaited = lambda *arrival: arrived.append(arrival), awaited
        stored(store.append([new_message(), new_message(queue_id=1)]))
        assert arrived == []
        awaited.add(("T", 1))
        stored(store.append([new_message(), new_message(queue_id=1, tags="A"), new_message(topic="Other", queue_id=1)]))
        assert arrived == [("T", 1, 2, tags_code("A"))]
        store.awaited = None
        stored(store.append([new_message()]))
    assert arrived[1:] == [("T", 0, 3, 0)]


@pytest.mark.trio
async def test_a_deleted_topic_stays_deleted(place: Place) -> None:
    async with place.open() as store:
        stored(store.append([new_message(topic=topic, queue_id=n % 3) for n in range(90) for topic in ("T", "Keep")]))
        assert await store.delete_topic("T") == 3
        assert await store.delete_topic("T") == 0
        assert sorted(store.queues()) == [("Keep", 0), ("Keep", 1), ("Keep", 2)]
        assert [result.queue_offset for result in stored(store.append([new_message(b"new")]))] == [0]
        assert decode_records(store.get_messages("T", 0, 0, max_count=32).body)[0].body == b"new"
    for _ in range(2):
        place.crash()
        async with place.open() as store:
            assert store.max_offset("T", 0) == 1
            assert decode_records(store.get_messages("T", 0, 0, max_count=32).body)[0].body == b"new"
            assert [store.max_offset("Keep", n) for n in range(3)] == [30, 30, 30]
            assert ("T", 1) not in store.queues()


@pytest.mark.trio
async def test_a_deleted_topic_leaves_no_file(place: Place) -> None:
    async with place.open() as store:
        stored(store.append([new_message() for _ in range(50)]))
    async with place.open() as store:
        await store.delete_topic("T")
        assert not place.exists("consumequeue/T")


@pytest.mark.trio
async def test_the_store_is_locked(place: Place) -> None:
    async with place.open():
        with pytest.raises(StoreLockedError, match="in use by another process"):
            async with place.open():
                pytest.fail("two stores in one folder")
        assert place.read("lock") == b"lock"
    async with place.open():
        pass


@pytest.mark.trio
async def test_the_mark_of_a_running_store(place: Place) -> None:
    async with place.open() as store:
        assert place.exists("abort")
        assert store.recovered is not None
        assert store.recovered.clean
    assert not place.exists("abort")
    assert len(place.read("checkpoint")) == 4096


@pytest.mark.trio
async def test_an_error_in_the_block_comes_out_as_it_is(place: Place) -> None:
    async def fail() -> None:
        async with place.open() as store:
            stored(store.append([new_message()]))
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await fail()
    assert not place.exists("abort")


@pytest.mark.trio
async def test_a_cancelled_store_closes_in_order(place: Place) -> None:
    with trio.CancelScope() as scope:
        async with place.open() as store:
            stored(store.append([new_message() for _ in range(100)]))
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert not place.exists("abort")
    async with place.open() as store:
        assert store.recovered is not None
        assert (store.recovered.clean, store.max_offset("T", 0)) == (True, 100)


@pytest.mark.trio
@pytest.mark.parametrize(
    "setting", [{"mapped_file_size_commit_log": 65536}, {"mapped_file_size_consume_queue": 800}], ids=str
)
async def test_other_file_sizes_stop_the_start(place: Place, setting: dict[str, int]) -> None:
    async with place.open() as store:
        stored(store.append([new_message()]))
    with pytest.raises(StoreError, match=r"mappedFileSize(CommitLog|ConsumeQueue) is"):
        async with place.open(**setting):
            pytest.fail("opened")
    async with place.open() as store:
        assert store.max_offset("T", 0) == 1


@pytest.mark.trio
@pytest.mark.parametrize("name", ["commitlog/notes.tmp", "consumequeue/T/0/x", "consumequeue/T/readme"])
async def test_a_stray_file_stops_the_start(place: Place, name: str) -> None:
    async with place.open() as store:
        stored(store.append([new_message()]))
    place.write(name, b"stray")
    with pytest.raises(StoreError, match="does not belong there"):
        async with place.open():
            pytest.fail("opened")


@pytest.mark.trio
async def test_statistics(place: Place) -> None:
    async with place.open() as store:
        results = stored(store.append([new_message() for _ in range(10)]))
        store.get_messages("T", 0, 0, max_count=4)
        store.get_messages("T", 0, 10, max_count=4)
        before = store.statistics()
        assert (before.messages_appended, before.appends, before.queues, before.log_files) == (10, 1, 1, 1)
        assert before.bytes_appended == before.max_physical_offset == sum(result.size_bytes for result in results)
        assert (before.messages_read, before.reads_found, before.reads_missed) == (4, 1, 1)
        assert before.bytes_read == 4 * results[0].size_bytes
        assert (before.queue_entries_unwritten, before.synced_offset, before.failed) == (10, 0, False)
        free, total = store.space()
        assert 0 < free <= total
    async with place.open() as store:
        assert store.statistics().synced_offset == before.max_physical_offset
