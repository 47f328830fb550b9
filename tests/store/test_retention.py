"""Which files go and when, what readers and the next start find, short room, and deletions cut short by a crash."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from functools import partial
from random import Random

import pytest
import trio
from trio.testing import MockClock

from trio_rmq.clock import use_wall_clock, wall_ms
from trio_rmq.store.message_store import MessageStore
from trio_rmq.store.messages import AppendStatus, GetStatus
from trio_rmq.store.retention import REFUSED_LOOK_SECONDS
from trio_rmq.testing.faulty_disk import FaultyDisk, SimulatedCrash
from trio_rmq.testing.stores import FILE_SIZE, Place, new_message, stored
from trio_rmq.wire.record import decode_records

START_MS = 1_700_000_000_000
QUEUES = 3
HOUR = 3600.0
LOG = "store/commitlog"


def hour_after(hours: int) -> str:
    """The hour of the day so many hours after the start, as deleteWhen has it."""
    return f"{datetime.fromtimestamp(START_MS / 1000 + hours * HOUR).hour:02d}"


@contextmanager
def wall_on_virtual_time() -> Iterator[None]:
    began = trio.current_time()
    with use_wall_clock(lambda: START_MS + int((trio.current_time() - began) * 1000)):
        yield


@asynccontextmanager
async def kept(place: Place, **settings: object) -> AsyncIterator[MessageStore]:
    """An open store whose retention runs."""
    defaults: dict[str, object] = {
        "delete_when": hour_after(12),
        "file_reserved_time": 2,
        "message_index_enable": False,
    }
    with wall_on_virtual_time():
        async with place.open(**{**defaults, **settings}) as store, trio.open_nursery() as nursery:
            nursery.start_soon(store.run_retention)
            yield store
            nursery.cancel_scope.cancel()


def fill(store: MessageStore, files: int, *, properties: bytes = b"") -> list[bytes]:
    """Append until the log has so many files more; the bodies, which tell queue and place."""
    wanted = store.statistics().log_files + files
    bodies: list[bytes] = []
    while store.statistics().log_files < wanted:
        queue_id = len(bodies) % QUEUES
        body = f"{queue_id}/{len(bodies)}/{wall_ms()}".encode().ljust(1000)
        [result] = stored(store.append([new_message(body, queue_id=queue_id, properties=properties)]))
        assert result.queue_offset >= 0
        bodies.append(body)
    return bodies


def read(store: MessageStore, queue_id: int, offset: int | None = None) -> list[tuple[int, bytes]]:
    """(queue offset, body) of every message of a queue, as a reader gets them who begins at `offset` (or the first)."""
    offset = store.min_offset("T", queue_id) if offset is None else offset
    found: list[tuple[int, bytes]] = []
    while True:
        answer = store.get_messages("T", queue_id, offset, max_count=32)
        if answer.status is GetStatus.OFFSET_OVERFLOW_ONE or answer.status is GetStatus.NO_MESSAGE_IN_QUEUE:
            return found
        if answer.status is GetStatus.FOUND:
            found += [(record.queue_offset, record.body) for record in decode_records(answer.body, check_crc=True)]
        else:
            assert answer.status in (GetStatus.OFFSET_TOO_SMALL, GetStatus.MESSAGE_WAS_REMOVING), answer
        assert answer.next_begin_offset > offset
        offset = answer.next_begin_offset


def check_whole(store: MessageStore) -> None:
    """Every queue serves what the log still has of it, without a gap, and nothing else."""
    first = store.min_physical_offset
    for queue_id in range(QUEUES):
        found = read(store, queue_id)
        low, high = store.min_offset("T", queue_id), store.max_offset("T", queue_id)
        assert [offset for offset, _ in found] == list(range(low, high))
        entry = store._queues.table["T", queue_id].entry(low)
        assert entry is None or entry[0] >= first
        if low:
            answer = store.get_messages("T", queue_id, low - 1, max_count=1)
            assert (answer.status, answer.next_begin_offset) == (GetStatus.OFFSET_TOO_SMALL, low)


def log_files(disk: FaultyDisk) -> list[int]:
    return [int(name) // FILE_SIZE for name in disk.list_directory(LOG)]


def queue_files(disk: FaultyDisk, queue_id: int) -> list[int]:
    return [int(name) // 400 for name in disk.list_directory(f"store/consumequeue/T/{queue_id}")]


@pytest.mark.trio
async def test_expired_files_go_at_the_hour_and_not_before(twin: FaultyDisk, autojump_clock: MockClock) -> None:
    async with kept(Place(twin, "store"), delete_when=f"{hour_after(5)};{hour_after(12)}") as store:
        fill(store, 6)
        await trio.sleep(4.9 * HOUR - 900)
        assert log_files(twin) == [0, 1, 2, 3, 4, 5]
        await trio.sleep(1.2 * HOUR + 900)
        assert log_files(twin) == [5]
        assert store.min_physical_offset == 5 * FILE_SIZE
        check_whole(store)
        assert [len(queue_files(twin, queue_id)) for queue_id in range(QUEUES)] == [1, 1, 1]
    async with Place(twin, "store").open() as store:
        check_whole(store)
        assert store.recovered is not None
        assert store.recovered.clean


@pytest.mark.trio
async def test_age_is_told_by_the_records(twin: FaultyDisk, autojump_clock: MockClock) -> None:
    async with kept(Place(twin, "store"), delete_when=";".join(map(str, range(24)))) as store:
        fill(store, 3)
        await trio.sleep(1.5 * HOUR)
        fill(store, 3)
        await trio.sleep(0.6 * HOUR)  # the third file's last records are of the second filling
        assert log_files(twin) == [2, 3, 4, 5]
        check_whole(store)
        await trio.sleep(1.5 * HOUR)
        assert log_files(twin) == [5]


@pytest.mark.trio
async def test_the_last_file_and_what_is_not_synced_stay(twin: FaultyDisk, autojump_clock: MockClock) -> None:
    always = {"delete_when": ";".join(map(str, range(24))), "file_reserved_time": 0}
    later = 10**9
    async with kept(
        Place(twin, "store"),
        **always,
        flush_interval_commit_log=later,
        flush_commit_log_thorough_interval=later,
    ) as store:
        fill(store, 4)
        await trio.sleep(HOUR)
        assert log_files(twin) == [0, 1, 2, 3]
        await store._log_flusher.sync()
        await trio.sleep(100)
        assert log_files(twin) == [3]
        await trio.sleep(100 * HOUR)
        assert log_files(twin) == [3]
        fill(store, 1)
        check_whole(store)


@pytest.mark.trio
async def test_nothing_goes_in_the_first_minute(twin: FaultyDisk, autojump_clock: MockClock) -> None:
    async with kept(Place(twin, "store"), file_reserved_time=0, delete_when=hour_after(0)) as store:
        fill(store, 3)
        await trio.sleep(59)
        assert log_files(twin) == [0, 1, 2]
        await trio.sleep(3)
        assert log_files(twin) == [2]


@pytest.mark.trio
async def test_by_hand_expired_files_go_at_once(twin: FaultyDisk, autojump_clock: MockClock) -> None:
    async with kept(Place(twin, "store")) as store:
        fill(store, 4)
        await trio.sleep(HOUR)
        store.delete_expired_soon()
        await trio.sleep(60)
        assert log_files(twin) == [0, 1, 2, 3]
        await trio.sleep(1.1 * HOUR)
        assert log_files(twin) == [0, 1, 2, 3]
        store.delete_expired_soon()
        await trio.sleep(1)
        assert log_files(twin) == [3]
        fill(store, 2)
        await trio.sleep(5 * HOUR)
        assert log_files(twin) == [3, 4, 5]


def use(disk: FaultyDisk, per_cent: float) -> None:
    """Let the disk be so full with what it holds now."""
    free, size = disk.space("store")
    disk.capacity_bytes = int((size - free) * 100 / per_cent)


RATIOS = {"disk_max_used_space_ratio": 75, "file_reserved_time": 2}


@pytest.mark.trio
async def test_above_75_per_cent_expired_files_go_at_any_hour(twin: FaultyDisk, autojump_clock: MockClock) -> None:
    async with kept(Place(twin, "store"), **RATIOS) as store:
        fill(store, 10)
        await trio.sleep(3 * HOUR)
        use(twin, 74.5)
        await trio.sleep(60)
        assert len(log_files(twin)) == 10
        use(twin, 76)
        await trio.sleep(60)
        assert log_files(twin) == list(range(1, 10))  # one was enough
        check_whole(store)


@pytest.mark.trio
async def test_above_85_per_cent_the_oldest_go_until_there_is_room(twin: FaultyDisk, autojump_clock: MockClock) -> None:
    async with kept(Place(twin, "store"), **RATIOS) as store:
        fill(store, 20)
        await trio.sleep(100)
        use(twin, 84)
        await trio.sleep(60)
        assert len(log_files(twin)) == 20
        use(twin, 89)
        await trio.sleep(60)
        assert log_files(twin) == [1, *range(2, 20)]
        check_whole(store)
        use(twin, 96)
        stored(store.append([new_message()]))
        await trio.sleep(60)
        assert 15 <= len(log_files(twin)) < 19
        stored(store.append([new_message()]))
        check_whole(store)


@pytest.mark.trio
async def test_above_90_per_cent_sends_are_refused_and_taken_again(twin: FaultyDisk, autojump_clock: MockClock) -> None:
    async with kept(Place(twin, "store"), **RATIOS, clean_file_forcibly_enable=False) as store:
        fill(store, 5)
        before = store.max_physical_offset
        await trio.sleep(11)
        use(twin, 90.5)
        await trio.sleep(11)
        results = store.append([new_message(), new_message(b"")]) + store.append_together([new_message()])
        for result in results:
            assert result.status is AppendStatus.SERVICE_NOT_AVAILABLE
            assert result.remark.startswith(
                "the disk of store/commitlog is 91 % full, above diskSpaceWarningLevelRatio 90:"
            )
            assert "lower fileReservedTime" in result.remark
        assert store.max_physical_offset == before
        assert len(log_files(twin)) == 5
        use(twin, 60)
        await trio.sleep(REFUSED_LOOK_SECONDS + 0.1)
        stored(store.append([new_message()]))


@pytest.mark.trio
async def test_without_ratios_free_bytes_decide(twin: FaultyDisk, autojump_clock: MockClock) -> None:
    least = 40_000
    async with kept(Place(twin, "store"), disk_free_space_min_bytes=least) as store:
        fill(store, 30)
        await trio.sleep(100)

        def leave(free: int) -> None:
            now, size = twin.space("store")
            twin.capacity_bytes = size - now + free

        leave(2 * least + 1000)  # 92 % full, and yet nothing goes
        await trio.sleep(60)
        assert len(log_files(twin)) == 30
        leave(least + 1000)
        await trio.sleep(60)
        assert len(log_files(twin)) == 28
        check_whole(store)
        twin.fail_next("unlink", errno.EACCES, times=10**4)
        leave(least - 1000)
        await trio.sleep(60)
        [result] = store.append([new_message()])
        assert result.status is AppendStatus.SERVICE_NOT_AVAILABLE
        assert "diskFreeSpaceMinBytes" in result.remark
        leave(5 * least)
        await trio.sleep(11)
        stored(store.append([new_message()]))


@pytest.mark.trio
async def test_a_room_that_cannot_be_told_changes_nothing(twin: FaultyDisk, autojump_clock: MockClock) -> None:
    async with kept(Place(twin, "store"), **RATIOS) as store:
        fill(store, 5)
        twin.fail_next("space", errno.EIO, times=10)
        await trio.sleep(30)
        stored(store.append([new_message()]))
        assert len(log_files(twin)) == 5


@pytest.mark.trio
@pytest.mark.parametrize("call", ["unlink", "sync_directory"])
async def test_a_failed_deletion_is_tried_again(
    twin: FaultyDisk, autojump_clock: MockClock, call: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with kept(Place(twin, "store"), delete_when=hour_after(3), file_reserved_time=1) as store:
        fill(store, 6)
        await trio.sleep(100)
        twin.fail_next(call, errno.EACCES, times=3)
        await trio.sleep(4 * HOUR)
        assert log_files(twin) == [5]
        check_whole(store)
        assert sum("deleting old files failed" in record.message for record in caplog.records) == 1


@pytest.mark.trio
async def test_queues_keep_their_next_offset_when_all_their_messages_went(
    twin: FaultyDisk, autojump_clock: MockClock
) -> None:
    async with kept(Place(twin, "store"), delete_when=hour_after(3), file_reserved_time=1) as store:
        stored(store.append([new_message(topic="Old") for _ in range(45)]))
        fill(store, 3)
        await trio.sleep(4 * HOUR)
        assert log_files(twin) == [store.max_physical_offset // FILE_SIZE]
        assert (store.min_offset("Old", 0), store.max_offset("Old", 0)) == (45, 45)
        assert twin.list_directory("store/consumequeue/Old/0") == [f"{800:020d}"]
    async with Place(twin, "store").open(message_index_enable=False) as store:
        assert (store.min_offset("Old", 0), store.max_offset("Old", 0)) == (45, 45)
        [result] = stored(store.append([new_message(topic="Old")]))
        assert result.queue_offset == 45


@pytest.mark.trio
async def test_index_files_follow(twin: FaultyDisk, autojump_clock: MockClock) -> None:
    settings = {
        "delete_when": hour_after(3),
        "file_reserved_time": 1,
        "message_index_enable": True,
        "max_index_num": 60,
    }
    async with kept(Place(twin, "store"), **settings) as store:
        fill(store, 10, properties=b"KEYS\x01k")
        await trio.sleep(100)
        assert store._index is not None
        await store._index.flush()
        before = len(twin.list_directory("store/index"))
        await trio.sleep(4 * HOUR)
        assert log_files(twin) == [9]
        assert len(twin.list_directory("store/index")) < before
        found = await store.query("T", "k", max_count=64, begin_ms=0, end_ms=2**62)
        alive = sum(len(read(store, queue_id)) for queue_id in range(QUEUES))
        assert 0 < alive < 64
        assert len(found.records) == alive


@pytest.mark.trio
async def test_a_reader_in_the_middle_of_a_deleted_file_goes_on_at_the_first_message(
    twin: FaultyDisk, autojump_clock: MockClock
) -> None:
    async with kept(Place(twin, "store"), delete_when=hour_after(3), file_reserved_time=1) as store:
        fill(store, 4)
        reader = store.get_messages("T", 1, 0, max_count=5).next_begin_offset
        await trio.sleep(4 * HOUR)
        answer = store.get_messages("T", 1, reader, max_count=32)
        assert answer.status is GetStatus.OFFSET_TOO_SMALL
        assert answer.next_begin_offset == answer.min_offset == store.min_offset("T", 1) > reader
        assert read(store, 1, reader) == read(store, 1)
        assert store.record_at(0) is None
        assert store.store_time_at("T", 1, reader) == -1
        assert store.offset_by_time("T", 1, 0) == store.min_offset("T", 1)
        assert store.earliest_store_time() == START_MS


@pytest.mark.trio
@pytest.mark.parametrize("which", [0, 1, 2])
async def test_a_reader_gets_around_a_file_that_somebody_deleted(place: Place, which: int) -> None:
    with wall_on_virtual_time():
        async with place.open(message_index_enable=False) as store:
            fill(store, 4)
            before = [read(store, queue_id) for queue_id in range(QUEUES)]
            ends = [store._queues.table["T", queue_id] for queue_id in range(QUEUES)]
        async with place.open(message_index_enable=False) as store:
            place.disk.unlink(f"{place.root}/commitlog/{which * FILE_SIZE:020d}")
            for queue_id, queue in enumerate(ends):
                gone = [
                    offset
                    for offset, _ in before[queue_id]
                    if (entry := store._queues.table["T", queue.queue_id].entry(offset)) is not None
                    and entry[0] // FILE_SIZE == which
                ]
                assert gone
                assert read(store, queue_id, 0) == [pair for pair in before[queue_id] if pair[0] not in gone]


# Crashes -------------------------------------------------------------------------------------------------------------

TIGHT: dict[str, object] = {
    "mapped_file_size_commit_log": 4096,
    "mapped_file_size_consume_queue": 40,
    "file_reserved_time": 1,
    "message_index_enable": True,
    "max_index_num": 8,
    "flush_interval_consume_queue": 100,
    "flush_consume_queue_thorough_interval": 100,
}


async def scenario(place: Place, written: dict[tuple[int, int], bytes]) -> None:
    """Fill, let all be synced, then let old files go twice, with messages between."""
    async with kept(place, **TIGHT, delete_when=hour_after(3)) as store:
        for _ in range(2):
            for number in range(24):
                [result] = stored(
                    store.append([new_message(b"%d" % number * 300, queue_id=number % QUEUES, properties=b"KEYS\x01k")])
                )
                written[number % QUEUES, result.queue_offset] = b"%d" % number * 300
            await trio.sleep(30)
            store.delete_expired_soon()
            await trio.sleep(1.5 * HOUR)
            store.delete_expired_soon()
            await trio.sleep(60)


async def verify(place: Place, written: dict[tuple[int, int], bytes]) -> None:
    async with kept(place, **TIGHT) as store:
        first = store.min_physical_offset
        for queue_id in range(QUEUES):
            if ("T", queue_id) not in set(store.queues()):
                continue
            found = read(store, queue_id)
            assert [offset for offset, _ in found] == list(
                range(store.min_offset("T", queue_id), store.max_offset("T", queue_id))
            )
            for offset, body in found:
                assert written.get((queue_id, offset), b"after") == body
        kept_bodies = sum(len(read(store, queue_id)) for queue_id in range(QUEUES))
        in_log = sum(1 for _, record in store._log.scan(first) if record.size_bytes and record.topic == "T")
        assert kept_bodies == in_log
        for queue_id in range(QUEUES):
            [result] = stored(store.append([new_message(b"after", queue_id=queue_id)]))
            assert result.queue_offset + 1 == store.max_offset("T", queue_id)


def run(disk: FaultyDisk, job: Callable[[Place], Awaitable[None]]) -> bool:
    """Run `job` on virtual time; False when the disk's process died."""

    async def main() -> None:
        await job(Place(disk, "store"))

    try:
        trio.run(main, clock=MockClock(autojump_threshold=0))
    except SimulatedCrash:
        return False
    except BaseExceptionGroup as group:
        rest = group.split(SimulatedCrash)[1]
        if rest is not None:
            raise
        return False
    return True


@pytest.mark.parametrize("loss", ["kill", "power"])
def test_a_crash_at_any_call_of_a_deletion_leaves_a_whole_store(loss: str) -> None:
    disk = FaultyDisk()
    assert run(disk, partial(scenario, written={}))
    unlinks = [number for number, line in enumerate(disk.trace, start=1) if line.startswith("unlink")]
    assert sum("commitlog" in disk.trace[number - 1] for number in unlinks) > 6
    assert sum("consumequeue" in disk.trace[number - 1] for number in unlinks) > 6
    assert sum("/index/" in disk.trace[number - 1] for number in unlinks) > 2
    points = {point for number in unlinks for point in (number, number + 1, number + 2)}
    for point in sorted(point for point in points if point <= disk.operations):
        rng = Random(f"{point}/{loss}")
        disk = FaultyDisk()
        disk.crash_at, disk.crash_rng = point, rng
        written: dict[tuple[int, int], bytes] = {}
        assert not run(disk, partial(scenario, written=written))
        for attempt in range(3):  # the recovery dies too
            disk = disk.survivor_of_kill() if loss == "kill" else disk.survivor_of_power_loss(rng)
            disk.crash_at = rng.randint(1, 12) if attempt < 2 else None
            disk.crash_rng = rng
            if run(disk, partial(verify, written=written)):
                break
