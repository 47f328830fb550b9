"""How the parts of a store are joined: which settings each gets, and what each tells the others.

A record's way: the appender writes it (`_wrote`), what the store promises before readers may see it happens, then its
entries count and whoever waits is told (`_publish`).  Source of the order: RocketMQ DefaultMessageStore.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from logging import getLogger

import trio

from trio_rmq.config import MessageStoreConfig
from trio_rmq.errors import StoreFailedError
from trio_rmq.limits import STORE_HANDLES_MAX, TRANSIENT_POOL_MAX_BYTES
from trio_rmq.store.append import Appender
from trio_rmq.store.checkpoint import Checkpoint
from trio_rmq.store.commit_log import CommitLog
from trio_rmq.store.consume_queue import ConsumeQueue
from trio_rmq.store.consume_queues import ConsumeQueues, ExtFiles
from trio_rmq.store.disk import Disk
from trio_rmq.store.dispatch import DelayLevels
from trio_rmq.store.flush import LogFlusher, QueueFlusher
from trio_rmq.store.index import Index
from trio_rmq.store.json_files import ConfigFile
from trio_rmq.store.log_files import FileHandles
from trio_rmq.store.multi_dispatch import MultiDispatch, dispatched_to
from trio_rmq.store.page_cache import PageCache
from trio_rmq.store.put_counts import PutCounts
from trio_rmq.store.reading import Reader
from trio_rmq.store.recovery import Recovered
from trio_rmq.store.retention import Retention
from trio_rmq.store.transient_pool import BufferedCommitLog, CommitService
from trio_rmq.wire.ids import Host

_log = getLogger(__name__)

OnArrival = Callable[[str, int, int, int], None]
"""(topic, queue id, max offset of the queue, tags code) of a message that became visible."""


class StoreParts:
    """The parts of one store, not yet opened."""

    def __init__(self, config: MessageStoreConfig, disk: Disk, store_host: Host) -> None:
        root = config.store_path_root_dir
        self._disk = disk
        self._root = root
        self._changed_directories: set[str] = set()
        self._handles = FileHandles(disk, STORE_HANDLES_MAX)
        self._commit_service: CommitService | None = None
        self._log = self._make_log(config)
        ext = ExtFiles(
            f"{root}/consumequeue_ext", config.mapped_file_size_consume_queue_ext, config.enable_consume_queue_ext
        )
        self._queues = ConsumeQueues(
            disk,
            self._handles,
            f"{root}/consumequeue",
            config.mapped_file_size_consume_queue,
            ext if ext.writes or disk.is_directory(ext.directory) else None,
        )
        self._delays = DelayLevels(config.message_delay_level)
        self._checkpoint = Checkpoint(disk, f"{root}/checkpoint")
        self._check_body_crc = config.check_crc_on_recover
        self.sync_flush = config.sync_flush
        """Whether records become visible, and `wait_durable` returns, only after their sync."""
        self._defers = self.sync_flush or self._commit_service is not None
        self._appender = Appender(
            self._log,
            self._queues,
            self._delays,
            store_host=store_host,
            body_size_max=config.max_message_size,
            wrote=self._wrote,
            failed=self._fail,
        )
        put: Appender | MultiDispatch = self._appender
        if config.enable_multi_dispatch:
            put = MultiDispatch(self._appender, self._queues, queues_max=config.max_lmq_consume_queue_num)
        self._put, self._put_batch = put.append, put.append_batch
        self.dispatches_to_many = config.enable_multi_dispatch
        """Whether a message may enter more queues than its own."""
        self._more_queues = dispatched_to if config.enable_multi_dispatch else None
        self._log_flusher = LogFlusher(
            disk,
            self._log,
            self._checkpoint,
            self._changed_directories,
            sync_flush=self.sync_flush,
            interval_seconds=config.flush_interval_commit_log / 1000,
            thorough_seconds=config.flush_commit_log_thorough_interval / 1000,
            least_pages=config.flush_commit_log_least_pages,
            last_time_ms=self._written_time_ms,
            entries=self._written_entries,
            synced=self._on_synced,
            failed=self._fail,
        )
        self._index: Index | None = None
        if config.message_index_enable:
            self._index = Index(
                disk,
                self._handles,
                self._log,
                self._checkpoint,
                f"{root}/index",
                slot_count=config.max_hash_slot_num,
                item_count=config.max_index_num,
                visible_end=lambda: self.max_physical_offset,
                synced_end=lambda: self._log_flusher.synced_offset,
                fence=lambda topic: self._fences.get(topic, 0),
            )
        self._query_count_max = config.max_msgs_num_batch
        self._queue_flusher = QueueFlusher(
            disk,
            self._log,
            self._queues,
            self._checkpoint,
            synced_place=lambda: self._log_flusher.synced_place,
            interval_seconds=config.flush_interval_consume_queue / 1000,
            thorough_seconds=config.flush_consume_queue_thorough_interval / 1000,
            least_pages=config.flush_consume_queue_least_pages,
            visible_time_ms=lambda: self._visible_time_ms,
            before_sync=None if self._index is None else self._index.flush,
        )
        self._page_cache = PageCache(disk, self._handles)
        self.reader = Reader(
            self._log,
            self._queues,
            count_max=config.max_transfer_count_on_message_in_memory,
            bytes_max=config.max_transfer_bytes_on_message_in_memory,
            cache=self._page_cache,
            check_crc=config.check_crc_on_pull,
            end=lambda: self.max_physical_offset,
        )
        """Look-ups of single entries and records besides those below."""
        self.put_counts = PutCounts(self._queues)
        """What each topic got, for whoever looks."""
        self._retention = Retention(
            disk,
            self._log,
            self._queues,
            self._index,
            config,
            synced_end=lambda: self._log_flusher.synced_offset,
            refuse=self._refuse,
        )
        self._entries = 0
        self._unsynced: deque[tuple[int, int, list[ConsumeQueue], list[int]]] = deque()
        self._visible_time_ms = 0
        self._failed_event = trio.Event()
        self._fences_file = ConfigFile(f"{root}/config/topicFences.json", disk=disk)
        self._fences: dict[str, int] = {}
        self._lock_handle: int | None = None
        self.failure: StoreFailedError | None = None
        """Why the store takes no more messages, or None."""
        self.recovered: Recovered | None = None
        """What opening found."""
        self.on_arrival: OnArrival | None = None
        """Called for each message at the moment it becomes visible, in order; must not wait, append or raise."""
        self.awaited: Collection[tuple[str, int]] | None = None
        """The queues, by topic and queue id, whose messages alone are told to `on_arrival`; None: all are."""

    @property
    def max_physical_offset(self) -> int:
        """The end of the visible log."""
        return self._log_flusher.synced_offset if self.sync_flush else self._log.written_end

    def _make_log(self, config: MessageStoreConfig) -> CommitLog:
        folder, size = config.commit_log_folder, config.mapped_file_size_commit_log
        if not config.buffers_writes:
            if config.transient_store_pool_enable:
                _log.warning("transientStorePoolEnable counts only on a master with flushDiskType=ASYNC_FLUSH")
            return CommitLog(self._disk, self._handles, folder, size, self._changed_directories)
        log = BufferedCommitLog(
            self._disk, self._handles, folder, size, self._changed_directories,
            room_bytes=min(config.transient_store_pool_size * size, TRANSIENT_POOL_MAX_BYTES),
            fail_fast=config.fast_fail_if_no_buffer_in_store_pool,
        )  # fmt: skip
        self._commit_service = CommitService(
            log,
            interval_seconds=config.commit_interval_commit_log / 1000,
            thorough_seconds=config.commit_commit_log_thorough_interval / 1000,
            least_pages=config.commit_commit_log_least_pages,
            written=self._on_written,
            failed=self._fail,
        )
        return log

    # Between the parts -------------------------------------------------------------------------------------------

    def _count_entries(self) -> None:
        """After queues came or went otherwise than by appends: what was synced before must be counted anew."""
        queues = self._queues.table.values()
        self._entries = sum([queue.next_offset for queue in queues])
        self._queues.entries_written = sum([queue.written for queue in queues])
        self._log_flusher.synced_place = None

    def _wrote(self, end: int, queues: list[ConsumeQueue], codes: list[int]) -> None:
        self._entries += len(queues)
        if self._defers:
            self._unsynced.append((end, self._appender.last_time_ms, queues, codes))
            if self._commit_service is not None:
                self._commit_service.wrote()
                return  # the flusher is told when there is something in the files
        else:
            self._visible_time_ms = self._appender.last_time_ms
            self._publish(queues, codes)
        if self._log_flusher.idle:
            self._log_flusher.wrote()

    def _on_written(self, offset: int) -> None:
        self._on_synced(offset)
        self._log_flusher.wrote()

    def _written_time_ms(self) -> int:
        """The store time of the newest record in the files."""
        return self._appender.last_time_ms if self._commit_service is None else self._visible_time_ms

    def _written_entries(self) -> int:
        """How many queue entries there are of the records in the files."""
        if self._commit_service is None:
            return self._entries
        return self._entries - sum([len(queues) for _, _, queues, _ in self._unsynced])

    def _on_synced(self, offset: int) -> None:
        unsynced = self._unsynced
        while unsynced and unsynced[0][0] <= offset:
            _, self._visible_time_ms, queues, codes = unsynced.popleft()
            self._publish(queues, codes)

    def _publish(self, queues: list[ConsumeQueue], codes: list[int]) -> None:
        for queue in queues:
            queue.visible += 1
        if self._queue_flusher.idle:
            self._queue_flusher.wrote()
        index = self._index
        if index is not None and index.idle:
            index.wrote()
        on_arrival, awaited = self.on_arrival, self.awaited
        if on_arrival is not None and (awaited is None or awaited):
            for queue, code in zip(queues, codes, strict=True):
                if awaited is None or queue.key in awaited:
                    on_arrival(queue.topic, queue.queue_id, queue.visible, code)

    def _refuse(self, sentence: str | None) -> None:
        if self.failure is None:
            self._appender.refusal = sentence

    def _fail(self, reason: StoreFailedError) -> None:
        if self.failure is None:
            _log.critical("the store failed and takes no more messages: %s", reason)
            self.failure = reason
            self._appender.refusal = str(reason)
            self._log_flusher.fail(reason)
            if isinstance(self._log, BufferedCommitLog):
                self._log.failed = True
            self._failed_event.set()
