"""Writes a stream of bodies to a topic in order, many in flight, across restarts of the server.

The order of one queue holds because a broker stores the requests of one connection in the order in which they came,
and because after any failure everything from the first message without an acknowledgement on is sent again, in order,
before anything newer.  A message sent again may so be stored twice; it keeps its unique id (property UNIQ_KEY), and the
first copies of all messages are in order: a reader that drops the ids it has seen reads exactly what was written.

The one exception: a broker that refuses one message and takes later ones of the same flight.  Such messages are counted
in `WriteStatistics.out_of_order`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass

import anyio
import anyio.abc

from trio_rmq.client.instance import name_server_list
from trio_rmq.client.queue_lookup import QueueAddress, queues_to_write
from trio_rmq.client.route_cache import TEMPLATE_QUEUES, TEMPLATE_TOPIC, RouteCache
from trio_rmq.errors import (
    ClientError,
    ConnectError,
    RemotingError,
    ResponseError,
    RocketMQError,
    RouteNotFoundError,
    SendError,
)
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.headers import SendMessageRequestHeaderV2, SendMessageResponseHeader
from trio_rmq.wire.properties import format_properties

FLIGHT_MESSAGES = 64
"""Messages of one flight: they leave in one write and are waited for together."""

FLIGHTS_MAX = 8
"""Flights unanswered at a time."""

FLIGHT_BYTES = 512 * 1024
IN_FLIGHT_BYTES = 2 * 1024 * 1024
"""A new flight waits while this much is unanswered: below what makes a connection hold a writer back, whose turn would
then no longer be in order."""

REQUEST_SECONDS = 10.0
RETRY_PAUSE_SECONDS = (0.05, 1.0)
"""First and longest pause between two tries."""

_STORED = frozenset({
    ResponseCode.SUCCESS, ResponseCode.FLUSH_DISK_TIMEOUT, ResponseCode.FLUSH_SLAVE_TIMEOUT,
    ResponseCode.SLAVE_NOT_AVAILABLE,
})  # fmt: skip
_WORTH_A_RETRY = frozenset({
    ResponseCode.SYSTEM_ERROR, ResponseCode.SYSTEM_BUSY, ResponseCode.SERVICE_NOT_AVAILABLE,
})  # fmt: skip


@dataclass(slots=True)
class Outgoing:
    """One message on its way: what is sent, and where it was stored once it is acknowledged."""

    body: bytes
    properties: str
    unique_id: str
    queue: QueueAddress
    born_timestamp_ms: int
    queue_offset: int | None = None


@dataclass(slots=True)
class WriteStatistics:
    """What a write did: messages and body bytes acknowledged, messages sent again, and out of order (see module)."""

    messages: int = 0
    body_bytes: int = 0
    resent: int = 0
    out_of_order: int = 0


@dataclass(slots=True)
class _Flight:
    messages: list[Outgoing]
    size_bytes: int
    failure: RocketMQError | None = None
    done: bool = False


class QueueWriter:
    """Writes to one topic; `write` may be called once at a time.

    With `queue_id` everything goes to that queue (of `broker_name`, else of the first broker that has it); without, to
    all queues in turn.  `next_unique_id` and `wall_ms` give ids and born times.  `retry_seconds` is how long a message
    is tried again after the first failure before SendError.  `on_acknowledged(messages)` is called for each flight that
    was stored, in order.
    """

    def __init__(
        self,
        client: RemotingClient,
        name_servers: Sequence[str],
        topic: str,
        *,
        next_unique_id: Callable[[], str],
        wall_ms: Callable[[], int],
        queue_id: int | None = None,
        broker_name: str | None = None,
        producer_group: str = "DEFAULT_PRODUCER",
        tags: str = "",
        keys: str = "",
        retry_seconds: float = 30.0,
        on_acknowledged: Callable[[Sequence[Outgoing]], None] | None = None,
    ) -> None:
        self._client = client
        self._routes = RouteCache(client, name_server_list(name_servers))
        self._topic = topic
        self._next_unique_id = next_unique_id
        self._wall_ms = wall_ms
        self._queue_id = queue_id
        self._broker_name = broker_name
        self._producer_group = producer_group
        self._tags = tags
        self._keys = keys
        self._retry_seconds = retry_seconds
        self._on_acknowledged = on_acknowledged
        self._queues: list[QueueAddress] = []
        self._turn = 0
        self._waiting: deque[_Flight] = deque()
        self._in_flight: deque[_Flight] = deque()
        self._changed = anyio.Event()
        self._ended = False
        self._given_up_at: float | None = None
        self._pause_seconds = RETRY_PAUSE_SECONDS[0]
        self.statistics = WriteStatistics()

    async def write(self, bodies: AsyncIterator[Sequence[bytes]]) -> WriteStatistics:
        """Send all `bodies` (lists of them, as they become available) and return when all are acknowledged.

        SendError when a message was refused for good, or could not be delivered for `retry_seconds`; what came before
        it is stored, as `statistics` tells.  Cancelled, unacknowledged messages may or may not be stored.
        """
        await self._look_up(again=False)
        self._ended = False
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._take, bodies)
                await self._run(group)
        except BaseExceptionGroup as error_group:
            # One of ours alone comes out bare, so that a caller can catch it.
            if len(error_group.exceptions) == 1 and isinstance(error_group.exceptions[0], RocketMQError):
                raise error_group.exceptions[0] from None
            raise
        return self.statistics

    # --- what goes in ----------------------------------------------------------------------------------------------

    async def _take(self, bodies: AsyncIterator[Sequence[bytes]]) -> None:
        """Cut what comes into flights; takes no more while enough wait."""
        async for some in bodies:
            by_broker: dict[str, _Flight] = {}
            for body in some:
                message = self._message(body)
                flight = by_broker.get(message.queue.broker_name)
                if flight is None or len(flight.messages) >= FLIGHT_MESSAGES or flight.size_bytes >= FLIGHT_BYTES:
                    flight = by_broker[message.queue.broker_name] = _Flight([], 0)
                    self._waiting.append(flight)
                flight.messages.append(message)
                flight.size_bytes += len(body) + len(message.properties)
            self._wake()
            while len(self._waiting) > FLIGHTS_MAX:
                await self._changed.wait()
        self._ended = True
        self._wake()

    def _message(self, body: bytes) -> Outgoing:
        queue = self._queues[self._turn % len(self._queues)]
        self._turn += 1
        unique_id = self._next_unique_id()
        properties = {"UNIQ_KEY": unique_id, "WAIT": "true", "TAGS": self._tags or None, "KEYS": self._keys or None}
        return Outgoing(body, format_properties(properties), unique_id, queue, self._wall_ms())

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    # --- what goes out ---------------------------------------------------------------------------------------------

    async def _run(self, group: anyio.abc.TaskGroup) -> None:
        while True:
            changed = self._changed
            if self._in_flight and self._in_flight[0].done:
                if self._in_flight[0].failure is not None:
                    await self._recover()
                else:
                    self._land(self._in_flight.popleft())
            elif self._waiting and self._has_room(self._waiting[0]):
                flight = self._waiting.popleft()
                self._in_flight.append(flight)
                self._wake()
                # `start` returns only after the flight's bytes are queued, so flights keep their order.
                await group.start(self._fly, flight)
            elif self._ended and not self._in_flight and not self._waiting:
                return
            else:
                await changed.wait()

    def _has_room(self, flight: _Flight) -> bool:
        if not self._in_flight:
            return True
        if any(other.failure is not None for other in self._in_flight) or len(self._in_flight) >= FLIGHTS_MAX:
            return False
        return sum(other.size_bytes for other in self._in_flight) + flight.size_bytes <= IN_FLIGHT_BYTES

    async def _fly(self, flight: _Flight, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        try:
            address = flight.messages[0].queue.address
            commands = [self._command(message) for message in flight.messages]
            connection = await self._client.connection(address)
            # From here to the first await inside `request_many` nothing else runs: the bytes are queued by then.
            task_status.started()
            answers = await connection.request_many(commands, REQUEST_SECONDS)
            for message, answer in zip(flight.messages, answers, strict=True):
                self._settle(flight, message, answer)
        except RemotingError as error:
            flight.failure = error
            if isinstance(error, ConnectError):
                task_status.started()
        flight.done = True
        self._wake()

    def _settle(self, flight: _Flight, message: Outgoing, answer: Command | RemotingError) -> None:
        failure: RocketMQError
        if isinstance(answer, RemotingError):
            failure = answer
        elif answer.code in _STORED:
            message.queue_offset = answer.decode_header(SendMessageResponseHeader).queue_offset
            return
        else:
            failure = ResponseError(answer.code, answer.remark, address=message.queue.address)
        if flight.failure is None or _is_final(failure):
            flight.failure = failure

    def _command(self, message: Outgoing) -> Command:
        header = SendMessageRequestHeaderV2(
            producer_group=self._producer_group,
            topic=self._topic,
            default_topic=TEMPLATE_TOPIC,
            default_topic_queue_nums=TEMPLATE_QUEUES,
            queue_id=message.queue.queue_id,
            sys_flag=0,
            born_timestamp=message.born_timestamp_ms,
            flag=0,
            properties=message.properties,
            reconsume_times=0,
            unit_mode=False,
            batch=False,
            broker_name=message.queue.broker_name,
        )
        return Command(RequestCode.SEND_MESSAGE_V2, header=header, body=message.body)

    def _land(self, flight: _Flight) -> None:
        self._given_up_at = None
        self._pause_seconds = RETRY_PAUSE_SECONDS[0]
        self._count(flight.messages)

    def _count(self, messages: Sequence[Outgoing]) -> None:
        self.statistics.messages += len(messages)
        self.statistics.body_bytes += sum(len(message.body) for message in messages)
        if messages and self._on_acknowledged is not None:
            self._on_acknowledged(messages)

    # --- after a failure -------------------------------------------------------------------------------------------

    async def _recover(self) -> None:
        """Let the flights that are out end, and put all that was not stored before what waits, in its order."""
        while not all(flight.done for flight in self._in_flight):
            await self._changed.wait()
        failures = [flight.failure for flight in self._in_flight if flight.failure is not None]
        failure = next((error for error in failures if _is_final(error)), failures[0])
        stored: list[Outgoing] = []
        again: list[_Flight] = []
        unstored_queues: set[QueueAddress] = set()
        for flight in self._in_flight:
            failed: list[Outgoing] = []
            for message in flight.messages:
                if message.queue_offset is None:
                    failed.append(message)
                    unstored_queues.add(message.queue)
                else:
                    stored.append(message)
                    self.statistics.out_of_order += message.queue in unstored_queues
            if failed:
                again.append(_Flight(failed, sum(len(message.body) for message in failed)))
        self._in_flight.clear()
        self._count(stored)
        if _is_final(failure):
            raise SendError(f"a message to {self._topic} was refused: {failure}") from failure
        if stored:
            self._given_up_at = None
        self.statistics.resent += sum(len(flight.messages) for flight in again)
        await self._pause(failure)
        await self._look_up(again=True)
        self._waiting.extendleft(reversed(again))
        self._move(self._waiting)

    async def _pause(self, failure: RocketMQError) -> None:
        now = anyio.current_time()
        if self._given_up_at is None:
            self._given_up_at = now + self._retry_seconds
        if now >= self._given_up_at:
            raise SendError(f"gave up after {self._retry_seconds:g} s without success: {failure}") from failure
        await anyio.sleep(min(self._pause_seconds, self._given_up_at - now))
        self._pause_seconds = min(self._pause_seconds * 2, RETRY_PAUSE_SECONDS[1])

    async def _look_up(self, *, again: bool) -> None:
        """Ask where the queues are, until a name server answers or the time is over.

        With `again` the topic was there before, so a route that is missing now is waited for too.
        """
        while True:
            try:
                queues = await queues_to_write(self._routes, self._topic)
                break
            except RouteNotFoundError as error:
                if not again:
                    raise
                await self._pause(error)
            except (RemotingError, ResponseError) as error:
                await self._pause(error)
        self._queues = self._choose(queues)

    def _choose(self, queues: list[QueueAddress]) -> list[QueueAddress]:
        if self._broker_name is not None:
            queues = [queue for queue in queues if queue.broker_name == self._broker_name]
        if self._queue_id is not None:
            queues = [queue for queue in queues if queue.queue_id == self._queue_id][:1]
        if not queues:
            raise ClientError(
                f"the topic {self._topic} has no such queue (queue {self._queue_id}, broker {self._broker_name})"
            )
        return queues

    def _move(self, flights: Iterable[_Flight]) -> None:
        """A queue keeps its messages; only its broker's address may have changed."""
        addresses = {queue.broker_name: queue.address for queue in self._queues}
        for flight in flights:
            for message in flight.messages:
                queue = message.queue
                address = addresses.get(queue.broker_name, queue.address)
                if address != queue.address:
                    message.queue = QueueAddress(queue.broker_name, queue.queue_id, address)


def _is_final(failure: RocketMQError) -> bool:
    return isinstance(failure, ResponseError) and failure.response_code not in _WORTH_A_RETRY
