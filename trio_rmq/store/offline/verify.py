"""`verify`: one reading of the whole store, everything in it compared with everything else.

RocketMQ's only checksum covers the bodies.  What it does not cover is compared instead: sizes with their parts, places
with what records say of them, records with queue entries and index items, neighbours with each other.  The fields that
nothing tells are listed in docs/store.md, and a test derives that list.
"""

from __future__ import annotations

import msgspec

from trio_rmq.config import MessageStoreConfig
from trio_rmq.errors import StoreLockedError
from trio_rmq.store.checkpoint import MARKED_BYTES
from trio_rmq.store.disk import Disk
from trio_rmq.store.offline.findings import Finding, Findings
from trio_rmq.store.offline.folder import Progress, StoreFolder
from trio_rmq.store.offline.index_check import IndexCheck
from trio_rmq.store.offline.log_check import LogCheck
from trio_rmq.store.offline.queue_check import QueueCheck
from trio_rmq.wire.checksum import crc32


class Verified(msgspec.Struct, frozen=True, rename="camel"):
    """What a verification saw.  Offsets are physical, times store times in ms (-1 without records)."""

    root: str
    clean_stop: bool
    log_files: int
    min_offset: int
    end_offset: int
    records: int
    record_bytes: int
    fillers: int
    damaged_bytes: int
    first_time_ms: int
    last_time_ms: int
    queues: int
    queue_records: int
    """Records that have their entry, counted once for each queue."""
    unwritten_entries: int
    """Entries that the next start makes: of records that a stopped broker had not put into its queue files."""
    units: int
    """Units of extension files that are those of their records."""
    index_files: int
    index_items: int
    damages: int
    notes: int
    by_kind: dict[str, int]
    findings: list[Finding]
    """The first FINDINGS_MAX; all are counted."""

    @property
    def whole(self) -> bool:
        """Whether nothing is damaged."""
        return not self.damages


def verify_store(config: MessageStoreConfig, *, disk: Disk, progress: Progress | None = None) -> Verified:
    """Read and compare the whole store in `config`'s folder; changes nothing, and keeps brokers out meanwhile.

    Blocks.  StoreLockedError when a broker uses it: what is on its way from memory to the files would look like damage.
    StoreError when there is no store, OSError when its files cannot be read.
    """
    lock = _keep_out(disk, config.store_path_root_dir)
    try:
        folder = StoreFolder(disk, config)
        try:
            return _verify(folder, progress)
        finally:
            folder.close()
    finally:
        if lock is not None:
            disk.close(lock)


def _keep_out(disk: Disk, root: str) -> int | None:
    """A shared lock on the store, or None for one that nobody ever locked."""
    try:
        return disk.lock_shared(f"{root}/lock")
    except FileNotFoundError:
        return None
    except BlockingIOError as error:
        raise StoreLockedError(f"{root} is in use by a broker: stop it first, or verify a copy") from error


def check_log(folder: StoreFolder, findings: Findings, progress: Progress | None = None) -> LogCheck:
    """Read the log alone; what is amiss goes to `findings`."""
    log = LogCheck(folder, findings, progress)
    for _ in log.scan():
        pass
    return log


def _verify(folder: StoreFolder, progress: Progress | None) -> Verified:
    findings = folder.findings
    log = LogCheck(folder, findings, progress)
    queues = QueueCheck(folder, log, findings)
    index = IndexCheck(folder, log, findings)
    for offset, record in log.scan():
        queues.record(offset, record)
        index.record(offset, record)
    queues.finish(progress)
    index.finish()
    _check_checkpoint(folder, log, findings)
    states = queues.states()
    return Verified(
        root=folder.root,
        clean_stop=folder.clean,
        log_files=len(folder.log_files.starts),
        min_offset=folder.min_offset,
        end_offset=log.end,
        records=log.records,
        record_bytes=log.bytes,
        fillers=log.fillers,
        damaged_bytes=log.damaged_bytes,
        first_time_ms=log.first_time_ms,
        last_time_ms=log.last_time_ms if log.records else -1,
        queues=len(folder.queues),
        queue_records=sum(state.records for state in states),
        unwritten_entries=queues.unwritten,
        units=queues.units,
        index_files=len(folder.index_files),
        index_items=index.items,
        damages=findings.damages,
        notes=findings.notes,
        by_kind=dict(sorted(findings.by_kind.items())),
        findings=findings.kept,
    )


def _check_checkpoint(folder: StoreFolder, log: LogCheck, findings: Findings) -> None:
    """The checkpoint only says where a start after a crash begins; one that promises too much is told of."""
    checkpoint = folder.checkpoint
    times = (
        ("log", checkpoint.log_time_ms),
        ("queues", checkpoint.queues_time_ms),
        ("index", checkpoint.index_time_ms),
    )
    for number, (name, time_ms) in enumerate(times):
        if log.records and time_ms > log.last_time_ms:
            what = f"the time of the {name}, {time_ms}, is after the last record's, {log.last_time_ms}"
            findings.add("checkpoint", checkpoint.path, number * 8, what, damage=False, size_bytes=8)
    mark = checkpoint.mark
    if mark is None or not folder.min_offset < mark.physical_offset <= log.end:
        return
    if crc32(folder.log.before(mark.physical_offset, MARKED_BYTES)) != mark.log_crc:
        what = f"the mark at {mark.physical_offset} is not of this log: a start after a crash does not use it"
        findings.add("checkpoint", checkpoint.path, 256, what, damage=False)
