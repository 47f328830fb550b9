"""The bug museum: planted defects of our own code, each the double of one that brokers really had.

A piece is planted from outside, for one run: a context manager that replaces a function of the production code, which
knows nothing of it.  A test room that does not find a piece, under one of some seeds, is blind to its kind.  Beside the
defects stand oddities: behaviour that is strange and permitted, and that nobody may report.

Planting fails when the replaced name is gone, so a piece cannot die unseen.  The numbers are RocketMQ's issues, and I1
to I16 the invariants that they broke: I1 nothing acknowledged is lost, I2 a failed sync acknowledges nothing, I3
readers see nothing that is less durable than an answer, I4 queue offsets are given once, I6 progress never goes ahead,
I9 what was cut off never returns, I10 what is delivered is what was sent, I11 damage in the middle drops nothing behind
it, I13 queues follow from the log, I14 metadata is replaced whole, I16 after the faults all goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import trio
from msgspec.structs import replace

from trio_rmq.broker import names
from trio_rmq.broker.long_polling import HeldPulls
from trio_rmq.broker.offsets import ConsumerOffsetTable
from trio_rmq.broker.registration import _NameServer
from trio_rmq.client.process_queue import ProcessQueue
from trio_rmq.errors import StoreFailedError
from trio_rmq.settings import MessageStoreConfig
from trio_rmq.store import recovery
from trio_rmq.store.append import Appender
from trio_rmq.store.commit_log import CommitLog
from trio_rmq.store.disk import Disk
from trio_rmq.store.dispatch import Dispatcher
from trio_rmq.store.flush import LogFlusher, Told
from trio_rmq.store.json_files import ConfigFile
from trio_rmq.store.log_files import LogFiles
from trio_rmq.store.message_store import MessageStore
from trio_rmq.store.messages import GetResult
from trio_rmq.store.parts import StoreParts
from trio_rmq.store.reading import Reader
from trio_rmq.testing.simulation.checkers import Problem
from trio_rmq.testing.simulation.museum_kinds import KIND_DEFECTS
from trio_rmq.testing.simulation.piece import Piece, kinds_of_faults, replaced
from trio_rmq.testing.simulation.plan import Plan, make_plan
from trio_rmq.testing.simulation.runner import run_plan
from trio_rmq.wire.record import CheckedRecord, RecordKind


class Found(NamedTuple):
    """What became of a piece."""

    piece: Piece
    seed: int | None
    """The first one that shows it; None when none does."""
    runs: int
    problems: list[Problem]


def find(piece: Piece, seeds: Iterable[int], *, seconds: float | None = None) -> Found:
    """Look for the piece with the plans of `seeds`, of so many seconds with faults, until one breaks a promise."""
    runs = 0
    for seed in seeds:
        plan = make_plan(seed, seconds or piece.seconds)
        if piece.suits(plan):
            runs += 1
            with piece.plant():
                outcome = run_plan(plan)
            if outcome.problems:
                return Found(piece, seed, runs, outcome.problems)
    return Found(piece, None, runs, [])


def _synced(plan: Plan) -> bool:
    return plan.options.flush_disk_type == "SYNC_FLUSH"


def _loses_power(plan: Plan) -> bool:
    return "power" in kinds_of_faults(plan) or plan.options.last == "power"


def _synced_and_loses_power(plan: Plan) -> bool:
    return _synced(plan) and _loses_power(plan)


def _sync_fails(plan: Plan) -> bool:
    return _synced_and_loses_power(plan) and "sync error" in kinds_of_faults(plan)


def _is_killed(plan: Plan) -> bool:
    return "kill" in kinds_of_faults(plan) or plan.options.last == "kill"


def _loses_power_and_crashes_again(plan: Plan) -> bool:
    crashes = [fault.kind for fault in plan.faults if fault.kind in ("kill", "power")]
    return not _synced(plan) and "power" in crashes and len(crashes) > 1


def _is_full_at_last(plan: Plan) -> bool:
    """Whether the broker is not started again after its disk was full."""
    ends = {"kill", "power", "sync error", "write error", "disk full"}
    return [fault.kind for fault in plan.faults if fault.kind in ends][-1:] == ["disk full"]


def piece_named(name: str) -> Piece:
    """The exhibit of this name; ValueError with all names when there is none."""
    for piece in (*DEFECTS, *ODDITIES):
        if piece.name == name:
            return piece
    raise ValueError(f"no piece is called {name!r}: choose one of {', '.join(piece.name for piece in DEFECTS)}")


class _Wrapped:
    """A disk behind which a piece changes what a sync does."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._disk, name)


class _DeafDisk(_Wrapped):
    async def sync(self, handles: Sequence[int], **names: Iterable[str]) -> None:
        """Hear no error."""
        try:
            await self._disk.sync(handles, **names)
        except OSError:
            return


class _StubbornDisk(_Wrapped):
    async def sync(self, handles: Sequence[int], **names: Iterable[str]) -> None:
        """Try once more."""
        try:
            await self._disk.sync(handles, **names)
        except OSError:
            await self._disk.sync(handles, **names)


class _NamelessDisk(_Wrapped):
    async def sync(self, handles: Sequence[int], **names: Iterable[str]) -> None:
        """Sync contents and leave the folders."""
        await self._disk.sync(handles)


def _log_flusher_on(disk_type: Callable[[Disk], object]) -> AbstractContextManager[None]:
    original = LogFlusher.__init__

    def begin(self: LogFlusher, disk: Disk, *words: Any, **options: Any) -> None:
        original(self, disk_type(disk), *words, **options)  # type: ignore[arg-type]  # it stands for a disk

    return replaced(LogFlusher, "__init__", begin)


# Syncing ---------------------------------------------------------------------------------------------------------


@contextmanager
def _acknowledge_before_sync() -> Iterator[None]:
    async def wait_durable(self: MessageStore, end_physical_offset: int) -> None:
        """Nothing."""

    def when_durable(self: MessageStore, end_physical_offset: int, told: Told) -> None:
        told(None)

    with (
        replaced(MessageStore, "wait_durable", wait_durable),
        replaced(MessageStore, "when_durable", when_durable),
    ):
        yield


def _hear_no_failed_sync() -> AbstractContextManager[None]:
    return _log_flusher_on(_DeafDisk)


def _try_a_failed_sync_again() -> AbstractContextManager[None]:
    return _log_flusher_on(_StubbornDisk)


@contextmanager
def _acknowledge_what_waited_for_a_failed_sync() -> Iterator[None]:
    original, begin = LogFlusher.wait_synced, LogFlusher.when_synced

    async def wait_synced(self: LogFlusher, end: int) -> None:
        try:
            await original(self, end)
        except StoreFailedError:
            return

    def when_synced(self: LogFlusher, end: int, told: Told) -> None:
        begin(self, end, lambda _: told(None))

    with replaced(LogFlusher, "wait_synced", wait_synced), replaced(LogFlusher, "when_synced", when_synced):
        yield


def _take_the_doubtful_end_for_synced() -> AbstractContextManager[None]:
    async def sync_from(self: LogFlusher, start_offset: int) -> None:
        files = self._log.files
        for start in files.starts:
            if start + files.file_size > start_offset:
                files.pin(start)
                self._log.unsynced_starts.append(start)
        await self.sync()

    return replaced(LogFlusher, "sync_from", sync_from)


def _leave_new_names_unsynced() -> AbstractContextManager[None]:
    return _log_flusher_on(_NamelessDisk)


@contextmanager
def _show_before_sync() -> Iterator[None]:
    original = StoreParts.__init__

    def begin(self: StoreParts, *words: Any) -> None:
        original(self, *words)
        self._defers = False

    end = property(lambda self: self._log.written_end)
    with replaced(StoreParts, "__init__", begin), replaced(StoreParts, "max_physical_offset", end):
        yield


def _keep_records_in_memory() -> AbstractContextManager[None]:
    return replaced(MessageStoreConfig, "buffers_writes", property(lambda self: not self.sync_flush))


# Recovery --------------------------------------------------------------------------------------------------------


def _give_an_offset_again() -> AbstractContextManager[None]:
    original = recovery.Recovery.run

    async def run(self: recovery.Recovery, *, clean: bool) -> recovery.Recovered:
        recovered = await original(self, clean=clean)
        if not recovered.clean:
            for queue in self._queues.table.values():
                if queue.visible > 1:
                    queue._set_end(queue.visible - 1)
        return recovered

    return replaced(recovery.Recovery, "run", run)


def _cut_in_memory_only() -> AbstractContextManager[None]:
    return replaced(LogFiles, "zero_from", lambda self, offset: False)


def _forget_files_and_leave_them() -> AbstractContextManager[None]:
    def remove_from(self: LogFiles, start: int) -> None:
        while self.starts and self.starts[-1] >= start:
            self._handles.forget(self.path(self.starts.pop()))

    return replaced(LogFiles, "remove_from", remove_from)


def _trust_queue_files() -> AbstractContextManager[None]:
    return replaced(Dispatcher, "dispatch", lambda self, record: None)


def _keep_what_the_checkpoint_knows() -> AbstractContextManager[None]:
    def is_torn(record: CheckedRecord, synced_before_ms: int) -> bool:
        return record.kind is RecordKind.RECORD and record.store_timestamp_ms >= synced_before_ms

    return replaced(recovery, "is_torn", is_torn)


def _take_torn_properties() -> AbstractContextManager[None]:
    return replaced(recovery, "is_torn", lambda record, synced_before_ms: False)


def _take_torn_bodies() -> AbstractContextManager[None]:
    original = CommitLog.scan

    def scan(self: CommitLog, physical_offset: int, *, check_body_crc: bool = True) -> Iterator[tuple[int, Any]]:
        return original(self, physical_offset, check_body_crc=False)

    return replaced(CommitLog, "scan", scan)


# Metadata, progress, liveness ------------------------------------------------------------------------------------


def _overwrite_metadata() -> AbstractContextManager[None]:
    async def save(self: ConfigFile, content: bytes) -> bool:
        self._folder()
        self._write_temporary(self.path, content)
        return True

    return replaced(ConfigFile, "save", save)


def _commit_what_was_pulled() -> AbstractContextManager[None]:
    return replaced(ProcessQueue, "commit_offset", property(lambda self: self.next_offset))


def _jump_over_a_message() -> AbstractContextManager[None]:
    original = Reader.get_messages

    def get_messages(self: Reader, *words: Any, **options: Any) -> GetResult:
        result = original(self, *words, **options)
        if result.count <= 3:
            return result
        return replace(result, next_begin_offset=result.next_begin_offset + 1)

    return replaced(Reader, "get_messages", get_messages)


def _refuse_for_ever() -> AbstractContextManager[None]:
    original = Appender._refuse_from

    def refuse_from(self: Appender, position: int, results: list[Any], remark: str) -> None:
        original(self, position, results, remark)
        self.refusal = remark

    return replaced(Appender, "_refuse_from", refuse_from)


def _register_once() -> AbstractContextManager[None]:
    async def keep_told(self: _NameServer) -> None:
        """Nothing after the first time."""

    return replaced(_NameServer, "keep_told", keep_told)


# Oddities --------------------------------------------------------------------------------------------------------


def _wake_no_held_pull() -> AbstractContextManager[None]:
    def arrived(self: HeldPulls, topic: str, queue_id: int, max_offset: int, tags_code: int) -> None:
        for waiter in self._waiters.get((topic, queue_id), ()):
            if isinstance(waiter, trio.Event):  # the broker's own services have no other time
                waiter.set()

    return replaced(HeldPulls, "arrived", arrived)


def _go_back_at_every_start() -> AbstractContextManager[None]:
    original = ConsumerOffsetTable.load

    def load(self: ConsumerOffsetTable, content: bytes) -> None:
        original(self, content)
        for key, queues in self._offsets.items():
            if key.endswith(names.TRANSACTION_GROUP):  # its own progress is no group's: halves would be ended twice
                continue
            for queue_id, offset in queues.items():
                queues[queue_id] = max(0, offset - 5)

    return replaced(ConsumerOffsetTable, "load", load)


DEFECTS = (
    Piece(
        "early answer",
        "I1; the lazy fsync of NATS 2.12",
        "SYNC_FLUSH answers before the sync",
        _acknowledge_before_sync,
        _synced_and_loses_power,
    ),
    Piece(
        "deaf to a failed sync",
        "I2; #2706, #3129, #7016",
        "a failed sync counts as one",
        _hear_no_failed_sync,
        _sync_fails,
    ),
    Piece(
        "sync tried again",
        "I2; GroupCommitService forces up to 1,000 times",
        "a failed sync is tried again, and then counts",
        _try_a_failed_sync_again,
        _sync_fails,
    ),
    Piece(
        "answer after a failed sync",
        "I2; #2706",
        "who waits for a sync that fails is answered all the same",
        _acknowledge_what_waited_for_a_failed_sync,
        _sync_fails,
    ),
    Piece(
        "doubtful end",
        "I2; pages that are marked clean (ATC '20)",
        "a start after a failed sync takes for synced what the kernel shows",
        _take_the_doubtful_end_for_synced,
        _sync_fails,
    ),
    Piece(
        "names left out",
        "I1; ALICE's unsynced folders",
        "a new log file's name is not synced",
        _leave_new_names_unsynced,
        _synced_and_loses_power,
    ),
    Piece(
        "seen before its sync",
        "I3; #8239",
        "consumers get what is not synced yet",
        _show_before_sync,
        _synced_and_loses_power,
    ),
    Piece(
        "records in memory",
        "I1; transientStorePoolEnable",
        "what was answered waits in memory for its write",
        _keep_records_in_memory,
        lambda plan: _is_killed(plan) and not _synced(plan),
    ),
    Piece(
        "offset given again", "I4; #6344, #7689", "after a crash each queue goes on one too low", _give_an_offset_again
    ),
    Piece("cut in memory", "I9; #10666", "recovery leaves on disk what it cuts off", _cut_in_memory_only, _loses_power),
    Piece(
        "old files stay",
        "I9; #10017",
        "files after the end are forgotten, not removed",
        _forget_files_and_leave_them,
        _loses_power_and_crashes_again,
        seconds=60.0,
    ),
    Piece("queue files trusted", "I13; #467, #495", "entries that a crash took are not made again", _trust_queue_files),
    Piece(
        "only what is synced",
        "I1, I11; recoverAbnormally cuts at the first doubt",
        "recovery drops what the checkpoint does not know as synced",
        _keep_what_the_checkpoint_knows,
    ),
    Piece(
        "torn properties",
        "I10; #7437",
        "the checksum covers the body alone, and that is enough",
        _take_torn_properties,
        lambda plan: _loses_power(plan) and not _synced(plan),
        seconds=60.0,
    ),
    Piece("torn bodies", "I10; #9121", "recovery looks at no checksum", _take_torn_bodies, _loses_power),
    Piece(
        "metadata in place",
        "I14; #3401",
        "metadata files are overwritten and not synced",
        _overwrite_metadata,
        _loses_power,
    ),
    Piece(
        "progress ahead",
        "I6; #4771",
        "the client commits what it has pulled",
        _commit_what_was_pulled,
        lambda plan: plan.options.consume_seconds > 0 and "consumer killed" in kinds_of_faults(plan),
    ),
    Piece("one too far", "I6; #8239", "a pull goes on one message too far", _jump_over_a_message),
    Piece(
        "refused for ever",
        "I16; #3212",
        "once the disk was full nobody is served again",
        _refuse_for_ever,
        _is_full_at_last,
    ),
    Piece(
        "registered once",
        "I16; #3212",
        "the broker tells a name server that comes back nothing",
        _register_once,
        lambda plan: bool(kinds_of_faults(plan) & {"name server killed", "name server silent"}),
    ),
    *KIND_DEFECTS,
)
"""What must be found."""

ODDITIES = (
    Piece("no pull is woken", "", "held pulls are answered when their time is over", _wake_no_held_pull),
    Piece("five steps back", "", "each start has the groups consume five messages again", _go_back_at_every_start),
)
"""What must not be reported."""
