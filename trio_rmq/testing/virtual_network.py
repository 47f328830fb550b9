"""A network inside the process, on virtual time, under code that knows nothing of it.

It stands behind `trio.socket`, so `trio.open_tcp_stream`, `trio.serve_tcp`, this package's listener and
`anyio.connect_tcp` work unchanged.  Who a socket belongs to is told by a context variable that the tasks of a node
inherit.  What it models, per direction of each pair of nodes: latency with jitter, bandwidth, and a finite buffer, so
that a writer whose peer does not read has to wait; reads and writes split anywhere.

Faults permitted: a direction cut (nothing arrives, neither data nor acknowledgement; TCP repeats it, so all of it
arrives, once and in order, after the healing, unless the sender gives up first); a connection reset; a process killed
(its sockets close); a machine silent (nothing leaves it, nothing is answered, until it comes back and resets what it
does not know).  Never permitted, as under TCP: loss, doubling, reordering or damage inside a connection.

Invariant: all that happens follows from the seed and from what the tasks do; every packet, timer and choice goes
through one timetable, ordered by time and a running number.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import ip_address
from random import Random
from socket import AddressFamily, SocketKind
from typing import Any

import trio
from trio import socket as tsocket

from trio_rmq.testing.virtual_socket import VirtualSocket
from trio_rmq.testing.virtual_time import SimulatedClock, Timetable

LOOPBACK = "127.0.0.1"

_current_node: ContextVar[str] = ContextVar("trio_rmq_virtual_node", default=LOOPBACK)
_current_check: ContextVar[Callable[[], None]] = ContextVar("trio_rmq_virtual_check", default=lambda: None)


@dataclass(frozen=True)
class Link:
    """One direction between two nodes.

    `jitter_seconds` is added to the latency at most; `bytes_per_second` None means unbounded; `buffer_bytes` may be
    sent and not yet read by the peer; `split_chance` is how often a write or read is cut short at a random place.
    """

    latency_seconds: float = 0.0005
    jitter_seconds: float = 0.0
    bytes_per_second: float | None = None
    buffer_bytes: int = 256 * 1024
    split_chance: float = 0.0


@dataclass
class Life:
    """One run of a node, from its start to a power loss."""

    node: str
    alive: bool = True
    unanswered: list[VirtualSocket] = field(default_factory=list)
    """Peers whose packets it did not answer since it fell silent."""


@dataclass(eq=False)
class _Packet:
    kind: str
    sender: VirtualSocket | None
    size: int
    deliver: Callable[[], None]


@dataclass
class _Path:
    source: str
    target: str
    link: Link
    cut: bool = False
    free_at: float = 0.0
    held: list[_Packet] = field(default_factory=list)


class VirtualNetwork(trio.abc.SocketFactory, trio.abc.HostnameResolver):
    """The nodes, the paths between them and all sockets; opened by `open_network`.

    `give_up_seconds` is how long TCP repeats before a connection fails with ETIMEDOUT; `connect_seconds` the same for
    opening one.  `on_packet(time, kind, source, target, size)` sees each packet that arrives.
    """

    def __init__(
        self,
        rng: Random,
        link: Link | None = None,
        *,
        give_up_seconds: float = 924.6,
        connect_seconds: float = 127.0,
        on_packet: Callable[[float, str, str, str, int], None] | None = None,
        timetable: Timetable | None = None,
    ) -> None:
        self.rng = rng
        self.give_up_seconds = give_up_seconds
        self.connect_seconds = connect_seconds
        self.on_packet = on_packet
        self._link = link or Link()
        self._paths: dict[tuple[str, str], _Path] = {}
        self._lives: dict[str, Life] = {LOOPBACK: Life(LOOPBACK)}
        self._names: dict[str, str] = {"localhost": LOOPBACK}
        self._sockets: dict[int, VirtualSocket] = {}
        self._listeners: dict[tuple[str, str, int], VirtualSocket] = {}
        self._ports: dict[str, Iterator[int]] = {}
        self._filenos = itertools.count(1_000_000)
        self._timetable = timetable or Timetable()
        self._wake = trio.Event()

    # ---- nodes -------------------------------------------------------------------------------------------------

    @contextmanager
    def node(self, address: str, *, check: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Within the block, and in every task started in it, sockets belong to the machine with this IP address.

        `check` is called before a socket is made or a name looked up: it raises when the program is dead.
        """
        self._lives.setdefault(address, Life(address))
        token, check_token = _current_node.set(address), _current_check.set(check)
        try:
            yield
        finally:
            _current_node.reset(token)
            _current_check.reset(check_token)

    def name(self, name: str, address: str) -> None:
        """Let `name` resolve to `address` on every node."""
        self._names[name] = address

    def kill_process(self, node: str) -> None:
        """Close every socket of `node`, as the system does when a process ends: unread input becomes a reset."""
        for socket in [socket for socket in self._sockets.values() if socket.life is self._lives.get(node)]:
            socket.close()

    def silence(self, node: str) -> None:
        """Cut `node`'s power: nothing leaves it and nothing is answered; its sockets are dead for good."""
        self._lives[node].alive = False
        for key in [key for key in self._listeners if key[0] == node]:
            del self._listeners[key]

    def revive(self, node: str) -> None:
        """Start `node` again with no memory of its connections: peers that still send to them are reset."""
        old = self._lives[node]
        assert not old.alive, f"{node} is running"  # noqa: S101 - a mistake in a test
        self._lives[node] = Life(node)
        for peer in old.unanswered:
            self.transmit("reset", node, peer.node, None, 0, peer.on_reset)

    # ---- paths -------------------------------------------------------------------------------------------------

    def set_link(self, one: str, other: str, *, one_way: bool = False, **changes: Any) -> None:
        """Change fields of the `Link` from `one` to `other`, and back unless `one_way`; open connections feel it."""
        for source, target in ((one, other),) if one_way else ((one, other), (other, one)):
            path = self._path(source, target)
            path.link = replace(path.link, **changes)

    def cut(self, source: str, target: str, *, one_way: bool = False) -> None:
        """Let nothing from `source` arrive at `target`, and nothing back unless `one_way`."""
        self._path(source, target).cut = True
        if not one_way:
            self._path(target, source).cut = True

    def heal(self, source: str, target: str, *, one_way: bool = False) -> None:
        """End a cut: what TCP repeated meanwhile arrives one latency later, in order."""
        for path in (
            (self._path(source, target),) if one_way else (self._path(source, target), self._path(target, source))
        ):
            path.cut = False
            held, path.held = path.held, []
            for packet in held:
                self._forward(path, packet)

    def reset(self, one: str, other: str) -> int:
        """Break every connection between two nodes at once, at both ends; says how many."""
        ends = [
            socket
            for socket in self._sockets.values()
            if socket.peer is not None and {socket.node, socket.peer.node} == {one, other}
        ]
        for socket in ends:
            socket.on_reset()
        return len(ends) // 2

    def link(self, source: str, target: str) -> Link:
        """The link from `source` to `target` as it is now."""
        return self._path(source, target).link

    def _path(self, source: str, target: str) -> _Path:
        path = self._paths.get((source, target))
        if path is None:
            link = Link(latency_seconds=0.0, split_chance=self._link.split_chance) if source == target else self._link
            path = self._paths[source, target] = _Path(source, target, link)
        return path

    # ---- packets -----------------------------------------------------------------------------------------------

    def transmit(
        self, kind: str, source: str, target: str, sender: VirtualSocket | None, size: int, deliver: Callable[[], None]
    ) -> None:
        """Send one packet; `deliver` runs when it arrives, after all that `sender` sent before."""
        if sender is None or sender.life.alive:
            self._forward(self._path(source, target), _Packet(kind, sender, size, deliver))

    def _forward(self, path: _Path, packet: _Packet) -> None:
        if path.cut:
            self._hold(path, packet)
            return
        now = trio.current_time()
        link = path.link
        if link.bytes_per_second is not None:
            path.free_at = max(now, path.free_at) + packet.size / link.bytes_per_second
            now = path.free_at
        arrival = now + link.latency_seconds
        if link.jitter_seconds:
            arrival += link.jitter_seconds * self.rng.random()
        if packet.sender is not None:
            arrival = packet.sender.last_arrival = max(arrival, packet.sender.last_arrival)
        self.at(arrival, partial(self._arrive, path, packet))

    def _arrive(self, path: _Path, packet: _Packet) -> None:
        if path.cut:
            self._hold(path, packet)
            return
        if self.on_packet is not None:
            self.on_packet(trio.current_time(), packet.kind, path.source, path.target, packet.size)
        packet.deliver()

    def _hold(self, path: _Path, packet: _Packet) -> None:
        path.held.append(packet)
        if packet.sender is not None:
            self.at(trio.current_time() + self.give_up_seconds, partial(self._give_up, path, packet))

    def _give_up(self, path: _Path, packet: _Packet) -> None:
        if packet in path.held and packet.sender is not None:
            path.held.remove(packet)
            packet.sender.fail(errno.ETIMEDOUT)

    def unanswered(self, socket: VirtualSocket, sender: VirtualSocket) -> None:
        """A packet for `socket` reached a node that lost its power since: silence, or a reset once it is back."""
        if self._lives[socket.node].alive:
            self.transmit("reset", socket.node, sender.node, None, 0, sender.on_reset)
        elif sender not in socket.life.unanswered:
            socket.life.unanswered.append(sender)
            self.at(trio.current_time() + self.give_up_seconds, partial(self._never_answered, socket, sender))

    def _never_answered(self, socket: VirtualSocket, sender: VirtualSocket) -> None:
        if not self._lives[socket.node].alive:
            sender.fail(errno.ETIMEDOUT)

    def at(self, time: float, action: Callable[[], None]) -> None:
        """Run `action` at `time` on the current clock, in the order of time and then of these calls."""
        if time < self._timetable.next_time:
            self._wake.set()
        self._timetable.enter(time, action)

    async def run(self) -> None:
        """Deliver packets for ever, on a clock that does not do it; `open_network` keeps this in a nursery."""
        while True:
            self._timetable.run_due(trio.current_time())
            self._wake = trio.Event()
            with trio.move_on_at(self._timetable.next_time):
                await self._wake.wait()

    # ---- what the sockets need ---------------------------------------------------------------------------------

    def register(self, socket: VirtualSocket) -> int:
        """Remember an open socket; its file number."""
        fileno = next(self._filenos)
        self._sockets[fileno] = socket
        return fileno

    def unregister(self, socket: VirtualSocket, fileno: int) -> None:
        """Forget a closed socket, and its listening address."""
        self._sockets.pop(fileno, None)
        for key in [key for key, listener in self._listeners.items() if listener is socket]:
            del self._listeners[key]

    def resolve(self, address: Any) -> tuple[str, int]:
        """(IP address, port) of what a socket call was given; a name this network does not know fails as in DNS."""
        host, port = address[:2]
        host = str(host) or "0.0.0.0"  # noqa: S104 - what an empty host means to bind
        host = self._names.get(host, host)
        try:
            return str(ip_address(host)), int(port)
        except ValueError:
            raise tsocket.gaierror(tsocket.EAI_NONAME, f"no such name in the virtual network: {host}") from None

    def node_of(self, address: str, asker: str) -> str:
        """The node that `address` leads to when `asker` uses it."""
        return asker if ip_address(address).is_loopback else address

    def free_port(self, node: str) -> int:
        """A port of `node` that was not used before."""
        return next(self._ports.setdefault(node, itertools.count(32_768)))

    def bind(self, node: str, address: str, port: int) -> int:
        """Check that `node` may listen at `address`; the port, chosen when it was 0."""
        parsed = ip_address(address)
        if not parsed.is_unspecified and not parsed.is_loopback and address != node:
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        if port and (node, address, port) in self._listeners:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        return port or self.free_port(node)

    def listen(self, socket: VirtualSocket, address: str, port: int) -> None:
        """Lead new connections for `address` and `port` of the socket's node to `socket`."""
        if self._listeners.setdefault((socket.node, address, port), socket) is not socket:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))

    def on_connect(self, client: VirtualSocket, node: str, address: str, port: int) -> None:
        """A connection attempt arrived at `node`: taken, put off while the backlog is full, refused, or unanswered."""
        life = self._lives.get(node)
        if life is None or not life.alive or client.fileno() < 0:
            return
        wildcard = "::" if ":" in address else "0.0.0.0"  # noqa: S104 - the key of a wildcard listener
        listener = self._listeners.get((node, address, port)) or self._listeners.get((node, wildcard, port))
        if listener is None:
            self.transmit("refused", node, client.node, None, 0, partial(client.fail, errno.ECONNREFUSED))
        elif not listener.take(client, address, port):
            self.at(trio.current_time() + 1.0, partial(self.on_connect, client, node, address, port))

    def life(self, node: str) -> Life:
        """The present run of `node`."""
        return self._lives.setdefault(node, Life(node))

    # ---- trio's two hooks --------------------------------------------------------------------------------------

    def socket(
        self,
        family: AddressFamily | int = tsocket.AF_INET,
        type: SocketKind | int = tsocket.SOCK_STREAM,  # noqa: A002 - the name trio passes
        proto: int = 0,
    ) -> VirtualSocket:
        """What `trio.socket.socket` returns for the current node: TCP only."""
        if family not in (tsocket.AF_INET, tsocket.AF_INET6) or type != tsocket.SOCK_STREAM:
            raise OSError(errno.EAFNOSUPPORT, "the virtual network has TCP over IPv4 and IPv6 only")
        _current_check.get()()
        return VirtualSocket(self, _current_node.get(), AddressFamily(family), proto)

    async def getaddrinfo(
        self,
        host: bytes | None,
        port: bytes | str | int | None,
        family: int = 0,
        type: int = 0,  # noqa: A002 - the name trio passes
        proto: int = 0,
        flags: int = 0,
    ) -> list[tuple[Any, ...]]:
        """The one address behind a name given to `name()`."""
        _current_check.get()()
        await trio.lowlevel.checkpoint()
        address, number = self.resolve(((host or b"localhost").decode(), port or 0))
        kind = tsocket.AF_INET6 if ":" in address else tsocket.AF_INET
        where: tuple[Any, ...] = (address, number, 0, 0) if ":" in address else (address, number)
        return [(kind, tsocket.SOCK_STREAM, tsocket.IPPROTO_TCP, "", where)]

    async def getnameinfo(self, sockaddr: tuple[str, int] | tuple[str, int, int, int], flags: int) -> tuple[str, str]:
        """The numeric form: this network has no reverse names."""
        await trio.lowlevel.checkpoint()
        return str(sockaddr[0]), str(sockaddr[1])


@asynccontextmanager
async def open_network(rng: Random, link: Link | None = None, **options: Any) -> AsyncIterator[VirtualNetwork]:
    """A virtual network for all sockets made in this Trio run until the block ends; options as of VirtualNetwork.

    On a `SimulatedClock` its packets are entries of the clock's timetable; on another clock a task delivers them.
    """
    clock = trio.lowlevel.current_clock()
    timetable = clock.timetable if isinstance(clock, SimulatedClock) else None
    network = VirtualNetwork(rng, link, timetable=timetable, **options)
    old_factory = tsocket.set_custom_socket_factory(network)
    old_resolver = tsocket.set_custom_hostname_resolver(network)
    try:
        async with trio.open_nursery() as nursery:
            if timetable is None:
                nursery.start_soon(network.run)
            yield network
            nursery.cancel_scope.cancel()
    finally:
        tsocket.set_custom_socket_factory(old_factory)
        tsocket.set_custom_hostname_resolver(old_resolver)
