"""The clients that run on the machines of a simulation: the production ones, and what they are told.

Each note of theirs is evidence.  A send has one try, so that what became of it is known: `ok`, `refused` with the
broker's code, or `info` when nobody can tell.  A transaction's `ok` says that its half message was acknowledged, its
`decided` what its end is, told or asked for.  An orderly call is `begun`, and then `consumed`, `failed` or `abandoned`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import anyio
import trio

from trio_rmq.client.message import ConsumeLater, Message, ReceivedMessage, SendResult, SendStatus
from trio_rmq.client.producer import Producer
from trio_rmq.client.push_consumer import PushConsumer
from trio_rmq.client.transaction_producer import TransactionProducer, TransactionState
from trio_rmq.errors import ClientError, RocketMQError, SendError
from trio_rmq.testing.simulation.checkers import Queue
from trio_rmq.testing.simulation.history import History
from trio_rmq.testing.simulation.machine import Machine
from trio_rmq.testing.simulation.plan import DELAYS_MS, Plan, Send
from trio_rmq.testing.simulation.programs import BROKER_NAME, NAME_SERVERS
from trio_rmq.wire.groups import MessageQueue

TOPIC = "Simulated"
TOPICS = {"plain": TOPIC, "delays": "Delayed", "transactions": "Transacted", "keyed": "Ordered"}
KINDS = {topic: kind for kind, topic in TOPICS.items()}
GROUP, ORDERLY_GROUP, PRODUCER_GROUP = "simulated", "simulated-orderly", "simulated-producers"
SUSPEND_SECONDS = 0.1
"""Before an orderly consumer tries a message again."""
_CHECKS = "TRANSACTION_CHECK_TIMES"


def kinds_of(plan: Plan) -> list[str]:
    """The kinds of messages besides plain ones that the plan sends."""
    sent = {send.kind for send in plan.sends}
    return [kind for kind in TOPICS if kind in sent and kind != "plain"]


def queue_label(topic: str, queue_id: int) -> Queue:
    """How a history names a queue."""
    return queue_id if topic == TOPIC else f"{topic}/{queue_id}"


class ProducerProgram:
    """Sends its part of the plan, each kind's messages one after another, each with one try; then waits."""

    def __init__(self, number: int, plan: Plan, history: History) -> None:
        self.name = f"producer {number}"
        self.done = trio.Event()
        self._sends = [send for send in plan.sends if send.producer == number]
        self._ends = {send.name: send.end for send in plan.sends if send.end}
        self._history = history
        self.producer: Producer | None = None

    async def run(self, machine: Machine, task_status: trio.TaskStatus[None]) -> None:
        """Send until all is sent, then stay until cancelled."""
        async with self._new_producer() as producer:
            self.producer = producer
            task_status.started()
            begin = trio.current_time()
            async with trio.open_nursery() as nursery:
                for kind in TOPICS:
                    sends = [send for send in self._sends if send.kind == kind]
                    if sends:
                        nursery.start_soon(self._send_all, begin, sends)
            self.done.set()
            await trio.sleep_forever()

    def _new_producer(self) -> Producer:
        if self._ends:
            return TransactionProducer(self._asked, group=PRODUCER_GROUP, name_servers=NAME_SERVERS, retry_times=0)
        return Producer(name_servers=NAME_SERVERS, retry_times=0)

    async def _send_all(self, begin: float, sends: Sequence[Send]) -> None:
        for send in sends:
            await trio.sleep_until(begin + send.at)
            match send.kind:
                case "transactions":
                    await self._send_in_transaction(send)
                case "delays":
                    more = {"delay_ms": DELAYS_MS[send.delay_level - 1]}
                    await self._send(send.kind, send.body, send.queue_id, delay_level=send.delay_level, **more)
                case "keyed":
                    key = f"{send.producer}/{send.queue_id}"
                    await self._send(send.kind, send.body, send.queue_id, key=key, turn=send.number)
                case _:
                    await self.send(send.body, send.queue_id)

    async def send(self, body: bytes, queue_id: int) -> bool:
        """One plain message with one try, noted; whether it was acknowledged."""
        return await self._send("plain", body, queue_id)

    async def _send(self, kind: str, body: bytes, queue_id: int, *, delay_level: int = 0, **more: object) -> bool:
        assert self.producer is not None  # noqa: S101 - the program runs
        name, topic = name_of(body), TOPICS[kind]
        queue = MessageQueue(topic=topic, broker_name=BROKER_NAME, queue_id=queue_id)
        if kind != "plain":
            more["kind"] = kind
        self._history.add(self.name, "invoke", id=name, queue=queue_label(topic, queue_id), **more)
        try:
            result = await self.producer.send(Message(topic, body, keys=name, delay_level=delay_level), queue=queue)
        except (RocketMQError, ClientError) as error:
            self._failed(name, error)
            return False
        if not self._is_safe(name, result):
            return False
        place = {"queue": queue_label(topic, result.queue.queue_id), "offset": result.queue_offset}
        self._history.add(self.name, "ok", id=name, **place, **more)
        return True

    def _failed(self, name: str, error: Exception) -> None:
        if isinstance(error, SendError):
            refused = error.response_code is not None
            self._history.add(self.name, "refused" if refused else "info", id=name, code=error.response_code)
        else:
            self._history.add(self.name, "info", id=name, code=type(error).__name__)

    def _is_safe(self, name: str, result: SendResult) -> bool:
        if result.status is not SendStatus.SEND_OK:
            self._history.add(self.name, "info", id=name, code=result.status.name)
            return False
        return True

    # ---- transactions ------------------------------------------------------------------------------------------

    async def _send_in_transaction(self, send: Send) -> None:
        assert isinstance(self.producer, TransactionProducer)  # noqa: S101 - the plan has transactions
        topic = TOPICS[send.kind]
        queue = MessageQueue(topic=topic, broker_name=BROKER_NAME, queue_id=send.queue_id)
        self._history.add(self.name, "invoke", id=send.name, kind=send.kind, end=send.end)
        try:
            message = Message(topic, send.body, keys=send.name)
            result = await self.producer.send_in_transaction(message, partial(self._told, send), queue=queue)
        except (RocketMQError, ClientError) as error:
            self._failed(send.name, error)
            return
        self._is_safe(send.name, result.sent)

    async def _told(self, send: Send, transaction_id: str) -> TransactionState:
        """The local transaction, which runs when the half message was acknowledged."""
        self._history.add(self.name, "ok", id=send.name, kind=send.kind)
        if send.end.startswith("asked"):
            return TransactionState.UNKNOWN
        return self._decided(send.name, send.end)

    async def _asked(self, message: ReceivedMessage) -> TransactionState:
        name = name_of(message.body)
        end = self._ends[name]
        if end.startswith("asked twice") and int(message.properties.get(_CHECKS, "0")) < 2:
            self._history.add(self.name, "asked", id=name)
            return TransactionState.UNKNOWN
        return self._decided(name, end)

    def _decided(self, name: str, end: str) -> TransactionState:
        state = TransactionState.COMMIT if end.endswith("commit") else TransactionState.ROLLBACK
        self._history.add(self.name, "decided", id=name, state=state.name)
        return state


class ConsumerProgram:
    """A member of the groups, which notes what it is given: one group for most, an orderly one for keyed messages."""

    def __init__(self, number: int, plan: Plan, history: History) -> None:
        self.name = f"consumer {number}"
        self._options = plan.options
        self._kinds = kinds_of(plan)
        self._fails = {send.name: send.fails for send in plan.sends if send.fails}
        self._tries: Counter[str] = Counter()
        self._history = history
        self.consumer: PushConsumer | None = None
        self.orderly: PushConsumer | None = None

    async def run(self, machine: Machine, task_status: trio.TaskStatus[None]) -> None:
        """Consume until cancelled."""
        async with AsyncExitStack() as stack:
            consumer = PushConsumer(GROUP, name_servers=NAME_SERVERS, grace_seconds=1.0)
            await stack.enter_async_context(consumer)
            await consumer.subscribe(TOPIC, self._listen)
            for kind in self._kinds:
                if kind == "keyed":
                    orderly = PushConsumer(
                        ORDERLY_GROUP, name_servers=NAME_SERVERS, orderly=True, grace_seconds=1.0,
                        suspend_seconds=SUSPEND_SECONDS,
                    )  # fmt: skip
                    await stack.enter_async_context(orderly)
                    await orderly.subscribe(TOPICS[kind], self._listen_in_order)
                    self.orderly = orderly
                else:
                    await consumer.subscribe(TOPICS[kind], self._listen)
            self.consumer = consumer
            task_status.started()
            try:
                await anyio.sleep_forever()
            finally:
                self.consumer = self.orderly = None

    async def lags(self, kinds: Sequence[str]) -> list[int]:
        """How many messages of each queue of these kinds are not consumed; RocketMQError, or none, if unknown."""
        counts: list[int] = []
        for kind in kinds:
            consumer = self.orderly if kind == "keyed" else self.consumer
            if consumer is not None:
                lags = await consumer.lag(TOPICS[kind])
                counts += [lag.count for lag in lags.values()]
        return counts

    async def _listen(self, messages: Sequence[ReceivedMessage]) -> None:
        if self._options.consume_seconds:
            await anyio.sleep(self._options.consume_seconds)
        for message in messages:
            self._note("consumed", message)

    async def _listen_in_order(self, messages: Sequence[ReceivedMessage]) -> ConsumeLater | None:
        [message] = messages
        self._note("begun", message)
        ended = False
        try:
            if self._options.ordered_seconds:
                await anyio.sleep(self._options.ordered_seconds)
            ended = True
        finally:
            if not ended:
                self._note("abandoned", message)
        name = name_of(message.body)
        self._tries[name] += 1
        if self._tries[name] <= self._fails.get(name, 0):
            self._note("failed", message)
            return ConsumeLater()
        self._note("consumed", message)
        return None

    def _note(self, what: str, message: ReceivedMessage) -> None:
        name, kind = name_of(message.body), KINDS[message.topic]
        place: dict[str, Any] = {
            "queue": queue_label(message.topic, message.queue.queue_id),
            "offset": message.queue_offset,
        }
        own = {} if kind == "plain" else {"kind": kind}
        self._history.add(self.name, what, id=name, **place, **own)
        if what == "consumed" and not is_whole(name, message.properties):
            self._history.add(self.name, "changed", id=name, properties=message.properties, **place)


def is_whole(name: str, properties: Mapping[str, str]) -> bool:
    """Whether these are the properties of the message with this name: its keys tell it, and no byte was lost."""
    return properties.get("KEYS") == name and not any("\0" in f"{key}{value}" for key, value in properties.items())


def name_of(body: bytes) -> str:
    """The message's name: what stands in its body before the dots, and whole in its keys."""
    return body.rstrip(b".").decode(errors="replace")
