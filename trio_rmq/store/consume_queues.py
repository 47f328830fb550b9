"""All consume queues of a store: which there are, which have entries that wait, and what of them is not synced.

Invariants: a queue with entries in memory is in `unwritten`; a file that was written, or a folder whose listing
changed, since the last sync is in `unsynced` or `changed_directories`, unless it was removed.  Source: RocketMQ
DefaultMessageStore.consumeQueueTable.
"""

from __future__ import annotations

from typing import NamedTuple

import trio

from trio_rmq.errors import StoreError
from trio_rmq.store.consume_queue import ENTRY_SIZE_BYTES, ConsumeQueue
from trio_rmq.store.consume_queue_ext import ConsumeQueueExt
from trio_rmq.store.disk import Disk
from trio_rmq.store.log_files import FileHandles, LogFiles

_QUEUES_A_SLICE = 64

_SYNCED_ONE_BY_ONE_MAX = 500
"""Files and folders that are synced each by itself: more take one sync of their whole file system, which is sooner done
and costs the event loop nothing, but also waits for what others wrote there."""


class ExtFiles(NamedTuple):
    """Where the extension files are, how long each is, and whether new entries get a unit there."""

    directory: str
    file_size: int
    writes: bool


class ConsumeQueues:
    """All consume queues of a store, and which of them have entries that wait to be written or synced.

    `table` maps (topic, queue id) to its queue.
    """

    __slots__ = (
        "_disk",
        "_ext",
        "_file_size",
        "_file_system",
        "_handles",
        "_held",
        "by_topic",
        "changed_directories",
        "directory",
        "entries_written",
        "table",
        "unsynced",
        "unwritten",
    )

    def __init__(
        self, disk: Disk, handles: FileHandles, directory: str, file_size: int, ext: ExtFiles | None = None
    ) -> None:
        self._disk = disk
        self._ext = ext
        self._handles = handles
        self._file_size = file_size
        self._file_system: int | None = None
        self.changed_directories: set[str] = set()
        """Folders whose listing changed and was not synced yet."""
        self.directory = directory
        self.entries_written = 0
        """How many entries all queues have in files, since somebody last counted them; `write_out` adds its own."""
        self.table: dict[tuple[str, int], ConsumeQueue] = {}
        self.by_topic: dict[str, dict[int, ConsumeQueue]] = {}
        """The same by topic and then by queue id: found with less memory to look at, where queues are many."""
        self._held: set[str] = set()
        self.unwritten: dict[ConsumeQueue, None] = {}
        """Queues with entries in `tail`, in the order they got them."""
        self.unsynced: dict[str, None] = {}
        """Paths of queue files written since their last sync."""

    def load(self, *, unclean: bool) -> None:
        """Find every queue folder and each queue's end.  StoreError for what does not belong there.

        From then on many files are synced at once, if all folders are on one file system that can; see `close`.
        """
        disk = self._disk
        home = self.directory.rpartition("/")[0] or "."
        devices = {disk.folder_device(home)}
        for root in [self.directory] if self._ext is None else [self.directory, self._ext.directory]:
            topics = disk.list_directory(root)
            if topics:
                devices.add(disk.folder_device(root))
            for topic in topics:
                devices.add(disk.folder_device(f"{root}/{topic}"))
                for name in disk.list_directory(f"{root}/{topic}"):
                    path = f"{root}/{topic}/{name}"
                    device = disk.folder_device(path)
                    if not name.isascii() or not name.isdigit() or device is None:
                        raise StoreError(f"{path} does not belong there: move it away and start again")
                    devices.add(device)
                    if root is self.directory:
                        self.make(topic, int(name)).load(unclean=unclean)
                    elif (topic, int(name)) not in self.table:
                        self._remove_lone_units(path)
        if len(devices) == 1:
            self._file_system = disk.open_file_system(home)

    def close(self) -> None:
        """End what `load` began: files are synced one by one again."""
        handle, self._file_system = self._file_system, None
        if handle is not None:
            self._disk.close(handle)

    def make(self, topic: str, queue_id: int) -> ConsumeQueue:
        """The queue, made in memory when there is none; its folder comes with its first file."""
        queue = self.table.get((topic, queue_id))
        if queue is None:
            files = LogFiles(
                self._disk,
                self._handles,
                f"{self.directory}/{topic}/{queue_id}",
                self._file_size,
                self.changed_directories,
            )
            queue = self.table[topic, queue_id] = ConsumeQueue(topic, queue_id, files, self._make_ext(topic, queue_id))
            self.by_topic.setdefault(topic, {})[queue_id] = queue
        return queue

    def _make_ext(self, topic: str, queue_id: int) -> ConsumeQueueExt | None:
        ext = self._ext
        if ext is None:
            return None
        folder = f"{ext.directory}/{topic}/{queue_id}"
        files = LogFiles(self._disk, self._handles, folder, ext.file_size, self.changed_directories)
        return ConsumeQueueExt(files, writes=ext.writes)

    def _remove_lone_units(self, folder: str) -> None:
        """Extension files of queues that are gone count for nothing: those that come back begin anew."""
        for file in reversed(self._disk.list_directory(folder)):
            self._disk.unlink(f"{folder}/{file}")
        self.changed_directories.add(folder)

    def write_out(self, queue: ConsumeQueue) -> int:
        """`ConsumeQueue.write_out`, and remember its files for the next sync; returns how many entries it wrote.

        Writes nothing while the topic's old files are being removed.
        """
        if queue.topic in self._held:
            return 0
        first = queue.written
        try:
            queue.write_out()
        finally:  # a part may have been written
            count = queue.written - first
            self.entries_written += count
            self._note_units(queue)
            if count:
                file_size = queue.files.file_size
                position = first * ENTRY_SIZE_BYTES
                for start in range(position - position % file_size, queue.written * ENTRY_SIZE_BYTES, file_size):
                    self.unsynced[queue.files.path(start)] = None
        if not queue.tail:
            self.unwritten.pop(queue, None)
        return count

    async def sync(self) -> None:
        """Sync the files that were written and the folders that changed since the last time, in a thread.

        OSError when that fails; after it, or when cancelled, all of them count as not synced.
        """
        paths, directories = [*self.unsynced], self.changed_directories.copy()
        self.unsynced.clear()
        self.changed_directories.clear()
        try:
            many = len(paths) + len(directories) > _SYNCED_ONE_BY_ONE_MAX
            if not many or self._file_system is None or not await self._disk.sync_file_system(self._file_system):
                await self._disk.sync([], paths=paths, directories=sorted(directories))
        except BaseException:
            self.unsynced.update(dict.fromkeys(paths))
            self.changed_directories.update(directories)
            raise

    def cut(self, queue: ConsumeQueue, end_physical_offset: int) -> None:
        """`ConsumeQueue.cut` (recovery): entries still in memory go too; remembers what to sync."""
        self.unwritten.pop(queue, None)
        if queue.cut(end_physical_offset):
            for start in queue.files.starts[-1:]:
                self.unsynced[queue.files.path(start)] = None
        self._note_units(queue)

    def _note_units(self, queue: ConsumeQueue) -> None:
        if queue.ext is not None and queue.ext.unsynced:
            self.unsynced.update(queue.ext.unsynced)
            queue.ext.unsynced.clear()

    def restart(self, queue: ConsumeQueue, offset: int) -> None:
        """Empty `queue`, on disk too, and let it begin at `offset` (recovery)."""
        self.unwritten.pop(queue, None)
        for files in queue.file_runs():
            for start in files.starts:
                self.unsynced.pop(files.path(start), None)
        queue.remove_files()
        queue.start_at(offset)

    async def expire(self, min_physical_offset: int) -> int:
        """Remove the files whose entries are all of records before `min_physical_offset`; returns how many.

        One file of each queue at a time, each synced before the next, so that a power loss leaves no gap.  OSError ends
        it; what is left is for the next call.  Extension files follow.
        """
        removed = await self._expire(min_physical_offset, units=False)
        return removed + (0 if self._ext is None else await self._expire(min_physical_offset, units=True))

    async def _expire(self, min_physical_offset: int, *, units: bool) -> int:
        removed = 0
        queues = [queue for queue in self.table.values() if len(queue.run(units=units).starts) > 1]
        while queues:
            shortened = []
            for count, queue in enumerate(queues, start=1):
                if self.table.get((queue.topic, queue.queue_id)) is queue and queue.topic not in self._held:
                    path = queue.remove_expired(min_physical_offset, units=units)
                    if path is not None:
                        self.unsynced.pop(path, None)
                        shortened.append(queue)
                        self.changed_directories.add(path.rpartition("/")[0])
                if count % _QUEUES_A_SLICE == 0:
                    await trio.lowlevel.checkpoint()
            removed += len(shortened)
            queues = shortened
            folders = {queue.run(units=units).directory for queue in shortened}
            if folders:
                await self._disk.sync([], directories=sorted(folders))
                self.changed_directories.difference_update(folders)
        return removed

    async def remove_topic(self, topic: str) -> int:
        """Remove all queues of `topic` with their files; returns how many there were.  Synced on return.

        Messages of the topic may be appended meanwhile: they begin again at offset 0, and their entries reach files
        only when the old files are gone for good, so that no crash leaves a mixture.
        """
        gone = [(topic, queue_id) for queue_id in self.by_topic.pop(topic, {})]
        self._held.add(topic)
        files: list[LogFiles] = []
        for key in gone:
            queue = self.table.pop(key)
            self.unwritten.pop(queue, None)
            files += queue.file_runs()
        folders = [run.directory for run in files if self._disk.is_directory(run.directory)]
        for run in files:
            for start in run.starts:
                self.unsynced.pop(run.path(start), None)
            run.remove_from(-1)
        await self._disk.sync([], directories=folders)
        self.changed_directories.difference_update(folders)
        for folder in folders:
            self._disk.remove_directory(folder)
        for root in [self.directory] if self._ext is None else [self.directory, self._ext.directory]:
            parent = f"{root}/{topic}"
            if self._disk.is_directory(parent) and not self._disk.list_directory(parent):
                self.changed_directories.discard(parent)
                self._disk.remove_directory(parent)
                self.changed_directories.add(root)
        self._held.discard(topic)
        return len(gone)
