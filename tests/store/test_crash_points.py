"""The process dies at every changing call of a scenario, and again inside the recovery; power fails at every call.

What was acknowledged in its mode must be there afterwards, once, in order, and unchanged: after a kill everything that
`append` called stored, after a power loss everything that `wait_durable` let pass under SYNC_FLUSH.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from random import Random

import pytest
import trio
from trio.testing import MockClock

from trio_rmq.store.messages import AppendStatus, GetStatus, NewMessage
from trio_rmq.testing.faulty_disk import FaultyDisk, SimulatedCrash
from trio_rmq.testing.stores import Place, new_message
from trio_rmq.wire.record import decode_records

QUEUES = 3
SETTINGS: list[dict[str, object]] = [
    {"flush_disk_type": "SYNC_FLUSH"},
    {},
    {"flush_disk_type": "SYNC_FLUSH", "flush_consume_queue_thorough_interval": 100},
]


class History:
    """What the scenario was told: bodies by (queue, offset), when written and when durable."""

    def __init__(self) -> None:
        self.written: dict[tuple[int, int], bytes] = {}
        self.durable: dict[tuple[int, int], bytes] = {}


def sizes(settings: dict[str, object]) -> dict[str, object]:
    return {"mapped_file_size_commit_log": 4096, "mapped_file_size_consume_queue": 60, **settings}


async def scenario(place: Place, settings: dict[str, object], history: History, seed: int) -> None:
    """Two lives of a store: appends that roll files, waits, background flushes, an orderly stop."""
    rng = Random(seed)
    for _ in range(2):
        async with place.open(**sizes(settings)) as store:
            for _ in range(8):
                messages: list[NewMessage] = []
                for _ in range(rng.choice((1, 1, 3, 6))):
                    queue_id, size = rng.randrange(QUEUES), rng.choice((10, 300, 900))
                    messages.append(new_message(rng.randbytes(size), queue_id=queue_id))
                results = store.append(messages)
                end = 0
                placed = []
                for message, result in zip(messages, results, strict=True):
                    if result.status is AppendStatus.PUT_OK:
                        key = (message.queue_id, result.queue_offset)
                        assert key not in history.written
                        history.written[key] = message.body
                        placed.append(key)
                        end = result.physical_offset + result.size_bytes
                await store.wait_durable(end)
                if store.sync_flush:
                    history.durable.update({key: history.written[key] for key in placed})
                await trio.sleep(rng.choice((0.0, 0.0, 1.2)))
        history.durable.update(history.written)


async def verify(place: Place, settings: dict[str, object], promised: dict[tuple[int, int], bytes]) -> None:
    async with place.open(**sizes(settings)) as store:
        found: dict[tuple[int, int], bytes] = {}
        for queue_id in range(QUEUES):
            offset = store.min_offset("T", queue_id)  # not 0 where the log's first file was never synced and is gone
            while (answer := store.get_messages("T", queue_id, offset, max_count=32)).status is GetStatus.FOUND:
                for record in decode_records(answer.body, check_crc=True):
                    assert record.queue_offset == offset
                    found[queue_id, offset] = record.body
                    offset += 1
                assert answer.next_begin_offset == offset
            assert answer.max_offset == offset
        for key, body in promised.items():
            assert found.get(key) == body, f"{key} is lost or changed"
        for queue_id in range(QUEUES):
            [result] = store.append([new_message(b"after", queue_id=queue_id)])
            assert result.queue_offset == store.max_offset("T", queue_id) - (0 if store.sync_flush else 1)
            assert (queue_id, result.queue_offset) not in promised


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


def operations(settings: dict[str, object], seed: int) -> int:
    disk = FaultyDisk()
    assert run(disk, partial(scenario, settings=settings, history=History(), seed=seed))
    return disk.operations


def crash_everywhere(settings: dict[str, object], loss: str, seed: int) -> None:
    for point in range(1, operations(settings, seed) + 1):
        rng = Random(f"{seed}/{point}/{loss}")
        disk = FaultyDisk()
        disk.crash_at, disk.crash_rng = point, rng
        history = History()
        assert not run(disk, partial(scenario, settings=settings, history=history, seed=seed))
        promised = history.written if loss == "kill" else history.durable
        for attempt in range(3):  # the recovery dies too, at a random call
            disk = disk.survivor_of_kill() if loss == "kill" else disk.survivor_of_power_loss(rng)
            disk.crash_at = rng.randint(1, 12) if attempt < 2 else None
            disk.crash_rng = rng
            if run(disk, partial(verify, settings=settings, promised=promised)):
                break


@pytest.mark.parametrize("settings", SETTINGS, ids=["sync", "async", "marks"])
@pytest.mark.parametrize("loss", ["kill", "power"])
def test_crash_at_every_call(settings: dict[str, object], loss: str) -> None:
    crash_everywhere(settings, loss, 0)


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS, ids=["sync", "async", "marks"])
@pytest.mark.parametrize("loss", ["kill", "power"])
def test_crash_at_every_call_of_many_histories(settings: dict[str, object], loss: str) -> None:
    for seed in range(1, 12):
        crash_everywhere(settings, loss, seed)
