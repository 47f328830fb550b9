"""Keys taken from messages as they are appended equal those that the log gives back."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_rmq.store.index import Index
from trio_rmq.store.index_keys import Pending
from trio_rmq.store.message_store import MessageStore
from trio_rmq.store.messages import NewMessage
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.testing.stores import Place, new_message, stored
from trio_rmq.wire.sysflag import TRANSACTION_COMMIT, TRANSACTION_PREPARED, TRANSACTION_ROLLBACK

words = st.text("ab\u00e9\U0001f511 ", min_size=0, max_size=6)
ids = st.one_of(st.text("0A", min_size=3, max_size=6), words)
entries = st.lists(
    st.one_of(
        st.builds("UNIQ_KEY\x01{}".format, ids),
        st.builds("KEYS\x01{}".format, words),
        st.builds("MY_UNIQ_KEY\x01{}".format, words),
        st.builds("x\x01{}".format, words),
    ),
    max_size=4,
)
properties = st.builds(lambda parts, end: "\x02".join(parts) + end, entries, st.sampled_from(["", "\x02"]))
messages = st.builds(
    lambda text, as_text, topic, flag: new_message(
        b"x", topic=topic, properties=text if as_text else text.encode(), sys_flag=flag
    ),
    properties,
    st.booleans(),
    st.sampled_from(["T", "U"]),
    st.sampled_from([0] * 6 + [TRANSACTION_PREPARED, TRANSACTION_COMMIT, TRANSACTION_ROLLBACK]),
)


def index_of(store: MessageStore) -> Index:
    assert store._index is not None
    return store._index


def keys_in(index: Index) -> list[tuple[int, int, int]]:
    while index.gather():
        pass
    pending = index._pending
    return list(zip(pending.hashes, pending.offsets, pending.times_ms, strict=True))


@given(st.lists(st.lists(messages, min_size=1, max_size=5), max_size=5))
@settings(deadline=None, max_examples=60)
def test_keys_from_memory_are_those_of_the_log(calls: list[list[NewMessage]]) -> None:
    async def main() -> None:
        async with Place(FaultyDisk(), "store").open() as store:
            index = index_of(store)
            for call in calls:
                stored(store.append(call))
            taken = keys_in(index)
            index._pending, index.position = Pending(), 0
            assert taken == keys_in(index)

    trio.run(main)


@pytest.mark.trio
async def test_plain_messages_need_no_reading(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async with place.open() as store:
        stored(store.append([new_message(properties=f"UNIQ_KEY\x01{number:032X}") for number in range(5)]))
        index = index_of(store)
        monkeypatch.setattr(store._log, "read", None)
        assert len(keys_in(index)) == 5


@pytest.mark.trio
async def test_a_slice_is_of_many_small_appends_or_of_a_part_of_a_large_one(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with place.open() as store:
        for count in (1, 1, 1, 40, 300, 1):
            stored(store.append([new_message(properties=f"UNIQ_KEY\x01{number:032X}") for number in range(count)]))
        index = index_of(store)
        monkeypatch.setattr(store._log, "read", None)
        waiting, slices = index.waiting, []
        while index.gather():
            slices.append(index.waiting - waiting)
            waiting = index.waiting
        assert slices == [1, 1, 1, 40, 64, 64, 64, 64, 16, 16, 13]
        assert index.position == store.max_physical_offset


@pytest.mark.trio
async def test_one_that_is_behind_reads_first(place: Place) -> None:
    async with place.open() as store:
        stored(store.append([new_message(sys_flag=TRANSACTION_COMMIT, properties="UNIQ_KEY\x01first")]))
        stored(store.append([new_message(properties="UNIQ_KEY\x01second")]))
        index = index_of(store)
        assert [offset for _, offset, _ in keys_in(index)] == [0, index._pending.offsets[1]]


@pytest.mark.trio
async def test_under_sync_flush_they_wait_for_the_sync(place: Place) -> None:
    async with place.open(flush_disk_type="SYNC_FLUSH") as store:
        [first] = stored(store.append([new_message(properties="UNIQ_KEY\x01first")]))
        index = index_of(store)
        assert keys_in(index) == []
        await store.wait_durable(first.size_bytes)
        assert len(keys_in(index)) == 1
