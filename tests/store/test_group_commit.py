"""Under SYNC_FLUSH: who is told of a sync, when, and that the disk has something to do as long as anybody waits."""

from __future__ import annotations

import errno
from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.store.test_flush import SYNC, send
from trio_rmq.errors import StoreFailedError
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.testing.stores import Place, new_message, stored


@pytest.mark.trio
async def test_who_asked_is_told_of_the_sync_without_a_task(autojump_clock: trio.testing.MockClock) -> None:
    place = Place(FaultyDisk(latency=lambda: 1.0), "store")
    async with place.open(**SYNC) as store:
        told: list[tuple[int, float, StoreFailedError | None]] = []

        def ask(number: int) -> None:
            [result] = stored(store.append([new_message()]))
            end = result.physical_offset + result.size_bytes
            store.when_durable(
                end, lambda failure: told.append((number, round(trio.current_time() - began, 3), failure))
            )

        await send(store)
        began = trio.current_time()
        for number in range(150):  # several slices
            ask(number)
        await trio.sleep(0.5)
        ask(150)
        assert told == []
        await trio.sleep(2)
        assert told == [*((number, 1.0, None) for number in range(150)), (150, 2.0, None)]
        store.when_durable(store.max_physical_offset, lambda failure: told.append((-1, 0.0, failure)))
        assert told[-1] == (-1, 0.0, None)


@pytest.mark.trio
async def test_who_asked_is_told_of_a_failed_sync(autojump_clock: trio.testing.MockClock) -> None:
    disk = FaultyDisk(latency=lambda: 1.0)
    async with Place(disk, "store").open(**SYNC) as store:
        await send(store)
        disk.fail_next("fdatasync", errno.EIO)
        told: list[tuple[int, str]] = []

        def hear(number: int, failure: StoreFailedError | None) -> None:
            told.append((number, str(failure)))

        for number in range(2):
            [result] = stored(store.append([new_message()]))
            end = result.physical_offset + result.size_bytes
            store.when_durable(end, partial(hear, number))
        await trio.sleep(2)
        store.when_durable(end, partial(hear, 2))
        assert [number for number, _ in told] == [0, 1, 2]
        assert all("syncing the commit log failed" in sentence for _, sentence in told)


@pytest.mark.trio
async def test_the_disk_goes_on_before_the_answers_to_the_last_sync(autojump_clock: trio.testing.MockClock) -> None:
    events: list[str] = []

    def latency() -> float:
        events.append("sync")
        return 1.0

    def hear(name: str, failure: StoreFailedError | None) -> None:
        events.append(name)

    place = Place(FaultyDisk(latency=latency), "store")
    async with place.open(**SYNC) as store:
        await send(store)
        events.clear()
        for name in ("first", "second"):  # the second comes while the sync of the first runs
            [result] = stored(store.append([new_message()]))
            store.when_durable(result.physical_offset + result.size_bytes, partial(hear, name))
            await trio.sleep(0.5)
        await trio.sleep(3)
        assert events == ["sync", "sync", "first", "second"]


@pytest.mark.trio
async def test_who_writes_while_a_service_syncs_need_not_wait_for_the_next_append(
    autojump_clock: trio.testing.MockClock,
) -> None:
    place = Place(FaultyDisk(latency=lambda: 1.0), "store")
    async with place.open(**SYNC) as store, trio.open_nursery() as nursery:
        stored(store.append([new_message()]))
        nursery.start_soon(store.sync)
        await wait_all_tasks_blocked()
        with trio.fail_after(5):
            await send(store)
