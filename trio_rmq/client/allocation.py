"""Which of a topic's queues each member of a group consumes: the same answer at every member, without talking.

Invariants: a strategy is a pure function of its arguments, and every member gives it the same queues and the same
client ids in the same order, so that all members together take each queue once (`AllocateByConfig` leaves that to its
user).  The answers equal Java's, also for client ids that occur twice.
Source: RocketMQ AllocateMessageQueueAveragely and its neighbours, ConsistentHashRouter.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from trio_rmq.errors import ClientError
from trio_rmq.shares import share_averagely, share_by_circle
from trio_rmq.wire.groups import MessageQueue

VIRTUAL_NODES = 10
"""Places of each member on the ring of consistent hashing, as Java's default."""


class Allocation(Protocol):
    """A strategy: any function, or object that is called like one, with these arguments.  Write your own likewise."""

    def __call__(
        self, client_id: str, queues: Sequence[MessageQueue], client_ids: Sequence[str], /
    ) -> list[MessageQueue]:
        """The queues of `client_id`, given all queues and all members in order; none for who is no member."""
        ...


def allocate_averagely(client_id: str, queues: Sequence[MessageQueue], client_ids: Sequence[str]) -> list[MessageQueue]:
    """Consecutive queues, as many for each as for the others, the first members having one more when they must."""
    return share_averagely(client_id, queues, client_ids)


def allocate_averagely_by_circle(
    client_id: str, queues: Sequence[MessageQueue], client_ids: Sequence[str]
) -> list[MessageQueue]:
    """One queue for each member in turn, as cards are dealt."""
    return share_by_circle(client_id, queues, client_ids)


class AllocateByConfig:
    """Always the queues given here, whoever else there is."""

    def __init__(self, queues: Sequence[MessageQueue]) -> None:
        self._queues = list(queues)

    def __call__(
        self, client_id: str, queues: Sequence[MessageQueue], client_ids: Sequence[str], /
    ) -> list[MessageQueue]:
        """The configured queues; the arguments do not matter."""
        return list(self._queues)


class AllocateByMachineRoom:
    """Only queues of brokers in `rooms`, a broker being named `room@name`; the members share them evenly.

    The first queues go in consecutive parts; those left over go to the first members, one each.
    """

    def __init__(self, rooms: Collection[str]) -> None:
        self._rooms = frozenset(rooms)

    def __call__(
        self, client_id: str, queues: Sequence[MessageQueue], client_ids: Sequence[str], /
    ) -> list[MessageQueue]:
        """The member's part of the queues in these rooms."""
        if client_id not in client_ids:
            return []
        index = client_ids.index(client_id)
        near = [queue for queue in queues if _room_in_name(queue.broker_name) in self._rooms]
        share, rest = divmod(len(near), len(client_ids))
        own = near[index * share : (index + 1) * share]
        if index < rest:
            own.append(near[share * len(client_ids) + index])
        return own


def _room_in_name(broker_name: str) -> str | None:
    """`room` of `room@name`; bars at the end do not count, as with Java's `split`."""
    parts = broker_name.rstrip("@").split("@")
    return parts[0] if len(parts) == 2 else None


class AllocateMachineRoomNearby:
    """Queues go to members in the same machine room; queues of rooms without members are shared by all.

    `room_of_queue` and `room_of_client` say where a queue's broker and a member stand; `inner` shares out within.
    """

    def __init__(
        self,
        room_of_queue: Callable[[MessageQueue], str],
        room_of_client: Callable[[str], str],
        *,
        inner: Allocation = allocate_averagely,
    ) -> None:
        self._room_of_queue = room_of_queue
        self._room_of_client = room_of_client
        self._inner = inner

    def __call__(
        self, client_id: str, queues: Sequence[MessageQueue], client_ids: Sequence[str], /
    ) -> list[MessageQueue]:
        """The queues of the member's own room, then its part of each deserted room's, rooms in Java's order of names.

        ClientError when a queue or a member has no room.
        """
        if client_id not in client_ids:
            return []
        queues_in: dict[str, list[MessageQueue]] = {}
        for queue in queues:
            queues_in.setdefault(_named(self._room_of_queue(queue), queue), []).append(queue)
        members_in: dict[str, list[str]] = {}
        for member in client_ids:
            members_in.setdefault(_named(self._room_of_client(member), member), []).append(member)
        here = self._room_of_client(client_id)
        own: list[MessageQueue] = []
        if here in queues_in:
            own += self._inner(client_id, queues_in[here], members_in[here])
        for room in sorted(queues_in.keys() - members_in.keys(), key=_java_order):
            own += self._inner(client_id, queues_in[room], client_ids)
        return own


def _named(room: str, what: object) -> str:
    if not room:
        raise ClientError(f"{what} stands in no machine room: let the resolver name one")
    return room


def _java_order(text: str) -> bytes:
    """Java compares strings by UTF-16 code units."""
    return text.encode("utf-16-be", "surrogatepass")


class AllocateByConsistentHash:
    """Each queue goes to the next member on a ring of hashes: a change of members moves few queues.

    Each member stands at `virtual_nodes` places; with none, nobody gets a queue.  `hash_function` gives the place of a
    text, by default the first four bytes of its MD5.
    """

    def __init__(
        self, virtual_nodes: int = VIRTUAL_NODES, *, hash_function: Callable[[str], int] | None = None
    ) -> None:
        if virtual_nodes < 0:
            raise ClientError(f"{virtual_nodes} virtual nodes are impossible: give 0 or more")
        self._virtual_nodes = virtual_nodes
        self._hash = hash_function or _md5_place

    def __call__(
        self, client_id: str, queues: Sequence[MessageQueue], client_ids: Sequence[str], /
    ) -> list[MessageQueue]:
        """The queues whose next place on the ring is one of the member's."""
        if client_id not in client_ids:
            return []
        ring = self._ring(client_ids)
        places = sorted(ring)
        if not places:
            return []
        own = []
        for queue in queues:
            index = bisect_left(places, self._hash(_java_text(queue)))
            if ring[places[index % len(places)]] == client_id:
                own.append(queue)
        return own

    def _ring(self, client_ids: Sequence[str]) -> dict[int, str]:
        """The member at each place; at a place hit twice the later one."""
        ring: dict[int, str] = {}
        seen: set[str] = set()
        for member in client_ids:
            # An id that comes again takes further places, numbered after those it still has.
            first = sum(holder == member for holder in ring.values()) if member in seen else 0
            seen.add(member)
            for number in range(first, first + self._virtual_nodes):
                ring[self._hash(f"{member}-{number}")] = member
        return ring


def _md5_place(text: str) -> int:
    return int.from_bytes(hashlib.md5(text.encode(), usedforsecurity=False).digest()[:4], "big")


def _java_text(queue: MessageQueue) -> str:
    """A queue as Java prints it, which is what is hashed."""
    return f"MessageQueue [topic={queue.topic}, brokerName={queue.broker_name}, queueId={queue.queue_id}]"
