"""The index in a store: what is found when, how its files end and go on, and what becomes of them when things fail."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Sequence
from random import Random
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from trio_rmq.errors import StoreError
from trio_rmq.store.disk import Data
from trio_rmq.store.index import Index
from trio_rmq.store.index_keys import key_hash, keys_of, read_keyed
from trio_rmq.store.message_store import MessageStore
from trio_rmq.store.messages import NewMessage
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.testing.stores import Place, new_message, stored
from trio_rmq.wire.hashing import index_key_hash
from trio_rmq.wire.record import RecordKind, decode_record

EVER = 2**63 - 1
SIZE = 40 + 50 * 4 + 200 * 20


def keyed(key: str, body: bytes = b"x", **fields: Any) -> NewMessage:
    return new_message(body, properties=f"UNIQ_KEY\x01{key}".encode(), **fields)


async def bodies(store: MessageStore, key: str, topic: str = "T", /, **limits: int) -> list[bytes]:
    """The bodies of what a query finds, the newest first."""
    limits = {"max_count": 64, "begin_ms": 0, "end_ms": EVER, **limits}
    answer = await store.query(topic, key, **limits)
    return [decode_record(record, check_crc=True).body for record in answer.records]


def index_of(store: MessageStore) -> Index:
    assert store._index is not None
    return store._index


async def bring_to_files(store: MessageStore) -> bool:
    """What the services do sooner or later, now."""
    index = index_of(store)
    while index.gather():
        pass
    await store._log_flusher.sync()
    return await index.flush()


class Failing(FaultyDisk):
    """A twin on which the `at`-th write to an index file meets a full disk, or the `at`-th sync of any file fails."""

    def __init__(self) -> None:
        super().__init__()
        self.write_at = self.sync_at = 0

    def pwrite(self, handle: int, data: Data, offset: int) -> int:
        if "/index/" in self._path_of(self._handles[handle]):
            self.write_at -= 1
            if self.write_at == 0:
                raise OSError(errno.ENOSPC, "No space left on device")
        return super().pwrite(handle, data, offset)

    async def sync(self, handles: Sequence[int], *, directories: Iterable[str] = (), paths: Iterable[str] = ()) -> None:
        self.sync_at -= 1
        if self.sync_at == 0:
            raise OSError(errno.EIO, "Input/output error")
        await super().sync(handles, directories=directories, paths=paths)


def files(place: Place) -> list[str]:
    return place.disk.list_directory(f"{place.root}/index")


def header(place: Place, number: int = -1) -> tuple[int, ...]:
    return struct.unpack(">qqqqii", place.read(f"index/{files(place)[number]}")[:40])


# -- keys and hashes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("properties", "keys"),
    [
        ("", []),
        ("UNIQ_KEY\x01u\x02KEYS\x01a b", ["u", "a", "b"]),
        ("KEYS\x01 a  a \x02UNIQ_KEY\x01u\x02", ["u", "a", "a"]),
        ("XKEYS\x01a\x02MY_UNIQ_KEY\x01u", []),
        ("UNIQ_KEY\x01u\x02UNIQ_KEY\x01v", ["v"]),
        ("KEYS\x01" + "ключ 鍵 🔑", ["ключ", "鍵", "🔑"]),
    ],
)
def test_a_record_has_its_unique_key_and_each_word_of_its_keys(properties: str, keys: list[str]) -> None:
    assert keys_of(properties.encode()) == [key.encode() for key in keys]
    for topic in ("T", "тема"):
        for key in [*keys, "k" * 64, "k" * 65, "k" * 300]:
            assert key_hash(topic.encode(), key.encode()) == index_key_hash(f"{topic}#{key}")


def test_no_bytes_break_the_quick_reader() -> None:
    for block in (b"", b"\0" * 7, b"\xff" * 91, b"\0" * 200, struct.pack(">ii", 91, -626_843_481) + b"\xff" * 400):
        assert read_keyed(block, 0, 0).kind is RecordKind.BAD


# -- queries ----------------------------------------------------------------------------------------------------------


@pytest.mark.trio
async def test_a_message_is_found_before_any_file_has_it_and_after(place: Place, autojump_clock: MockClock) -> None:
    async with place.open() as store:
        stored(store.append([keyed("u", b"1"), new_message(b"2", properties="KEYS\x01k u l")]))
        assert await bodies(store, "u") == [b"2", b"1"]
        assert await bodies(store, "k") == [b"2"]
        assert files(place) == []
        assert await bring_to_files(store)
        assert [len(place.read(f"index/{name}")) for name in files(place)] == [SIZE]
        assert await bodies(store, "u") == [b"2", b"1"]
        assert await bodies(store, "u", max_count=1) == [b"2"]
        assert await bodies(store, "u", "Other") == []
        stored(store.append([keyed("u", b"3")]))
        assert await bodies(store, "u") == [b"3", b"2", b"1"]
    async with place.open() as store:
        assert await bodies(store, "u") == [b"3", b"2", b"1"]
    assert header(place)[5] == 6  # five keys, counted from 1


@pytest.mark.trio
async def test_under_sync_flush_only_what_is_synced_is_found(twin: FaultyDisk, autojump_clock: MockClock) -> None:
    twin.latency = lambda: 5.0
    async with Place(twin, "store").open(flush_disk_type="SYNC_FLUSH") as store:
        result = stored(store.append([keyed("u")]))[0]
        assert await bodies(store, "u") == []
        await store.wait_durable(result.physical_offset + result.size_bytes)
        assert await bodies(store, "u") == [b"x"]


@pytest.mark.trio
async def test_a_colliding_key_is_not_found(place: Place, autojump_clock: MockClock) -> None:
    assert index_key_hash("T#Aa") == index_key_hash("T#BB")
    async with place.open() as store:
        stored(store.append([keyed("Aa", b"1"), keyed("BB", b"2"), keyed("Aa", b"3")]))
        for _ in range(2):
            assert await bodies(store, "Aa") == [b"3", b"1"]
            assert await bodies(store, "BB") == [b"2"]
            assert await bring_to_files(store)


@pytest.mark.trio
async def test_rolled_back_messages_are_not_found_and_prepared_ones_are(
    place: Place, autojump_clock: MockClock
) -> None:
    async with place.open() as store:
        stored(store.append([keyed("u", b"%d" % bits, sys_flag=bits) for bits in (0, 4, 8, 12)]))
        assert await bodies(store, "u") == [b"8", b"4", b"0"]


@pytest.mark.trio
async def test_messages_of_a_deleted_topic_are_not_found(place: Place, autojump_clock: MockClock) -> None:
    async with place.open() as store:
        stored(store.append([keyed("u", b"old")]))
        await store.delete_topic("T")
        assert await bodies(store, "u") == []
        stored(store.append([keyed("u", b"new")]))
        assert await bodies(store, "u") == [b"new"]


@pytest.mark.trio
async def test_an_answer_is_bounded_but_never_empty_for_size(place: Place, autojump_clock: MockClock) -> None:
    async with place.open(mapped_file_size_commit_log=16 * 2**20, max_message_size=10 * 2**20) as store:
        large = bytes(9 * 2**20)
        stored(store.append([keyed("u", b"small"), keyed("u", large), keyed("v", large[: 5 * 2**20])]))
        assert [len(body) for body in await bodies(store, "u")] == [len(large)]
        stored(store.append([keyed("u", large[: 4 * 2**20]), keyed("u", b"last")]))
        assert [len(body) for body in await bodies(store, "u")] == [4, 4 * 2**20]


@pytest.mark.trio
async def test_a_damaged_record_is_not_returned(place: Place, autojump_clock: MockClock) -> None:
    async with place.open() as store:
        first, second = stored(store.append([keyed("u", b"body"), keyed("u", b"intact")]))
        assert await bring_to_files(store)
        path = "commitlog/00000000000000000000"
        at = place.read(path).index(b"body")
        assert first.physical_offset < at < second.physical_offset
        place.write(path, b"dead", at)
        assert await bodies(store, "u") == [b"intact"]


@pytest.mark.trio
async def test_query_edges_do_no_harm(place: Place, autojump_clock: MockClock) -> None:
    async with place.open() as store:
        assert (await store.query("T", "u", max_count=64, begin_ms=0, end_ms=EVER)).last_update_timestamp_ms == 0
        result = stored(store.append([keyed("u")]))[0]
        for _ in range(2):
            now = result.store_timestamp_ms
            assert await bodies(store, "u", begin_ms=now, end_ms=now) == [b"x"]
            for range_ in ({"begin_ms": now + 1}, {"end_ms": now - 1}, {"begin_ms": -(2**63)}, {"max_count": -5}):
                found = await bodies(store, "u", **range_)
                assert bool(found) == (range_.get("begin_ms", 0) < 0)
            assert await bodies(store, "") == []
            assert await bodies(store, "\ud800") == []
            assert await bring_to_files(store)


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.trio
async def test_a_full_file_is_followed_by_another(place: Place, autojump_clock: MockClock) -> None:
    async with place.open() as store:
        for number in range(500):
            stored(store.append([new_message(b"%d" % number, properties=f"UNIQ_KEY\x01u{number}\x02KEYS\x01all")]))
        assert len(await bodies(store, "all")) == 64
    names = files(place)
    assert len(names) == 6  # 1,000 keys, 199 a file
    assert names == sorted(set(names))
    assert [header(place, number)[5] for number in range(6)] == [200] * 5 + [6]
    async with place.open() as store:
        for number in range(500):
            assert await bodies(store, f"u{number}") == [b"%d" % number]


@pytest.mark.trio
async def test_only_files_wholly_before_the_log_expire(place: Place, autojump_clock: MockClock) -> None:
    async with place.open() as store:
        results = stored([store.append([keyed(f"u{number}")])[0] for number in range(450)])
        assert await bring_to_files(store)
        index = index_of(store)
        ends = [header(place, number)[3] for number in range(3)]
        assert await index.expire(ends[0]) == 0
        assert await index.expire(ends[0] + 1) == 1
        assert await bodies(store, "u0") == []
        assert await bodies(store, "u300") == [b"x"]
        assert await index.expire(2**60) == 1
        assert await index.expire(2**60) == 0
        assert len(files(place)) == 1
        assert await bodies(store, "u449") == [b"x"]
        assert results[449].physical_offset == header(place)[3]


@pytest.mark.trio
async def test_other_sizes_than_the_stores_stop_the_start_and_do_no_harm(
    place: Place, autojump_clock: MockClock
) -> None:
    async with place.open() as store:
        stored(store.append([keyed("u")]))
    before = place.read(f"index/{files(place)[0]}")
    for settings in ({"max_hash_slot_num": 51}, {"max_index_num": 201}):
        with pytest.raises(StoreError, match="maxHashSlotNum"):
            async with place.open(**settings):
                pass
    assert not place.exists("abort")
    assert place.read(f"index/{files(place)[0]}") == before
    place.write("index/README", b"")
    with pytest.raises(StoreError, match="README does not belong there"):
        async with place.open():
            pass


@pytest.mark.trio
async def test_an_index_that_was_off_or_removed_is_made_up_for(place: Place, autojump_clock: MockClock) -> None:
    async with place.open() as store:
        stored(store.append([keyed("one")]))
    async with place.open(message_index_enable=False) as store:
        stored(store.append([keyed("two")]))
        assert await bodies(store, "one") == []
    async with place.open() as store:
        assert await bodies(store, "one") == await bodies(store, "two") == [b"x"]
    whole = place.read(f"index/{files(place)[0]}")
    place.disk.unlink(f"{place.root}/index/{files(place)[0]}")
    async with place.open():
        pass
    assert place.read(f"index/{files(place)[0]}") == whole


@pytest.mark.trio
async def test_names_rise_though_the_clock_does_not(place: Place, autojump_clock: MockClock) -> None:
    place.disk.make_directories(f"{place.root}/index")
    async with place.open() as store:
        stored([store.append([keyed(f"u{number}")])[0] for number in range(199)])
    first = files(place)[0]
    late = "99991231235959999"
    place.disk.rename(f"{place.root}/index/{first}", f"{place.root}/index/{late}")
    async with place.open() as store:
        stored(store.append([keyed("next")]))
    assert files(place) == [late, "99991231235960000"]


# -- crashes and failures ---------------------------------------------------------------------------------------------


@pytest.mark.trio
async def test_after_a_kill_files_that_the_checkpoint_does_not_cover_are_made_again(
    place: Place, autojump_clock: MockClock
) -> None:
    async with place.open() as store:
        stored([store.append([keyed(f"u{number}")])[0] for number in range(300)])
    whole = [place.read(f"index/{name}") for name in files(place)]
    place.crash()
    checkpoint = place.read("checkpoint")
    place.write("checkpoint", checkpoint[:16] + struct.pack(">q", header(place, 0)[1] - 1) + checkpoint[24:])
    place.write(f"index/{files(place)[1]}", b"\xff" * 400, 300)
    async with place.open() as store:
        assert len(files(place)) == 0
        assert await bodies(store, "u0") == await bodies(store, "u299") == [b"x"]
    assert [place.read(f"index/{name}") for name in files(place)] == whole


@pytest.mark.trio
async def test_the_header_waits_for_the_checkpoint(twin: FaultyDisk, autojump_clock: MockClock) -> None:
    """Apache's broker removes files newer than the checkpoint's index time: ours never are."""
    place = Place(twin, "store")
    async with place.open() as store:
        stored([store.append([keyed(f"u{number}")])[0] for number in range(450)])
        twin.trace.clear()
        assert await bring_to_files(store)
        order = [line for line in twin.trace if "index/" in line or "checkpoint" in line]
        first = [line.partition(" ")[0] for line in order if line.endswith(files(place)[0]) or "checkpoint" in line]
        assert first[:3] == ["create", "truncate", "pwrite"]
        assert [index for index, line in enumerate(order) if line.startswith("fdatasync store/checkpoint")]
        covered = int.from_bytes(place.read("checkpoint")[16:24], "big")
        assert all(header(place, number)[1] <= covered for number in range(len(files(place))))
        killed = Place(twin.survivor_of_kill(), "store")
    names = files(killed)
    async with killed.open() as store:
        assert files(killed) == names
        assert await bodies(store, "u0") == await bodies(store, "u449") == [b"x"]


@pytest.mark.trio
async def test_a_full_disk_only_delays_the_files(autojump_clock: MockClock) -> None:
    disk = Failing()
    place = Place(disk, "store")
    failures = 0
    async with place.open() as store:
        for number in range(1, 12):
            stored(store.append([keyed(f"u{n}", b"%d" % number) for n in range(100)]))
            disk.write_at = number % 6 + 1
            if not await bring_to_files(store):
                failures += 1
                stored(store.append([keyed("u8", b"more"), keyed("more")]))
                assert (await bodies(store, "u7"))[0] == b"%d" % number
                assert (await bodies(store, "u8"))[0] == b"more"
                assert await bring_to_files(store)
            assert await bodies(store, "u7") == [b"%d" % n for n in range(number, 0, -1)]
    assert failures > 5
    async with place.open() as store:
        assert await bodies(store, "u7") == [b"%d" % n for n in range(11, 0, -1)]
        assert len(await bodies(store, "more")) == failures


@pytest.mark.trio
async def test_a_failed_sync_ends_the_index_but_not_the_store(autojump_clock: MockClock) -> None:
    disk = Failing()
    place = Place(disk, "store")
    failures = 0
    for number in range(1, 8):  # names, items, slots, checkpoint, header
        async with place.open() as store:
            stored(store.append([keyed(f"u{number}"), keyed("all")]))
            await store._log_flusher.sync()
            disk.sync_at = number
            flushed = await bring_to_files(store)
            disk.sync_at = 0
            failures += not flushed
            assert await bodies(store, f"u{number}") == [b"x"]
            stored(store.append([keyed("more")]))
            assert len(await bodies(store, "all")) == number
        assert place.exists("abort") == (not flushed)
    assert failures == 5
    async with Place(disk.survivor_of_power_loss(Random(1)), "store").open() as store:
        assert len(await bodies(store, "all")) == len(await bodies(store, "more")) == 7


@pytest.mark.trio
@pytest.mark.parametrize("patience", [0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5])
async def test_a_cancelled_write_leaves_nothing_unsynced_behind_the_next(
    twin: FaultyDisk, autojump_clock: MockClock, patience: float
) -> None:
    """Above all no header, once a next file follows: the file would look empty after a power loss."""
    async with Place(twin, "store").open() as store:
        stored(store.append([keyed(f"u{number}") for number in range(199)]))
        await store._log_flusher.sync()
        index = index_of(store)
        while index.gather():
            pass
        twin.latency = lambda: 1.0
        with trio.move_on_after(patience):
            await index.flush()
        twin.latency = None
        stored(store.append([keyed(f"v{number}") for number in range(199)]))
        assert await bring_to_files(store)
        assert not [path for path, file in twin._names.items() if "/index/" in path and file.pending]
        lost = twin.survivor_of_power_loss(Random(3))
    async with Place(lost, "store").open() as store:
        for number in range(199):
            assert await bodies(store, f"u{number}") == await bodies(store, f"v{number}") == [b"x"]


@pytest.mark.trio
async def test_a_file_without_a_length_is_made_again(place: Place, autojump_clock: MockClock) -> None:
    async with place.open() as store:
        stored(store.append([keyed("u")]))
    place.crash()
    place.write("index/99991231235959999", b"")
    async with place.open() as store:
        assert await bodies(store, "u") == [b"x"]
    assert len(files(place)) == 1


@pytest.mark.trio
async def test_a_damaged_log_costs_only_the_keys_of_the_rest_of_its_file(
    place: Place, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with place.open(message_index_enable=False) as store:
        results = stored(store.append([keyed(f"u{number}", bytes(9000)) for number in range(8)]))
    place.write("commitlog/00000000000000000000", b"\xff" * 8, results[1].physical_offset)
    async with place.open() as store:
        found = [bool(await bodies(store, f"u{number}")) for number in range(8)]
        assert found == [True, False, False, True, True, True, True, True]
    assert "cannot be read" in caplog.text


@pytest.mark.trio
async def test_a_header_cut_short_in_the_middle_costs_nothing(twin: FaultyDisk, autojump_clock: MockClock) -> None:
    place = Place(twin, "store")
    async with place.open() as store:
        headers = []
        for group in range(2):
            for number in range(20):
                stored(store.append([keyed(f"u{group}-{number}", b"x" * 300)]))
            assert await bring_to_files(store)
            headers.append(place.read(f"index/{files(place)[0]}")[:40])
            await trio.sleep(1.7)
        stored(store.append([keyed("last", bytes(9000))]))
        killed = twin.survivor_of_kill()
    for cut in range(1, 40):
        torn = Place(killed.survivor_of_kill(), "store")
        torn.write(f"index/{files(torn)[0]}", headers[1][:cut] + headers[0][cut:], 0)
        async with torn.open() as store:
            for group in range(2):
                for number in (0, 19):
                    assert await bodies(store, f"u{group}-{number}") == [b"x" * 300], cut
            assert await bodies(store, "last") == [bytes(9000)]
        assert header(torn)[5] == 42, cut


@pytest.mark.trio
async def test_a_flush_under_load_leaves_what_comes_meanwhile(autojump_clock: MockClock) -> None:
    """It once went on as long as keys came, and the checkpoint's mark stood still with it."""
    disk = FaultyDisk(latency=lambda: 0.01)
    settings = {"max_index_num": 100_000, "flush_interval_commit_log": 1, "flush_commit_log_least_pages": 0}
    async with Place(disk, "store").open(**settings) as store, trio.open_nursery() as load:

        async def send() -> None:
            number = 0
            while True:
                store.append([keyed(f"key{number}")])
                number += 1
                await trio.sleep(0.002)

        load.start_soon(send)
        await trio.sleep(1)
        with trio.fail_after(1):
            assert await index_of(store).flush()
        load.cancel_scope.cancel()


@pytest.mark.trio
async def test_a_key_that_all_messages_share_holds_nobody_up(place: Place, autojump_clock: MockClock) -> None:
    count, turns, done = 20_480, 0, False

    async def bystander() -> None:
        nonlocal turns
        while not done:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with place.open(max_hash_slot_num=50, max_index_num=2 * count) as store:
        for _ in range(count // 256):
            stored(store.append([new_message(b"", properties="KEYS\x01" + "same " * 256)]))
            while index_of(store).gather():
                pass
        await store._log_flusher.sync()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bystander)
            assert await index_of(store).flush()
            done = True
    assert turns > 4 * (count // 1024)  # each of the four passes over them stops after every 1,024 keys
