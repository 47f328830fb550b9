"""Requests: a message is sent, and who sent it waits for the reply that a consumer of it makes.

A reply comes as a request of a broker (PUSH_REPLY_MESSAGE_TO_CLIENT) to the client it names, over whichever connection
that broker knows the client by.  So before a request leaves, every broker of its cluster is told of this producer: the
reply may go to any of them.  Invariants: a reply is given to the one task that waits for its correlation id, the first
one that comes; a late, repeated or foreign one is acknowledged, as RocketMQ does, and dropped with a line in the log.
One deadline covers all: asking for routes, telling brokers, sending with its tries, waiting.
Source: RocketMQ DefaultMQProducerImpl.request, ClientRemotingProcessor.receiveReplyMessage.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import anyio

from trio_rmq.client.message import ReceivedMessage
from trio_rmq.client.presence import ProducerPresence
from trio_rmq.client.replies import reply_topic
from trio_rmq.client.route_cache import Route, RouteCache
from trio_rmq.clock import wall_ms
from trio_rmq.errors import ProtocolError, RemotingError, RouteNotFoundError
from trio_rmq.randomness import rng
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.remoting.connection import Connection
from trio_rmq.wire import properties as prop
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.groups import MessageQueue
from trio_rmq.wire.headers import ReplyMessageRequestHeader
from trio_rmq.wire.ids import parse_host
from trio_rmq.wire.record import MAGIC_V1, StoredMessage

logger = logging.getLogger(__name__)

INTRODUCE_SHARE = 0.4
"""Of a request's time, what telling brokers of this producer may take at most: one that swallows all packets must not
cost the others their reply."""


class WaitingRequest:
    """One request that waits; `reply` is there once `arrived` is set, unless the producer closed."""

    def __init__(self, client_id: str, seconds: float) -> None:
        self.correlation_id = f"{rng().getrandbits(128):032x}"
        self.arrived = anyio.Event()
        self.reply: ReceivedMessage | None = None
        self.own_properties = {
            prop.CORRELATION_ID: self.correlation_id,
            prop.REPLY_TO_CLIENT: client_id,
            prop.TTL: str(round(seconds * 1000)),
        }
        """RocketMQ's properties of the request."""


class Requests:
    """The requests of one producer that wait for their replies."""

    def __init__(
        self, remoting: RemotingClient, routes: RouteCache, presence: ProducerPresence, client_id: str
    ) -> None:
        self._routes = routes
        self._presence = presence
        self._client_id = client_id
        self._waiting: dict[str, WaitingRequest] = {}
        remoting.register(RequestCode.PUSH_REPLY_MESSAGE_TO_CLIENT, self._pushed)

    @contextmanager
    def waiting(self, seconds: float) -> Iterator[WaitingRequest]:
        """A request whose reply is taken while the block runs; `seconds` is how long, as the other side is told."""
        request = WaitingRequest(self._client_id, seconds)
        self._waiting[request.correlation_id] = request
        try:
            yield request
        finally:
            self._waiting.pop(request.correlation_id, None)

    def close(self) -> None:
        """Wake all who wait: no reply will come."""
        while self._waiting:
            self._waiting.popitem()[1].arrived.set()

    async def introduce(self, topic: str, seconds: float) -> None:
        """Have every broker that a reply may come through know this producer, as far as it goes in the time.

        RouteNotFoundError when the topic has no place.  Errors of servers are left to the send, which meets them too.
        """
        with anyio.move_on_after(seconds * INTRODUCE_SHARE), suppress(RemotingError):
            route = await self._route(topic, may_create=True)
            addresses = route.masters()
            for cluster in route.clusters:
                with suppress(RouteNotFoundError):
                    addresses |= (await self._route(reply_topic(cluster))).masters()
            await self._presence.introduce(addresses)

    async def _route(self, topic: str, *, may_create: bool = False) -> Route:
        known = self._routes.cached(topic, anyio.current_time())
        return known or await self._routes.route(topic, may_create=may_create)

    async def _pushed(self, connection: Connection, command: Command) -> Command:
        """326: a reply; SUCCESS tells who replied that it is here, whoever wants it."""
        try:
            stored = _stored_reply(command, wall_ms())
        except ProtocolError as error:
            logger.warning("broker %s passes on a reply that cannot be read: %s", connection.address, error)
            return command.reply(ResponseCode.SYSTEM_ERROR, remark=f"process reply message fail: {error}")
        queue = MessageQueue(topic=stored.topic, broker_name=connection.address, queue_id=stored.queue_id)
        reply = ReceivedMessage.from_record(stored, queue)
        correlation_id = reply.properties.get(prop.CORRELATION_ID, "")
        request = self._waiting.pop(correlation_id, None)
        if request is None:
            logger.warning(
                "the reply %s of %s is dropped: no request %s waits here; it came late, twice or to the wrong client",
                reply.message_id, reply.born_host, correlation_id or "without correlation id",
            )  # fmt: skip
        else:
            request.reply = reply
            request.arrived.set()
        return command.reply()


def _stored_reply(command: Command, arrived_ms: int) -> StoredMessage:
    """The pushed reply as a record: without a place in a log; ProtocolError when a field cannot be read."""
    header = command.decode_header(ReplyMessageRequestHeader)
    text = prop.with_property(header.properties or "", prop.ARRIVE_TIME, str(arrived_ms))
    return StoredMessage(
        size_bytes=0,
        magic=MAGIC_V1,
        body_crc=0,
        queue_id=header.queue_id,
        flag=header.flag,
        queue_offset=0,
        physical_offset=0,
        sys_flag=header.sys_flag,
        born_timestamp_ms=header.born_timestamp,
        born_host=parse_host(header.born_host),
        store_timestamp_ms=header.store_timestamp,
        store_host=parse_host(header.store_host),
        reconsume_times=header.reconsume_times or 0,
        prepared_transaction_offset=0,
        body=command.body,
        topic=header.topic,
        properties=text.encode(),
    )
