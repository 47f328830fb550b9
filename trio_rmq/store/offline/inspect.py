"""`inspect`: what a store holds, without reading it all: from names, the ends of queues, headers and the log's end."""

from __future__ import annotations

import msgspec

from trio_rmq.store.consume_queue import ConsumeQueue
from trio_rmq.store.offline.findings import Finding, Findings
from trio_rmq.store.offline.folder import Progress, StoreFolder
from trio_rmq.store.offline.log_check import LogCheck
from trio_rmq.wire.record import RecordKind

_QUEUES_A_REPORT = 50


class QueueSummary(msgspec.Struct, frozen=True, rename="camel"):
    """One queue.  Offsets count messages; times are store times in ms, -1 where there is no message."""

    topic: str
    queue_id: int
    min_offset: int
    max_offset: int
    first_time_ms: int
    last_time_ms: int
    files: int

    @property
    def messages(self) -> int:
        """How many are still in the log."""
        return self.max_offset - self.min_offset


class IndexSummary(msgspec.Struct, frozen=True, rename="camel"):
    """One index file: how many keys it has of how many it takes, and which records they are of."""

    name: str
    keys: int
    room: int
    begin_ms: int
    end_ms: int
    begin_physical: int
    end_physical: int


class Inspected(msgspec.Struct, frozen=True, rename="camel"):
    """A store at a glance.  Offsets are physical, times store times in ms, lengths bytes."""

    root: str
    in_use: bool
    """Whether a broker has it: then what it wrote in the last moments may be missing here."""
    clean_stop: bool
    log_file_size: int
    log_files: int
    min_offset: int
    end_offset: int
    first_time_ms: int
    last_time_ms: int
    queue_file_size: int
    queue_files: int
    unit_files: int
    """Consume-queue extension files."""
    messages: int
    """Entries of all queues whose records are still in the log."""
    queues: list[QueueSummary]
    index: list[IndexSummary]
    checkpoint_log_ms: int
    checkpoint_queues_ms: int
    checkpoint_index_ms: int
    mark: int | None
    """The physical offset at which a start after a crash begins, where the checkpoint has one."""
    deleted_topics: dict[str, int]
    metadata: dict[str, bool]
    """Each file of config/, and whether it can be read."""
    findings: list[Finding]
    """What is amiss with names and lengths, and with the log's last records; `verify` looks at everything."""


def inspect_store(folder: StoreFolder, progress: Progress | None = None) -> Inspected:
    """Sum `folder` up.  Safe on a store in use: nothing is locked or changed; what is half written does not count."""
    log = folder.log
    queues, ends = [], [folder.min_offset]
    for number, ((topic, queue_id), files) in enumerate(folder.queues.items(), start=1):
        queue = ConsumeQueue(topic, queue_id, files)
        queue.find_end()
        least = queue.min_offset(folder.min_offset)
        last = queue.last_record()
        if last is not None:
            ends.append(last[0])
        queues.append(
            QueueSummary(
                topic,
                queue_id,
                least,
                queue.visible,
                _time_of(folder, queue, least),
                _time_of(folder, queue, queue.visible - 1),
                len(files.starts),
            )
        )
        if progress is not None and number % _QUEUES_A_REPORT == 0:
            progress("queues", number, len(folder.queues))
    findings = Findings()
    tail = LogCheck(folder, findings, progress)
    begin = max(ends) if log.check_at(max(ends), check_body_crc=False).kind is RecordKind.RECORD else folder.min_offset
    for _ in tail.scan(begin):
        pass
    checkpoint = folder.checkpoint
    first = log.check_at(folder.min_offset, check_body_crc=False)
    return Inspected(
        root=folder.root,
        in_use=folder.in_use,
        clean_stop=folder.clean,
        log_file_size=folder.log_files.file_size,
        log_files=len(folder.log_files.starts),
        min_offset=folder.min_offset,
        end_offset=tail.end,
        first_time_ms=first.store_timestamp_ms if first.kind is RecordKind.RECORD else -1,
        last_time_ms=tail.last_time_ms if tail.records else -1,
        queue_file_size=folder.queue_file_size,
        queue_files=sum(queue.files for queue in queues),
        unit_files=sum(len(files.starts) for files in folder.units.values()),
        messages=sum(queue.messages for queue in queues),
        queues=queues,
        index=[
            IndexSummary(
                file.path.rpartition("/")[2],
                file.header.count - 1,
                file.item_count - 1,
                file.header.begin_ms,
                file.header.end_ms,
                file.header.begin_physical,
                file.header.end_physical,
            )
            for file in folder.index_files
        ],
        checkpoint_log_ms=checkpoint.log_time_ms,
        checkpoint_queues_ms=checkpoint.queues_time_ms,
        checkpoint_index_ms=checkpoint.index_time_ms,
        mark=None if checkpoint.mark is None else checkpoint.mark.physical_offset,
        deleted_topics=folder.fences,
        metadata=folder.metadata,
        findings=[*folder.findings.kept, *(() if folder.in_use else findings.kept)],
    )


def _time_of(folder: StoreFolder, queue: ConsumeQueue, offset: int) -> int:
    entry = queue.entry(offset)
    record = None if entry is None else folder.log.check_at(entry[0], check_body_crc=False)
    return record.store_timestamp_ms if record is not None and record.kind is RecordKind.RECORD else -1
