"""Extension files: what a unit holds, who reads it, and what a stop, a crash, retention and deletion make of them."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from trio_rmq.errors import StoreError
from trio_rmq.store.consume_queue_ext import ConsumeQueueExt, is_address
from trio_rmq.store.log_files import FileHandles, LogFiles
from trio_rmq.store.message_store import MessageStore
from trio_rmq.store.messages import AppendStatus, GetStatus
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.testing.stores import FILE_SIZE, Place, new_message, small_config, stored
from trio_rmq.wire.hashing import tags_code
from trio_rmq.wire.record import decode_records

EXT = {"enable_consume_queue_ext": True, "mapped_file_size_consume_queue_ext": 4096}
FIRST = "consumequeue_ext/T/0/00000000000000000000"


def bodies(store: MessageStore, **wanted: object) -> list[bytes]:
    """What pulls from the queue's first message on bring."""
    found: list[bytes] = []
    offset = store.min_offset("T", 0)
    while offset < store.max_offset("T", 0):
        answer = store.get_messages("T", 0, offset, max_count=32, **wanted)  # type: ignore[arg-type]
        found += [message.body for message in decode_records(answer.body)]
        offset = answer.next_begin_offset
    return found


def maps_of(store: MessageStore) -> list[bytes | None]:
    """The bit maps of all the queue's messages."""
    maps: list[bytes | None] = []

    def note(bit_map: bytes | None, store_time_ms: int) -> bool:
        maps.append(bit_map)
        return True

    bodies(store, accept=lambda record: False, accept_entry=note)
    return maps


def with_maps(store: MessageStore) -> None:
    """Give each message a bit map that is the topic, a bar and the properties."""
    store.bit_map_of = lambda topic, properties: topic.encode() + b"|" + properties


@pytest.mark.trio
async def test_a_unit_is_as_rocketmq_lays_it_out(place: Place) -> None:
    async with place.open(**EXT) as store:
        with_maps(store)
        results = stored(store.append([new_message(b"0", tags="a"), new_message(b"1")]))
    units = place.read(FIRST)
    assert len(units) == 4096
    first = b"T|TAGS\x01a"
    times = [result.store_timestamp_ms for result in results]
    assert units[:50] == (
        struct.pack(">hqqh", 20 + len(first), tags_code("a"), times[0], len(first))
        + first
        + struct.pack(">hqqh", 22, 0, times[1], 2)
        + b"T|"
    )
    entries = place.read("consumequeue/T/0/00000000000000000000")
    assert [struct.unpack_from(">qiq", entries, 20 * number)[2] for number in range(2)] == [-(2**63), -(2**63) + 28]


@pytest.mark.trio
@pytest.mark.parametrize("written", [False, True])
async def test_filters_by_tags_see_through_the_addresses(place: Place, written: bool) -> None:
    async with place.open(**EXT) as store:
        stored(store.append([new_message(b"%d" % number, tags="ab"[number % 2]) for number in range(100)]))
        if written:
            await store._queue_flusher.write_out()  # so that units come from files
        odd = [b"%d" % number for number in range(1, 100, 2)]
        assert bodies(store, tags_codes=frozenset({tags_code("b")})) == odd
        assert bodies(store) == [b"%d" % number for number in range(100)]
        codes = store.reader.queue_entries("T", 0, 0, 2) or []
        assert [code for _, _, code in codes] == [tags_code("a"), tags_code("b")]


@pytest.mark.trio
async def test_arrivals_are_told_with_the_tags_code(place: Place) -> None:
    async with place.open(**EXT) as store:
        codes: list[int] = []
        store.on_arrival = lambda topic, queue_id, offset, code: codes.append(code)
        stored(store.append([new_message(tags="a"), new_message()]))
        assert codes == [tags_code("a"), 0]


@pytest.mark.trio
async def test_a_bit_map_decides_before_the_record_is_read(place: Place) -> None:
    async with place.open(**EXT) as store:
        with_maps(store)
        results = stored(store.append([new_message(b"%d" % number, tags="ab"[number % 2]) for number in range(100)]))
        asked: list[tuple[bytes | None, int]] = []
        read: list[bytes] = []

        def accept_entry(bit_map: bytes | None, store_time_ms: int) -> bool:
            asked.append((bit_map, store_time_ms))
            return bit_map is not None and bit_map.endswith(b"b")

        def accept(record: bytes) -> bool:
            read.append(record)
            return b"9" in record[88:]

        found = bodies(store, accept=accept, accept_entry=accept_entry)
        assert found == [b"%d" % number for number in range(100) if number % 2 and "9" in str(number)]
        assert len(read) == 50
        times = {result.store_timestamp_ms for result in results}
        assert {bit_map for bit_map, _ in asked} == {b"T|TAGS\x01a", b"T|TAGS\x01b"}
        assert {time for _, time in asked} == times


@pytest.mark.trio
@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("marked", [True, False])
async def test_units_go_on_after_a_start(place: Place, clean: bool, marked: bool) -> None:
    async with place.open(**EXT) as store:
        with_maps(store)
        stored(store.append([new_message(b"%d" % number, tags="a") for number in range(300)]))
    if not clean:
        place.crash(marked=marked)
    async with place.open(**EXT) as store:
        with_maps(store)
        stored(store.append([new_message(b"%d" % number, tags="b") for number in range(300, 600)]))
        maps = maps_of(store)
        again = 0 if clean or marked else 300
        assert maps == [None] * again + [b"T|TAGS\x01a"] * (300 - again) + [b"T|TAGS\x01b"] * 300
        for tag, begin in (("a", 0), ("b", 300)):
            expected = [b"%d" % number for number in range(begin, begin + 300)]
            assert bodies(store, tags_codes=frozenset({tags_code(tag)})) == expected


@pytest.mark.trio
async def test_what_a_crash_left_behind_the_last_entry_is_zeroed(place: Place) -> None:
    async with place.open(**EXT) as store:
        stored(store.append([new_message(b"0", tags="a")]))
    place.crash(marked=True)
    place.write(FIRST, b"\x7f" * 500, 20)
    async with place.open(**EXT) as store:
        assert place.read(FIRST)[20:] == bytes(4096 - 20)
        stored(store.append([new_message(b"1", tags="b")]))
        assert bodies(store, tags_codes=frozenset({tags_code("b")})) == [b"1"]


@pytest.mark.trio
async def test_a_queue_that_is_made_again_begins_its_units_anew(place: Place) -> None:
    async with place.open(**EXT) as store:
        stored(store.append([new_message(b"%d" % number, tags="a") for number in range(300)]))
    place.crash()
    assert len(place.disk.list_directory(f"{place.root}/consumequeue_ext/T/0")) == 2
    async with place.open(**EXT) as store:
        assert bodies(store, tags_codes=frozenset({tags_code("a")})) == [b"%d" % number for number in range(300)]
        ((_, _, first),) = struct.iter_unpack(">qiq", store._queues.table["T", 0].read(0, 1))
    assert first == -(2**63)
    assert place.read(FIRST)[:20].endswith(bytes(2))


@pytest.mark.trio
async def test_lost_units_hide_no_message(place: Place) -> None:
    async with place.open(**EXT) as store:
        stored(store.append([new_message(b"%d" % number, tags="a") for number in range(10)]))
    place.disk.unlink(f"{place.root}/{FIRST}")
    async with place.open(**EXT) as store:
        stored(store.append([new_message(b"%d" % number, tags="b") for number in range(10, 20)]))
        assert bodies(store, tags_codes=frozenset({tags_code("b")})) == [b"%d" % number for number in range(20)]
        assert bodies(store, accept=lambda record: True, accept_entry=lambda bits, time: True) == [
            b"%d" % number for number in range(20)
        ]


@pytest.mark.trio
@pytest.mark.parametrize("lost", [1, 40])
async def test_units_lost_by_a_crash_cost_no_older_ones(place: Place, lost: int) -> None:
    """The last entry leads into a file that is gone: the next unit goes behind it, where no address was given yet."""
    async with place.open(**EXT) as store:
        with_maps(store)
        stored(store.append([new_message(b"%d" % number, tags="a") for number in range(10)]))
    address = -(2**63) + 4096 * lost
    place.write("consumequeue/T/0/00000000000000000000", struct.pack(">q", address), 9 * 20 + 12)
    async with place.open(**EXT) as store:
        with_maps(store)
        stored(store.append([new_message(b"10", tags="b")]))
        codes = [code for _, _, code in struct.iter_unpack(">qiq", store._queues.table["T", 0].read(9, 2))]
        assert codes == [address, address + 4096]
        await store._queue_flusher.write_out()
        kept = 9 if lost < 17 else 0  # an address that far away is wrong
        assert maps_of(store) == [b"T|TAGS\x01a"] * kept + [b"T|TAGS\x01b"]
        assert bodies(store, tags_codes=frozenset({tags_code("b")}))[-2:] == [b"9", b"10"]


@pytest.mark.trio
async def test_an_address_torn_by_a_kill_costs_no_older_unit(place: Place) -> None:
    """Of the last entry only the address's first byte was written: it leads to the first unit, others are behind it."""
    async with place.open(**EXT) as store:
        with_maps(store)
        stored(store.append([new_message(b"%d" % number, tags="a") for number in range(10)]))
    place.write("consumequeue/T/0/00000000000000000000", struct.pack(">q", -(2**63)), 9 * 20 + 12)
    place.crash(marked=True)
    async with place.open(**EXT) as store:
        assert maps_of(store)[:9] == [b"T|TAGS\x01a"] * 9


@pytest.mark.trio
async def test_off_and_on_again(place: Place) -> None:
    """What has units keeps them; what came without is filtered by its tags code."""
    sizes = {"mapped_file_size_consume_queue_ext": 4096}
    for settings, number in ((EXT, 0), (sizes, 1), (EXT, 2), (sizes, 3)):
        async with place.open(**settings) as store:
            stored(store.append([new_message(b"%d" % number, tags="ab"[number // 2])]))
            assert bodies(store, tags_codes=frozenset({tags_code("a")})) == [b"0", b"1"][: number + 1]
            assert bodies(store, tags_codes=frozenset({tags_code("b")})) == [b"2", b"3"][: max(number - 1, 0)]
    assert len(place.disk.list_directory(f"{place.root}/consumequeue_ext/T/0")) == 2


@pytest.mark.trio
async def test_without_the_setting_there_are_none(place: Place) -> None:
    async with place.open() as store:
        stored(store.append([new_message()]))
    assert not place.exists("consumequeue_ext")


@pytest.mark.trio
async def test_a_refused_write_takes_units_back(autojump_clock: MockClock) -> None:
    disk = FaultyDisk(capacity_bytes=6000)
    place = Place(disk, "store")
    async with place.open(**EXT, message_index_enable=False) as store:
        with_maps(store)
        stored(store.append([new_message(b"0", tags="a")]))
        refused = store.append([new_message(b"x" * 3000, tags="x") for _ in range(3)])
        assert {result.status for result in refused} == {AppendStatus.SERVICE_NOT_AVAILABLE}
        stored(store.append([new_message(b"1", tags="b")]))
        assert bodies(store) == [b"0", b"1"]
        assert maps_of(store) == [b"T|TAGS\x01a", b"T|TAGS\x01b"]
        disk.capacity_bytes = None
    assert place.read(FIRST)[:60].count(b"TAGS") == 2


@pytest.mark.trio
async def test_a_map_too_long_for_a_unit_costs_only_the_map(place: Place) -> None:
    async with place.open(**EXT) as store:
        store.bit_map_of = lambda topic, properties: bytes(40_000)
        stored(store.append([new_message(b"0", tags="a"), new_message(b"1", tags="b")]))
        assert bodies(store, tags_codes=frozenset({tags_code("b")})) == [b"1"]


@pytest.mark.trio
async def test_a_deleted_topics_units_go(place: Place) -> None:
    async with place.open(**EXT) as store:
        stored(store.append([new_message(b"%d" % number, tags="a", queue_id=number % 3) for number in range(30)]))
        await store._queue_flusher.write_out()
        assert place.exists(FIRST)
        assert await store.delete_topic("T") == 3
        assert not place.exists("consumequeue_ext/T")
        stored(store.append([new_message(b"new", tags="b")]))
        assert bodies(store, tags_codes=frozenset({tags_code("b")})) == [b"new"]


@pytest.mark.trio
async def test_units_of_a_queue_that_is_gone_go_at_the_start(place: Place) -> None:
    async with place.open(**EXT) as store:
        stored(store.append([new_message(b"0", tags="a")]))
    for name in place.disk.list_directory(f"{place.root}/consumequeue/T/0"):
        place.disk.unlink(f"{place.root}/consumequeue/T/0/{name}")
    place.disk.remove_directory(f"{place.root}/consumequeue/T/0")
    place.crash()
    async with place.open(**EXT) as store:
        assert bodies(store, tags_codes=frozenset({tags_code("a")})) == [b"0"]
        assert bodies(store, tags_codes=frozenset({tags_code("b")})) == []


@pytest.mark.trio
async def test_old_unit_files_follow_the_log(place: Place) -> None:
    async with place.open(**EXT) as store:
        for number in range(300):
            stored(store.append([new_message(b"%d" % number + bytes(600), tags="a")]))
        await store._queue_flusher.sync()
        files = place.disk.list_directory(f"{place.root}/consumequeue_ext/T/0")
        assert len(files) == 2
        while store.min_physical_offset < 6 * FILE_SIZE:
            place.disk.unlink(store._log.files.path(store._log.files.start))
            store._log.files.forget_first()
        await store.expire_queues()
        assert place.disk.list_directory(f"{place.root}/consumequeue_ext/T/0") == files[1:]
        first = store.min_offset("T", 0)
        assert len(bodies(store, tags_codes=frozenset({tags_code("a")}))) == 300 - first
        assert store.get_messages("T", 0, first, max_count=1).status is GetStatus.FOUND
    async with place.open(**EXT) as store:
        stored(store.append([new_message(b"last", tags="z")]))
        assert bodies(store, tags_codes=frozenset({tags_code("z")})) == [b"last"]


@pytest.mark.trio
async def test_another_file_size_stops_the_start(place: Place) -> None:
    async with place.open(**EXT) as store:
        stored(store.append([new_message()]))
    with pytest.raises(StoreError, match="mappedFileSizeConsumeQueueExt is 8192"):
        async with place.open(enable_consume_queue_ext=True, mapped_file_size_consume_queue_ext=8192):
            pass
    name = f"{place.root}/consumequeue_ext/T/x"
    place.disk.write_file(name, b"")
    with pytest.raises(StoreError, match="does not belong there"):
        async with place.open(**EXT):
            pass


@given(
    st.lists(st.tuples(st.integers(-(2**31), 2**63 - 1), st.none() | st.binary(min_size=1, max_size=700)), max_size=40),
    st.integers(0, 40),
    st.integers(0, 20),
)
def test_units_come_back_from_memory_and_files(
    units: list[tuple[int, bytes | None]], written: int, taken_back: int
) -> None:
    disk = FaultyDisk()
    files = LogFiles(disk, FileHandles(disk, 10), "ext", 4096, set())
    ext = ConsumeQueueExt(files, writes=True)
    addresses = []
    for number, (code, bits) in enumerate(units):
        if number == written:
            ext.write_out()
        addresses.append(ext.put(code, number, bits))
    for _ in range(min(taken_back, max(0, len(units) - written))):
        ext.take_back(addresses.pop())
    ext.write_out()
    assert all(is_address(address) for address in addresses)
    for number, address in enumerate(addresses):
        assert ext.unit(address) == (units[number][0], number, units[number][1])
    entries = b"".join(struct.pack(">qiq", number, 1, address) for number, address in enumerate(addresses))
    seen: list[tuple[bytes | None, int]] = []

    def note(bits: bytes | None, time: int) -> bool:
        seen.append((bits, time))
        return True

    ext.select(entries, None, note)
    assert seen == [(units[number][1], number) for number in range(len(addresses))]
    again = ConsumeQueueExt(LogFiles(disk, FileHandles(disk, 10), "ext", 4096, set()), writes=True)
    again.load(unclean=False)
    again.settle(addresses[-1] if addresses else None)
    if addresses:
        assert again.end == ext.end


def test_the_default_is_rocketmqs() -> None:
    config = small_config("store")
    assert (config.mapped_file_size_consume_queue_ext, config.enable_consume_queue_ext) == (48 * 1024 * 1024, False)


@pytest.mark.trio
async def test_the_delay_topics_times_of_delivery_stand_in_units(place: Place) -> None:
    async with place.open(**EXT) as store:
        delayed = new_message(topic="SCHEDULE_TOPIC_XXXX", queue_id=2, properties=b"DELAY\x013")
        (result,) = stored(store.append([delayed]))
        ((_, _, code),) = store.reader.entries("SCHEDULE_TOPIC_XXXX", 2, 0, 8)
        assert abs(code - result.store_timestamp_ms - 10_000) < 1000
