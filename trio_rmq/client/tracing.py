"""Message traces of one client: what it sent or consumed, told to a trace topic in batches.

`SendTracer` stands around a producer's tries, `ConsumeTracer` around a consumer's listener calls, or is told what is
handed out; both only note.  One task, `TraceSender.run`, sends what was noted.  Invariants: noting never waits and
never fails, a broker that takes no traces costs their loss and one line in the log; at most TRACES_WAITING_MAX wait,
further ones are lost; traces of trace messages are not made.  Source: RocketMQ AsyncTraceDispatcher and its three hooks
(4.9.8), DefaultLitePullConsumerImpl.poll.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import anyio

from trio_rmq.client.compression import Compression
from trio_rmq.client.listening import Consumption, Outcome, later_of
from trio_rmq.client.listening import Proceed as ConsumeProceed
from trio_rmq.client.message import Message, ReceivedMessage, SendResult, SendStatus
from trio_rmq.client.namespace import without_namespace
from trio_rmq.client.outgoing import OutgoingMaker
from trio_rmq.client.queue_choice import QueueTurns
from trio_rmq.client.route_cache import RouteCache
from trio_rmq.client.send_interceptors import Proceed, Sending
from trio_rmq.client.sending import Sender, SendSettings
from trio_rmq.clock import wall_ms
from trio_rmq.errors import ProtocolError, RocketMQError
from trio_rmq.limits import TRACES_WAITING_MAX
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.wire import properties as prop
from trio_rmq.wire.sysflag import TRANSACTION_MASK, TRANSACTION_PREPARED
from trio_rmq.wire.trace import (
    ConsumeEndTrace,
    ConsumeReturnType,
    ConsumeStartTrace,
    SendTrace,
    Trace,
    TracedMessageType,
    encode_trace,
    trace_keys,
)

logger = logging.getLogger(__name__)

TRACE_TOPIC = "RMQ_SYS_TRACE_TOPIC"
GROUP_PREFIX = "_INNER_TRACE_PRODUCER-"
GATHER_SECONDS = 0.5
"""From a first trace to the message that carries it (waitTimeThresholdMil)."""
ENOUGH_TRACES = 400
"""So many are sent at once: some 100 KB."""
BODY_SIZE_MAX_BYTES = 118_000
KEYS_SIZE_MAX_BYTES = 30_000
"""Largest body and keys of one trace message, unless a single trace has more: properties end at 32,767 bytes."""
SEND_SECONDS = 5.0
FLUSH_SECONDS = 1.0
"""How long a client that closes sends traces that are left."""


def trace_topic_of(trace: bool | str) -> str | None:
    """The topic that a client's setting `trace` means: True is RocketMQ's own; None for no traces."""
    if trace is True:
        return TRACE_TOPIC
    return trace or None


class TraceSender:
    """Sends one client's traces to `topic`; `owner` is its group, `kind` PRODUCE or CONSUME, as brokers see it."""

    def __init__(self, remoting: RemotingClient, routes: RouteCache, topic: str, owner: str, kind: str) -> None:
        self.topic = topic
        self._waiting: deque[Trace] = deque()
        self._some = anyio.Event()
        self._enough = anyio.Event()
        self._lost = 0
        self._failed = False
        self._maker = OutgoingMaker(compression=Compression())
        settings = SendSettings(f"{GROUP_PREFIX}{owner}-{kind}", timeout_seconds=SEND_SECONDS)
        self._sender = Sender(remoting, routes, settings, QueueTurns())
        self._owner = owner

    def next_id(self) -> str:
        """A unique id, for one listener call."""
        return self._maker.next_id()

    def note(self, traces: Sequence[Trace]) -> None:
        """Have the traces sent soon; those above the bound are lost."""
        room = TRACES_WAITING_MAX - len(self._waiting)
        if room < len(traces):
            if not self._lost:
                logger.warning(
                    "group %s: %d traces wait for %s already, further ones are lost: does a broker take them?",
                    self._owner, len(self._waiting), self.topic,
                )  # fmt: skip
            self._lost += len(traces) - room
            traces = traces[:room]
        self._waiting.extend(traces)
        self._some.set()
        if len(self._waiting) >= ENOUGH_TRACES:
            self._enough.set()

    async def run(self) -> None:
        """Send what is noted, some at a time; until cancelled."""
        while True:
            await self._some.wait()
            with anyio.move_on_after(GATHER_SECONDS):
                await self._enough.wait()
            await self._send_all()

    async def flush(self) -> None:
        """Send what is left, in FLUSH_SECONDS at most, whatever else is cancelled."""
        with anyio.move_on_after(FLUSH_SECONDS, shield=True):
            await self._send_all()

    async def _send_all(self) -> None:
        self._some, self._enough = anyio.Event(), anyio.Event()
        if self._lost:
            logger.warning("group %s: %d traces are lost", self._owner, self._lost)
            self._lost = 0
        while self._waiting:
            message, count = self._next_message()
            if message.body:
                await self._send(message, count)
            for _ in range(min(count, len(self._waiting))):
                self._waiting.popleft()

    async def _send(self, message: Message, count: int) -> None:
        try:
            await self._sender.send(self._maker.make(message), message)
        except RocketMQError as error:
            if not self._failed:
                logger.warning(
                    "group %s: %d traces are lost, and so are those of others until this goes away: %s",
                    self._owner, count, error,
                )  # fmt: skip
            self._failed = True
        else:
            self._failed = False

    def _next_message(self) -> tuple[Message, int]:
        """The first waiting traces that fit into one message, and how many they are; they go on waiting."""
        records: list[str] = []
        keys: dict[str, None] = {}
        body_size = keys_size = count = 0
        for trace in self._waiting:
            try:
                record = encode_trace(trace)
            except ProtocolError as error:
                logger.warning("group %s: a trace of %s is lost: %s", self._owner, trace.message_id, error)
                count += 1
                continue
            own = [key for key in trace_keys(trace) if key not in keys]
            body_size += len(record.encode())
            keys_size += sum(len(key.encode()) + 1 for key in own)
            if records and (body_size > BODY_SIZE_MAX_BYTES or keys_size > KEYS_SIZE_MAX_BYTES):
                break
            records.append(record)
            keys.update(dict.fromkeys(own))
            count += 1
        return Message(self.topic, "".join(records).encode(), keys=keys), count


def keys_text(message: Message) -> str | None:
    """The message's keys as one text; None for none."""
    if message.keys is None or isinstance(message.keys, str):
        return message.keys or None
    return prop.KEY_SEPARATOR.join(message.keys) or None


def bare_address(address: str) -> str:
    """`host:port` of an address with or without a scheme."""
    return address.rpartition("/")[2]


class SendTracer:
    """Notes the sends of one producer: stands around its tries as an interceptor."""

    def __init__(self, sender: TraceSender, namespace: str) -> None:
        self._sender = sender
        self._namespace = namespace

    async def __call__(self, sending: Sending, proceed: Proceed) -> SendResult | None:
        """One try; noted when it was acknowledged, by a broker that wants traces."""
        began_ms, began = wall_ms(), anyio.current_time()
        result = await proceed()
        if result is not None and result.trace_on and result.queue.topic != self._sender.topic:
            cost_ms = round((anyio.current_time() - began) * 1000)
            self._sender.note(self._traces(sending, result, began_ms, cost_ms))
        return result

    def _traces(self, sending: Sending, result: SendResult, began_ms: int, cost_ms: int) -> list[SendTrace]:
        messages = [sending.message] if isinstance(sending.message, Message) else sending.message
        sizes = [len(sending.outgoing.body)] if len(messages) == 1 else [len(message.body) for message in messages]
        ids, offset_ids = result.message_ids, result.offset_message_id.split(",")
        if len(offset_ids) != len(ids):  # of a batch that its broker stored as one record
            offset_ids = offset_ids[:1] * len(ids)
        return [
            SendTrace(
                time_ms=began_ms,
                region_id=result.region_id,
                group=without_namespace(self._namespace, sending.group),
                topic=message.topic,
                message_id=message_id,
                tags=message.tags or None,
                keys=keys_text(message),
                store_host=bare_address(sending.address),
                body_size_bytes=size,
                cost_ms=cost_ms,
                message_type=_type_of(message, sending.outgoing.sys_flag),
                offset_message_id=offset_id,
                success=result.status is SendStatus.SEND_OK,
            )
            for message, message_id, offset_id, size in zip(messages, ids, offset_ids, sizes, strict=True)
        ]


def _type_of(message: Message, sys_flag: int) -> TracedMessageType:
    if message.is_for_later:
        return TracedMessageType.DELAY
    is_half = sys_flag & TRANSACTION_MASK == TRANSACTION_PREPARED
    return TracedMessageType.HALF if is_half else TracedMessageType.NORMAL


@dataclass(frozen=True, slots=True)
class _Call:
    """A listener call: its messages, the places of those that are traced, its id, and when it began (anyio's clock)."""

    messages: Sequence[ReceivedMessage]
    traced: Sequence[int]
    request_id: str
    began: float


class ConsumeTracer:
    """Notes the listener calls of one consumer: stands around each as an interceptor.  Or what it hands out."""

    def __init__(self, sender: TraceSender, group: str, consume_timeout_seconds: float | None = None) -> None:
        self._sender = sender
        self._group = group
        self._timeout_seconds = consume_timeout_seconds

    async def __call__(self, consumption: Consumption, proceed: ConsumeProceed) -> Outcome:
        """One call; messages whose broker wants no traces, and traces themselves, are left out."""
        traced = [number for number, message in enumerate(consumption.messages) if self._is_traced(message)]
        if not traced:
            return await proceed()
        call = _Call(consumption.messages, traced, self._sender.next_id(), anyio.current_time())
        self._sender.note(self._started(call))
        try:
            outcome = await proceed()
            later = later_of(outcome)
        except BaseException as error:
            seconds = self._timeout_seconds
            if isinstance(error, Exception):
                self._sender.note(self._ended(call, ConsumeReturnType.EXCEPTION, 0))
            elif seconds is not None and anyio.current_time() - call.began >= seconds:
                self._sender.note(self._ended(call, ConsumeReturnType.TIME_OUT, 0))
            raise
        if later is None:
            self._sender.note(self._ended(call, ConsumeReturnType.SUCCESS, len(call.messages)))
        else:
            self._sender.note(self._ended(call, ConsumeReturnType.FAILED, later.consumed_count))
        return outcome

    def note_handed_out(self, messages: Sequence[ReceivedMessage]) -> None:
        """Note messages that were asked for and handed out: no call of theirs ends, so they are done at once."""
        traced = [number for number, message in enumerate(messages) if self._is_traced(message)]
        if traced:
            call = _Call(messages, traced, self._sender.next_id(), anyio.current_time())
            self._sender.note([*self._started(call), *self._ended(call, ConsumeReturnType.SUCCESS, len(messages))])

    def _ended(self, call: _Call, return_type: ConsumeReturnType, consumed: int) -> list[ConsumeEndTrace]:
        """The traces of a call that ended with its first `consumed` messages done."""
        now_ms, spent = wall_ms(), (anyio.current_time() - call.began) / len(call.messages)
        return [
            ConsumeEndTrace(
                request_id=call.request_id,
                message_id=call.messages[number].message_id,
                cost_ms=round(spent * 1000),
                success=number < consumed,
                keys=call.messages[number].properties.get(prop.KEYS),
                return_type=return_type,
                time_ms=now_ms,
                group=self._group,
            )
            for number in call.traced
        ]

    def _is_traced(self, message: ReceivedMessage) -> bool:
        return message.properties.get(prop.TRACE_ON) != "false" and message.topic != self._sender.topic

    def _started(self, call: _Call) -> list[ConsumeStartTrace]:
        now_ms = wall_ms()
        return [
            ConsumeStartTrace(
                time_ms=now_ms,
                region_id=message.properties.get(prop.MSG_REGION),
                group=self._group,
                request_id=call.request_id,
                message_id=message.message_id,
                retry_times=message.reconsume_times,
                keys=message.properties.get(prop.KEYS),
            )
            for message in (call.messages[number] for number in call.traced)
        ]
