"""One message to one broker or, after failures, to others: queue, tries, deadline, and what to say when all failed.

`Sender` is what every kind of producer sends with: plain, transactional, replying.  It owns no task.  Invariants: each
try sends the same bytes; a try goes to a broker that has not failed this message if there is one; the deadline covers
route, connecting and all tries.  Source of the rules: RocketMQ DefaultMQProducerImpl.sendDefaultImpl.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import anyio
import msgspec

from trio_rmq.client.message import Message, SendResult, SendStatus
from trio_rmq.client.outgoing import Outgoing
from trio_rmq.client.queue_choice import QueueTurns
from trio_rmq.client.route_cache import TEMPLATE_QUEUES, TEMPLATE_TOPIC, Route, RouteCache
from trio_rmq.client.send_interceptors import Sending, SendInterceptor, intercepted
from trio_rmq.errors import ConnectError, ProtocolError, RemotingError, ResponseError, RouteNotFoundError, SendError
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.groups import MessageQueue
from trio_rmq.wire.headers import SendMessageRequestHeader, SendMessageRequestHeaderV2

RETRYABLE_CODES = frozenset({
    ResponseCode.TOPIC_NOT_EXIST, ResponseCode.SERVICE_NOT_AVAILABLE, ResponseCode.SYSTEM_ERROR,
    ResponseCode.SYSTEM_BUSY, ResponseCode.NO_PERMISSION, ResponseCode.NO_BUYER_ID, ResponseCode.NOT_IN_CURRENT_UNIT,
})  # fmt: skip
"""Answers after which another broker may take the message."""

_STORED = {status.value: status for status in SendStatus}
_SEND_MESSAGE = int(RequestCode.SEND_MESSAGE)
_SEND_MESSAGE_V2 = int(RequestCode.SEND_MESSAGE_V2)
_SEND_BATCH_MESSAGE = int(RequestCode.SEND_BATCH_MESSAGE)
_SEND_REPLY_MESSAGE = int(RequestCode.SEND_REPLY_MESSAGE)
_SEND_REPLY_MESSAGE_V2 = int(RequestCode.SEND_REPLY_MESSAGE_V2)
_SEND_OK = SendStatus.SEND_OK
_json = msgspec.json.Encoder().encode
TOPICS_REMEMBERED = 10_000
"""Most topics of which the beginning of a request is kept."""

CONNECT_SHARE = 0.4
"""Of the time left, what a try may spend on connecting while there are tries after it: an address that swallows all
packets is given up early, since nothing was sent, and another broker has its turn."""

Messages = Message | Sequence[Message]
"""What the user sends: one message, or those of a batch."""


class _Answer(msgspec.Struct, rename="camel", gc=False):
    """SendMessageResponseHeader, and the two fields that brokers add to it."""

    msg_id: str
    queue_id: Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**31)]
    queue_offset: int
    transaction_id: str | None = None
    batch_uniq_id: str | None = None
    recall_handle: str | None = None
    region_id: str = msgspec.field(default="DefaultRegion", name="MSG_REGION")
    trace_on: str = msgspec.field(default="true", name="TRACE_ON")


@dataclass(frozen=True, slots=True)
class Tried:
    """A send's first try, made elsewhere: to which queue, what it met, and the seconds it took."""

    outgoing: Outgoing
    queue: MessageQueue
    error: RemotingError | ResponseError | ProtocolError
    seconds: float


@dataclass(frozen=True, slots=True)
class SendSettings:
    """How a producer sends; see Producer for their meaning."""

    group: str
    timeout_seconds: float = 3.0
    try_timeout_seconds: float | None = None
    retry_times: int = 2
    retry_when_not_stored: bool = False
    template_queues: int = TEMPLATE_QUEUES
    writes_json: bool = False
    """Whether requests over TCP have JSON headers."""


class Sender:
    """Sends outgoing messages; any number of tasks may call it at once."""

    def __init__(
        self,
        remoting: RemotingClient,
        routes: RouteCache,
        settings: SendSettings,
        turns: QueueTurns,
        interceptors: Sequence[SendInterceptor] = (),
    ) -> None:
        self._remoting = remoting
        self._routes = routes
        self._settings = settings
        self._turns = turns
        self._interceptors = tuple(interceptors)
        self._json_heads: dict[str, bytes] = {}

    async def send(
        self,
        outgoing: Outgoing,
        message: Messages,
        *,
        queue: MessageQueue | None = None,
        timeout_seconds: float | None = None,
        tried: Tried | None = None,
    ) -> SendResult:
        """Send and wait for the broker's acknowledgement; with `queue` there is one try, there.

        `message` is what interceptors see.  `tried` counts as the first try, and its time as spent.  SendError says
        what each try met; RouteNotFoundError when the topic has no place.  Cancelled, or after a SendError by time-out,
        the message may or may not be stored.
        """
        settings = self._settings
        seconds = settings.timeout_seconds if timeout_seconds is None else timeout_seconds
        began = anyio.current_time()
        if tried is not None:
            began -= tried.seconds
        tries: list[str] = []
        code: int | None = None
        failed: set[str] | tuple[()] = ()
        unsafe: SendResult | None = None
        tries_left = 1 if queue is not None else settings.retry_times + 1
        now = began
        while tries_left:
            tries_left -= 1
            left = began + seconds - now
            if left <= 0:
                tries.append(f"no time was left of {seconds:g} s")
                break
            route = self._routes.cached(outgoing.topic, now)
            if route is None:
                try:
                    route = await self._find_route(outgoing.topic, left)
                except RemotingError as error:
                    tries.append(f"asking the name servers: {error}")
                    break
                now = anyio.current_time()
                left = began + seconds - now
            chosen = (
                tried.queue if tried else queue or self._turns.next_queue(route, failed, now, outgoing.first_broker)
            )
            if tries_left and settings.try_timeout_seconds is not None:
                left = min(left, settings.try_timeout_seconds)
            address = route.master(chosen.broker_name)
            try:
                if tried is not None:
                    raise tried.error
                if address is None:
                    raise RemotingError(
                        f"broker {chosen.broker_name} has no master now, says name server {route.told_by}"
                    )
                if tries_left and self._remoting.connected(address) is None:
                    await self._connect(address, left * CONNECT_SHARE)
                    left = min(left, began + seconds - anyio.current_time())
                if self._interceptors:
                    result = await self._try(outgoing, message, chosen, address, left, now)
                else:
                    result = await self._send_once(outgoing, chosen, address, left, now)
            except RemotingError as error:
                tries.append(_met(address, route, error))
                self._routes.refresh_soon(outgoing.topic)
            except ResponseError as error:
                tries.append(f"{address}: answered {error.response_code}, {error.remark}")
                code = error.response_code
                if code not in RETRYABLE_CODES:
                    break
            except ProtocolError as error:
                tries.append(f"{address}: stored it, but its answer cannot be read: {error}")
                break
            else:
                if self._turns.faults is not None:
                    ended = anyio.current_time()
                    self._turns.faults.note(chosen.broker_name, ended - now, ended, failed=False)
                if result.status is _SEND_OK or not settings.retry_when_not_stored:
                    return result
                unsafe = result
                tries.append(f"{address}: {result.status.name}")
            now, before = anyio.current_time(), now
            if self._turns.faults is not None and unsafe is None:
                self._turns.faults.note(chosen.broker_name, now - before, now, failed=True)
            failed = {*failed, chosen.broker_name}
            tried = None
        if unsafe is not None:
            return unsafe
        raise SendError(
            f"the message to {outgoing.topic} was not acknowledged after {len(tries)} tries: " + "; ".join(tries),
            response_code=code,
            tries=tries,
        )

    async def send_oneway(self, outgoing: Outgoing, message: Messages, *, queue: MessageQueue | None = None) -> None:
        """Send without waiting for an answer: nothing tells whether it arrives.

        RemotingError when no connection can be made; RouteNotFoundError when the topic has no place.
        """
        now = anyio.current_time()
        route = self._routes.cached(outgoing.topic, now)
        seconds = self._settings.timeout_seconds
        if route is None:
            route = await self._find_route(outgoing.topic, seconds)
        chosen = queue or self._turns.next_queue(route, (), now, outgoing.first_broker)
        address = route.master(chosen.broker_name)
        if address is None:
            raise RouteNotFoundError(f"broker {chosen.broker_name} has no master now, says name server {route.told_by}")
        if not self._interceptors:
            await self._oneway_once(outgoing, chosen, address)
            return

        async def proceed() -> None:
            await self._oneway_once(outgoing, chosen, address)

        sending = Sending(self._settings.group, message, outgoing, chosen, address, is_oneway=True)
        await intercepted(self._interceptors, sending, proceed)

    async def queues(self, topic: str) -> Sequence[MessageQueue]:
        """The topic's queues that can be written, also of one that its first send would make.

        RouteNotFoundError without any, SendError when no name server answers.
        """
        route = self._routes.cached(topic, anyio.current_time())
        if route is None:
            try:
                route = await self._find_route(topic, self._settings.timeout_seconds)
            except RemotingError as error:
                raise SendError(f"asking the name servers: {error}") from None
        if not route.write_queues:
            raise RouteNotFoundError(f"no broker has a writable queue of {topic} now")
        return route.write_queues

    async def master_address(self, topic: str, broker_name: str) -> str:
        """The address of a broker's master, by the topic's route; RouteNotFoundError when it has none."""
        route = self._routes.cached(topic, anyio.current_time())
        if route is None:
            route = await self._find_route(topic, self._settings.timeout_seconds)
        address = route.master(broker_name)
        if address is None:
            raise RouteNotFoundError(f"broker {broker_name} has no master now, says name server {route.told_by}")
        return address

    async def _find_route(self, topic: str, seconds: float) -> Route:
        with anyio.move_on_after(seconds):
            return await self._routes.route(topic, may_create=True)
        raise RemotingError(f"no answer of {self._routes.name_servers} within {seconds:.3g} s")

    async def _connect(self, address: str, seconds: float) -> None:
        with anyio.move_on_after(seconds):
            await self._remoting.connection(address)
            return
        raise ConnectError(f"no connection to {address} within {seconds:.3g} s", address=address)

    async def _try(
        self, outgoing: Outgoing, message: Messages, queue: MessageQueue, address: str, seconds: float, now: float
    ) -> SendResult:
        began = now

        async def proceed() -> SendResult:
            return await self._send_once(outgoing, queue, address, began + seconds - anyio.current_time(), None)

        sending = Sending(self._settings.group, message, outgoing, queue, address)
        result = await intercepted(self._interceptors, sending, proceed)
        if result is None:
            raise SendError("an interceptor returned no result: return what proceed() returned")
        return result

    async def _send_once(
        self, outgoing: Outgoing, queue: MessageQueue, address: str, seconds: float, now: float | None
    ) -> SendResult:
        command = self.command(outgoing, queue, address)
        connection = self._remoting.connected(address)
        if connection is not None:
            answer = await connection.request(command, seconds, now)
        else:
            answer = await self._remoting.request(address, command, seconds, now)
        return self.result(outgoing, queue, address, answer)

    def first_try_seconds(self, queue: MessageQueue | None, timeout_seconds: float | None) -> float:
        """The time that the first of a send's tries has; see `send`."""
        settings = self._settings
        seconds = settings.timeout_seconds if timeout_seconds is None else timeout_seconds
        if settings.try_timeout_seconds is None or queue is not None or not settings.retry_times:
            return seconds
        return min(seconds, settings.try_timeout_seconds)

    @staticmethod
    def result(outgoing: Outgoing, queue: MessageQueue, address: str, answer: Command) -> SendResult:
        """What the broker at `address` answered; ResponseError when it did not store the message, ProtocolError when
        it did and says so in no readable way.
        """
        status = _STORED.get(answer.code)
        if status is None:
            raise ResponseError(answer.code, answer.remark, address=address)
        header = answer.decode_header(_Answer)
        topic = outgoing.user_topic or outgoing.topic
        if header.queue_id != queue.queue_id or topic != queue.topic:
            queue = MessageQueue(topic=topic, broker_name=queue.broker_name, queue_id=header.queue_id)
        return SendResult(
            status,
            outgoing.message_id,
            header.msg_id,
            queue,
            header.queue_offset,
            header.transaction_id,
            header.region_id,
            header.trace_on != "false",
            header.recall_handle,
        )

    async def _oneway_once(self, outgoing: Outgoing, queue: MessageQueue, address: str) -> None:
        command = self.command(outgoing, queue, address)
        await self._remoting.request_oneway(address, command, self._settings.timeout_seconds)

    def command(self, outgoing: Outgoing, queue: MessageQueue, address: str) -> Command:
        """The send request to the broker at `address`."""
        over_websocket = "://" in address
        if self._settings.writes_json and not over_websocket:
            return self._json_command(outgoing, queue)
        # CBOR carries the long names; TCP the short ones, as RocketMQ's own clients do.
        header_type = SendMessageRequestHeader if over_websocket else SendMessageRequestHeaderV2
        header = header_type(
            producer_group=self._settings.group,
            topic=outgoing.topic,
            default_topic=TEMPLATE_TOPIC,
            default_topic_queue_nums=self._settings.template_queues,
            queue_id=queue.queue_id,
            sys_flag=outgoing.sys_flag,
            born_timestamp=outgoing.born_ms,
            flag=outgoing.flag,
            properties=outgoing.properties,
            reconsume_times=0,
            unit_mode=False,
            batch=outgoing.is_batch,
        )
        code = _short_code(outgoing)
        if over_websocket:
            code = _SEND_REPLY_MESSAGE if outgoing.is_reply else _SEND_MESSAGE
        return Command(code, header, None, outgoing.body)

    def _json_command(self, outgoing: Outgoing, queue: MessageQueue) -> Command:
        """The same as SendMessageRequestHeaderV2 would make, put together from parts: half the time of a header."""
        topic = outgoing.topic
        head = self._json_heads.get(topic)
        if head is None:
            if len(self._json_heads) >= TOPICS_REMEMBERED:
                self._json_heads.clear()
            settings = self._settings
            head = self._json_heads[topic] = b'{"a":%b,"b":%b,"c":%b,"d":"%d","e":"' % (
                _json(settings.group), _json(topic), _json(TEMPLATE_TOPIC), settings.template_queues,
            )  # fmt: skip
        fields = b'%b%d","f":"%d","g":"%d","h":"%d","i":%b,"j":"0","k":"false","m":"%b"}' % (
            head,
            queue.queue_id,
            outgoing.sys_flag,
            outgoing.born_ms,
            outgoing.flag,
            _json(outgoing.properties),
            b"true" if outgoing.is_batch else b"false",
        )
        return Command(_short_code(outgoing), None, None, outgoing.body, raw_ext=fields)


def _short_code(outgoing: Outgoing) -> int:
    """The request code that goes with the short names."""
    if outgoing.is_batch:
        return _SEND_BATCH_MESSAGE
    return _SEND_REPLY_MESSAGE_V2 if outgoing.is_reply else _SEND_MESSAGE_V2


def _met(address: str | None, route: Route, error: RemotingError) -> str:
    """What a try met: the address and who told it, unless the error's own text has it."""
    if address is None:
        return str(error)
    text = str(error)
    told = f" (told by name server {route.told_by})" if route.told_by else ""
    return f"{text}{told}" if address in text else f"{address}{told}: {text}"
