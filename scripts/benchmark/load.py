"""The load: one process, one or more connections, raw sockets, as little work an answer as can be.

Each connection keeps `in_flight` units unanswered: as answers come in, as many new units go out in one write.  Answers
are counted, not decoded, except the first and last of each connection, which must say success.  A unit's latency runs
from the write that carried it to the read that brought its (last) answer; answers are taken to come in order.
"""

from __future__ import annotations

import os
import selectors
import socket
import struct
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmark.frames import Units
from trio_rmq.wire.cbor_codec import decode_commands
from trio_rmq.wire.command import Command
from trio_rmq.wire.frame import decode_frame

READ_BYTES = 1024 * 1024
_INT = struct.Struct(">i")
_CBOR_OPAQUE_KEY = b"\x66opaque"


class BenchmarkError(RuntimeError):
    """The server answered with something other than success, or not at all."""


@dataclass
class Loaded:
    """What one run moved: messages and answer bytes within the measured time, seconds, latencies in seconds."""

    messages: int = 0
    seconds: float = 0.0
    answer_bytes: int = 0
    latencies: array[float] = field(default_factory=lambda: array("d"))


class Connection:
    """One connection of the load."""

    def __init__(self, address: str, units: Units, first_unit: int, in_flight: int, *, websocket: bool) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._units = units
        self._next = first_unit % units.count
        self._in_flight = in_flight
        self._websocket = websocket
        self._buffer = b""
        self._sent_times: array[float] = array("d")
        self._settled = 0
        self._answers_over = 0
        self._first: bytes | None = None
        self._last = b""
        if websocket:
            self._upgrade(host)

    def _upgrade(self, host: str) -> None:
        self.socket.sendall(
            b"GET / HTTP/1.1\r\nHost: %b\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: rmq.cbor.v1\r\n\r\n"
            % host.encode()
        )
        answer = b""
        while b"\r\n\r\n" not in answer:
            data = self.socket.recv(4096)
            if not data:
                break
            answer += data
        head, _, self._buffer = answer.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 101"):
            raise BenchmarkError(f"no WebSocket: {head[:200]!r}")

    def start(self) -> None:
        """Fill the window."""
        self._send(self._in_flight)

    def _send(self, count: int) -> None:
        units, now = self._units, time.perf_counter()
        self._sent_times.extend([now] * count)
        while count:
            take = min(count, units.count - self._next)
            begin, end = units.starts[self._next], units.starts[self._next + take]
            self.socket.sendall(memoryview(units.data)[begin:end])
            self._next = (self._next + take) % units.count
            count -= take

    def receive(self, latencies: array[float], *, more: bool) -> tuple[int, int]:
        """One read: (units settled, bytes); sends as many again while `more`."""
        data = self.socket.recv(READ_BYTES)
        if not data:
            raise BenchmarkError("the server closed the connection")
        answers = (self._count_messages if self._websocket else self._count_frames)(data)
        self._answers_over += answers
        settled, self._answers_over = divmod(self._answers_over, self._units.answers)
        if settled:
            now, begin = time.perf_counter(), self._settled
            latencies.extend([now - sent for sent in self._sent_times[begin : begin + settled]])
            self._settled += settled
            if more:
                self._send(settled)
        return settled, len(data)

    def _count_frames(self, data: bytes) -> int:
        if self._buffer:
            data = self._buffer + data
        position, count, size, begin = 0, 0, len(data), 0
        unpack = _INT.unpack_from
        while size - position >= 4:
            end = position + 4 + unpack(data, position)[0]
            if end > size:
                break
            begin, position = position, end
            count += 1
        self._buffer = data[position:]
        if count:
            self._last = data[begin:position]
            if self._first is None:
                self._first = self._last
        return count

    def _count_messages(self, data: bytes) -> int:
        data = self._buffer + data
        position, count = 0, 0
        while len(data) - position >= 2:
            size, head = data[position + 1] & 0x7F, 2
            if size >= 126:
                head = 4 if size == 126 else 10
                if len(data) - position < head:
                    break
                size = int.from_bytes(data[position + 2 : position + head], "big")
            end = position + head + size
            if end > len(data):
                break
            self._last = data[position + head : end]
            if self._first is None:
                self._first = self._last
            count += self._last.count(_CBOR_OPAQUE_KEY)
            position = end
        self._buffer = data[position:]
        return count

    @property
    def last_answer(self) -> bytes:
        """The newest whole answer (over WebSocket: the payload of the newest message)."""
        return self._last

    @property
    def waiting(self) -> bool:
        """Whether units are unanswered."""
        return self._settled < len(self._sent_times)

    def check(self) -> list[Command]:
        """The first and last answers; BenchmarkError unless they are successes."""
        looked_at: list[Command] = []
        for answer in (self._first, self._last):
            if answer:
                looked_at += decode_commands(answer) if self._websocket else [decode_frame(answer)]
        for command in looked_at:
            if command.code != 0:
                raise BenchmarkError(f"the server answered {command.code}: {command.remark}")
        return looked_at

    def forget_times(self) -> None:
        """Keep only the times of units still unanswered."""
        self._sent_times = self._sent_times[self._settled :]
        self._settled = 0


def run_load(
    address: str,
    units: Units,
    *,
    clients: int,
    in_flight: int,
    websocket: bool,
    seconds: float,
    server_cpu: Callable[[], float],
    units_total: int | None = None,
) -> tuple[Loaded, float]:
    """Run for `seconds` after a warm-up of a fifth of it, or for `units_total` units without one.

    Returns what was moved, and the CPU seconds the server took for it as told by `server_cpu()`.
    """
    each = max(1, in_flight // clients)
    connections = [
        Connection(address, units, index * units.count // clients, each, websocket=websocket)
        for index in range(clients)
    ]
    selector = selectors.DefaultSelector()
    for connection in connections:
        selector.register(connection.socket, selectors.EVENT_READ, connection)
    loaded, settled_total = Loaded(), 0
    begin = time.perf_counter()
    cpu_begin = server_cpu()
    warm_until = begin + seconds / 5 if units_total is None else begin
    end_at = warm_until + seconds
    warm = units_total is not None
    for connection in connections:
        connection.start()
    sent_total = each * clients
    while any(connection.waiting for connection in connections):
        for key, _ in selector.select(10) or _nothing_came():
            connection = key.data
            now = time.perf_counter()
            if not warm and now >= warm_until:
                warm, loaded, settled_total = True, Loaded(), 0
                begin, cpu_begin = now, server_cpu()
                end_at = begin + seconds
            more = now < end_at if units_total is None else sent_total < units_total
            settled, size = connection.receive(loaded.latencies, more=more)
            sent_total += settled if more else 0
            settled_total += settled
            loaded.answer_bytes += size
            connection.forget_times()
    loaded.seconds = time.perf_counter() - begin
    loaded.messages = settled_total * units.answers * units.messages
    cpu = server_cpu() - cpu_begin
    for connection in connections:
        connection.check()
        connection.socket.close()
    return loaded, cpu


def _nothing_came() -> list[tuple[selectors.SelectorKey, int]]:
    raise BenchmarkError("no answer came for 10 s")


def process_cpu_seconds(process_id: int) -> float:
    """CPU time that a process took since its start, all threads, user and system; to 10 ms."""
    return sum(process_cpu_parts(process_id))


def process_cpu_parts(process_id: int) -> tuple[float, float]:
    """(user, system) CPU time that a process took since its start, all threads; to 10 ms."""
    with open(f"/proc/{process_id}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    ticks = os.sysconf("SC_CLK_TCK")
    return int(fields[11]) / ticks, int(fields[12]) / ticks


def process_resident_mb(process_id: int) -> float:
    """Resident memory of a process now, in MB of 1,000,000 bytes."""
    with open(f"/proc/{process_id}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def process_anonymous_mb(process_id: int) -> float:
    """Resident memory of a process that is no file's, in MB of 1,000,000 bytes."""
    with open(f"/proc/{process_id}/status") as file:
        for line in file:
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024 / 1e6
    raise BenchmarkError(f"/proc/{process_id}/status has no RssAnon: Linux 4.5 or newer is needed")


def child_processes(process_id: int) -> list[int]:
    """The processes that it started and that still run."""
    return [
        int(word) for path in Path(f"/proc/{process_id}/task").glob("*/children") for word in path.read_text().split()
    ]
