"""Builds broken on purpose, to see that the chaos tier catches what it claims to catch.

Each is a defect that real systems had (see the known breaches in the literature on durability), planted in this process
before the server starts.  A scenario names them in `[cluster] mutants`; without that, nothing here is ever imported.
"""

from __future__ import annotations

from collections.abc import Callable

from trio_rmq.broker.offsets import ConsumerOffsetTable
from trio_rmq.errors import ConfigError
from trio_rmq.store.commit_log import CommitLog
from trio_rmq.store.dispatch import DelayLevels
from trio_rmq.store.flush import LogFlusher

LATE_WRITE_MS = 1500


def _acknowledge_before_write(words: list[str]) -> None:
    """Records wait in memory, and are acknowledged there; they are written long after."""
    words += ["transientStorePoolEnable=true", f"commitIntervalCommitLog={LATE_WRITE_MS}"]


def _acknowledge_before_sync(words: list[str]) -> None:
    """SYNC_FLUSH answers without waiting for the sync."""

    async def wait_synced(self: LogFlusher, end: int) -> None:
        self.wrote()

    LogFlusher.wait_synced = wait_synced  # type: ignore[method-assign]  # the defect


def _drop_offset_commits(words: list[str]) -> None:
    """A group's progress is acknowledged and thrown away."""

    def commit(self: ConsumerOffsetTable, group: str, topic: str, queue_id: int, offset: int) -> int | None:
        return self.query(group, topic, queue_id)

    ConsumerOffsetTable.commit = commit  # type: ignore[method-assign]  # the defect


def _skip_a_write(words: list[str]) -> None:
    """Every 50th write of the log is left out: its records are acknowledged and are zeros on disk."""
    real, count = CommitLog.store, 0

    def store(self: CommitLog, start: int, data: bytes) -> None:
        nonlocal count
        count += 1
        real(self, start, bytes(len(data)) if count % 50 == 0 else data)

    CommitLog.store = store  # type: ignore[method-assign]  # the defect


def _deliver_early(words: list[str]) -> None:
    """Delayed messages come after half their delay."""
    real = DelayLevels.deliver_time_ms

    def deliver_time_ms(self: DelayLevels, properties: bytes, store_timestamp_ms: int) -> int | None:
        due = real(self, properties, store_timestamp_ms)
        return due and store_timestamp_ms + (due - store_timestamp_ms) // 2

    DelayLevels.deliver_time_ms = deliver_time_ms  # type: ignore[method-assign]  # the defect


MUTANTS: dict[str, Callable[[list[str]], None]] = {
    "acknowledge before write": _acknowledge_before_write,
    "acknowledge before sync": _acknowledge_before_sync,
    "drop offset commits": _drop_offset_commits,
    "skip a write": _skip_a_write,
    "deliver early": _deliver_early,
}


def plant(names: list[str], words: list[str]) -> None:
    """Plant these defects in this process; `words` are the server's command line, which may grow.

    ConfigError for a name that nobody knows.
    """
    for name in names:
        if name not in MUTANTS:
            raise ConfigError(f"no mutant is called {name!r}: choose among {', '.join(MUTANTS)}")
        MUTANTS[name](words)
