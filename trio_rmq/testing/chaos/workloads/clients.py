"""What all workloads share: topics made beforehand, a pace, members of a group that come and go, names in bodies."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from random import Random

import trio

from trio_rmq.client import MessageQueue, Producer, PushConsumer, ReceivedMessage, SendResult, SendStatus
from trio_rmq.errors import ClientError, ResponseError, RocketMQError, SendError
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.testing.chaos.cluster import Cluster
from trio_rmq.testing.chaos.scenario import Workload
from trio_rmq.testing.simulation.history import History
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.headers import CreateTopicRequestHeader

PAD = b"."
GRACE_SECONDS = 1.0
COMMIT_SECONDS = 0.5
RETRY_SECONDS = 0.5
PERMISSION = 6
"""Read and write."""


def queue_name(queue: MessageQueue) -> str:
    """How queues are called in a history."""
    return f"{queue.topic}/{queue.broker_name}/{queue.queue_id}"


def body_of(name: str, size_bytes: int) -> bytes:
    """The body that carries `name`, padded."""
    return name.encode().ljust(size_bytes, PAD)


def name_in(body: bytes) -> str:
    """The name that a body carries; of a foreign or damaged body whatever stands there."""
    return body.rstrip(PAD).decode(errors="replace")


class Clients:
    """The parts that a workload is given: whom to ask, where to note, when to end, and its part of the scenario."""

    def __init__(self, cluster: Cluster, history: History, workload: Workload, number: int, rng: Random) -> None:
        self.cluster = cluster
        self.history = history
        self.workload = workload
        self.topic = f"Chaos{number}{workload.kind.capitalize()}"
        self.group = f"chaos-{number}-{workload.kind}"
        self.rng = rng
        self.ending = trio.Event()
        """Set when the faults have ended: producers send their last messages."""
        self.queues = [
            MessageQueue(topic=self.topic, broker_name=node.name, queue_id=queue_id)
            for queue_id in range(workload.queues)
            for node in cluster.brokers
        ]

    async def make_topic(self) -> None:
        """Make the topic on every broker, and wait until the name servers tell of it there."""
        header = CreateTopicRequestHeader(
            topic=self.topic, default_topic="TBW102", read_queue_nums=self.workload.queues,
            write_queue_nums=self.workload.queues, perm=PERMISSION, topic_filter_type="SINGLE_TAG", topic_sys_flag=0,
        )  # fmt: skip
        async with RemotingClient() as remoting:
            for node in self.cluster.brokers:
                command = Command(RequestCode.UPDATE_AND_CREATE_TOPIC, header=header)
                answer = await remoting.request(f"127.0.0.1:{node.place.port}", command, 10.0)
                if answer.code != ResponseCode.SUCCESS:
                    raise ResponseError(answer.code, answer.remark)
        async with Producer(name_servers=self.cluster.name_servers) as producer:
            with trio.fail_after(30):
                while not await self._is_known(producer):  # noqa: ASYNC110 - a name server's news wakes nobody here
                    await trio.sleep(0.1)

    async def _is_known(self, producer: Producer) -> bool:
        try:
            await producer.refresh_route(self.topic)
            return set(await producer.queues(self.topic)) == set(self.queues)
        except RocketMQError:
            return False

    # ---- sending -------------------------------------------------------------------------------------------------

    async def paced(self, send: Callable[[int], Awaitable[object]], last: Callable[[int], Awaitable[bool]]) -> None:
        """`send(number)` at the workload's rate until the faults have ended; then `last` until it says it went well."""
        number, due = 0, trio.current_time()
        while not self.ending.is_set():
            await send(number)
            number += 1
            due = max(due + 1 / self.workload.rate, trio.current_time())
            with trio.move_on_at(due):
                await self.ending.wait()
        while not await last(number):
            number += 1
            await trio.sleep(RETRY_SECONDS)

    async def noted(
        self, process: str, names: Sequence[str], send: Callable[[], Awaitable[SendResult]], **more: object
    ) -> SendResult | None:
        """One try for messages of these names, in one queue one after another; noted.  None when not acknowledged."""
        for name in names:
            self.history.add(process, "invoke", id=name, **more)
        try:
            result = await send()
        except SendError as error:
            what = "info" if error.response_code is None else "refused"
            self._outcome(process, names, what, code=error.response_code or "no answer")
            return None
        except (RocketMQError, ClientError) as error:
            self._outcome(process, names, "info", code=type(error).__name__)
            return None
        if result.status is not SendStatus.SEND_OK:
            self._outcome(process, names, "info", code=result.status.name)
            return None
        for number, name in enumerate(names):
            place = {"queue": queue_name(result.queue), "offset": result.queue_offset + number}
            self.history.add(process, "ok", id=name, broker=result.queue.broker_name, **place, **more)
        return result

    def _outcome(self, process: str, names: Sequence[str], what: str, **value: object) -> None:
        for name in names:
            self.history.add(process, what, id=name, **value)

    # ---- consuming -----------------------------------------------------------------------------------------------

    async def keep_members(self) -> None:
        """The group's members until cancelled: a fixed number, or one that grows and shrinks."""
        low, high = self.workload.members or (self.workload.consumers, self.workload.consumers)
        async with trio.open_nursery() as nursery:
            scopes: list[trio.CancelScope] = []
            started, wanted = 0, low
            while True:
                while len(scopes) > wanted:
                    scopes.pop(self.rng.randrange(len(scopes))).cancel()
                while len(scopes) < wanted:
                    scope = trio.CancelScope()
                    scopes.append(scope)
                    nursery.start_soon(self._member, f"{self.group} member {started}", scope)
                    started += 1
                if low == high:
                    await trio.sleep_forever()
                await trio.sleep(self.workload.change_seconds)
                wanted = self.rng.randint(low, high)

    async def _member(self, process: str, scope: trio.CancelScope) -> None:
        """One member; begun anew when it cannot begin, as a program's supervisor would."""
        with scope:
            while True:
                try:
                    async with self._consumer(process):
                        self.history.add(process, "joins")
                        await trio.sleep_forever()
                except* RocketMQError:
                    await trio.sleep(RETRY_SECONDS)
        self.history.add(process, "leaves")

    @asynccontextmanager
    async def _consumer(self, process: str) -> AsyncIterator[None]:
        consumer = PushConsumer(
            self.group, name_servers=self.cluster.name_servers, orderly=self.workload.kind == "keyed",
            grace_seconds=GRACE_SECONDS, commit_seconds=COMMIT_SECONDS,
        )  # fmt: skip

        async def listen(messages: Sequence[ReceivedMessage]) -> None:
            for message in messages:
                self.history.add(
                    process,
                    "consumed",
                    id=name_in(message.body),
                    queue=queue_name(message.queue),
                    offset=message.queue_offset,
                    kind=self.workload.kind,
                    intact=len(message.body) == self.workload.body_bytes,
                )

        async with consumer:
            await consumer.subscribe(self.topic, listen)
            yield
