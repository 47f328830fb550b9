"""Metadata files (`config/*.json`): replaced as a whole, never in place, with the previous content kept as `.bak`.

A save writes a temporary file beside the target, syncs it, moves the old file to `.bak`, moves the new one into its
place and syncs the folder.  Whatever a crash leaves, `load` finds the new or the previous content, whole.  The
temporary name lies in a folder whose files nobody counts (Apache's broker refuses a stray file in the log's folders).
"""

from __future__ import annotations

from collections.abc import Callable
from logging import getLogger
from typing import TypeVar

import trio

from trio_rmq.errors import ProtocolError, StoreError
from trio_rmq.store.disk import Disk

T = TypeVar("T")
_log = getLogger(__name__)


class ConfigFile:
    """One metadata file.  Its folder is made when missing."""

    def __init__(self, path: str, *, disk: Disk | None = None) -> None:
        self.path = path
        self._disk = Disk() if disk is None else disk
        self._lock = trio.Lock()
        self._saved: bytes | None = None
        self._is_synced = False

    def load(self, read: Callable[[bytes], T]) -> T | None:
        """What `read` makes of the file's bytes, or of the `.bak` file's when those are missing or unreadable.

        `read` raises ProtocolError or ValueError for content it cannot use.  None when neither file exists.
        Raises StoreError when a file exists and none can be used.
        """
        reasons = []
        for path in (self.path, f"{self.path}.bak"):
            try:
                content = self._disk.read_file(path)
                if not content.strip(b" \t\r\n\0"):
                    raise ValueError("it is empty")
                value = read(content)
            except FileNotFoundError:
                continue
            except (ProtocolError, ValueError, OSError) as error:
                reasons.append(f"{path} cannot be used: {error}")
                continue
            if path == self.path:
                self._saved = content
            for reason in reasons:
                _log.warning("%s; its previous content, %s, is used", reason, path)
            return value
        if reasons:
            raise StoreError("; ".join(reasons) + ": mend the file, or move it away to start with an empty one")
        return None

    async def save(self, content: bytes) -> bool:
        """Make `content` the file's content.  Synced on return; False when it had that content already.

        Raises OSError, and then the file has its old content or the new one.  A save that was begun is finished before
        a cancellation is delivered; two saves follow one another.
        """
        async with self._lock:
            folder = self._folder()
            # Unknown until it is synced: after a failure the next save writes it anew, since a sync that is tried again
            # says nothing, and the file may have the new content although its folder's sync failed.
            saved, self._saved = self._saved, None
            if content == saved:
                if not self._is_synced:  # it was read, and whoever wrote it may have died before its sync
                    await self._disk.sync([], paths=[self.path], directories=[folder])
                self._saved, self._is_synced = content, True
                return False
            with trio.CancelScope(shield=True):
                temporary = f"{self.path}.tmp"
                self._write_temporary(temporary, content)
                await self._disk.sync([], paths=[temporary])
                self._exchange(temporary)
                await self._disk.sync([], directories=[folder])
            self._saved, self._is_synced = content, True
            return True

    def save_now(self, content: bytes) -> bool:
        """`save` for callers that cannot wait: blocks the thread, event loop included, until it is synced."""
        if content == self._saved and self._is_synced:
            return False
        self._saved = None
        temporary = f"{self.path}.tmp"
        folder = self._folder()
        self._disk.write_file(temporary, content)
        self._exchange(temporary)
        self._disk.sync_directory(folder)
        self._saved, self._is_synced = content, True
        return True

    def _folder(self) -> str:
        folder = self.path.rpartition("/")[0] or "."
        if not self._disk.is_directory(folder):
            for changed in self._disk.make_directories(folder):
                self._disk.sync_directory(changed)
        return folder

    def _write_temporary(self, temporary: str, content: bytes) -> None:
        handle = self._disk.open(temporary, create=True)
        try:
            self._disk.truncate(handle, 0)
            done = 0
            while done < len(content):
                done += self._disk.pwrite(handle, memoryview(content)[done:], done)
        finally:
            self._disk.close(handle)

    def _exchange(self, temporary: str) -> None:
        if self._disk.exists(self.path):
            self._disk.rename(self.path, f"{self.path}.bak")
        self._disk.rename(temporary, self.path)
