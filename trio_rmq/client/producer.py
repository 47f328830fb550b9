"""The producer: sends messages, each acknowledged before `send` returns.

Queues are used in turn; a try that fails goes to another broker, at most `retry_times` times more, all under one
deadline.  Any number of tasks may send at once: their requests share connections and writes.  The error after the last
try says what each met.  Source of the rules: RocketMQ DefaultMQProducerImpl.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from types import TracebackType

import anyio

from trio_rmq.client.instance import DEFAULT_HOST, name_server_addresses, new_client_id, process_id
from trio_rmq.client.message import Message, SendResult, SendStatus
from trio_rmq.client.route_cache import TEMPLATE_QUEUES, TEMPLATE_TOPIC, Route, RouteCache
from trio_rmq.clock import wall_ms
from trio_rmq.errors import ClientError, RemotingError, ResponseError, RouteNotFoundError, SendError
from trio_rmq.randomness import rng
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command, SerializeType
from trio_rmq.wire.groups import MessageQueue
from trio_rmq.wire.headers import SendMessageRequestHeader, SendMessageRequestHeaderV2, SendMessageResponseHeader
from trio_rmq.wire.ids import UniqueIdGenerator

logger = logging.getLogger(__name__)

RETRYABLE_CODES = frozenset({
    ResponseCode.TOPIC_NOT_EXIST, ResponseCode.SERVICE_NOT_AVAILABLE, ResponseCode.SYSTEM_ERROR,
    ResponseCode.SYSTEM_BUSY, ResponseCode.NO_PERMISSION, ResponseCode.NO_BUYER_ID, ResponseCode.NOT_IN_CURRENT_UNIT,
})  # fmt: skip
"""Answers after which another broker may take the message."""

_STORED = {int(ResponseCode.SUCCESS): SendStatus.SEND_OK} | {
    status.value: status for status in SendStatus if status is not SendStatus.SEND_OK
}


class Producer:
    """Sends messages; an async context manager.

        async with Producer(name_servers="127.0.0.1:9876") as producer:
            result = await producer.send(Message("Greetings", b"hello"))

    `name_servers` is `host:port` or `ws://host:port`, several separated by `;`, or a sequence of them; without it the
    environment's NAMESRV_ADDR counts.  `timeout_seconds` bounds a send with all its tries.
    """

    def __init__(
        self,
        *,
        name_servers: str | Sequence[str] | None = None,
        group: str = "DEFAULT_PRODUCER",
        timeout_seconds: float = 3.0,
        retry_times: int = 2,
        serialize_type: SerializeType = SerializeType.JSON,
    ) -> None:
        self.group = group
        self.client_id = new_client_id()
        self._timeout_seconds = timeout_seconds
        self._retry_times = retry_times
        self._remoting = RemotingClient(serialize_type=serialize_type)
        self._routes = RouteCache(self._remoting, name_server_addresses(name_servers))
        self._unique_ids = UniqueIdGenerator(DEFAULT_HOST, process_id(), rng().getrandbits(32))
        self._turns: dict[str, int] = {}
        self._open = False

    async def __aenter__(self) -> Producer:
        await self._remoting.__aenter__()
        self._open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open = False
        await self._remoting.__aexit__(kind, error, traceback)

    async def send(
        self, message: Message, *, queue: MessageQueue | None = None, timeout_seconds: float | None = None
    ) -> SendResult:
        """Send and wait for the broker's acknowledgement; `queue` chooses the queue, and then there is one try.

        SendError says what each try met; ClientError when the message or the topic cannot be used.  Cancelled, or
        after a SendError by time-out, the message may or may not be stored.
        """
        self._check_open()
        message.check()
        seconds = self._timeout_seconds if timeout_seconds is None else timeout_seconds
        deadline = anyio.current_time() + seconds
        unique_id = self._unique_ids.next_id(wall_ms())
        text = message.properties_text(unique_id)
        tries: list[str] = []
        failed_brokers: set[str] = set()
        may_retry = queue is None
        for _ in range(self._retry_times + 1 if may_retry else 1):
            left = deadline - anyio.current_time()
            if left <= 0:
                tries.append(f"no time was left of {seconds:g} s")
                break
            try:
                with anyio.fail_after(left):
                    route = await self._routes.route(message.topic, may_create=True)
            except (RemotingError, TimeoutError) as error:
                tries.append(f"asking the name servers: {error or 'no answer in time'}")
                break
            chosen = queue or self._next_queue(route, failed_brokers)
            address = route.master(chosen.broker_name)
            if address is None:
                raise RouteNotFoundError(f"broker {chosen.broker_name} of {chosen} has no master now")
            try:
                return await self._send_once(message, text, unique_id, chosen, address, deadline - anyio.current_time())
            except RemotingError as error:
                tries.append(f"{address}: {error}")
            except ResponseError as error:
                tries.append(f"{address}: answered {error.response_code}, {error.remark}")
                if error.response_code not in RETRYABLE_CODES:
                    break
            failed_brokers.add(chosen.broker_name)
        raise SendError(
            f"the message to {message.topic} was not acknowledged after {len(tries)} tries: " + "; ".join(tries)
        )

    async def send_oneway(self, message: Message, *, queue: MessageQueue | None = None) -> None:
        """Send without waiting for an answer: nothing tells whether it arrives.  Errors as for `send` before that."""
        self._check_open()
        message.check()
        unique_id = self._unique_ids.next_id(wall_ms())
        route = await self._routes.route(message.topic, may_create=True)
        chosen = queue or self._next_queue(route, set())
        address = route.master(chosen.broker_name)
        if address is None:
            raise RouteNotFoundError(f"broker {chosen.broker_name} of {chosen} has no master now")
        command = self._command(message, message.properties_text(unique_id), chosen, address)
        await self._remoting.request_oneway(address, command, self._timeout_seconds)

    async def queues(self, topic: str) -> list[MessageQueue]:
        """The queues of a topic that can be written; RouteNotFoundError when nobody knows it."""
        self._check_open()
        return list((await self._routes.route(topic)).write_queues)

    async def refresh_route(self, topic: str) -> None:
        """Ask the name servers for the topic's place now; while none answers, what is known stays good."""
        self._check_open()
        await self._routes.refresh(topic)

    async def _send_once(
        self, message: Message, text: str, unique_id: str, queue: MessageQueue, address: str, seconds: float
    ) -> SendResult:
        answer = await self._remoting.request(address, self._command(message, text, queue, address), seconds)
        status = _STORED.get(answer.code)
        if status is None:
            raise ResponseError(answer.code, answer.remark, address=address)
        header = answer.decode_header(SendMessageResponseHeader)
        stored_in = MessageQueue(topic=queue.topic, broker_name=queue.broker_name, queue_id=header.queue_id)
        return SendResult(status, unique_id, header.msg_id, stored_in, header.queue_offset)

    def _command(self, message: Message, text: str, queue: MessageQueue, address: str) -> Command:
        # CBOR carries the long names; TCP the short ones, as RocketMQ's own clients do.
        over_websocket = address.startswith("ws://")
        header_type = SendMessageRequestHeader if over_websocket else SendMessageRequestHeaderV2
        header = header_type(
            producer_group=self.group,
            topic=message.topic,
            default_topic=TEMPLATE_TOPIC,
            default_topic_queue_nums=TEMPLATE_QUEUES,
            queue_id=queue.queue_id,
            sys_flag=0,
            born_timestamp=wall_ms(),
            flag=message.flag,
            properties=text,
            reconsume_times=0,
            unit_mode=False,
            batch=False,
        )
        code = RequestCode.SEND_MESSAGE if over_websocket else RequestCode.SEND_MESSAGE_V2
        return Command(code, header=header, body=message.body)

    def _next_queue(self, route: Route, avoid: set[str]) -> MessageQueue:
        """The next queue in turn, on a broker that has not failed this message if there is one."""
        queues = route.write_queues
        if not queues:
            raise RouteNotFoundError(f"no broker has a writable queue of {route.topic} now")
        turn = self._turns.get(route.topic)
        if turn is None:
            turn = rng().randrange(len(queues))
        for step in range(len(queues)):
            queue = queues[(turn + step) % len(queues)]
            if queue.broker_name not in avoid:
                self._turns[route.topic] = turn + step + 1
                return queue
        self._turns[route.topic] = turn + 1
        return queues[turn % len(queues)]

    def _check_open(self) -> None:
        if not self._open:
            raise ClientError("the producer is not open: use it inside `async with`")
