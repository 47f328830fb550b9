"""The real file system with faults: every call asks first whether it is to fail, wait, fall short or kill the process.

A delay blocks the thread that made the call, as a slow disk does: a write stops the event loop, a sync does not.  With
a journal (`unsynced`) it also notes what is written and not yet synced, so that a kill can be made a power loss.
"""

from __future__ import annotations

import os
import signal
import time

from trio_rmq.randomness import rng
from trio_rmq.store.disk import Data, Disk
from trio_rmq.testing.chaos.orders import Told
from trio_rmq.testing.chaos.unsynced import Journal

TAIL_MAX = 20.0
"""A delay is at most this many times the one asked for."""


class ChaosDisk(Disk):
    """The real disk under orders.  Errors are OSError, as of the real one."""

    def __init__(self, told: Told, journal: Journal | None = None) -> None:
        self._told = told
        self._journal = journal
        self._paths: dict[int, str] = {}

    def _meet(self, call: str, path: str) -> str | None:
        """What becomes of the call: None when it goes on, else `short` or `lie`."""
        rule = self._told.strike(call, path)
        if rule is None:
            return None
        match rule.action:
            case "error":
                number = rule.error_number
                if call == "fdatasync" and self._journal is not None:
                    self._journal.sync_failed(path)
                raise OSError(number, os.strerror(number), path)
            case "delay":
                time.sleep(rule.seconds * min(rng().paretovariate(1.5), TAIL_MAX))
                return None
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
        return rule.action

    def _path(self, handle: int) -> str:
        return self._paths.get(handle, "?")

    def open(self, path: str, *, create: bool = False) -> int:
        self._meet("open", path)
        made = create and self._journal is not None and not os.path.exists(path)
        handle = super().open(path, create=create)
        self._paths[handle] = path
        if made and self._journal is not None:
            self._journal.created(path)
        return handle

    def close(self, handle: int) -> None:
        self._paths.pop(handle, None)
        super().close(handle)

    def pread(self, handle: int, size: int, offset: int) -> bytes:
        self._meet("pread", self._path(handle))
        return super().pread(handle, size, offset)

    def pwrite(self, handle: int, data: Data, offset: int) -> int:
        met = self._meet("pwrite", self._path(handle))
        view = memoryview(data).cast("B")
        if met == "short":
            view = view[: max(len(view) // 2, 1)]
        if met == "lie":
            return len(view)
        if self._journal is not None:
            self._journal.writing(handle, bytes(view), offset)
        return super().pwrite(handle, view, offset)

    def fdatasync(self, handle: int) -> None:
        mark = None if self._journal is None else self._journal.mark()
        if self._meet("fdatasync", self._path(handle)) == "lie":
            return
        super().fdatasync(handle)
        if self._journal is not None and mark is not None:
            self._journal.synced(handle, mark)

    def truncate(self, handle: int, size: int) -> None:
        self._meet("truncate", self._path(handle))
        if self._journal is not None:
            self._journal.truncating(handle, size)
        super().truncate(handle, size)

    def make_directories(self, path: str) -> list[str]:
        self._meet("mkdir", path)
        return super().make_directories(path)

    def rename(self, source: str, target: str) -> None:
        self._meet("rename", target)
        if self._journal is not None:
            self._journal.renaming(source, target)
        super().rename(source, target)

    def unlink(self, path: str) -> None:
        self._meet("unlink", path)
        if self._journal is not None:
            self._journal.unlinking(path)
        super().unlink(path)

    def sync_directory(self, path: str) -> None:
        mark = None if self._journal is None else self._journal.mark()
        if self._meet("sync_directory", path) == "lie":
            return
        super().sync_directory(path)
        if self._journal is not None and mark is not None:
            self._journal.directory_synced(path, mark)

    def open_file_system(self, path: str) -> int | None:
        """None: orders and journal go by the file."""
        return None

    def write_file(self, path: str, data: Data) -> None:
        handle = self.open(path, create=True)
        try:
            self.truncate(handle, 0)
            done = 0
            while done < len(data):
                done += self.pwrite(handle, memoryview(data)[done:], done)
            self.fdatasync(handle)
        finally:
            self.close(handle)

    def read_file(self, path: str) -> bytes:
        self._meet("pread", path)
        return super().read_file(path)
