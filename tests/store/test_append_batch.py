"""A batch that is appended by the quick way leaves the bytes, the queue entries and the keys of single messages."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.store.test_index_appended import index_of
from tests.store.test_index_appended import keys_in as keys_of_index
from trio_rmq.clock import use_wall_clock
from trio_rmq.store.message_store import MessageStore
from trio_rmq.store.messages import AppendResult, AppendStatus, BatchResult, NewBatch
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.testing.stores import FILE_SIZE, HOST, Place, new_message, stored
from trio_rmq.wire.hashing import tags_code
from trio_rmq.wire.ids import Host

V6: Host = (bytes(15) + b"\1", 9)
TEXTS = st.sampled_from(
    [
        b"",
        b"TAGS\x01a\x02",
        b"UNIQ_KEY\x01C0FFEE01\x02",
        b"UNIQ_KEY\x01C0FFEE02\x02KEYS\x01k l\x02",
        b"z\0",
    ]
)
ITEMS = st.tuples(st.integers(-(2**31), 2**31 - 1), st.integers(0, 40) | st.just(900), TEXTS)
BATCHES = st.tuples(
    st.sampled_from(["T", "Bad/Topic", "SCHEDULE_TOPIC_XXXX"]),
    st.sampled_from([0, 1, -1]),
    st.lists(ITEMS, min_size=1, max_size=6),
    st.sampled_from([0, 1, 4]),
    st.sampled_from([HOST, V6]),
)
Drawn = tuple[str, int, list[tuple[int, int, bytes]], int, Host]


def made(drawn: Drawn) -> NewBatch:
    """The batch of what was drawn: bodies by their sizes."""
    topic, queue_id, items, sys_flag, host = drawn
    codes = [tags_code("a") if b"TAGS" in text else 0 for _, _, text in items]
    return NewBatch(
        topic, queue_id, [(flag, bytes(size), text) for flag, size, text in items], codes, sys_flag, 5, host, 2
    )


def joined(results: list[AppendResult]) -> tuple[AppendStatus, list[int], int]:
    """Status, physical offsets and the first queue offset of messages that were stored together."""
    offsets = [result.physical_offset for result in results if result.status is AppendStatus.PUT_OK]
    return results[0].status, offsets, results[0].queue_offset


def told(result: BatchResult) -> tuple[AppendStatus, list[int], int]:
    """The same of a batch."""
    return result.status, result.physical_offsets, result.queue_offset


@given(st.lists(BATCHES, max_size=6))
@settings(deadline=None, max_examples=150)
def test_as_single_messages_stored_together(drawn: list[Drawn]) -> None:
    batches = [made(each) for each in drawn]
    places = [Place(FaultyDisk(), "store"), Place(FaultyDisk(), "store")]
    answers: list[list[tuple[AppendStatus, list[int], int]]] = [[], []]
    keys: list[object] = []

    async def live(index: int) -> None:
        async with places[index].open(mapped_file_size_commit_log=4096) as store:
            for batch in batches:
                if index:
                    answers[1].append(told(store.append_batch(batch)))
                else:
                    answers[0].append(joined(store.append_together(batch.messages())))
            keys.append(keys_of_index(index_of(store)))

    with use_wall_clock(lambda: 1_700_000_000_000):
        for index in range(2):
            trio.run(live, index)
    assert answers[0] == answers[1]
    assert keys[0] == keys[1]
    for name in ("commitlog", "consumequeue/T/0", "consumequeue/SCHEDULE_TOPIC_XXXX/1"):
        path = f"store/{name}"
        files = places[0].disk.list_directory(path) if places[0].disk.is_directory(path) else []
        assert files == (places[1].disk.list_directory(path) if places[1].disk.is_directory(path) else [])
        for file in files:
            assert places[0].read(f"{name}/{file}") == places[1].read(f"{name}/{file}")


def batch_of(*bodies: bytes, properties: bytes = b"") -> NewBatch:
    """A batch with these bodies."""
    return NewBatch("T", 0, [(0, body, properties) for body in bodies], [0 for _ in bodies], born_host=HOST)


def bodies(store: MessageStore) -> int:
    """How many messages the queue has."""
    return store.max_offset("T", 0)


@pytest.mark.trio
async def test_one_that_does_not_fit_goes_to_the_next_file(place: Place) -> None:
    async with place.open() as store:
        stored(store.append([new_message(b"a" * 20_000)]))
        result = store.append_batch(batch_of(*[b"b" * 5_000] * 3))
        assert (result.status, result.physical_offsets[0], result.queue_offset) == (AppendStatus.PUT_OK, FILE_SIZE, 1)
        assert result.end_physical_offset == store.max_physical_offset
        refused = store.append_batch(batch_of(*[b"c" * 9_000] * 4))
        assert (refused.status, bodies(store)) == (AppendStatus.MESSAGE_ILLEGAL, 4)
        assert "do not fit a log file" in refused.remark


@pytest.mark.trio
async def test_a_full_disk_takes_nothing_of_it_and_the_next_has_its_offsets() -> None:
    disk = FaultyDisk()
    async with Place(disk, "store").open() as store:
        assert store.append_batch(batch_of(b"first")).queue_offset == 0
        disk.capacity_bytes = 0
        refused = store.append_batch(batch_of(*[b"x" * 3_000] * 4))
        assert refused.status is AppendStatus.SERVICE_NOT_AVAILABLE
        assert "make room" in refused.remark
        disk.capacity_bytes = None
        assert store.append_batch(batch_of(b"second", b"third")).queue_offset == 1
        assert bodies(store) == 3


@pytest.mark.trio
async def test_too_large_items_are_refused_with_the_limit(place: Place) -> None:
    async with place.open(max_message_size=100) as store:
        refused = store.append_batch(batch_of(b"a", b"b" * 101))
        assert (refused.status, bodies(store)) == (AppendStatus.MESSAGE_ILLEGAL, 0)
        assert "maxMessageSize is 100" in refused.remark
        refused = store.append_batch(batch_of(b"a", properties=b"p" * 40_000))
        assert (refused.status, bodies(store)) == (AppendStatus.MESSAGE_ILLEGAL, 0)


@pytest.mark.trio
async def test_its_keys_need_no_reading(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async with place.open() as store:
        store.append_batch(batch_of(b"a", b"b", properties=b"UNIQ_KEY\x01C0FFEE\x02"))
        monkeypatch.setattr(store._log, "read", None)
        assert len(keys_of_index(index_of(store))) == 2


@pytest.mark.trio
async def test_its_items_may_not_name_more_queues(place: Place) -> None:
    async with place.open(enable_multi_dispatch=True) as store:
        assert store.append_batch(batch_of(b"a")).status is AppendStatus.PUT_OK
        refused = store.append_batch(batch_of(b"b", properties=b"INNER_MULTI_DISPATCH\x01%LMQ%a\x02"))
        assert (refused.status, bodies(store)) == (AppendStatus.MESSAGE_ILLEGAL, 1)
        assert "send singly" in refused.remark
