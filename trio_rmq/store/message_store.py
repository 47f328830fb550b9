"""The message store: the one object that the broker appends to and reads from.

It joins the parts - log, queues, flush services, recovery - and owns their order: lock, recover, mark, serve,
at the end sync, write the checkpoint, remove the mark.  Only waiting for a sync is async, all else plain functions.

Promises: what `append` returned with PUT_OK is written and survives the death of the process; after `wait_durable` it
survives a power loss.  Under SYNC_FLUSH a record becomes visible to readers after its sync, else after its write.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from logging import getLogger

import msgspec
import trio

from trio_rmq.config import MessageStoreConfig
from trio_rmq.errors import StoreError, StoreFailedError, StoreLockedError
from trio_rmq.store.append import BitMapOf
from trio_rmq.store.consume_queue_ext import AcceptEntry
from trio_rmq.store.disk import Disk
from trio_rmq.store.flush import Told
from trio_rmq.store.messages import (
    AppendResult,
    BatchResult,
    GetResult,
    NewBatch,
    NewMessage,
    QueryResult,
    StoreStatistics,
)
from trio_rmq.store.page_cache import ColdReadError
from trio_rmq.store.parts import StoreParts
from trio_rmq.store.recovery import Progress, Recovery
from trio_rmq.wire.ids import NO_HOST, Host

_log = getLogger(__name__)


class MessageStore(StoreParts):
    """An open store; made by `open_message_store`.

    Queue offsets count messages of one queue; physical offsets are bytes of the log; times are ms since 1970.
    """

    @property
    def bit_map_of(self) -> BitMapOf | None:
        """Makes the bit map for a message's unit when entries have such; must not wait, append or raise.

        Messages whose entries a start makes again have none.
        """
        return self._appender.bit_map_of

    @bit_map_of.setter
    def bit_map_of(self, bit_map_of: BitMapOf | None) -> None:
        self._appender.bit_map_of = bit_map_of

    # Writing -----------------------------------------------------------------------------------------------------

    def append(self, messages: Sequence[NewMessage], *, accepted: bool = False) -> list[AppendResult]:
        """Append in order, in one write; one result a message.

        Written on return (a full disk or a failed log is a status, not an exception); a bad message gets its status
        and the others go on.  Wait with `wait_durable` for the end of the last record to know it synced.
        With `accepted` the bodies are of messages stored here before, and maxMessageSize does not count.
        """
        results = self._put(messages, accepted=accepted)
        if self._index is not None and results:
            self._index.appended(messages, results)
        return results

    def append_batch(self, batch: NewBatch) -> BatchResult:
        """Append all messages of a batch back to back in one log file, or none.  Promises what `append` does."""
        result = self._put_batch(batch)
        if self._index is not None and result.physical_offsets:
            self._index.appended_batch(batch, result)
        return result

    def append_together(self, messages: Sequence[NewMessage]) -> list[AppendResult]:
        """`append`, but all are stored back to back in one log file, or none is and all get the same status."""
        results = self._put(messages, together=True)
        if self._index is not None and results:
            self._index.appended(messages, results)
        return results

    async def wait_durable(self, end_physical_offset: int) -> None:
        """Wait until everything before `end_physical_offset` has the durability the store promises.

        Under SYNC_FLUSH: synced; all that wait share one sync.  Else it returns at once.  Raises StoreFailedError when
        the sync failed: the record may or may not survive, and must not be called stored.
        """
        if self.sync_flush:
            await self._log_flusher.wait_synced(min(end_physical_offset, self._log.position))
        else:
            await trio.lowlevel.checkpoint()

    def when_durable(self, end_physical_offset: int, told: Told) -> None:
        """`wait_durable` without a task: `told` is called, maybe at once, with None or with why it raises."""
        if self.sync_flush:
            self._log_flusher.when_synced(min(end_physical_offset, self._log.position), told)
        else:
            told(None)

    async def sync(self) -> None:
        """Sync everything that is written now, whatever flushDiskType says; StoreFailedError when that fails."""
        if self._commit_service is not None and not await self._commit_service.commit():
            raise StoreFailedError(
                str(self.failure or f"{self._log.files.directory}: the disk has no room for what waits in memory")
            )
        await self._log_flusher.sync_up_to(self._log.written_end)

    async def wait_failed(self) -> None:
        """Return when the store has failed for good (`failure` says why): whoever runs the process should end it."""
        await self._failed_event.wait()

    # Reading -----------------------------------------------------------------------------------------------------

    def get_messages(
        self,
        topic: str,
        queue_id: int,
        offset: int,
        *,
        max_count: int,
        max_bytes: int | None = None,
        tags_codes: frozenset[int] | None = None,
        accept: Callable[[bytes], bool] | None = None,
        accept_entry: AcceptEntry | None = None,
        wait: bool = True,
    ) -> GetResult:
        """The messages of a queue from `offset` on: at most `max_count`, and `max_bytes` unless one alone is larger.

        Both bounds are also bounded by the configuration (32 messages, 256 KiB).  `tags_codes` keeps the messages
        whose tags code is among them, `accept` those whose record it takes; where entries have units (extension files)
        a record is not even read when `accept_entry` does not take its bit map and store time.  Statuses and
        `next_begin_offset` are those of RocketMQ's getMessage.  With checkCRCOnPull StoreCorruptError when the next
        message is damaged.  Unless it may `wait` for the disk, ColdReadError when the answer is not in the page cache.
        """
        return self.reader.get_messages(
            topic,
            queue_id,
            offset,
            max_count=max_count,
            max_bytes=max_bytes,
            tags_codes=tags_codes,
            accept=accept,
            accept_entry=accept_entry,
            wait=wait,
        )

    async def warm(self, error: ColdReadError) -> None:
        """Bring what a look-up lacked into the page cache, in a thread; then ask again."""
        await self._page_cache.warm(error)

    def record_at(self, physical_offset: int) -> bytes | None:
        """The whole record that begins at `physical_offset`, checked; None when no visible one does."""
        return self.reader.record_at(physical_offset)

    async def query(self, topic: str, key: str, *, max_count: int, begin_ms: int, end_ms: int) -> QueryResult:
        """The newest messages of `topic` with this unique key or key, stored from `begin_ms` to `end_ms` (included).

        At most `max_count`, at most maxMsgsNumBatch, and 8 MiB unless one alone is larger.  Every visible message
        counts; only while an index that was lost is made again are some not found yet.  Without an index nothing is.
        """
        if self._index is None:
            await trio.lowlevel.checkpoint()
            return QueryResult([])
        max_count = min(max_count, self._query_count_max)
        return await self._index.query(topic, key, max_count=max_count, begin_ms=begin_ms, end_ms=end_ms)

    def min_offset(self, topic: str, queue_id: int) -> int:
        """The offset of the queue's oldest message still kept; 0 when there is no such queue."""
        queue = self._queues.table.get((topic, queue_id))
        return 0 if queue is None else queue.min_offset(self._log.min_offset)

    def max_offset(self, topic: str, queue_id: int) -> int:
        """The offset that the queue's next visible message will have; 0 when there is no such queue."""
        queue = self._queues.table.get((topic, queue_id))
        return 0 if queue is None else queue.visible

    def offset_by_time(self, topic: str, queue_id: int, timestamp_ms: int) -> int:
        """The offset of the first message stored at `timestamp_ms` or later; the max offset when there is none.

        RocketMQ 5.x's rule: 4.9 may land inside a run of equal times and skip messages.
        """
        return self.reader.offset_by_time(topic, queue_id, timestamp_ms)

    def store_time_at(self, topic: str, queue_id: int, offset: int) -> int:
        """When the message at `offset` was stored; -1 when there is none."""
        return self.reader.store_time_at(topic, queue_id, offset)

    def earliest_store_time(self, topic: str | None = None, queue_id: int = 0) -> int:
        """When the oldest message still kept, of one queue or of the whole log, was stored; -1 for none."""
        if topic is not None:
            return self.reader.store_time_at(topic, queue_id, self.min_offset(topic, queue_id))
        return self.reader.store_time_of(self._log.min_offset) if self._log.position else -1

    @property
    def min_physical_offset(self) -> int:
        """Where the oldest log file begins."""
        return self._log.min_offset

    def queues(self) -> Iterable[tuple[str, int]]:
        """(topic, queue id) of every queue that ever got a message, in no particular order; a snapshot."""
        return [*self._queues.table]

    def statistics(self) -> StoreStatistics:
        """Counters since opening, and where the store stands."""
        reader, appender = self.reader, self._appender
        return StoreStatistics(
            min_physical_offset=self._log.min_offset,
            max_physical_offset=self._log.position,
            synced_offset=self._log_flusher.synced_offset,
            messages_appended=appender.messages,
            bytes_appended=appender.bytes,
            appends=appender.calls,
            messages_read=reader.messages,
            bytes_read=reader.bytes,
            reads_found=reader.found,
            reads_missed=reader.missed,
            syncs=self._log_flusher.syncs,
            queues=len(self._queues.table),
            queue_entries_unwritten=self._entries - self._queues.entries_written,
            log_files=len(self._log.files.starts),
            open_files=len(self._handles),
            last_store_timestamp_ms=appender.last_time_ms,
            failed=self.failure is not None,
        )

    def space(self) -> tuple[int, int]:
        """(free bytes, bytes in all) of the disk that holds the log."""
        folder = self._log.files.directory
        return self._disk.space(folder if self._disk.is_directory(folder) else self._root)

    # Topics ------------------------------------------------------------------------------------------------------

    async def delete_topic(self, topic: str) -> int:
        """Remove every queue of `topic`; returns how many there were.  Synced on return; not cut short when cancelled.

        Its records stay in the log until their files go, but never come back: a fence, synced before the queues'
        files are removed, keeps recovery from making their entries again.  Whoever calls must have stopped sends to
        the topic: a message that is appended meanwhile may be deleted with it.
        """
        if topic not in self._queues.by_topic:
            return 0
        with trio.CancelScope(shield=True):
            self._fences = {name: at for name, at in self._fences.items() if at > self._log.min_offset}
            if self._commit_service is not None:
                await self._commit_service.commit()
            self._fences[topic] = self._log.written_end
            await self._fences_file.save(msgspec.json.format(msgspec.json.encode(self._fences)))
            removed = await self._queues.remove_topic(topic)
            self._count_entries()
        return removed

    # Old files ---------------------------------------------------------------------------------------------------

    async def run_retention(self) -> None:
        """The service that deletes old files and looks after the room on the disk; whoever keeps the store runs it."""
        await self._retention.run()

    def delete_expired_soon(self) -> None:
        """Have `run_retention` delete, at once and whatever the hour, the log files that are expired now."""
        self._retention.delete_expired_soon()

    async def expire_queues(self) -> None:
        """Delete queue and index files that hold nothing but what pointed to deleted log files.  OSError ends it."""
        await self._retention.expire_queues()

    # Life --------------------------------------------------------------------------------------------------------

    async def _open(self, progress: Progress | None) -> None:
        disk, root = self._disk, self._root
        try:
            self._changed_directories.update(disk.make_directories(root))
            self._lock_handle = disk.lock(f"{root}/lock")
            abort = f"{root}/abort"
            clean = not disk.exists(abort)
            if clean:
                disk.close(disk.open(abort, create=True))
                self._changed_directories.add(root)
            # The mark must be on disk before anything it warns of.
            await disk.sync([], directories=sorted(self._changed_directories))
            self._changed_directories.clear()
            self._checkpoint.load()
            self._fences = self._fences_file.load(msgspec.json.Decoder(dict[str, int]).decode) or {}
            self._log.load(unclean=not clean, synced_before_ms=self._checkpoint.log_time_ms)
            self._queues.load(unclean=not clean)
            recovery = Recovery(
                disk,
                self._log,
                self._queues,
                self._checkpoint,
                self._delays,
                self._fences,
                check_body_crc=self._check_body_crc,
                progress=progress,
                more_queues=self._more_queues,
            )
            self.recovered = await recovery.run(clean=clean)
        except BlockingIOError as error:
            raise StoreLockedError(
                f"{root} is in use by another process: stop it, or choose another folder with storePathRootDir"
            ) from error
        except OSError as error:
            raise StoreError(
                f"the store folder {root} cannot be used ({error.strerror or error}): "
                f"{error.filename or 'its files'} must be readable and writable"
            ) from error
        end = self._log.position
        last = max(self.recovered.last_time_ms, self._checkpoint.log_time_ms)
        self._appender.last_time_ms = self._visible_time_ms = last if end else 0
        self._log_flusher.synced_offset = end if self.recovered.clean else self._log.min_offset
        self._count_entries()
        self.put_counts.begin()
        if not self.recovered.clean:
            await self._log_flusher.sync_from(self.recovered.start_offset)
            if self.failure is not None:
                raise self.failure
        if self._index is not None:
            await self._index.load(clean=clean)
        _log.info(
            "store %s: %s stop, log ends at %d, %d records read, %d queue entries made again",
            root, "clean" if self.recovered.clean else "unclean", end, self.recovered.records,
            self.recovered.dispatched,
        )  # fmt: skip

    async def _close(self) -> None:
        """Sync everything, write the checkpoint, and only then remove the mark of a running store."""
        try:
            if self.failure is None and self.recovered is not None:
                self._appender.refusal = "the store is shutting down"
                if self._commit_service is not None and not await self._commit_service.commit():
                    _log.error("what waited in memory could not be written and is lost; the next start recovers")
                    return
                await self._log_flusher.sync()
                indexed = self._index is None or (self.failure is None and await self._index.close())
                if self.failure is None and await self._queue_flusher.sync() and indexed:
                    self._disk.unlink(f"{self._root}/abort")
                    await self._disk.sync([], directories=[self._root])
        except OSError as error:
            _log.error("closing the store failed (%s); the next start recovers it", error)
        finally:
            self._handles.close_all()
            self._queues.close()
            if self._lock_handle is not None:
                self._disk.close(self._lock_handle)
                self._lock_handle = None


@asynccontextmanager
async def open_message_store(
    config: MessageStoreConfig,
    *,
    disk: Disk | None = None,
    store_host: Host = NO_HOST,
    progress: Progress | None = None,
) -> AsyncIterator[MessageStore]:
    """Open the store in `config.store_path_root_dir` (made when missing), recover it, and keep it for the block.

    `store_host` goes into every record, and with it into message ids.  At the end of the block everything is synced and
    the store is marked as stopped in order, also when the block was cancelled.  Raises StoreLockedError when another
    process has it, StoreCorruptError when starting would lose synced messages, StoreError when the folder cannot be
    used or the settings do not fit it.
    """
    store = MessageStore(config, Disk() if disk is None else disk, store_host)
    try:
        await store._open(progress)
        try:
            async with trio.open_nursery() as services:
                services.start_soon(store._log_flusher.run)
                if store._commit_service is not None:
                    services.start_soon(store._commit_service.run)
                services.start_soon(store._queue_flusher.run)
                if store._index is not None:
                    services.start_soon(store._index.run)
                try:
                    yield store
                finally:
                    services.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            if len(group.exceptions) == 1:  # the services raise nothing: it is the block's own
                raise group.exceptions[0] from None
            raise
    finally:
        with trio.CancelScope(shield=True):
            await store._close()
