"""The durability matrix of one broker, a test a cell: what is kept, and what is really lost where it may be lost.

`docs/durability.md` is the published table and names these tests; a cell that says "may be lost" has one that loses.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import trio
from trio.testing import MockClock

from tests.broker.running import Client, one_broker, send_header
from tests.broker.test_disk_faults import bodies
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.wire.codes import RequestCode

ASYNC: dict[str, object] = {}
POOL: dict[str, object] = {"transient_store_pool_enable": True}
SYNC: dict[str, object] = {"flush_disk_type": "SYNC_FLUSH"}
SEEDS = range(12)
"""Power losses tried where nothing may be lost."""

THOROUGH_SECONDS = 12.0
"""Longer than flushCommitLogThoroughInterval, after which little waits no longer for its sync."""

pytestmark = pytest.mark.trio


def numbered(first: int, count: int) -> list[bytes]:
    return [b"%d" % number for number in range(first, first + count)]


async def send_all(client: Client, sent: list[bytes], properties: str = "WAIT\x01true") -> None:
    for body in sent:
        assert (await client.send(body, properties=properties)).code == 0


def after_kill(disk: FaultyDisk) -> FaultyDisk:
    return disk.survivor_of_kill()


def after_power_loss(seed: int) -> Callable[[FaultyDisk], FaultyDisk]:
    return lambda disk: disk.survivor_of_power_loss(Random(seed))


async def kept(
    settings: dict[str, object],
    loss: Callable[[FaultyDisk], FaultyDisk],
    *,
    old: int = 0,
    new: int = 20,
    rest_seconds: float = 0.0,
    properties: str = "WAIT\x01true",
) -> list[bytes]:
    """What a broker has that starts after the loss: `old` messages were sent, some time passed, then `new` ones.

    All were answered with SUCCESS; the loss comes `rest_seconds` after the last answer.
    """
    disk = FaultyDisk(latency=lambda: 0.005)
    async with one_broker(disk=disk, store=settings) as (_, client):
        await client.create_topic()
        await send_all(client, numbered(0, old), properties)
        if old:
            await trio.sleep(THOROUGH_SECONDS)
        await send_all(client, numbered(old, new), properties)
        await trio.sleep(rest_seconds)
        left = loss(disk)
    async with one_broker(disk=left, store=settings) as (_, client):
        await client.create_topic()
        found = await bodies(client)
        assert found == numbered(0, len(found))  # in their order, none left out
        return found


async def test_async_flush_keeps_all_when_the_process_dies(autojump_clock: MockClock) -> None:
    assert len(await kept(ASYNC, after_kill)) == 20


async def test_async_flush_loses_the_last_moments_when_the_power_fails(autojump_clock: MockClock) -> None:
    counts = {len(await kept(ASYNC, after_power_loss(seed), old=10)) for seed in SEEDS}
    assert min(counts) == 10  # what was older was synced, whatever came after


async def test_the_transient_pool_loses_the_last_moments_when_the_process_dies(autojump_clock: MockClock) -> None:
    assert len(await kept(POOL, after_kill, old=10)) < 30
    assert len(await kept(POOL, after_kill, old=10, rest_seconds=1.0)) == 30


async def test_the_transient_pool_loses_the_last_moments_when_the_power_fails(autojump_clock: MockClock) -> None:
    counts = {len(await kept(POOL, after_power_loss(seed), old=10, rest_seconds=0.3)) for seed in SEEDS}
    assert 10 <= min(counts) < 30


async def test_sync_flush_keeps_all_when_the_process_dies(autojump_clock: MockClock) -> None:
    assert len(await kept(SYNC, after_kill)) == 20


async def test_sync_flush_keeps_all_when_the_power_fails(autojump_clock: MockClock) -> None:
    for seed in SEEDS:
        assert len(await kept(SYNC, after_power_loss(seed))) == 20


async def test_who_does_not_wait_keeps_all_when_the_process_dies(autojump_clock: MockClock) -> None:
    assert len(await kept(SYNC, after_kill, properties="WAIT\x01false")) == 20


async def test_who_does_not_wait_loses_the_last_moments_when_the_power_fails(autojump_clock: MockClock) -> None:
    counts = [len(await kept(SYNC, after_power_loss(seed), properties="WAIT\x01false")) for seed in SEEDS]
    assert min(counts) < 20


@pytest.mark.parametrize("settings", [ASYNC, SYNC], ids=["async", "sync"])
async def test_a_one_way_send_is_lost_when_nobody_takes_it(
    settings: dict[str, object], autojump_clock: MockClock
) -> None:
    """It has no answer, so nothing is promised: here the disk is full when it comes."""
    disk = FaultyDisk()
    async with one_broker(disk=disk, store=settings) as (_, client):
        await client.create_topic()
        disk.capacity_bytes = 0
        await client.tell(RequestCode.SEND_MESSAGE_V2, send_header(), b"unheard")
        await trio.sleep(1)
        disk.capacity_bytes = None
        await trio.sleep(20)
        assert (await client.send(b"heard")).code == 0
        assert await bodies(client) == [b"heard"]


@pytest.mark.parametrize("settings", [ASYNC, POOL, SYNC], ids=["async", "pool", "sync"])
async def test_a_lost_disk_loses_all(settings: dict[str, object], autojump_clock: MockClock) -> None:
    """One broker has one copy."""
    assert await kept(settings, lambda disk: FaultyDisk(), old=10) == []


TABLE = Path(__file__).parents[2] / "docs" / "durability.md"


async def test_every_test_of_this_file_stands_in_the_table() -> None:
    text = TABLE.read_text()
    mine = [name for name in globals() if name.startswith("test_") and "table" not in name]
    assert [name for name in mine if f"::{name}" not in text] == []
