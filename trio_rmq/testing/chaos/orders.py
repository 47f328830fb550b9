"""What a chaos node is told to do wrong: a small file that the runner replaces whole and the node reads again.

A file and no socket, because it is there before the node starts (faults in recovery) and is seen in the middle of a
blocked event loop.  A rule is known by its number: what it has done already counts on over changes of the file.
What was done is appended to another file, a JSON line each: the evidence that a fault took place, and what lets a
fault that strikes once strike once also when the node dies of it.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import Counter
from typing import Literal

import msgspec

Action = Literal["error", "delay", "short", "kill", "lie"]


class Rule(msgspec.Struct, frozen=True):
    """A fault in calls of the disk: from the `first`-th matching call (counted from 1) it strikes `times` of them."""

    number: int
    calls: tuple[str, ...]
    """Names of methods of `Disk` that are system calls: pwrite, fdatasync, truncate, rename, unlink, ..."""
    action: Action
    """`error` raises OSError; `delay` blocks before the call; `short` writes a part only; `kill` is SIGKILL before the
    call; `lie` says it was done and does nothing (for a sync)."""
    path: str = ""
    """Only calls on paths that contain this."""
    error: str = "EIO"
    seconds: float = 0.0
    """Of a delay: the least; each one is longer by chance, with a heavy tail, up to 20 times."""
    first: int = 1
    """Counted in each life of the node anew."""
    times: int = 0
    """Over all lives of the node; 0: without end."""

    @property
    def error_number(self) -> int:
        """The number of the error's name; KeyError for a name that this system does not have."""
        return {name: number for number, name in errno.errorcode.items()}[self.error]


class Orders(msgspec.Struct):
    """All that a node is told."""

    rules: list[Rule] = []
    wall_offset_ms: int = 0
    """How far the node's wall clock is from the machine's."""
    mutants: list[str] = []
    """Defects that the node is started with (`mutants`): read once, at start."""


class Deed(msgspec.Struct):
    """One fault that took place."""

    rule: int
    action: str
    call: str
    path: str


def write_orders(path: str, orders: Orders) -> None:
    """Replace the file in one step."""
    with open(f"{path}.new", "wb") as file:
        file.write(msgspec.json.encode(orders))
    os.rename(f"{path}.new", path)


def read_deeds(path: str) -> list[Deed]:
    """What a node has done so far, in order; a line that a kill cut off is left out."""
    try:
        with open(f"{path}.done", "rb") as file:
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    return [msgspec.json.decode(line, type=Deed) for line in lines]


class Told:
    """The node's side: which rule strikes a call, and the offset of the wall clock.  May be used from any thread."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._version: tuple[int, int] | None = None
        self._orders = Orders()
        self._seen: dict[int, int] = {}
        self._struck = Counter(deed.rule for deed in read_deeds(path))
        """How often each rule has struck, in earlier lives of the node too."""
        self._done = os.open(f"{path}.done", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    @property
    def orders(self) -> Orders:
        """As the file says now."""
        found = os.stat(self._path)
        version = (found.st_ino, found.st_mtime_ns)
        if version != self._version:
            with open(self._path, "rb") as file:
                self._orders = msgspec.json.decode(file.read(), type=Orders)
            self._version = version
        return self._orders

    def strike(self, call: str, path: str) -> Rule | None:
        """The rule that this call falls under, noted as done; None for a call that goes well."""
        with self._lock:
            for rule in self.orders.rules:
                if call not in rule.calls or rule.path not in path:
                    continue
                seen = self._seen[rule.number] = self._seen.get(rule.number, 0) + 1
                if seen < rule.first or (rule.times and self._struck[rule.number] >= rule.times):
                    continue
                self._struck[rule.number] += 1
                deed = Deed(rule.number, rule.action, call, path)
                os.write(self._done, msgspec.json.encode(deed) + b"\n")
                return rule
        return None
