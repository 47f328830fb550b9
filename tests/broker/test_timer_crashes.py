"""The process dies at every changing call between the storing of a timer, its delivery, a recall and a roll.

Afterwards every timer that was acknowledged is delivered, none before its time, and after a kill none twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from random import Random

import pytest
import trio
from trio.testing import MockClock

from trio_rmq.broker.deferring import Deferral, Deferring, Kind
from trio_rmq.broker.long_polling import HeldPulls
from trio_rmq.broker.persistence import Persistence
from trio_rmq.broker.timers import Timers
from trio_rmq.clock import use_wall_clock, wall_ms
from trio_rmq.config import BrokerConfig, MessageStoreConfig
from trio_rmq.store.message_store import MessageStore
from trio_rmq.store.messages import AppendStatus, GetStatus, NewMessage
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.testing.stores import HOST, Place, survives
from trio_rmq.wire.record import StoredMessage, decode_records

START_MS = 1_700_000_000_000
SIZES: dict[str, object] = {"mapped_file_size_commit_log": 8192, "mapped_file_size_consume_queue": 200}


class Told:
    """Acknowledged timers by body, with their times."""

    def __init__(self) -> None:
        self.dues: dict[bytes, int] = {}


class Clock:
    """The wall clock goes on over several lives, each of which has virtual time from 0 on."""

    def __init__(self) -> None:
        self.base_ms = START_MS

    def now(self) -> int:
        return self.base_ms + int(trio.current_time() * 1000)


async def life(
    place: Place,
    settings: dict[str, object],
    clock: Clock,
    act: Callable[[MessageStore, Deferring], Awaitable[None]],
    *,
    roll_after_ms: int = 3_600_000,
    in_memory_max: int = 1000,
) -> None:
    deferring = Deferring(BrokerConfig(broker_name="b"), MessageStoreConfig(), max_delay_level=18)
    with use_wall_clock(clock.now):
        try:
            async with place.open(**SIZES, **settings) as store:
                held = HeldPulls()
                store.on_arrival = held.arrived
                timers = Timers(
                    store, held, roll_after_ms=roll_after_ms, saved=lambda: saved.saved(), in_memory_max=in_memory_max
                )
                saved = Persistence(
                    f"{place.root}/config", {"timerProgress.json": timers.progress}, interval_seconds=2, disk=place.disk
                )
                saved.load()
                await timers.load()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(saved.run)
                    nursery.start_soon(timers.run)
                    await act(store, deferring)
                    nursery.cancel_scope.cancel()
        finally:
            clock.base_ms = clock.now()


async def send(store: MessageStore, deferring: Deferring, body: bytes, delay_ms: int, told: Told) -> None:
    due_ms = wall_ms() + delay_ms
    due_ms += due_ms % 1000 == 0  # as Deferring makes it
    message = NewMessage("T", 0, body, f"UNIQ_KEY\x01{body.decode()}", born_host=HOST)
    [result] = store.append([deferring.deferred(Deferral(Kind.TIMER, due_ms), message)])
    assert result.status is AppendStatus.PUT_OK
    await store.wait_durable(result.physical_offset + result.size_bytes)
    told.dues[body] = due_ms


async def scenario(place: Place, settings: dict[str, object], told: Told, clock: Clock) -> None:
    async def first(store: MessageStore, deferring: Deferring) -> None:
        for number, delay_ms in enumerate((500, 2000, 2000, 60_000, 1500)):
            await send(store, deferring, b"a%d" % number, delay_ms, told)
        await trio.sleep(2.5)

    async def second(store: MessageStore, deferring: Deferring) -> None:
        for number, delay_ms in enumerate((10, 1000, 3000, 90_000)):
            await send(store, deferring, b"b%d" % number, delay_ms, told)
        await trio.sleep(2)

    await life(place, settings, clock, first)
    await life(place, settings, clock, second)


def delivered(store: MessageStore) -> list[StoredMessage]:
    offset, found = store.min_offset("T", 0), list[StoredMessage]()
    while (answer := store.get_messages("T", 0, offset, max_count=32)).status is GetStatus.FOUND:
        found += decode_records(answer.body, check_crc=True)
        offset = answer.next_begin_offset
    return found


async def verify(place: Place, settings: dict[str, object], told: Told, clock: Clock, twice: bool) -> None:
    async def wait(store: MessageStore, deferring: Deferring) -> None:
        await trio.sleep(100)

    await life(place, settings, clock, wait)
    async with place.open(**SIZES, **settings) as store:
        found = delivered(store)
    counts = Counter(message.body for message in found)
    for body in told.dues:
        assert counts[body] == 1 or (twice and counts[body] > 0), (body, counts)
    for message in found:
        assert message.store_timestamp_ms >= told.dues.get(message.body, 0)


def run(disk: FaultyDisk, job: Callable[[Place], Awaitable[None]]) -> bool:
    """Run `job` on virtual time; False when the disk's process died."""
    return survives(partial(job, Place(disk, "store")))


def crash_at(points: range, loss: str) -> None:
    settings: dict[str, object] = {"flush_disk_type": "SYNC_FLUSH"} if loss == "power" else {}
    for point in points:
        rng = Random(f"{point}/{loss}")
        disk = FaultyDisk()
        disk.crash_at, disk.crash_rng = point, rng
        told, clock = Told(), Clock()
        if run(disk, partial(scenario, settings=settings, told=told, clock=clock)):
            assert point > 30
            return
        for attempt in range(3):  # the second life dies too
            disk = disk.survivor_of_kill() if loss == "kill" else disk.survivor_of_power_loss(rng)
            disk.crash_at = rng.randint(1, 25) if attempt < 2 else None
            disk.crash_rng = rng
            if run(disk, partial(verify, settings=settings, told=told, clock=clock, twice=loss == "power")):
                break


@pytest.mark.parametrize("loss", ["kill", "power"])
def test_a_crash_at_every_third_call_loses_nothing(loss: str) -> None:
    crash_at(range(1 if loss == "kill" else 2, 10_000, 3), loss)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["kill", "power"])
def test_a_crash_at_every_call_loses_nothing(loss: str) -> None:
    crash_at(range(1, 10_000), loss)


@pytest.mark.trio
async def test_old_records_are_stored_again_and_delivered_once(autojump_clock: MockClock) -> None:
    disk = FaultyDisk()
    place, clock, told = Place(disk, "store"), Clock(), Told()
    clock.base_ms = START_MS - int(trio.current_time() * 1000)

    async def far(store: MessageStore, deferring: Deferring) -> None:
        for number, delay_ms in enumerate((1000, 3_000_000, 7_200_000, 7_200_000)):
            await send(store, deferring, b"%d" % number, delay_ms, told)
        await trio.sleep(2_000)
        assert [message.body for message in delivered(store)] == [b"0"]
        assert store.max_offset("rmq_sys_wheel_timer", 0) > 6  # stored again, more than once
        await trio.sleep(2_000)

    async def wait(store: MessageStore, deferring: Deferring) -> None:
        await trio.sleep(8_000)

    await life(place, {}, clock, far, roll_after_ms=600_000)
    clock.base_ms -= int(trio.current_time() * 1000)
    await life(Place(disk.survivor_of_kill(), "store"), {}, clock, wait, roll_after_ms=600_000)
    clock.base_ms -= int(trio.current_time() * 1000)
    async with place.open(**SIZES) as store:
        assert [message.body for message in delivered(store)] == [b"0", b"1"]


@pytest.mark.trio
async def test_more_than_memory_may_hold_are_delivered_all(autojump_clock: MockClock) -> None:
    place, clock, told = Place(FaultyDisk(), "store"), Clock(), Told()
    clock.base_ms = START_MS - int(trio.current_time() * 1000)

    async def many(store: MessageStore, deferring: Deferring) -> None:
        rng = Random(7)
        for number in range(300):
            await send(store, deferring, b"%d" % number, rng.randrange(1, 400_000), told)
        await trio.sleep(500)
        found = delivered(store)
        assert sorted(message.body for message in found) == sorted(told.dues)
        assert all(0 <= message.store_timestamp_ms - told.dues[message.body] < 100 for message in found)

    await life(place, {}, clock, many, in_memory_max=50)
