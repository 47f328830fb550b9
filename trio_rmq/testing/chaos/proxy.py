"""User-space TCP proxies: one in front of each server, with an edge for whoever connects, on which bytes can go wrong.

An edge is known by the name of who connects; clients are told apart by their source address on loopback.  Faults of an
edge, all at once or each alone:
- *cut*: its connections are reset, and new ones as soon as they are there.
- *silent*: nothing passes either way, ends of streams neither; what waits passes when it is over, as TCP sends again.
- *half open*: the connections of now fall silent for ever; new ones pass.
- *slow*: each chunk comes later, or at most so many bytes a second pass.
- *fragments*: bytes pass a few at a time.
- *corrupt*: of each chunk one bit is flipped, by chance.

A broker tells a name server its own address; on the way the proxy puts its own in that place (`Rewrite`), so that all
clients come through it.  The bytes in flight an edge are bounded by `CHUNKS_WAITING` chunks of `CHUNK_BYTES`.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import trio
from trio.socket import SO_LINGER, SOL_SOCKET

CHUNK_BYTES = 65536
CHUNKS_WAITING = 16


@dataclass
class Conditions:
    """How an edge is at the moment."""

    cut: bool = False
    silent: bool = False
    delay_seconds: float = 0.0
    bytes_per_second: float = 0.0
    """0: as fast as it goes."""
    fragment_bytes: int = 0
    """0: whole chunks."""
    corrupt_chance: float = 0.0


class Edge:
    """All connections from one party to one server."""

    def __init__(self, name: str, rng: Random) -> None:
        self.name = name
        self.conditions = Conditions()
        self.rng = rng
        self.connections: set[_Connection] = set()
        self.passed_bytes = 0
        self.corrupted = 0
        self._changed = trio.Event()

    def change(self, **conditions: object) -> None:
        """Set some of the conditions."""
        for name, value in conditions.items():
            if not hasattr(self.conditions, name):
                raise ValueError(f"an edge has no condition {name!r}")
            setattr(self.conditions, name, value)
        if self.conditions.cut:
            self.reset()
        self._changed.set()
        self._changed = trio.Event()

    def heal(self) -> None:
        """Undo all conditions; half-open connections stay so."""
        self.conditions = Conditions()
        self._changed.set()
        self._changed = trio.Event()

    def reset(self) -> int:
        """End all connections of now with a reset; how many there were."""
        connections = list(self.connections)
        for connection in connections:
            connection.reset()
        return len(connections)

    def half_open(self) -> int:
        """Let all connections of now fall silent for ever; how many there are."""
        for connection in self.connections:
            connection.frozen = True
        return len(self.connections)

    async def wait_changed(self) -> None:
        """Until the conditions are others."""
        await self._changed.wait()


@dataclass
class Rewrite:
    """Replaces one text by another of the same length in a stream, also where chunks divide it."""

    old: bytes
    new: bytes
    _held: bytes = field(default=b"", init=False)

    def __post_init__(self) -> None:
        if len(self.old) != len(self.new):
            raise ValueError(f"{self.new!r} must be as long as {self.old!r}: it stands in frames with a length")

    def feed(self, data: bytes) -> bytes:
        """What can go on: all but an end that may be the beginning of the text."""
        data = (self._held + data).replace(self.old, self.new)
        keep = next((size for size in range(len(self.old) - 1, 0, -1) if data.endswith(self.old[:size])), 0)
        self._held = data[len(data) - keep :]
        return data[: len(data) - keep]


class _Connection:
    """One connection through the proxy: two sockets, and how it is."""

    def __init__(self, edge: Edge, near: trio.SocketStream) -> None:
        self.edge = edge
        self.near = near
        self.far: trio.SocketStream | None = None
        self.frozen = False
        self.scope = trio.CancelScope()

    def reset(self) -> None:
        for stream in (self.near, self.far):
            if stream is not None and stream.socket.fileno() != -1:
                stream.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        self.scope.cancel()

    async def wait_open(self) -> None:
        """Until bytes may pass."""
        while self.frozen or self.edge.conditions.silent:
            await self.edge.wait_changed()


class Proxy:
    """Listens at a port of its own and passes on to `target`; `edge_of(source IP address)` says whose edge it is.

    `rewrite` makes, for each connection, what changes the bytes that go to the target.
    """

    def __init__(
        self,
        target: tuple[str, int],
        edge_of: Callable[[str], Edge],
        *,
        rewrite: Callable[[], Rewrite] | None = None,
    ) -> None:
        self.target = target
        self._edge_of = edge_of
        self._rewrite = rewrite
        self.address = ""
        """host:port once it listens."""

    async def serve(
        self, *, task_status: trio.TaskStatus[list[trio.SocketListener]] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until cancelled."""
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        await trio.serve_listeners(self._pass, listeners, task_status=task_status)

    async def _pass(self, near: trio.SocketStream) -> None:
        edge = self._edge_of(near.socket.getpeername()[0])
        connection = _Connection(edge, near)
        edge.connections.add(connection)
        try:
            with connection.scope:
                if edge.conditions.cut:
                    connection.reset()
                await connection.wait_open()
                connection.far = await self._connect()
                if connection.far is None:
                    connection.reset()
                    await trio.lowlevel.checkpoint()
                await self._pump_both(connection)
        finally:
            edge.connections.discard(connection)
            for stream in (near, connection.far):
                if stream is not None:
                    stream.socket.close()

    async def _connect(self) -> trio.SocketStream | None:
        try:
            return await trio.open_tcp_stream(*self.target)
        except OSError:
            return None

    async def _pump_both(self, connection: _Connection) -> None:
        near, far = connection.near, connection.far
        assert far is not None  # noqa: S101 - connected just before
        rewrite = self._rewrite() if self._rewrite is not None else None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pump, connection, near, far, rewrite)
            nursery.start_soon(self._pump, connection, far, near, None)

    async def _pump(
        self, connection: _Connection, source: trio.SocketStream, target: trio.SocketStream, rewrite: Rewrite | None
    ) -> None:
        """One direction; a broken stream on either side resets both."""
        chunks_in, chunks_out = trio.open_memory_channel[tuple[float, bytes]](CHUNKS_WAITING)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read, connection, source, rewrite, chunks_in)
                await self._write(connection, target, chunks_out)
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            connection.reset()

    async def _read(
        self,
        connection: _Connection,
        source: trio.SocketStream,
        rewrite: Rewrite | None,
        chunks: trio.MemorySendChannel[tuple[float, bytes]],
    ) -> None:
        async with chunks:
            while data := await source.receive_some(CHUNK_BYTES):
                if rewrite is not None:
                    data = rewrite.feed(data)
                await chunks.send((trio.current_time() + connection.edge.conditions.delay_seconds, data))

    async def _write(
        self,
        connection: _Connection,
        target: trio.SocketStream,
        chunks: trio.MemoryReceiveChannel[tuple[float, bytes]],
    ) -> None:
        edge = connection.edge
        async for due, data in chunks:
            await trio.sleep_until(due)
            await connection.wait_open()
            conditions = edge.conditions
            if conditions.corrupt_chance and edge.rng.random() < conditions.corrupt_chance and data:
                data = _flipped(data, edge.rng)
                edge.corrupted += 1
            size = conditions.fragment_bytes or len(data)
            for start in range(0, len(data), max(size, 1)):
                await target.send_all(data[start : start + size])
                if size < len(data):
                    await trio.lowlevel.checkpoint()
            if conditions.bytes_per_second:
                await trio.sleep(len(data) / conditions.bytes_per_second)
            edge.passed_bytes += len(data)
        await connection.wait_open()
        try:
            await target.send_eof()
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise


def _flipped(data: bytes, rng: Random) -> bytes:
    changed = bytearray(data)
    changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)
