"""How far a consumer is in each queue: remembered here, kept at the broker (clustering) or in a file (broadcasting).

A store has one owner, its consumer; `update` and the like are plain and change memory only, `read` and `persist` go to
where the offsets are kept.  Invariants: with `increase_only` an offset never goes back; a frozen offset does not change
any more; `persist` writes only the queues named and keeps the file's others.  The file is replaced whole and synced,
with what it held before beside it as `.bak`, so a crash at any instant leaves one of the two whole.
Source: RocketMQ LocalFileOffsetStore, RemoteBrokerOffsetStore, ControllableOffset, MixAll.string2File.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Protocol

import anyio

from trio_rmq.client import group_calls
from trio_rmq.errors import (
    ClientError,
    ProtocolError,
    RemotingError,
    ResponseError,
    RocketMQError,
    RouteNotFoundError,
)
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.wire.groups import MessageQueue
from trio_rmq.wire.local_offsets import decode_local_offsets, encode_local_offsets

DEFAULT_FOLDER = ".rocketmq_offsets"
"""In the user's home, as Java's; rocketmq.client.localOffsetStoreDir there, an argument here."""
DEFAULT_CLIENT_ID = "127.0.0.1@DEFAULT"
"""Names the file of consumers that give themselves no name; the same after a restart."""


class ReadOffset(Enum):
    """Where `read` looks."""

    FROM_MEMORY = "READ_FROM_MEMORY"
    FROM_STORE = "READ_FROM_STORE"
    MEMORY_FIRST = "MEMORY_FIRST_THEN_STORE"


class OffsetTable:
    """The offsets in memory: of each queue the next to consume."""

    def __init__(self) -> None:
        self._offsets: dict[MessageQueue, int] = {}
        self._frozen: set[MessageQueue] = set()

    def update(self, queue: MessageQueue, offset: int, *, increase_only: bool) -> None:
        """Remember `offset`, unless it is frozen, or would go back and must not."""
        if queue in self._frozen:
            return
        if increase_only:
            offset = max(offset, self._offsets.get(queue, offset))
        self._offsets[queue] = offset

    def update_and_freeze(self, queue: MessageQueue, offset: int) -> None:
        """Remember `offset` and let it stand until the queue is forgotten: an administrator reset it."""
        self._offsets[queue] = offset
        self._frozen.add(queue)

    def get(self, queue: MessageQueue) -> int | None:
        """The offset remembered, or None."""
        return self._offsets.get(queue)

    def forget(self, queue: MessageQueue) -> None:
        """The queue is another's now."""
        self._offsets.pop(queue, None)
        self._frozen.discard(queue)

    def snapshot(self, topic: str | None = None) -> dict[MessageQueue, int]:
        """A copy, of one topic or of all."""
        return {queue: offset for queue, offset in self._offsets.items() if topic is None or queue.topic == topic}


class OffsetStore(Protocol):
    """What a consumer needs of its offsets; your own may stand in."""

    table: OffsetTable

    async def load(self) -> None:
        """Once, before anything else."""
        ...

    async def read(self, queue: MessageQueue, where: ReadOffset = ReadOffset.MEMORY_FIRST) -> int | None:
        """The queue's offset, None when it has none; what comes from the store is remembered, whatever was before."""
        ...

    async def persist(self, queues: Iterable[MessageQueue]) -> None:
        """Keep the remembered offsets of these queues for good; all are tried before an error comes out."""
        ...


class RemoteOffsetStore:
    """Offsets at the broker, for all members of `group`; `address_of` gives a queue's broker.

    RemotingError or ResponseError when the broker cannot be asked.
    """

    def __init__(
        self, remoting: RemotingClient, group: str, address_of: Callable[[MessageQueue], Awaitable[str]]
    ) -> None:
        self.table = OffsetTable()
        self._remoting = remoting
        self._group = group
        self._address_of = address_of
        self._persisted: dict[MessageQueue, int] = {}

    async def load(self) -> None:
        """Nothing to do: each offset is asked for when it is needed."""

    async def read(self, queue: MessageQueue, where: ReadOffset = ReadOffset.MEMORY_FIRST) -> int | None:
        """See OffsetStore."""
        known = self.table.get(queue)
        if where is ReadOffset.FROM_MEMORY or (where is ReadOffset.MEMORY_FIRST and known is not None):
            return known
        address = await self._address_of(queue)
        offset = await group_calls.committed_offset(self._remoting, address, self._group, queue)
        if offset is not None:
            self.table.update(queue, offset, increase_only=False)
            self._persisted[queue] = offset
        return offset

    async def read_ahead(self, queues: Iterable[MessageQueue]) -> None:
        """Remember the offsets of these queues, asked for with one write a broker; then `read` need not ask.

        Nothing is raised: what could not be told `read` asks for again, and says why.
        """
        by_address: dict[str, list[MessageQueue]] = {}
        for queue in queues:
            if self.table.get(queue) is None:
                with suppress(RemotingError, ResponseError, RouteNotFoundError):
                    by_address.setdefault(await self._address_of(queue), []).append(queue)
        for address, asked in by_address.items():
            with suppress(RemotingError, ResponseError):
                offsets = await group_calls.committed_offsets(self._remoting, address, self._group, asked)
                for queue, offset in zip(asked, offsets, strict=True):
                    if offset is not None:
                        self.table.update(queue, offset, increase_only=False)
                        self._persisted[queue] = offset

    async def persist(self, queues: Iterable[MessageQueue]) -> None:
        """Each acknowledged by its broker on return; offsets that the broker has already are not sent again."""
        failure: RocketMQError | None = None
        for queue in list(queues):
            offset = self.table.get(queue)
            if offset is None or offset == self._persisted.get(queue):
                continue
            try:
                await group_calls.commit(self._remoting, await self._address_of(queue), self._group, queue, offset)
            except RocketMQError as error:
                failure = error
            else:
                self._persisted[queue] = offset
        for queue in self._persisted.keys() - self.table.snapshot().keys():
            del self._persisted[queue]
        if failure is not None:
            raise failure


def local_offsets_path(group: str, *, client_id: str = DEFAULT_CLIENT_ID, folder: Path | None = None) -> Path:
    """Where Java's client keeps the local offsets of `group`: FOLDER/CLIENT_ID/GROUP/offsets.json."""
    return (folder or Path.home() / DEFAULT_FOLDER) / client_id / group / "offsets.json"


class LocalOffsetStore:
    """Offsets in a file, each consumer having its own; `read` and `persist` synced on return.

    ClientError when neither the file nor its `.bak` can be read or parsed; without both, there are no offsets yet.
    """

    def __init__(self, path: Path) -> None:
        self.table = OffsetTable()
        self._path = path
        self._writing = anyio.Lock()

    async def load(self) -> None:
        """Remember all that is in the file."""
        for queue, offset in (await anyio.to_thread.run_sync(self._read_file)).items():
            self.table.update(queue, offset, increase_only=False)

    async def read(self, queue: MessageQueue, where: ReadOffset = ReadOffset.MEMORY_FIRST) -> int | None:
        """See OffsetStore."""
        known = self.table.get(queue)
        if where is ReadOffset.FROM_MEMORY or (where is ReadOffset.MEMORY_FIRST and known is not None):
            return known
        offset = (await anyio.to_thread.run_sync(self._read_file)).get(queue)
        if offset is not None:
            self.table.update(queue, offset, increase_only=False)
        return offset

    async def persist(self, queues: Iterable[MessageQueue]) -> None:
        """In the file, synced, on return; a cancel leaves the old file or the new one."""
        async with self._writing:
            remembered = self.table.snapshot()
            changes = {queue: remembered[queue] for queue in queues if queue in remembered}
            if changes:
                await anyio.to_thread.run_sync(self._write_file, changes)

    def _read_file(self) -> dict[MessageQueue, int]:
        trouble: list[str] = []
        for path in (self._path, self._backup):
            try:
                return decode_local_offsets(path.read_bytes())
            except FileNotFoundError:
                continue
            except (OSError, ProtocolError) as error:
                trouble.append(f"{path}: {error}")
        if trouble:
            raise ClientError(f"local offsets cannot be read ({'; '.join(trouble)}): mend or remove the file")
        return {}

    def _write_file(self, changes: dict[MessageQueue, int]) -> None:
        content = encode_local_offsets(self._read_file() | changes)
        temporary = self._path.with_name(self._path.name + ".tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if self._is_whole():
                self._path.replace(self._backup)
            temporary.replace(self._path)
            folder = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise ClientError(f"local offsets cannot be written to {self._path}: {error}") from None

    def _is_whole(self) -> bool:
        """Whether the file may become the `.bak`: a torn one must not take the place of a good one."""
        try:
            decode_local_offsets(self._path.read_bytes())
        except (OSError, ProtocolError):
            return False
        return True

    @property
    def _backup(self) -> Path:
        return self._path.with_name(self._path.name + ".bak")
