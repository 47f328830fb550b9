"""Which queue a message goes to: the next in turn, or the one a selector picks by an argument.

A selector is a plain function of the topic's writable queues, in the order all clients share (by broker name, then
number), the message and the argument.  Java's clients, given the same queues and an equal text, pick the same one.
Source: RocketMQ TopicPublishInfo, MQFaultStrategy, SelectMessageQueueByHash, -ByRandom, -ByMachineRoom.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from trio_rmq.client.latency_fault import LatencyFaults
from trio_rmq.client.message import Message
from trio_rmq.client.route_cache import Route
from trio_rmq.errors import ClientError, RouteNotFoundError
from trio_rmq.randomness import rng
from trio_rmq.wire.groups import MessageQueue
from trio_rmq.wire.hashing import java_string_hash

QueueSelector = Callable[[Sequence[MessageQueue], Message, object], MessageQueue]
"""(writable queues, at least one; the message; the argument given with it) -> one of the queues."""

ROOM_SEPARATOR = "@"
"""Between the machine room and the rest of a broker's name."""


def select_by_hash(queues: Sequence[MessageQueue], message: Message, key: object) -> MessageQueue:
    """Equal keys, equal queues: Java's hashCode of a text, or of a number within 32 bits, or of a truth value."""
    return queues[abs(java_hash(key)) % len(queues)]


def select_randomly(queues: Sequence[MessageQueue], message: Message, argument: object) -> MessageQueue:
    """Any of them."""
    return queues[rng().randrange(len(queues))]


def select_by_machine_room(*rooms: str) -> QueueSelector:
    """Any queue of the brokers in these rooms, whose names begin `ROOM@`; ClientError when no broker is in one.

    RocketMQ's class of this name has the rooms and selects nothing.
    """
    wanted = frozenset(rooms)

    def select(queues: Sequence[MessageQueue], message: Message, argument: object) -> MessageQueue:
        near = [queue for queue in queues if _room(queue.broker_name) in wanted]
        if not near:
            raise ClientError(
                f"no broker of {message.topic} is in {', '.join(sorted(wanted))}: its queues are at "
                f"{', '.join(sorted({queue.broker_name for queue in queues}))}"
            )
        return near[rng().randrange(len(near))]

    return select


def _room(broker_name: str) -> str | None:
    room, separator, _ = broker_name.partition(ROOM_SEPARATOR)
    return room if separator else None


def java_hash(value: object) -> int:
    """Java's `hashCode` of a String, Boolean, Integer or Long; ClientError for what Java would hash by address."""
    if isinstance(value, str):
        return java_string_hash(value)
    if isinstance(value, bool):
        return 1231 if value else 1237
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        if -(2**31) <= value < 2**31:
            return value  # Integer's; Long's is the same from 0 on
        folded = (value ^ (value >> 32)) & 0xFFFFFFFF
        return folded - 0x100000000 if folded & 0x80000000 else folded
    raise ClientError(f"{type(value).__name__} has no hash that all programs agree on: give a text or a 64-bit number")


class QueueTurns:
    """Round robin over each topic's queues; with `faults` it stays away from slow and failed brokers."""

    def __init__(self, faults: LatencyFaults | None = None) -> None:
        self.faults = faults
        self._turns: dict[str, int] = {}

    def next_queue(self, route: Route, avoid: Collection[str], now: float, preferred: str = "") -> MessageQueue:
        """The next queue in turn, on a broker that is not in `avoid` if there is one; RouteNotFoundError without any.

        With nobody to avoid it is one of the broker `preferred`, if that has any.  `now` is the time of anyio's clock.
        """
        queues = route.write_queues
        count = len(queues)
        if not count:
            raise RouteNotFoundError(f"no broker has a writable queue of {route.topic} now")
        turn = self._turns.get(route.topic)
        if turn is None:
            turn = rng().randrange(count)
        if preferred and not avoid:
            near = [queue for queue in queues if queue.broker_name == preferred]
            if near:
                self._turns[route.topic] = turn + 1
                return near[turn % len(near)]
        if not avoid and self.faults is None:
            self._turns[route.topic] = turn + 1
            return queues[turn % count]
        return self._picked(route, avoid, now, turn)

    def _picked(self, route: Route, avoid: Collection[str], now: float, turn: int) -> MessageQueue:
        queues, faults = route.write_queues, self.faults
        count = len(queues)
        self._turns[route.topic] = turn + 1
        for step in range(count):
            queue = queues[(turn + step) % count]
            if queue.broker_name not in avoid and (faults is None or faults.is_available(queue.broker_name, now)):
                self._turns[route.topic] = turn + step + 1
                return queue
        brokers = list(dict.fromkeys(queue.broker_name for queue in queues))
        others = [name for name in brokers if name not in avoid] or brokers
        best = faults.least_bad(others, now) if faults is not None else None
        wanted = {best} if best is not None else set(others)
        return next(queue for step in range(count) if (queue := queues[(turn + step) % count]).broker_name in wanted)
