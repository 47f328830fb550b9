"""Where a store may die: every changing call of a canonical scenario, and again every one of the recovery after it.

The scenario lives three lives of one store: single and gathered sends, batches, messages with keys, messages that go to
light queues, log, queue and index files that are rolled, background flushes, saves of a metadata file, a deleted topic,
old log files that go, orderly stops in between.  A *kill* keeps what was written; a *power loss* drops what was not
synced, in any order and torn at sectors (`faulty_disk`).

What must hold afterwards: every acknowledged message is served at its offset, by its key and in its light queues, with
the bytes it was sent with; nothing is served that was not sent, or that was deleted; offsets have no gap and are given
once; metadata is that of a save; and `verify_store` finds the folder whole.  Acknowledged is what `append` called
stored when the process dies, and what `wait_durable` let pass under SYNC_FLUSH when power fails.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from random import Random
from typing import NamedTuple

import trio
from trio.testing import MockClock

from trio_rmq.clock import use_wall_clock
from trio_rmq.errors import RocketMQError
from trio_rmq.store.json_files import ConfigFile
from trio_rmq.store.message_store import MessageStore
from trio_rmq.store.messages import AppendStatus, GetStatus, NewMessage
from trio_rmq.store.offline.verify import verify_store
from trio_rmq.testing.faulty_disk import FaultyDisk, SimulatedCrash
from trio_rmq.testing.stores import Place, append_batch, new_message, small_config
from trio_rmq.wire.record import StoredMessage, decode_records

ROOT = "store"
SETTINGS: dict[str, dict[str, object]] = {
    "sync": {"flush_disk_type": "SYNC_FLUSH"},
    "async": {},
    "marks": {"flush_disk_type": "SYNC_FLUSH", "flush_consume_queue_thorough_interval": 100},
    "units": {
        "flush_disk_type": "SYNC_FLUSH",
        "flush_consume_queue_thorough_interval": 100,
        "enable_consume_queue_ext": True,
        "mapped_file_size_consume_queue_ext": 4096,
    },
}
"""Name -> settings: both flush types, queues that are synced so often that the checkpoint has marks, and the same with
extension files."""

LOSSES = ("kill", "power")
SIZES: dict[str, object] = {
    "mapped_file_size_commit_log": 4096,
    "mapped_file_size_consume_queue": 60,
    "max_index_num": 30,
    "max_hash_slot_num": 20,
    "enable_lmq": True,
    "enable_multi_dispatch": True,
    "file_reserved_time": 1,
}
_QUEUES = 2
_TOPICS = ("Kept", "Deleted")
_LIGHT = ("%LMQ%a", "%LMQ%b")
_START_MS = 1_790_000_000_000
_HOUR_MS = 3_600_000
_METADATA = f"{ROOT}/config/topics.json"

Spot = tuple[str, int, int]
"""Topic, queue id, queue offset."""


class PromiseBrokenError(AssertionError):
    """A promise that was not kept."""


class CrashPoint(NamedTuple):
    """One place to die at; the same point always gives the same run."""

    settings: str
    loss: str
    seed: int
    number: int
    """Which changing call, from 1."""


class Tried(NamedTuple):
    """What became of one point."""

    operation: str
    """The call that died, and what it was of: `pwrite commitlog`."""
    recovery_operation: str
    """The call in which the recovery died, too."""
    problem: str
    """The promise that was not kept; empty when all were."""


class Sent(NamedTuple):
    """An acknowledged message."""

    body: bytes
    key: str
    store_ms: int


class Ledger:
    """What the scenario was told, and what it may no longer hold against the store."""

    def __init__(self) -> None:
        self.now_ms = _START_MS
        self.bodies: set[bytes] = set()
        """Of everything that was ever handed to the store."""
        self.acknowledged: dict[Spot, Sent] = {}
        self.durable: set[Spot] = set()
        self.may_be_gone: set[Spot] = set()
        """Of a topic whose deletion has begun, or of log files old enough to go."""
        self.banned: set[bytes] = set()
        """Bodies that must not come back but in light queues: their topic's deletion was answered."""
        self.saving: list[bytes] = [b""]
        """Contents of the metadata file, the newest last."""
        self.saved = 0
        """How many of those saves were answered."""

    def promised(self, loss: str) -> dict[Spot, Sent]:
        """What must be there after this loss."""
        known = self.acknowledged if loss == "kill" else {spot: self.acknowledged[spot] for spot in self.durable}
        return {spot: sent for spot, sent in known.items() if spot not in self.may_be_gone}

    def forget_topic(self, topic: str) -> None:
        """The topic's deletion was answered."""
        for spot in [spot for spot in self.acknowledged if spot[0] == topic]:
            self.banned.add(self.acknowledged.pop(spot).body)
            self.durable.discard(spot)
            self.may_be_gone.discard(spot)


def configuration(settings: str) -> dict[str, object]:
    """The store's settings of this name, with the scenario's file sizes."""
    return {**SIZES, **SETTINGS[settings]}


async def scenario(place: Place, settings: str, ledger: Ledger, seed: int) -> None:
    """Three lives of a store."""
    rng = Random(seed)
    metadata = ConfigFile(_METADATA, disk=place.disk)
    metadata.load(bytes)
    with use_wall_clock(lambda: ledger.now_ms):
        for life in range(3):
            async with place.open(**configuration(settings)) as store, trio.open_nursery() as services:
                store.bit_map_of = lambda topic, properties: bytes(700)  # so that extension files are rolled, too
                services.start_soon(store.run_retention)
                for step in range(6):
                    await _send(store, ledger, rng)
                    if step == 1:
                        await _save(metadata, ledger, rng)
                    if (life, step) == (1, 3):
                        await _delete_topic(store, ledger)
                    if (life, step) == (2, 2):
                        await _expire(store, ledger)
                    ledger.now_ms += rng.choice((0, 1, 1700))
                    await trio.sleep(rng.choice((0.0, 0.0, 1.2)))
                services.cancel_scope.cancel()
            ledger.durable.update(ledger.acknowledged)


async def _send(store: MessageStore, ledger: Ledger, rng: Random) -> None:
    kind = rng.choice(("gathered", "gathered", "single", "batch", "light"))
    topic, queue_id = rng.choice(_TOPICS), rng.randrange(_QUEUES)
    messages: list[NewMessage] = []
    for _ in range({"single": 1, "light": 1}.get(kind, rng.choice((2, 4)))):
        if kind == "gathered":
            topic, queue_id = rng.choice(_TOPICS), rng.randrange(_QUEUES)
        number = len(ledger.bodies)
        body = b"%d " % number + rng.randbytes(rng.choice((5, 200, 700)))
        ledger.bodies.add(body)
        message = new_message(body, topic=topic, queue_id=queue_id, tags="t")
        message.properties = f"TAGS\x01t\x02KEYS\x01key-{number}\x02"
        if kind == "light":
            message.properties += f"INNER_MULTI_DISPATCH\x01{','.join(_LIGHT)}\x02"
        messages.append(message)
    results = append_batch(store, messages) if kind == "batch" else store.append(messages)
    spots, end = [], 0
    for message, result in zip(messages, results, strict=True):
        if result.status is AppendStatus.PUT_OK:
            spot = (message.topic, message.queue_id, result.queue_offset)
            if spot in ledger.acknowledged and spot not in ledger.may_be_gone:
                raise PromiseBrokenError(f"{spot} was given twice")
            key = f"key-{int(message.body.split(b' ', 1)[0])}"
            ledger.acknowledged[spot] = Sent(message.body, key, result.store_timestamp_ms)
            spots.append(spot)
            end = result.physical_offset + result.size_bytes
    await store.wait_durable(end)
    if store.sync_flush:
        ledger.durable.update(spots)


async def _save(metadata: ConfigFile, ledger: Ledger, rng: Random) -> None:
    content = b'{"topicConfigTable":{"Kept":{},"Deleted":{}},"n":%d}' % rng.getrandbits(30)
    ledger.saving.append(content)
    await metadata.save(content)
    ledger.saved = len(ledger.saving)


async def _delete_topic(store: MessageStore, ledger: Ledger) -> None:
    ledger.may_be_gone.update(spot for spot in ledger.acknowledged if spot[0] == "Deleted")
    await store.delete_topic("Deleted")
    ledger.forget_topic("Deleted")


async def _expire(store: MessageStore, ledger: Ledger) -> None:
    ledger.may_be_gone.update(ledger.acknowledged)
    ledger.now_ms += 2 * _HOUR_MS
    await _send(store, ledger, Random(ledger.now_ms))
    before = store.min_physical_offset
    store.delete_expired_soon()
    await trio.sleep(3)
    if store.min_physical_offset == before:
        raise PromiseBrokenError("no old file was deleted: the scenario does not do what it says")


# Afterwards ------------------------------------------------------------------------------------------------------


async def check(place: Place, settings: str, ledger: Ledger, loss: str) -> None:
    """Open the store that is left, see whether the promises hold, and go on with it."""
    promised = ledger.promised(loss)
    with use_wall_clock(lambda: ledger.now_ms):
        async with place.open(**configuration(settings)) as store:
            found = {(topic, queue): _read(store, topic, queue, ledger) for topic, queue in store.queues()}
            for (topic, queue_id, offset), sent in promised.items():
                record = found.get((topic, queue_id), {}).get(offset)
                if record is None or record.body != sent.body:
                    raise PromiseBrokenError(
                        f"{topic}-{queue_id} {offset} is {'lost' if record is None else 'changed'}"
                    )
                for name in _LIGHT if "INNER_MULTI_DISPATCH" in record.property_map() else ():
                    if all(other.body != sent.body for other in found.get((name, 0), {}).values()):
                        raise PromiseBrokenError(f"{topic}-{queue_id} {offset} is not in {name}")
                answer = await store.query(topic, sent.key, max_count=32, begin_ms=0, end_ms=2**62)
                if sent.body not in [message.body for item in answer.records for message in decode_records(item)]:
                    raise PromiseBrokenError(f"{topic}-{queue_id} {offset} is not found by its key {sent.key}")
            for topic in _TOPICS:
                for queue_id in range(_QUEUES):
                    _go_on(store, topic, queue_id, found.get((topic, queue_id), {}))
    content = ConfigFile(_METADATA, disk=place.disk).load(bytes) or b""
    if content not in ledger.saving[max(0, ledger.saved - 1) :]:
        raise PromiseBrokenError(f"the metadata file holds {content!r}, which no late save wrote")
    folder = verify_store(small_config(ROOT, **configuration(settings)), disk=place.disk)
    if not folder.whole:
        raise PromiseBrokenError(
            f"the folder is not whole: {next(one for one in folder.findings if one.damage).sentence()}"
        )


def _read(store: MessageStore, topic: str, queue_id: int, ledger: Ledger) -> dict[int, StoredMessage]:
    """All that a queue serves, by offset."""
    found: dict[int, StoredMessage] = {}
    offset = store.min_offset(topic, queue_id)
    while (answer := store.get_messages(topic, queue_id, offset, max_count=5)).status is GetStatus.FOUND:
        for record in decode_records(answer.body, check_crc=True):
            if record.body not in ledger.bodies or (record.body in ledger.banned and topic not in _LIGHT):
                raise PromiseBrokenError(f"{topic}-{queue_id} {offset} serves what was not sent, or was deleted")
            if topic not in _LIGHT and (record.topic, record.queue_id, record.queue_offset) != (
                topic,
                queue_id,
                offset,
            ):
                raise PromiseBrokenError(f"{topic}-{queue_id} {offset} serves {record.topic} {record.queue_offset}")
            found[offset] = record
            offset += 1
        if answer.next_begin_offset != offset:
            raise PromiseBrokenError(f"{topic}-{queue_id} goes on at {answer.next_begin_offset} after {offset}")
    if answer.max_offset != offset:
        raise PromiseBrokenError(
            f"{topic}-{queue_id} ends at {answer.max_offset}, but nothing is served from {offset} on"
        )
    return found


def _go_on(store: MessageStore, topic: str, queue_id: int, found: dict[int, StoredMessage]) -> None:
    """The next message gets the next offset."""
    expected = max(found) + 1 if found else store.max_offset(topic, queue_id)
    [result] = store.append([new_message(b"after", topic=topic, queue_id=queue_id)])
    if result.queue_offset != expected:
        raise PromiseBrokenError(f"{topic}-{queue_id} goes on with offset {result.queue_offset} instead of {expected}")


# Runs ------------------------------------------------------------------------------------------------------------


def run(disk: FaultyDisk, job: Callable[[Place], Awaitable[None]]) -> bool:
    """Run `job` on virtual time; False when the disk's process died."""

    async def main() -> None:
        await job(Place(disk, ROOT))

    try:
        trio.run(main, clock=MockClock(autojump_threshold=0))
    except SimulatedCrash:
        return False
    except BaseExceptionGroup as group:
        rest = group.split(SimulatedCrash)[1]
        if rest is None:
            return False
        error: BaseException = rest
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        raise error from None
    return True


def count_points(settings: str, seed: int) -> int:
    """How many changing calls the scenario has with these settings and this seed."""
    disk = FaultyDisk()
    run(disk, partial(scenario, settings=settings, ledger=Ledger(), seed=seed))
    return disk.operations


def try_point(point: CrashPoint) -> Tried:
    """Die at this point, die again somewhere in the recovery, recover, and see what is left."""
    rng = Random(f"{point.seed}/{point.number}/{point.loss}/{point.settings}")
    disk = FaultyDisk()
    disk.crash_at, disk.crash_rng = point.number, rng
    ledger = Ledger()
    run(disk, partial(scenario, settings=point.settings, ledger=ledger, seed=point.seed))
    operation = _words(disk.trace[-1])
    disk = _left_by(disk, point.loss, rng)
    again = ""
    try:
        probe = disk.survivor_of_kill()
        run(probe, partial(_recover, settings=point.settings))
        disk.crash_at, disk.crash_rng = rng.randint(1, probe.operations), rng
        run(disk, partial(_recover, settings=point.settings))
        again = _words(disk.trace[-1])
        disk = _left_by(disk, point.loss, rng)
        run(disk, partial(check, settings=point.settings, ledger=ledger, loss=point.loss))
    except (AssertionError, RocketMQError) as error:
        return Tried(operation, again, f"{type(error).__name__}: {error}")
    return Tried(operation, again, "")


async def _recover(place: Place, settings: str) -> None:
    async with place.open(**configuration(settings)):
        pass


def _left_by(disk: FaultyDisk, loss: str, rng: Random) -> FaultyDisk:
    return disk.survivor_of_kill() if loss == "kill" else disk.survivor_of_power_loss(rng)


def _words(trace: str) -> str:
    """`pwrite commitlog` of `pwrite store/commitlog/0...`."""
    call, _, path = trace.partition(" ")
    return f"{call} {path.removeprefix(f'{ROOT}/').partition('/')[0]}"
