"""Retention: old files go, so that new messages have room.

Whole commit log files are deleted, the oldest first: those whose newest record was stored over fileReservedTime hours
ago, at the hours of deleteWhen, by hand, or at any hour when room is short; unexpired ones when it is very short.  What
pointed to them - queue files, index files - follows.  When all that leaves too little room, sends are refused.

Invariants: the file being written and what is not yet synced never go; files go one at a time, each deletion synced
before the next and before anything that pointed there goes, so that a crash anywhere leaves a log without a gap and
queues that reach at least as far back as it; each deletion is followed by another look, so none goes without need.
Source of the rules: RocketMQ DefaultMessageStore.CleanCommitLogService and CleanConsumeQueueService.  Ours: a file's
age is told by store times, not by the file's own times, which a copy makes young.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from enum import IntEnum
from logging import getLogger

import trio

from trio_rmq.clock import wall_ms
from trio_rmq.config import MessageStoreConfig
from trio_rmq.store.commit_log import CommitLog
from trio_rmq.store.consume_queues import ConsumeQueues
from trio_rmq.store.disk import Disk
from trio_rmq.store.index import Index

_log = getLogger(__name__)

FIRST_ROUND_SECONDS = 60.0
"""From the start to the first deletion: time to stop a broker that was started on the wrong folder."""

REFUSED_LOOK_SECONDS = 1.0
"""While sends are refused the disk is looked at this often, so that they are taken again soon after room was made."""

_HOUR_MS = 3_600_000
_MIB = 1024 * 1024


class Room(IntEnum):
    """How much room the disk has, in RocketMQ's levels."""

    ENOUGH = 0
    SHORT = 1
    """Expired files go at any hour."""
    VERY_SHORT = 2
    """Unexpired files go, too."""
    NONE = 3
    """Sends are refused."""


class Retention:
    """Deletes old files of one store.

    `synced_end` says up to which physical offset the log is synced; `refuse` is told the sentence with which sends are
    refused from now on, or None when they are taken again.
    """

    def __init__(
        self,
        disk: Disk,
        log: CommitLog,
        queues: ConsumeQueues,
        index: Index | None,
        config: MessageStoreConfig,
        *,
        synced_end: Callable[[], int],
        refuse: Callable[[str | None], None],
    ) -> None:
        self._disk = disk
        self._log = log
        self._queues = queues
        self._index = index
        self._synced_end = synced_end
        self._refuse = refuse
        self._folders = (log.files.directory, config.store_path_root_dir)
        self._hours = config.delete_hours
        self._reserved_ms = config.file_reserved_time * _HOUR_MS
        self._interval_seconds = config.clean_resource_interval / 1000
        self._pause_seconds = config.delete_commit_log_files_interval / 1000
        self._forcibly = config.clean_file_forcibly_enable
        self._ratios = config.disk_ratios
        self._free_min_bytes = config.disk_free_space_min_bytes
        self._wake = trio.Event()
        self._by_hand = False
        self._queues_expired_to = -1
        self._complaint = ""
        self._refused = False
        self.deleted_files = 0
        """Commit log files deleted since the store was opened."""

    async def run(self) -> None:
        """The service: looks for room at once, deletes from a minute later on; runs until cancelled."""
        self.look()
        next_round = trio.current_time() + FIRST_ROUND_SECONDS
        while True:
            seconds = min(self._interval_seconds, REFUSED_LOOK_SECONDS) if self._refused else self._interval_seconds
            with trio.move_on_at(min(next_round, trio.current_time() + seconds)):
                await self._wake.wait()
            self._wake = trio.Event()
            if self._by_hand or trio.current_time() >= next_round:
                await self.round()
                next_round = trio.current_time() + self._interval_seconds
            else:
                self.look()

    def delete_expired_soon(self) -> None:
        """Delete, at once and whatever the hour, all files that are expired now (RocketMQ: by hand)."""
        self._by_hand = True
        self._wake.set()

    # Room --------------------------------------------------------------------------------------------------------

    def look(self) -> Room:
        """How much room there is; sends are refused from now on, or taken again, as that asks for."""
        worst, sentence = Room.ENOUGH, ""
        for folder in self._folders:
            try:
                if self._disk.is_directory(folder):
                    room, words = self._judge(folder, *self._disk.space(folder))
                    if room > worst:
                        worst, sentence = room, words
            except OSError as error:
                self._complain(f"{folder}: the room on its disk cannot be told ({error.strerror or error})")
        if worst is Room.NONE:
            if not self._refused:
                _log.error("sends are refused: %s", sentence)
            self._refused = True
            self._refuse(sentence)
        elif self._refused:
            _log.warning("%s: there is room again, sends are taken", self._folders[0])
            self._refused = False
            self._refuse(None)
        return worst

    def _judge(self, folder: str, free_bytes: int, size_bytes: int) -> tuple[Room, str]:
        """The level of one disk, and the sentence for senders when it has none left."""
        if self._ratios is not None:
            used = -(-(size_bytes - free_bytes) * 100 // size_bytes) if size_bytes else 0  # rounded up, as RocketMQ
            room = Room(sum(used > ratio for ratio in self._ratios))
            return room, (
                f"the disk of {folder} is {used} % full, above diskSpaceWarningLevelRatio {self._ratios[2]}: make room "
                "there, lower fileReservedTime, or raise the ratio"
            )
        least = min(self._free_min_bytes, size_bytes // 20)
        room = Room(sum(free_bytes < least * times for times in (4, 2, 1)))
        return room, (
            f"the disk of {folder} has {free_bytes / _MIB:.1f} MiB free, less than {least / _MIB:.1f} "
            "(diskFreeSpaceMinBytes): make room there, lower fileReservedTime, or lower the least"
        )

    # Deleting ----------------------------------------------------------------------------------------------------

    async def round(self) -> None:
        """Delete what is due now, and what pointed to it.  Failures are logged and left for the next round."""
        by_hand, self._by_hand = self._by_hand, False
        room = self.look()
        deleted = 0
        try:
            while (start := self._oldest()) is not None:
                expired = self._is_expired(start)
                forced = room >= Room.VERY_SHORT and self._forcibly
                if not (forced or (expired and (by_hand or room >= Room.SHORT or self._is_hour()))):
                    break
                await self._delete(start, "expired" if expired else "not expired, but room is very short")
                deleted += 1
                room = self.look()
                await trio.sleep(self._pause_seconds)
            await self.expire_queues()
        except OSError as error:
            self._complain(
                f"{error.filename or self._folders[0]}: deleting old files failed ({error.strerror or error})"
            )
            return
        if room >= Room.SHORT and not deleted:
            self._complain(f"{self._folders[0]}: room is short, and no log file may be deleted")
        elif room is Room.ENOUGH:
            self._complaint = ""

    async def expire_queues(self) -> None:
        """Delete the queue and index files that hold nothing but what pointed to deleted log files."""
        min_offset = self._log.min_offset
        if self._queues_expired_to < min_offset:
            removed = await self._queues.expire(min_offset)
            indexes = 0 if self._index is None else await self._index.expire(min_offset)
            self._queues_expired_to = min_offset
            if removed or indexes:
                _log.info(
                    "the log begins at %d: %d queue files and %d index files deleted", min_offset, removed, indexes
                )

    def _oldest(self) -> int | None:
        """Where the oldest file begins that may go; None when it is being written or not synced."""
        files = self._log.files
        if len(files.starts) < 2:
            return None
        start = files.starts[0]
        return start if start + files.file_size <= min(self._synced_end(), self._log.position) else None

    def _is_expired(self, start: int) -> bool:
        """Whether every record of the file is old enough: store times never go back, so the next file's first tells."""
        for later in self._log.files.starts:
            if later > start:
                time_ms = self._log.first_record_time_ms(later)
                if time_ms is not None:
                    return wall_ms() - time_ms >= self._reserved_ms
        return False

    def _is_hour(self) -> bool:
        return datetime.fromtimestamp(wall_ms() / 1000).hour in self._hours

    async def _delete(self, start: int, why: str) -> None:
        files = self._log.files
        with trio.CancelScope(shield=True):
            await self._disk.remove(files.path(start))
            path = files.forget_first()
            self.deleted_files += 1
            _log.info("%s deleted (%s)", path, why)
            try:
                await self._disk.sync([], directories=[files.directory])
            except OSError:
                files.changed_directories.add(files.directory)  # who syncs the log hears of it, too
                raise

    def _complain(self, sentence: str) -> None:
        if sentence != self._complaint:
            _log.warning("%s", sentence)
        self._complaint = sentence
