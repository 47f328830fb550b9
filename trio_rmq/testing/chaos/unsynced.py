"""Makes a killed process's disk that of a machine that lost power: a journal of all that was written and not synced.

The fault model is `testing.faulty_disk`'s, on real files.  The node goes on to see what it wrote; before each change
the journal gets what stood there, so that the change can be undone, and the change itself, so that a part of it can be
done again.  `lose_power` undoes, newest first, whatever was not synced, and does again what the seed lets survive:
each 512-byte sector, each length and each name on its own.  A file whose sync failed counts as clean from then on, as
the kernel has it: what that sync should have covered is lost whatever follows.

Folders that were made stay: a store makes them once.  Old content of replaced or removed files is kept by a second
link beside the journal, so journal and store must share a file system.
"""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Callable
from random import Random
from typing import Any

import msgspec

SECTOR_BYTES = 512


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of the journal: a change, or a sync up to the change `upto`."""

    number: int
    kind: str
    """write, length, create, rename, unlink; synced, failed (of a file), named (of a folder)."""
    inode: int = 0
    path: str = ""
    target: str = ""
    backup: str = ""
    offset: int = 0
    old: bytes = b""
    new: bytes = b""
    old_size: int = 0
    new_size: int = 0
    upto: int = 0


class Journal:
    """The node's side.  May be used from any thread.  A journal that exists goes on: a kill loses nothing."""

    def __init__(self, folder: str) -> None:
        os.makedirs(folder, exist_ok=True)
        self._folder = folder
        self._lock = threading.Lock()
        entries = read_journal(folder)
        self._number = entries[-1].number if entries else 0
        self._file = os.open(f"{folder}/journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def mark(self) -> int:
        """The number of the newest change: what a sync that begins now covers."""
        with self._lock:
            return self._number

    def _note(self, kind: str, **fields: Any) -> None:
        with self._lock:
            self._number += 1
            data = msgspec.msgpack.encode(Entry(self._number, kind, **fields))
            os.write(self._file, len(data).to_bytes(4) + data)

    def writing(self, handle: int, data: bytes, offset: int) -> None:
        """`data` is about to be written."""
        found = os.fstat(handle)
        old = os.pread(handle, len(data), offset)
        self._note(
            "write", inode=found.st_ino, offset=offset, old=old, new=data, old_size=found.st_size,
            new_size=max(found.st_size, offset + len(data)),
        )  # fmt: skip

    def truncating(self, handle: int, size: int) -> None:
        """The file is about to get another length."""
        found = os.fstat(handle)
        old = os.pread(handle, found.st_size - size, size) if size < found.st_size else b""
        self._note("length", inode=found.st_ino, offset=size, old=old, old_size=found.st_size, new_size=size)

    def created(self, path: str) -> None:
        """The file was made."""
        self._note("create", path=path)

    def _kept(self, path: str) -> str:
        """A second name for the file at `path`; empty when there is none."""
        name = f"{self._folder}/kept-{self.mark() + 1}"
        try:
            os.link(path, name)
        except FileNotFoundError:
            return ""
        return name

    def renaming(self, source: str, target: str) -> None:
        """`source` is about to get the name `target`."""
        self._note("rename", path=source, target=target, backup=self._kept(target))

    def unlinking(self, path: str) -> None:
        """The file is about to lose its name."""
        self._note("unlink", path=path, backup=self._kept(path))

    def synced(self, handle: int, mark: int) -> None:
        """A sync that began at `mark` has ended well."""
        self._note("synced", inode=os.fstat(handle).st_ino, upto=mark)

    def sync_failed(self, path: str) -> None:
        """A sync of the file has failed."""
        try:
            self._note("failed", inode=os.stat(path).st_ino, upto=self.mark())
        except FileNotFoundError:
            return

    def directory_synced(self, path: str, mark: int) -> None:
        """A sync of the folder that began at `mark` has ended well."""
        self._note("named", path=path, upto=mark)


def read_journal(folder: str) -> list[Entry]:
    """All whole entries, in order."""
    try:
        with open(f"{folder}/journal", "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return []
    entries, position = [], 0
    while position + 4 <= len(data):
        size = int.from_bytes(data[position : position + 4])
        if position + 4 + size > len(data):
            break
        entries.append(msgspec.msgpack.decode(data[position + 4 : position + 4 + size], type=Entry))
        position += 4 + size
    return entries


def pending(entries: list[Entry]) -> list[Entry]:
    """The changes that no sync has covered, in order; what a failed sync should have covered is never covered."""
    durable: set[int] = set()
    lost: set[int] = set()
    by_inode: dict[int, list[Entry]] = defaultdict(list)
    by_folder: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        match entry.kind:
            case "write" | "length":
                by_inode[entry.inode].append(entry)
            case "create" | "unlink":
                by_folder[os.path.dirname(entry.path)].append(entry)
            case "rename":
                by_folder[os.path.dirname(entry.target)].append(entry)
            case "synced":
                durable.update(change.number for change in by_inode[entry.inode] if change.number <= entry.upto)
            case "failed":
                lost.update(
                    change.number
                    for change in by_inode[entry.inode]
                    if change.number <= entry.upto and change.number not in durable
                )
            case "named":
                durable.update(change.number for change in by_folder[entry.path] if change.number <= entry.upto)
    changes = [entry for entry in entries if entry.kind in ("write", "length", "create", "rename", "unlink")]
    return [entry for entry in changes if entry.number not in durable or entry.number in lost]


def lose_power(root: str, folder: str, rng: Random) -> int:
    """Make the files below `root` what a power loss leaves, by the journal in `folder`; how many changes were open.

    The node must be dead.  The journal begins anew.
    """
    changes = pending(read_journal(folder))
    chance = rng.choice((0.0, 0.1, 0.5, 0.9, 1.0))

    def keep() -> bool:
        return rng.random() < chance

    handles = _open_all(root, folder)
    aside: dict[int, str] = {}
    try:
        for entry in reversed(changes):
            _undo(entry, handles, folder, aside)
        for entry in changes:
            _redo(entry, handles, keep, aside)
    finally:
        for handle in handles.values():
            os.close(handle)
    for name in os.listdir(folder):
        os.unlink(f"{folder}/{name}")
    return len(changes)


def _open_all(*folders: str) -> dict[int, int]:
    """Inode -> handle of every file below the folders."""
    handles: dict[int, int] = {}
    for folder in folders:
        for base, _, names in os.walk(folder):
            for name in names:
                path = f"{base}/{name}"
                inode = os.stat(path).st_ino
                if inode not in handles:
                    handles[inode] = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    return handles


def _undo(entry: Entry, handles: dict[int, int], folder: str, aside: dict[int, str]) -> None:
    match entry.kind:
        case "write" | "length":
            handle = handles.get(entry.inode)
            if handle is not None:
                _undo_content(entry, handle)
        case "create":
            aside[entry.number] = f"{folder}/made-{entry.number}"
            if os.path.exists(entry.path):
                os.rename(entry.path, aside[entry.number])
        case "rename":
            if os.path.exists(entry.target):
                os.rename(entry.target, entry.path)
            if entry.backup:
                os.link(entry.backup, entry.target)
        case "unlink":
            if entry.backup and not os.path.exists(entry.path):
                os.link(entry.backup, entry.path)


def _undo_content(entry: Entry, handle: int) -> None:
    old = entry.old
    if entry.kind == "length" or os.fstat(handle).st_size <= entry.new_size:
        os.ftruncate(handle, entry.old_size)
    else:  # what came after a failed sync was synced: the file stays that long, with a hole
        old = old.ljust(len(entry.new), b"\0")
    os.pwrite(handle, old, entry.offset)


def _redo(entry: Entry, handles: dict[int, int], keep: Callable[[], bool], aside: dict[int, str]) -> None:
    match entry.kind:
        case "length":
            handle = handles.get(entry.inode)
            if handle is not None and keep():
                os.ftruncate(handle, entry.new_size)
        case "write":
            handle = handles.get(entry.inode)
            if handle is not None:
                _redo_write(entry, handle, keep)
        case "create":
            if os.path.exists(aside[entry.number]) and keep():
                os.rename(aside[entry.number], entry.path)
        case "rename":
            if os.path.exists(entry.path) and keep():
                os.rename(entry.path, entry.target)
        case "unlink":
            if os.path.exists(entry.path) and keep():
                os.unlink(entry.path)


def _redo_write(entry: Entry, handle: int, keep: Callable[[], bool]) -> None:
    if entry.new_size > entry.old_size and keep():
        os.ftruncate(handle, max(os.fstat(handle).st_size, entry.new_size))
    size = os.fstat(handle).st_size
    position, end = entry.offset, entry.offset + len(entry.new)
    while position < end:
        sector_end = min(position - position % SECTOR_BYTES + SECTOR_BYTES, end)
        if keep() and sector_end <= size:
            os.pwrite(handle, entry.new[position - entry.offset : sector_end - entry.offset], position)
        position = sector_end
