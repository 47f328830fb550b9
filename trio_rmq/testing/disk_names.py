"""Changes of names in the faulty disk's folders, as values that can be applied again: to what a power loss left behind.

Each is applied once to what a reader sees and, when its folder is synced or the power loss spared it, once to what the
platter holds.  A file is whatever `faulty_disk` takes for one; here it only has an identity.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Names = dict[str, Any]
"""Path -> file."""

NameChange = Callable[[Names, set[str]], None]
"""Changes names and folders in place."""


def is_child(entry: str, prefix: str) -> bool:
    """Whether the path `entry` stands directly in the folder whose path with a slash is `prefix`."""
    return entry.startswith(prefix) and len(entry) > len(prefix) and "/" not in entry[len(prefix) :]


class SetName:
    """A name that was given to a file."""

    __slots__ = ("file", "path")

    def __init__(self, path: str, file: object) -> None:
        self.path, self.file = path, file

    def __call__(self, names: Names, directories: set[str]) -> None:
        names[self.path] = self.file


class Rename:
    """A file that got another name; both names change together."""

    __slots__ = ("file", "source", "target")

    def __init__(self, source: str, target: str, file: object) -> None:
        self.source, self.target, self.file = source, target, file

    def __call__(self, names: Names, directories: set[str]) -> None:
        if names.get(self.source) is self.file:
            del names[self.source]
        names[self.target] = self.file


class RemoveName:
    """A name that was taken away."""

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, names: Names, directories: set[str]) -> None:
        names.pop(self.path, None)


class MakeDirectory(RemoveName):
    """A folder that was made."""

    def __call__(self, names: Names, directories: set[str]) -> None:
        directories.add(self.path)


class RemoveDirectory(RemoveName):
    """A folder that was removed; only an empty one is."""

    def __call__(self, names: Names, directories: set[str]) -> None:
        if not any(is_child(name, f"{self.path}/") for name in names):
            directories.discard(self.path)


def redirected(change: NameChange, copied: Callable[[Any], object]) -> NameChange:
    """`change` for a copy of the disk: the files it names are those that `copied` gives for them."""
    if isinstance(change, SetName):
        return SetName(change.path, copied(change.file))
    if isinstance(change, Rename):
        return Rename(change.source, change.target, copied(change.file))
    return change
