"""Reads a topic's queues by offset: from the first or the newest message, or from where a group stopped.

No group membership and no rebalance: whoever reads gets every queue asked for.  Each queue is read by one task, in
order; a pull that finds nothing is held by the broker until something comes.  A server that went away is asked again
until it is back.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Literal

import anyio
import anyio.abc
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from trio_rmq.client.instance import name_server_list
from trio_rmq.client.queue_lookup import QueueAddress, queues_to_read
from trio_rmq.client.route_cache import RouteCache
from trio_rmq.errors import ClientError, RemotingError, ResponseError, RocketMQError, RouteNotFoundError
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.headers import (
    GetMaxOffsetRequestHeader,
    GetMaxOffsetResponseHeader,
    GetMinOffsetRequestHeader,
    GetMinOffsetResponseHeader,
    PullMessageRequestHeader,
    PullMessageResponseHeader,
    QueryConsumerOffsetRequestHeader,
    QueryConsumerOffsetResponseHeader,
    UpdateConsumerOffsetRequestHeader,
)
from trio_rmq.wire.record import StoredMessage, decode_records
from trio_rmq.wire.sysflag import PULL_SUBSCRIPTION, PULL_SUSPEND

Start = Literal["first", "last", "group"]
"""Where to begin: the oldest message there is, after the newest, or at the group's offset (else the oldest)."""

PULL_MESSAGES = 32
BATCHES_AHEAD = 16
"""Pulled batches that may wait for the caller, all queues together."""

REQUEST_SECONDS = 10.0
HOLD_MS = 15_000
HOLD_SECONDS = 30.0
"""A pull is held by the broker for HOLD_MS, and given up here after this long."""

RETRY_PAUSE_SECONDS = (0.05, 1.0)
_WORTH_A_RETRY = frozenset({
    ResponseCode.SYSTEM_ERROR, ResponseCode.SYSTEM_BUSY, ResponseCode.SERVICE_NOT_AVAILABLE,
})  # fmt: skip


@dataclass(slots=True, frozen=True)
class Batch:
    """Consecutive messages of one queue, and the offset after them."""

    queue: QueueAddress
    messages: list[StoredMessage]
    next_offset: int


class QueueReader:
    """Reads one topic; see `open_batches`.  `tags` is a subscription like `a || b`, `*` for all.

    `retry_seconds` is how long a server that does not answer is tried again before its error comes out.
    """

    def __init__(
        self,
        client: RemotingClient,
        name_servers: Sequence[str],
        topic: str,
        *,
        group: str = "DEFAULT_CONSUMER",
        queue_id: int | None = None,
        broker_name: str | None = None,
        start: Start = "first",
        until_end: bool = False,
        tags: str = "*",
        retry_seconds: float = 30.0,
    ) -> None:
        self._client = client
        self._routes = RouteCache(client, name_server_list(name_servers))
        self._topic = topic
        self._group = group
        self._queue_id = queue_id
        self._broker_name = broker_name
        self._start: Start = start
        self._until_end = until_end
        self._tags = tags
        self._wanted_tags = None if tags.strip() == "*" else frozenset(tag.strip() for tag in tags.split("||"))
        self._retry_seconds = retry_seconds

    @asynccontextmanager
    async def open_batches(self) -> AsyncIterator[MemoryObjectReceiveStream[Batch]]:
        """A stream of batches, in order within each queue; ends when `until_end` and every queue is read to the end
        it had when that was reached.  Leaving the block stops reading.

        RouteNotFoundError without the topic; RemotingError or ResponseError when a server stays away or refuses.
        """
        queues = await self._queues()
        sender, receiver = anyio.create_memory_object_stream[Batch](BATCHES_AHEAD)
        try:
            async with receiver, anyio.create_task_group() as group:
                async with sender:
                    for queue in queues:
                        group.start_soon(self._read, queue, sender.clone())
                yield receiver
                group.cancel_scope.cancel()
        except BaseExceptionGroup as error_group:
            # One of ours alone comes out bare, so that a caller can catch it.
            if len(error_group.exceptions) == 1 and isinstance(error_group.exceptions[0], Exception):
                raise error_group.exceptions[0] from None
            raise

    async def commit(self, queue: QueueAddress, offset: int) -> None:
        """Tell the broker that the group has read `queue` up to `offset`; it keeps that in memory and soon on disk."""
        header = UpdateConsumerOffsetRequestHeader(
            consumer_group=self._group, topic=self._topic, queue_id=queue.queue_id, commit_offset=offset
        )
        patience = _Patience(self._retry_seconds)
        while True:
            try:
                await self._ask(queue, Command(RequestCode.UPDATE_CONSUMER_OFFSET, header=header))
                return
            except RemotingError as error:
                await patience.pause(error)
                queue = await self._address_now(queue)

    async def _queues(self) -> list[QueueAddress]:
        patience = _Patience(self._retry_seconds)
        while True:
            try:
                queues = await queues_to_read(self._routes, self._topic)
                break
            except (RemotingError, ResponseError) as error:
                await patience.pause(error)
        if self._broker_name is not None:
            queues = [queue for queue in queues if queue.broker_name == self._broker_name]
        if self._queue_id is not None:
            queues = [queue for queue in queues if queue.queue_id == self._queue_id]
        if not queues:
            raise ClientError(
                f"the topic {self._topic} has no such queue (queue {self._queue_id}, broker {self._broker_name})"
            )
        return queues

    # --- one queue -------------------------------------------------------------------------------------------------

    async def _read(self, queue: QueueAddress, sender: MemoryObjectSendStream[Batch]) -> None:
        with sender:
            offset = await self._first_offset(queue)
            patience = _Patience(self._retry_seconds)
            while True:
                try:
                    answer = await self._pull(queue, offset)
                except (RemotingError, ResponseError) as error:
                    if isinstance(error, ResponseError) and error.response_code not in _WORTH_A_RETRY:
                        raise
                    await patience.pause(error)
                    queue = await self._address_now(queue)
                    continue
                patience = _Patience(self._retry_seconds)
                header = answer.decode_header(PullMessageResponseHeader)
                offset = header.next_begin_offset
                if answer.code == ResponseCode.SUCCESS:
                    messages = [message for message in decode_records(answer.body) if self._is_wanted(message)]
                    await sender.send(Batch(queue, messages, offset))
                elif answer.code == ResponseCode.PULL_NOT_FOUND and self._until_end:
                    return

    async def _pull(self, queue: QueueAddress, offset: int) -> Command:
        header = PullMessageRequestHeader(
            consumer_group=self._group,
            topic=self._topic,
            queue_id=queue.queue_id,
            queue_offset=offset,
            max_msg_nums=PULL_MESSAGES,
            sys_flag=PULL_SUBSCRIPTION | (0 if self._until_end else PULL_SUSPEND),
            commit_offset=0,
            suspend_timeout_millis=0 if self._until_end else HOLD_MS,
            subscription=self._tags,
            sub_version=0,
            expression_type="TAG",
        )
        command = Command(RequestCode.PULL_MESSAGE, header=header)
        answer = await self._client.request(
            queue.address, command, REQUEST_SECONDS if self._until_end else HOLD_SECONDS
        )
        if answer.code not in (
            ResponseCode.SUCCESS,
            ResponseCode.PULL_NOT_FOUND,
            ResponseCode.PULL_RETRY_IMMEDIATELY,
            ResponseCode.PULL_OFFSET_MOVED,
        ):
            raise ResponseError(answer.code, answer.remark, address=queue.address)
        return answer

    def _is_wanted(self, message: StoredMessage) -> bool:
        """The broker filters by hash; the text decides."""
        return self._wanted_tags is None or message.tags in self._wanted_tags

    async def _first_offset(self, queue: QueueAddress) -> int:
        patience = _Patience(self._retry_seconds)
        while True:
            try:
                return await self._ask_first_offset(queue)
            except RemotingError as error:
                await patience.pause(error)
                queue = await self._address_now(queue)

    async def _ask_first_offset(self, queue: QueueAddress) -> int:
        if self._start == "group":
            query = QueryConsumerOffsetRequestHeader(
                consumer_group=self._group, topic=self._topic, queue_id=queue.queue_id
            )
            with suppress(_NotFoundError):
                answer = await self._ask(queue, Command(RequestCode.QUERY_CONSUMER_OFFSET, header=query))
                return answer.decode_header(QueryConsumerOffsetResponseHeader).offset
        if self._start == "last":
            newest = GetMaxOffsetRequestHeader(topic=self._topic, queue_id=queue.queue_id)
            answer = await self._ask(queue, Command(RequestCode.GET_MAX_OFFSET, header=newest))
            return answer.decode_header(GetMaxOffsetResponseHeader).offset
        oldest = GetMinOffsetRequestHeader(topic=self._topic, queue_id=queue.queue_id)
        answer = await self._ask(queue, Command(RequestCode.GET_MIN_OFFSET, header=oldest))
        return max(0, answer.decode_header(GetMinOffsetResponseHeader).offset)

    async def _ask(self, queue: QueueAddress, command: Command) -> Command:
        answer = await self._client.request(queue.address, command, REQUEST_SECONDS)
        if answer.code == ResponseCode.QUERY_NOT_FOUND:
            raise _NotFoundError(answer.code, answer.remark, address=queue.address)
        if answer.code != ResponseCode.SUCCESS:
            raise ResponseError(answer.code, answer.remark, address=queue.address)
        return answer

    async def _address_now(self, queue: QueueAddress) -> QueueAddress:
        """`queue` with its broker's address of now, or as it is while no name server knows."""
        with suppress(RemotingError, ResponseError, RouteNotFoundError):
            for other in await queues_to_read(self._routes, self._topic):
                if (other.broker_name, other.queue_id) == (queue.broker_name, queue.queue_id):
                    return other
        return queue


class _NotFoundError(ResponseError):
    """The group has no offset in this queue."""


class _Patience:
    """Pauses between tries that grow, until the time is over and the error comes out."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._deadline: float | None = None
        self._pause_seconds = RETRY_PAUSE_SECONDS[0]

    async def pause(self, error: RocketMQError) -> None:
        now = anyio.current_time()
        if self._deadline is None:
            self._deadline = now + self._seconds
        if now >= self._deadline:
            raise error
        await anyio.sleep(min(self._pause_seconds, self._deadline - now))
        self._pause_seconds = min(self._pause_seconds * 2, RETRY_PAUSE_SECONDS[1])
