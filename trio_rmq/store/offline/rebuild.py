"""`rebuild`: consume queues and index made anew from the log, by the code that a recovery and a running broker use.

The log is the truth: it is read first, and while any of it is damaged nothing is changed.  Then the store is marked as
not stopped in order and its checkpoint forgets what the queues and the index held, so that a rebuild that is cut short
anywhere is finished by the next start, or by the next rebuild.

Kept as they are: queues all of whose messages went with deleted log files, because only their files tell the next
offset.  Each queue file's time becomes that of its last record, since Apache's 4.9 searches by file times.  Where there
are extension files, or the configuration asks for them, the others get new ones; their units have no bit maps, since
nothing tells which filters there were, and a message without one counts as wanted until its record is read.
"""

from __future__ import annotations

import msgspec

from trio_rmq.config import MessageStoreConfig
from trio_rmq.errors import StoreCorruptError, StoreError, StoreLockedError
from trio_rmq.store.commit_log import CommitLog
from trio_rmq.store.consume_queue import ENTRY_SIZE_BYTES, ConsumeQueue
from trio_rmq.store.consume_queues import ConsumeQueues, ExtFiles
from trio_rmq.store.disk import Disk
from trio_rmq.store.index import GROUP_KEYS_MAX, Index
from trio_rmq.store.log_files import FileHandles
from trio_rmq.store.multi_dispatch import LMQ_PREFIX, dispatched_to
from trio_rmq.store.offline.folder import Progress, StoreFolder, must_be_store
from trio_rmq.store.offline.verify import check_log
from trio_rmq.store.recovery import Recovery

_LOG_KINDS = ("record", "missing-file", "length")


class Rebuilt(msgspec.Struct, frozen=True, rename="camel"):
    """What a rebuild made."""

    root: str
    end_offset: int
    """Where the log ends, a physical offset."""
    records: int
    queues: int
    entries: int
    kept_queues: list[str]
    """`topic-queue` of those that were left as they were: the log holds no message of theirs any more."""
    unit_files: int
    """Consume-queue extension files there are now."""
    index_keys: int
    index_files: int


async def rebuild_store(config: MessageStoreConfig, *, disk: Disk, progress: Progress | None = None) -> Rebuilt:
    """Make queues and index of the store in `config`'s folder anew; synced on return, and marked as stopped in order.

    StoreLockedError when a broker uses it; StoreCorruptError, before anything was changed, when the log is damaged;
    StoreError for files that do not belong there.
    """
    root = config.store_path_root_dir
    must_be_store(disk, config)
    try:
        lock = disk.lock(f"{root}/lock")
    except BlockingIOError as error:
        raise StoreLockedError(f"{root} is in use by a broker: stop it first") from error
    try:
        folder = StoreFolder(disk, config)
        try:
            _must_be_sound(folder, progress)
            kept = _kept_queues(folder)
            await _forget(folder, kept)
        finally:
            folder.close()
        return await _make(disk, config, folder, kept, progress)
    finally:
        disk.close(lock)


def _must_be_sound(folder: StoreFolder, progress: Progress | None) -> None:
    findings = folder.findings
    for stray in findings.kept:
        if stray.kind == "stray":
            raise StoreError(f"{stray.path} does not belong there: move it away; nothing was changed")
    check_log(folder, findings, progress)
    bad = [
        finding
        for finding in findings.kept
        if finding.damage and finding.kind in _LOG_KINDS and finding.path.startswith(folder.log_files.directory)
    ]
    if bad:
        more = f" (and {len(bad) - 1} more places)" if len(bad) > 1 else ""
        raise StoreCorruptError(
            f"the log is damaged, so nothing was changed: {bad[0].sentence()}{more}. `store verify` lists all; bring "
            "the files back from a copy or a replica"
        )


def _kept_queues(folder: StoreFolder) -> set[tuple[str, int]]:
    """The queues whose files only tell the next offset: all their messages went with deleted log files."""
    kept = set()
    if folder.min_offset:
        for (topic, queue_id), files in folder.queues.items():
            queue = ConsumeQueue(topic, queue_id, files)
            queue.find_end()
            last = queue.last_record()
            if last is not None and last[0] < folder.min_offset:
                kept.add((topic, queue_id))
    return kept


async def _forget(folder: StoreFolder, kept: set[tuple[str, int]]) -> None:
    """Mark the store as running, then remove what will be made anew.  Synced on return."""
    disk, root = folder.disk, folder.root
    disk.close(disk.open(f"{root}/abort", create=True))
    checkpoint = folder.checkpoint
    checkpoint.queues_time_ms = checkpoint.index_time_ms = 0
    checkpoint.mark = None
    checkpoint.write()
    await disk.sync([], paths=[checkpoint.path], directories=[root])
    changed = set()
    for found in (folder.queues, folder.units):
        for key, files in found.items():
            if key not in kept:
                for name in reversed(disk.list_directory(files.directory)):
                    disk.unlink(f"{files.directory}/{name}")
                changed.add(files.directory)
    for name in reversed(disk.list_directory(f"{root}/index")):
        disk.unlink(f"{root}/index/{name}")
        changed.add(f"{root}/index")
    await disk.sync([], directories=sorted(changed))


async def _make(
    disk: Disk, config: MessageStoreConfig, folder: StoreFolder, kept: set[tuple[str, int]], progress: Progress | None
) -> Rebuilt:
    root = folder.root
    handles = FileHandles(disk, 64)
    log = CommitLog(disk, handles, config.commit_log_folder, folder.log_files.file_size, set())
    ext = None
    if config.enable_consume_queue_ext or any(files.starts for files in folder.units.values()):
        ext = ExtFiles(f"{root}/consumequeue_ext", folder.unit_file_size, writes=True)
    queues = ConsumeQueues(disk, handles, f"{root}/consumequeue", folder.queue_file_size, ext)
    checkpoint, fences = folder.checkpoint, folder.fences
    slots, items = config.max_hash_slot_num, config.max_index_num
    if folder.index_files:
        slots, items = folder.index_files[-1].slot_count, folder.index_files[-1].item_count
    try:
        log.load(unclean=True, synced_before_ms=checkpoint.log_time_ms)
        queues.load(unclean=True)
        recovered = await Recovery(
            disk, log, queues, checkpoint, folder.delays, fences,
            progress=None if progress is None else lambda done, total: progress("queues", done, total),
            more_queues=dispatched_to if _has_light_queues(folder) else None,
        ).run(clean=False)  # fmt: skip
        # What a crash left written but not synced counts as stored from now on.
        await disk.sync([], paths=[log.files.path(start) for start in log.files.starts])
        index = Index(
            disk, handles, log, checkpoint, f"{root}/index",
            slot_count=slots,
            item_count=items,
            visible_end=lambda: log.position,
            synced_end=lambda: log.position,
            fence=lambda topic: fences.get(topic, 0),
        )  # fmt: skip
        if config.message_index_enable:
            await _index(index, log, progress)
        checkpoint.log_time_ms = max(checkpoint.log_time_ms, recovered.last_time_ms)
        checkpoint.queues_time_ms = checkpoint.log_time_ms
        checkpoint.write()
        await disk.sync([], paths=[checkpoint.path])
        for queue in queues.table.values():
            if (queue.topic, queue.queue_id) not in kept:
                _set_times(disk, log, queue)
    finally:
        handles.close_all()
        queues.close()
    disk.unlink(f"{root}/abort")
    await disk.sync([], directories=[root])
    made = StoreFolder(disk, config)
    made.close()
    return Rebuilt(
        root=root,
        end_offset=log.position,
        records=recovered.records,
        queues=len(queues.table) - len(kept),
        entries=recovered.dispatched,
        kept_queues=sorted(f"{topic}-{queue_id}" for topic, queue_id in kept),
        unit_files=sum(len(files.starts) for files in made.units.values()),
        index_keys=sum(file.header.count - 1 for file in made.index_files),
        index_files=len(made.index_files),
    )


def _has_light_queues(folder: StoreFolder) -> bool:
    """Whether records of this store were dispatched to `%LMQ%` queues: by its configuration, or by what is there."""
    return folder.config.enable_multi_dispatch or any(topic.startswith(LMQ_PREFIX) for topic, _ in folder.queues)


async def _index(index: Index, log: CommitLog, progress: Progress | None) -> None:
    await index.load(clean=True)
    while True:
        more = index.gather()
        if progress is not None:
            progress("index", index.position - log.min_offset, log.position - log.min_offset)
        if (not more or index.waiting >= GROUP_KEYS_MAX) and not await index.flush():
            raise StoreError("the index could not be written: see the log for the reason, make room, and start again")
        if not more and index.position >= log.position:
            return


def _set_times(disk: Disk, log: CommitLog, queue: ConsumeQueue) -> None:
    """Give each file of the queue the store time of the last record that it leads to."""
    for start in queue.files.starts:
        end = min((start + queue.files.file_size) // ENTRY_SIZE_BYTES, queue.visible)
        entry = queue.entry(end - 1)
        if entry is not None:
            record = log.check_at(entry[0], check_body_crc=False)
            if record.store_timestamp_ms > 0:
                disk.set_modified_ms(queue.files.path(start), record.store_timestamp_ms)
