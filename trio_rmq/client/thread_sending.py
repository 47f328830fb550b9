"""A send's first try in the thread that calls, over a connection that is its own meanwhile; the loop has the others.

For the blocking producer: a thread that sends one message after another would otherwise wait for two switches of
threads a message.  What the loop keeps - routes, heartbeats - is read here and never changed; what a try met goes to
`Sender.send`, which goes on as if it had made the try itself.  Invariants: any thread may send at any time, without a
lock; a connection has one thread at a time; every try sends the same bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from trio_rmq.client.message import Message, SendResult
from trio_rmq.client.namespace import with_namespace
from trio_rmq.client.outgoing import OutgoingMaker
from trio_rmq.client.queue_choice import QueueTurns
from trio_rmq.client.replies import ReplyMessage
from trio_rmq.client.route_cache import RouteCache
from trio_rmq.client.sending import CONNECT_SHARE, Sender, Tried
from trio_rmq.errors import ProtocolError, RemotingError, ResponseError
from trio_rmq.remoting.thread_connection import ThreadConnection, thread_time
from trio_rmq.wire.command import SerializeType
from trio_rmq.wire.groups import MessageQueue

CONNECTIONS_MAX = 64
"""Most connections to one broker: so many threads send at a time, more share the loop's.  Sharing batches writes, and
yet costs a client four times the CPU: every answer passes the interpreter's lock from the loop to its thread and back.
"""


class _Lane:
    """What one thread has at a time: a connection, if it was used before, and a maker, whose ids are its own."""

    __slots__ = ("connection", "maker")

    def __init__(self, maker: OutgoingMaker) -> None:
        self.maker = maker
        self.connection: ThreadConnection | None = None

    def close(self) -> None:
        """Close its connection."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None


class ThreadSender:
    """First tries of one producer's sends; `make_maker` makes a maker like the producer's."""

    def __init__(
        self,
        sender: Sender,
        routes: RouteCache,
        make_maker: Callable[[], OutgoingMaker],
        *,
        namespace: str,
        serialize_type: SerializeType,
    ) -> None:
        self._sender = sender
        self._routes = routes
        self._make_maker = make_maker
        self._namespace = namespace
        self._serialize_type = serialize_type
        self._turns = QueueTurns()
        self._lanes: dict[str, deque[_Lane | None]] = {}
        """Those that are free, by address, None for one that was never used; the one last used is the next."""
        self._closed = False

    def send(
        self, message: Message, queue: MessageQueue | None, timeout_seconds: float | None
    ) -> SendResult | Tried | None:
        """Send and wait for the acknowledgement: the result, or the try that failed; None when the loop must try first.

        Errors of a message or topic that cannot be used as of Producer.send.
        """
        topic = with_namespace(self._namespace, message.topic) if self._namespace else message.topic
        route = self._routes.settled(topic)
        if route is None or isinstance(message, ReplyMessage):
            return None
        chosen = self._turns.next_queue(route, (), 0.0) if queue is None else queue
        address = route.master(chosen.broker_name)
        if address is None or "://" in address:
            return None
        lanes = self._lanes.get(address)
        if lanes is None:
            lanes = self._lanes.setdefault(address, deque([None] * CONNECTIONS_MAX))
        try:
            lane = lanes.pop() or _Lane(self._make_maker())
        except IndexError:
            return None
        try:
            return self._try(lane, message, chosen, address, self._sender.first_try_seconds(queue, timeout_seconds))
        finally:
            lanes.append(lane)
            if self._closed:
                lane.close()

    def _try(
        self, lane: _Lane, message: Message, queue: MessageQueue, address: str, seconds: float
    ) -> SendResult | Tried:
        outgoing = lane.maker.make(message)
        began, left = thread_time(), seconds
        try:
            connection = lane.connection
            if connection is None or not connection.is_usable():
                lane.close()
                connection = lane.connection = ThreadConnection(address, seconds * CONNECT_SHARE)
                left = began + seconds - thread_time()
            command = self._sender.command(outgoing, queue, address)
            command.serialize_type = self._serialize_type
            answer = connection.request(command, left)
            return self._sender.result(outgoing, queue, address, answer)
        except (RemotingError, ResponseError, ProtocolError) as error:
            if isinstance(error, RemotingError):
                lane.close()
            return Tried(outgoing, queue, error, thread_time() - began)
        except BaseException:
            lane.close()
            raise

    def close(self) -> None:
        """Close all connections; one that is in use, after its send."""
        self._closed = True
        for lanes in list(self._lanes.values()):
            for lane in list(lanes):
                if lane is not None:
                    lane.close()
