"""The process dies at every changing call between half message, commit, op message, check and parking.

Afterwards every half message that was acknowledged has ended as its producer decided: a committed one is delivered
exactly once, a rolled-back one never, and no step of the broker's own - not a commit cut off before its op message, nor
a copy cut off before the end of its original - makes two of one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from random import Random
from typing import Any, cast

import pytest
import trio

from trio_rmq.broker.deferring import Deferral, Deferring, Kind
from trio_rmq.broker.long_polling import HeldPulls
from trio_rmq.broker.members import Member, Members
from trio_rmq.broker.offsets import ConsumerOffsetTable
from trio_rmq.broker.persistence import Persistence
from trio_rmq.broker.topics import TopicTable
from trio_rmq.broker.transactions import Transactions
from trio_rmq.clock import use_wall_clock
from trio_rmq.config import BrokerConfig, MessageStoreConfig
from trio_rmq.store.message_store import MessageStore
from trio_rmq.store.messages import AppendStatus, GetStatus, NewMessage
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.testing.stores import HOST, Place, survives
from trio_rmq.wire.command import Command
from trio_rmq.wire.headers import CheckTransactionStateRequestHeader
from trio_rmq.wire.record import decode_record, decode_records

START_MS = 1_700_000_000_000
PARKED = "TRANS_CHECK_MAX_TIME_TOPIC"


class FakeProducer:
    """Stands for a producer's session: answers each check as `decisions` say, at once or never."""

    closed = False
    unwritten_bytes = 0

    def __init__(self, decisions: dict[bytes, str]) -> None:
        self.decisions = decisions
        self.transactions: Transactions | None = None
        self.asked: Counter[bytes] = Counter()

    def send_nowait(self, command: Command) -> bool:
        header = cast(CheckTransactionStateRequestHeader, command.header)
        body = decode_record(command.body).body
        self.asked[body] += 1
        decision = self.decisions.get(body, "unknown")
        if decision != "unknown":
            assert self.transactions is not None
            finish(self.transactions, header.tran_state_table_offset, header.commit_log_offset, decision)
        return True


class FakeMembers(Members):
    """One producer in every group."""

    def __init__(self, producer: FakeProducer) -> None:
        super().__init__(lambda group: True, expiry_seconds=120)
        self.producer = producer

    def producers(self, group: str) -> list[Member]:
        return [Member("p", cast(Any, self.producer), "JAVA", 409, 0.0)]


def finish(transactions: Transactions, offset: int, physical: int, decision: str) -> bool:
    half = transactions.find(offset, physical)
    if half is None or transactions.place_of(half) is None:
        return False
    if decision == "commit":
        [result] = transactions.end([(half, transactions.committed(half))], [])
        return result.status is AppendStatus.PUT_OK
    transactions.end([], [half])
    return True


class Told:
    """What was acknowledged: half messages, and decisions that were taken."""

    def __init__(self) -> None:
        self.halves: set[bytes] = set()


DECISIONS = {b"committed": "commit", b"rolled back": "rollback", b"asked": "commit", b"asked back": "rollback"}


async def life(
    place: Place,
    settings: dict[str, object],
    producer: FakeProducer,
    act: Callable[[MessageStore, Transactions, Deferring], Awaitable[None]],
) -> None:
    """One life of the transaction part of a broker on this disk; `act` is what producers do meanwhile."""
    config = BrokerConfig(transaction_check_interval=20_000, transaction_check_max=5, broker_name="b")
    store_config = MessageStoreConfig()
    with use_wall_clock(lambda: START_MS + int(trio.current_time() * 1000)):
        async with place.open(
            mapped_file_size_commit_log=8192, mapped_file_size_consume_queue=200, **settings
        ) as store:
            held, offsets = HeldPulls(), ConsumerOffsetTable()
            store.on_arrival = held.arrived
            topics = TopicTable(config, delay_levels=18)
            deferring = Deferring(config, store_config, max_delay_level=18)
            saved = Persistence(
                f"{place.root}/config", {"consumerOffset.json": offsets}, interval_seconds=2, disk=place.disk
            )
            saved.load()
            transactions = Transactions(
                config, store, topics, offsets, FakeMembers(producer), held,
                store_host=HOST, reserved_ms=72 * 3_600_000, scheduled=deferring.scheduled,
            )  # fmt: skip
            producer.transactions = transactions
            await transactions.load()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(saved.run)
                nursery.start_soon(transactions.run)
                await act(store, transactions, deferring)
                nursery.cancel_scope.cancel()


async def produce(
    store: MessageStore, transactions: Transactions, deferring: Deferring, *, told: Told, names: list[bytes]
) -> None:
    for name in names:
        text = f"TRAN_MSG\x01true\x02PGROUP\x01tx\x02UNIQ_KEY\x01{name.decode()}"
        message = deferring.deferred(Deferral(Kind.HALF), NewMessage("T", 0, name, text, born_host=HOST))
        [result] = store.append([message])
        assert result.status is AppendStatus.PUT_OK
        await store.wait_durable(result.physical_offset + result.size_bytes)
        told.halves.add(name)
        if not name.startswith((b"asked", b"never")):
            finish(transactions, result.queue_offset, result.physical_offset, DECISIONS[name.rstrip(b"0123456789")])
    await trio.sleep(8)  # the first checks


async def scenario(place: Place, settings: dict[str, object], told: Told, decisions: dict[bytes, str]) -> None:
    producer = FakeProducer(decisions)
    for number in range(2):
        names = [b"%s%d" % (kind, number) for kind in (*DECISIONS, b"never")]
        await life(place, settings, producer, partial(produce, told=told, names=names))


async def verify(place: Place, settings: dict[str, object], told: Told, decisions: dict[bytes, str]) -> None:
    async def wait(store: MessageStore, transactions: Transactions, deferring: Deferring) -> None:
        await trio.sleep(200)  # every open one is asked about, or parked

    producer = FakeProducer(decisions)
    await life(place, settings, producer, wait)
    async with place.open(mapped_file_size_commit_log=8192, mapped_file_size_consume_queue=200, **settings) as store:
        delivered, parked = Counter(everything(store, "T")), Counter(everything(store, PARKED))
    for name in told.halves:
        decision = decisions.get(name, "unknown")
        assert delivered[name] == (decision == "commit"), (name, delivered)
        assert parked[name] == (decision == "unknown"), (name, parked)
    assert max([*delivered.values(), *parked.values()], default=0) <= 1


def everything(store: MessageStore, topic: str) -> list[bytes]:
    offset, found = store.min_offset(topic, 0), []
    while (answer := store.get_messages(topic, 0, offset, max_count=32)).status is GetStatus.FOUND:
        found += [record.body for record in decode_records(answer.body, check_crc=True)]
        offset = answer.next_begin_offset
    return found


def run(disk: FaultyDisk, job: Callable[[Place], Awaitable[None]]) -> bool:
    """Run `job` on virtual time; False when the disk's process died."""
    return survives(partial(job, Place(disk, "store")))


def decisions() -> dict[bytes, str]:
    return {b"%s%d" % (kind, number): what for kind, what in DECISIONS.items() for number in range(2)}


def crash_at(points: range, loss: str) -> None:
    settings: dict[str, object] = {"flush_disk_type": "SYNC_FLUSH"} if loss == "power" else {}
    for point in points:
        rng = Random(f"{point}/{loss}")
        disk = FaultyDisk()
        disk.crash_at, disk.crash_rng = point, rng
        told = Told()
        if run(disk, partial(scenario, settings=settings, told=told, decisions=decisions())):
            assert point > 50
            return
        for attempt in range(3):  # the second life dies too
            disk = disk.survivor_of_kill() if loss == "kill" else disk.survivor_of_power_loss(rng)
            disk.crash_at = rng.randint(1, 25) if attempt < 2 else None
            disk.crash_rng = rng
            if run(disk, partial(verify, settings=settings, told=told, decisions=decisions())):
                break


@pytest.mark.parametrize("loss", ["kill", "power"])
def test_a_crash_at_every_fifth_call_loses_and_doubles_nothing(loss: str) -> None:
    crash_at(range(1 if loss == "kill" else 2, 10_000, 5), loss)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["kill", "power"])
def test_a_crash_at_every_call_loses_and_doubles_nothing(loss: str) -> None:
    crash_at(range(1, 10_000), loss)
