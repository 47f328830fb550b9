"""Groups of mixed make at our broker: Java, Go or Node consumers and ours share queues, come, leave, are killed.

Each member is a process that tells each message with the time of its listener call; messages are sent all the while.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import anyio.abc
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream

from tests.interop.peers import (
    HERE,
    PeerError,
    go_peer,
    java_peer_class_path,
    need,
    node_modules,
    our_broker,
    our_name_server,
)
from trio_rmq.client import Message, Producer
from trio_rmq.testing.apache_java import JAVA_OPENS

pytestmark = [pytest.mark.interop, pytest.mark.anyio]
LIMIT_SECONDS = 150
QUEUES = 4


@pytest.fixture
def anyio_backend() -> str:
    return "trio"


@pytest.fixture(scope="module")
def namesrv(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    scratch = tmp_path_factory.mktemp("mixed")
    with our_name_server(scratch) as names, our_broker(scratch, names.address):
        yield names.address


def java(version: str, scratch: Path) -> list[str]:
    return [
        need("java"), "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xmx256m", *JAVA_OPENS,
        f"-Duser.home={scratch}", f"-Drocketmq.client.logRoot={scratch}", "-cp", java_peer_class_path(version),
        "interop.GroupPeer",
    ]  # fmt: skip


COMMANDS: Mapping[str, Callable[[Path], list[str]]] = {
    "java 4.9.8": partial(java, "4.9.8"),
    "java 5.3.3": partial(java, "5.3.3"),
    "go": lambda scratch: [str(go_peer())],
    "node": lambda scratch: [need("node"), str(HERE / "node" / "group_peer.js")],
    "ours": lambda scratch: [sys.executable, str(HERE / "our_member.py")],
}


class Member:
    """A running member; `got` has (microseconds, queue, offset, body) of each message it was given."""

    def __init__(self, kind: str, process: anyio.abc.Process, told: Callable[[], None]) -> None:
        self.kind = kind
        self.got: list[tuple[int, int, int, str]] = []
        self.is_ready = False
        self._process = process
        self._told = told

    async def read(self) -> None:
        """Take in what it says, until it ends."""
        assert self._process.stdout is not None
        lines = BufferedByteReceiveStream(self._process.stdout)
        while True:
            try:
                words = (await lines.receive_until(b"\n", 65_536)).decode().split()
            except (anyio.EndOfStream, anyio.IncompleteRead):
                break
            if words[:1] == ["GOT"]:
                self.got.append((int(words[1]), int(words[2]), int(words[3]), words[4]))
            self.is_ready |= words == ["READY"]
            self._told()

    async def leave(self) -> None:
        """Have it end in order."""
        assert self._process.stdin is not None
        await self._process.stdin.aclose()
        assert await self._process.wait() == 0, self.kind

    async def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        await self._process.wait()


class Group:
    """One group's members, and the messages sent for it."""

    def __init__(self, namesrv: str, topic: str, how: str, scratch: Path, tasks: anyio.abc.TaskGroup) -> None:
        self.members: list[Member] = []
        self.sent = 0
        self._words = [namesrv, topic, f"G_{topic}", how]
        self._scratch = scratch
        self._tasks = tasks
        self._told = anyio.Event()

    def tell(self) -> None:
        self._told.set()
        self._told = anyio.Event()

    async def until(self, what: str, wanted: Callable[[], bool]) -> None:
        with anyio.move_on_after(LIMIT_SECONDS):
            while not wanted():
                await self._told.wait()
            return
        counts = ", ".join(f"{member.kind} got {len(member.got)}" for member in self.members)
        raise PeerError(f"not within {LIMIT_SECONDS} s: {what}; sent {self.sent}, {counts}")

    async def join(self, kind: str) -> Member:
        """Start a member and wait until it has a share of the messages."""
        process = await anyio.open_process(
            [*COMMANDS[kind](self._scratch), *self._words],
            stderr=sys.stderr,
            env={**os.environ, "NODE_PATH": str(node_modules()) if kind == "node" else ""},
        )
        member = Member(kind, process, self.tell)
        self.members.append(member)
        self._tasks.start_soon(member.read)
        await self.until(f"{kind} joins", lambda: member.is_ready)
        before = {id(other): len(other.got) for other in self.members}
        await self.until(f"{kind} gets messages", lambda: len(member.got) > before[id(member)] + 10)
        return member

    async def all_queues(self, member: Member) -> None:
        """Wait until a member is given messages of every queue."""
        begin = len(member.got)
        await self.until(
            f"{member.kind} has all queues", lambda: len({queue for _, queue, _, _ in member.got[begin:]}) == QUEUES
        )

    def observed(self) -> list[tuple[int, int, int, str]]:
        return sorted(got for member in self.members for got in member.got)


@asynccontextmanager
async def sending(namesrv: str, topic: str, how: str, scratch: Path) -> AsyncIterator[Group]:
    """A group, and a producer that sends all the while; afterwards everything sent was consumed."""
    async with Producer(name_servers=namesrv) as producer, anyio.create_task_group() as tasks:
        group = Group(namesrv, topic, how, scratch, tasks)
        place = (await producer.send(Message(topic, b"0"))).queue
        group.sent = 1
        stop = anyio.Event()

        async def send() -> None:
            while not stop.is_set():
                queue = type(place)(topic=topic, broker_name=place.broker_name, queue_id=group.sent % QUEUES)
                await producer.send(Message(topic, b"%d" % group.sent), queue=queue)
                group.sent += 1
                with anyio.move_on_after(0.005):
                    await stop.wait()

        tasks.start_soon(send)
        try:
            yield group
            stop.set()
            await group.until(
                "everything is consumed", lambda: len({body for _, _, _, body in group.observed()}) == group.sent
            )
        finally:
            for member in group.members:
                with anyio.CancelScope(shield=True):
                    await member.kill()
            tasks.cancel_scope.cancel()


def first_times(observed: Sequence[tuple[int, int, int, str]]) -> dict[int, list[int]]:
    """Of each queue the offsets in the order in which each was given to somebody first."""
    firsts: dict[int, list[int]] = {}
    seen = set()
    for _, queue, offset, _ in observed:
        if (queue, offset) not in seen:
            seen.add((queue, offset))
            firsts.setdefault(queue, []).append(offset)
    return firsts


@pytest.mark.parametrize("peer", ["java 4.9.8", "java 5.3.3", "go", "node"])
async def test_every_message_is_consumed_whoever_comes_and_goes(namesrv: str, peer: str, tmp_path: Path) -> None:
    topic = f"Mixed_{peer.replace(' ', '_').replace('.', '_')}"
    async with sending(namesrv, topic, "concurrent", tmp_path) as group:
        theirs = await group.join(peer)
        ours = await group.join("ours")
        await group.until("both get on", lambda: all(len(member.got) > 50 for member in group.members))
        await theirs.leave()
        await group.all_queues(ours)
        again = await group.join(peer)
        await ours.kill()
        await group.all_queues(again)


@pytest.mark.slow  # the locks of a member that is killed last for a minute
@pytest.mark.parametrize("peer", ["java 4.9.8", "java 5.3.3", "go"])
async def test_ordered_stays_ordered_whoever_comes_and_goes(namesrv: str, peer: str, tmp_path: Path) -> None:
    topic = f"Ordered_{peer.replace(' ', '_').replace('.', '_')}"
    async with sending(namesrv, topic, "orderly", tmp_path) as group:
        ours = await group.join("ours")
        theirs = await group.join(peer)
        await group.until("both get on", lambda: all(len(member.got) > 50 for member in group.members))
        await ours.leave()
        await group.all_queues(theirs)
        again = await group.join("ours")
        await theirs.kill()  # its locks last for a minute
        await group.all_queues(again)
    firsts = first_times(group.observed())
    assert set(firsts) == set(range(QUEUES))
    for queue, offsets in firsts.items():
        assert offsets == sorted(offsets), queue
