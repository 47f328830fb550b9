"""The files of one store folder as they are found, without changing anything.

Invariants: nothing here writes; a file that does not belong there, has another length than the others or is missing
between two others becomes a finding, and what is there stays readable.  Lengths are told by the files themselves;
the configuration counts where there is none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import msgspec

from trio_rmq.config import MessageStoreConfig
from trio_rmq.errors import ProtocolError, StoreError
from trio_rmq.limits import STORE_HANDLES_MAX
from trio_rmq.store.checkpoint import SIZE_BYTES as CHECKPOINT_SIZE_BYTES
from trio_rmq.store.checkpoint import Checkpoint
from trio_rmq.store.commit_log import CommitLog
from trio_rmq.store.consume_queue import ENTRY_SIZE_BYTES
from trio_rmq.store.disk import Disk
from trio_rmq.store.dispatch import DelayLevels
from trio_rmq.store.index_file import HEADER_SIZE_BYTES, ITEM_SIZE_BYTES, SLOT_SIZE_BYTES, IndexFile
from trio_rmq.store.log_files import FileHandles, LogFiles
from trio_rmq.store.offline.findings import Findings
from trio_rmq.store.offline.index_geometry import index_geometry
from trio_rmq.wire.fastjson import to_strict_json

Progress = Callable[[str, int, int], None]
"""Called now and then with what is being done, how much of it is done, and how much there is."""

_NAME_DIGITS = 20
_INDEX_NAME_DIGITS = 17
_ZERO_BLOCK_BYTES = 1024 * 1024
_METADATA_BYTES_MAX = 2**31 - 1  # a local file is no peer


def must_be_store(disk: Disk, config: MessageStoreConfig) -> None:
    """StoreError when `config`'s folder is none of a store."""
    root = config.store_path_root_dir
    if not disk.is_directory(config.commit_log_folder) and not disk.exists(f"{root}/lock"):
        raise StoreError(f"{root} is no store folder: it has neither commitlog/ nor a file `lock`")


class FoundFiles(LogFiles):
    """A run of files that may have gaps: an offset in a missing file is simply not there."""

    __slots__ = ("_found",)

    def __init__(self, disk: Disk, handles: FileHandles, directory: str, file_size: int, starts: list[int]) -> None:
        super().__init__(disk, handles, directory, file_size, set())
        self.starts = starts
        self._found = frozenset(starts)

    def locate(self, offset: int) -> int | None:
        """The start of the file that holds `offset`, or None when no file does."""
        start = offset - offset % self.file_size
        return start if start in self._found else None

    def first_other_than_zero(self, begin: int, end: int) -> int | None:
        """The first offset from `begin` to before `end`, in one file, whose byte is not zero; None when all are."""
        start = self.locate(begin)
        if start is None:
            return None
        handle = self.handle(start)
        for extent_start, extent_end in self.disk.data_extents(handle, begin - start, end - start):
            for position in range(extent_start, extent_end, _ZERO_BLOCK_BYTES):
                block = self.disk.pread(handle, min(_ZERO_BLOCK_BYTES, extent_end - position), position)
                rest = block.lstrip(b"\0")
                if rest:
                    return start + position + len(block) - len(rest)
        return None

    def last_other_than_zero(self, begin: int, end: int) -> int | None:
        """The last such offset."""
        start = self.locate(begin)
        if start is None:
            return None
        handle = self.handle(start)
        for extent_start, extent_end in reversed(self.disk.data_extents(handle, begin - start, end - start)):
            for stop in range(extent_end, extent_start, -_ZERO_BLOCK_BYTES):
                position = max(extent_start, stop - _ZERO_BLOCK_BYTES)
                used = len(self.disk.pread(handle, stop - position, position).rstrip(b"\0"))
                if used:
                    return start + position + used - 1
        return None


class StoreFolder:
    """The folder of one store.  `config` says where it is; StoreError when there is none."""

    def __init__(self, disk: Disk, config: MessageStoreConfig) -> None:
        must_be_store(disk, config)
        root = self.root = config.store_path_root_dir
        log_folder = config.commit_log_folder
        self.disk = disk
        self.config = config
        self.findings = Findings()
        """What is amiss with names and lengths."""
        self.handles = FileHandles(disk, STORE_HANDLES_MAX)
        self.in_use = disk.is_locked(f"{root}/lock")
        """Whether a broker has it, now."""
        self.clean = not disk.exists(f"{root}/abort")
        """Whether the last broker that had it stopped in order."""
        self.delays = DelayLevels(config.message_delay_level)
        log_size, starts = self._find(log_folder, config.mapped_file_size_commit_log, may_be_empty=not self.clean)
        self.log = CommitLog(disk, self.handles, log_folder, log_size, set())
        self.log.files = self.log_files = FoundFiles(disk, self.handles, log_folder, log_size, starts)
        self.queues, self.queue_file_size = self._find_queues("consumequeue", config.mapped_file_size_consume_queue)
        """By topic and queue id, in that order."""
        if self.queue_file_size % ENTRY_SIZE_BYTES:
            what = f"its files have {self.queue_file_size} bytes, which are no whole entries"
            self.findings.add("length", f"{root}/consumequeue", 0, what)
        self.units, self.unit_file_size = self._find_queues(
            "consumequeue_ext", config.mapped_file_size_consume_queue_ext
        )
        """The extension files of those that have such."""
        self.index_files = self._find_index(f"{root}/index")
        self.checkpoint = Checkpoint(disk, f"{root}/checkpoint")
        self.checkpoint.load()
        self.fences: dict[str, int] = {}
        """Deleted topics: the physical offset from which on their records count."""
        self.topics: set[str] | None = None
        """The names in config/topics.json; None when that tells nothing."""
        self.metadata: dict[str, bool] = {}
        """Each `config/*.json` and whether it can be read."""
        self._read_metadata()

    def close(self) -> None:
        """Close all handles."""
        self.handles.close_all()

    @property
    def min_offset(self) -> int:
        """The physical offset at which the oldest log file begins."""
        return self.log_files.start

    # Finding -----------------------------------------------------------------------------------------------------

    def _find(self, directory: str, configured_size: int, *, may_be_empty: bool) -> tuple[int, list[int]]:
        """(length of the files, starts) of a run of files; strays, odd lengths and gaps become findings."""
        lengths: dict[int, int] = {}
        for name in self.disk.list_directory(directory):
            if len(name) != _NAME_DIGITS or not name.isascii() or not name.isdigit():
                self.findings.add(
                    "stray", f"{directory}/{name}", 0, "it does not belong there; Apache refuses to start"
                )
                continue
            try:
                lengths[int(name)] = self.disk.path_size(f"{directory}/{name}")
            except FileNotFoundError:  # a broker that uses the store deleted it this moment
                continue
        common = Counter(length for length in lengths.values() if length).most_common(1)
        size = common[0][0] if common else configured_size
        starts = []
        for start, length in lengths.items():
            path = f"{directory}/{start:0{_NAME_DIGITS}d}"
            if length == size and start % size == 0:
                starts.append(start)
            elif length == 0 and may_be_empty:
                what = "it is empty: a crash came before its length was on disk; the next start gives it that"
                self.findings.add("length", path, 0, what, damage=False)
            else:
                what = f"it has {length} bytes, the others have {size}" if length != size else "its name is no start"
                self.findings.add("length", path, 0, what, size_bytes=length)
        for before, after in pairwise(starts):
            if after != before + size:
                path = f"{directory}/{before + size:0{_NAME_DIGITS}d}"
                what = "it is missing" if after == before + 2 * size else f"all files up to {after} are missing"
                self.findings.add("missing-file", path, 0, what, size_bytes=after - before - size)
        return size, starts

    def _find_queues(self, name: str, size: int) -> tuple[dict[tuple[str, int], FoundFiles], int]:
        """The runs of files below the folder `name`, and the length of their files: `size` where there are none."""
        queues = {}
        directory = f"{self.root}/{name}"
        for topic in self.disk.list_directory(directory):
            for number in self.disk.list_directory(f"{directory}/{topic}"):
                path = f"{directory}/{topic}/{number}"
                if not number.isascii() or not number.isdigit() or not self.disk.is_directory(path):
                    self.findings.add("stray", path, 0, "it does not belong there; Apache refuses to start")
                    continue
                found_size, starts = self._find(path, size, may_be_empty=not self.clean)
                if starts:
                    size = found_size
                queues[topic, int(number)] = FoundFiles(self.disk, self.handles, path, found_size, starts)
        return dict(sorted(queues.items())), size

    def _find_index(self, directory: str) -> list[IndexFile]:
        files = []
        slots, items = self.config.max_hash_slot_num, self.config.max_index_num
        for name in self.disk.list_directory(directory):
            path = f"{directory}/{name}"
            if len(name) != _INDEX_NAME_DIGITS or not name.isascii() or not name.isdigit():
                self.findings.add("stray", path, 0, "it does not belong there; Apache refuses to start")
                continue
            size = self.disk.path_size(path)
            if size != HEADER_SIZE_BYTES + slots * SLOT_SIZE_BYTES + items * ITEM_SIZE_BYTES:
                slots, items = index_geometry(self.disk, self.handles.get(path)) or (slots, items)
            file = IndexFile(self.disk, self.handles, path, slots, items)
            if not self.clean and size <= HEADER_SIZE_BYTES:
                what = "it has no length yet: a crash came first; the next start removes it"
                self.findings.add("length", path, 0, what, damage=False)
                continue
            try:
                file.load()
            except StoreError as error:
                self.findings.add("length", path, 0, f"it {str(error).removeprefix(f'{path} ')}")
                continue
            files.append(file)
        return files

    def _read_metadata(self) -> None:
        folder = f"{self.root}/config"
        for name in self.disk.list_directory(folder):
            if not name.endswith((".json", ".json.bak")):
                continue
            path = f"{folder}/{name}"
            try:
                value = msgspec.json.decode(
                    to_strict_json(self.disk.read_file(path), size_max_bytes=_METADATA_BYTES_MAX)
                )
            except FileNotFoundError:
                continue
            except (ProtocolError, msgspec.MsgspecError, RecursionError, ValueError) as error:
                self.metadata[name] = False
                what = f"it cannot be read ({error})"
                if name.endswith(".bak"):
                    self.findings.add("metadata", path, 0, what, damage=False)
                else:
                    self.findings.add("metadata", path, 0, f"{what}; the broker takes its .bak, where there is one")
                continue
            self.metadata[name] = True
            if name == "topicFences.json" and isinstance(value, dict):
                self.fences = {topic: at for topic, at in value.items() if isinstance(at, int)}
            if name == "topics.json" and isinstance(value, dict):
                table = value.get("topicConfigTable")
                self.topics = set(table) if isinstance(table, dict) else None
        size = self.disk.path_size(f"{self.root}/checkpoint") if self.disk.exists(f"{self.root}/checkpoint") else 0
        if size != CHECKPOINT_SIZE_BYTES and self.log_files.starts:
            what = f"it has {size} bytes, {CHECKPOINT_SIZE_BYTES} are right: a start after a crash reads the whole log"
            self.findings.add("checkpoint", f"{self.root}/checkpoint", 0, what, damage=self.clean)
