"""A disk that can be full: a folder on a file system of its own, and a file that takes all its room.

As root it is a tmpfs, which nobody else feels and every program meets, a JVM's memory maps too.  Without that right
`SmallDisk` raises: a full disk is then ordered from our nodes alone (`disk_error` with ENOSPC).
"""

from __future__ import annotations

import ctypes
import os
from types import TracebackType

from trio_rmq.errors import ConfigError

MNT_DETACH = 2
CHUNK_BYTES = 65536


class SmallDisk:
    """`folder` on a tmpfs of `size_bytes`; a context manager.  ConfigError when this user may not mount."""

    def __init__(self, folder: str, size_bytes: int) -> None:
        self.folder = folder
        self.size_bytes = size_bytes
        self._libc = ctypes.CDLL(None, use_errno=True)

    def __enter__(self) -> SmallDisk:
        if self._libc.mount(b"none", self.folder.encode(), b"tmpfs", 0, f"size={self.size_bytes}".encode()):
            number = ctypes.get_errno()
            raise ConfigError(
                f"a tmpfs of {self.size_bytes} bytes cannot be mounted at {self.folder}: {os.strerror(number)}; "
                "run as root, or leave disk_bytes out and order disk_error with ENOSPC"
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._libc.umount2(self.folder.encode(), MNT_DETACH)

    def fill(self, leave_bytes: int = 0) -> int:
        """Take all room but `leave_bytes`; how much was taken."""
        taken = 0
        handle = os.open(f"{self.folder}/ballast", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            found = os.statvfs(self.folder)
            wanted = found.f_bavail * found.f_frsize - leave_bytes
            while taken < wanted:
                taken += os.pwrite(handle, bytes(min(CHUNK_BYTES, wanted - taken)), taken)
        except OSError:
            return taken
        finally:
            os.close(handle)
        return taken

    def free(self) -> None:
        """Give the room back."""
        try:
            os.unlink(f"{self.folder}/ballast")
        except FileNotFoundError:
            return
