"""Auto-batching: messages of many tasks, sent one by one, leave together in batches.

Messages of one topic, queue and `wait_store` gather until there are enough of them, or bytes, or the first has waited
long enough.  One task a batch, of the producer's nursery, sends it; each sender wakes with its own message's result, or
with the error that met the batch.  A sender that is cancelled leaves its message in: it may be stored.
Source: RocketMQ 5 ProduceAccumulator (which has no count).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import anyio
import anyio.abc

from trio_rmq.client.batches import batch_of
from trio_rmq.client.message import UNIQUE_KEY_BYTES, UNIQUE_KEY_START, Message, SendResult
from trio_rmq.client.outgoing import Outgoing, OutgoingMaker
from trio_rmq.client.replies import ReplyMessage
from trio_rmq.errors import ClientError, SendError
from trio_rmq.wire.batch import BatchItem
from trio_rmq.wire.groups import MessageQueue

GATHERED_BYTES_MAX = 32 * 1024 * 1024
"""Most bytes that wait in unsent batches of a producer; above it messages leave singly (totalBatchMaxBytes)."""

SendBatch = Callable[[Outgoing, list[Message], MessageQueue | None], Awaitable[SendResult]]


@dataclass(frozen=True, slots=True)
class AutoBatch:
    """When a gathered batch leaves: whichever comes first.  A message waits at most `delay_seconds`."""

    count: int = 1000
    size_bytes: int = 32 * 1024
    delay_seconds: float = 0.01

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 < self.size_bytes <= 2 * 1024 * 1024 or not 0 < self.delay_seconds <= 30:
            raise ClientError(
                "auto-batching wants a count of 1 or more, 1 byte to 2 MiB, and a delay of at most 30 seconds"
            )


class Gathering:
    """A batch that is being gathered, or sent; `done` is set once it is known what became of its messages."""

    __slots__ = (
        "_batch", "_error", "_ids", "_offset_ids", "_wake", "done", "is_closed", "items", "messages", "size_bytes",
    )  # fmt: skip

    def __init__(self, done: anyio.Event) -> None:
        self.messages: list[Message] = []
        self.items: list[BatchItem] = []
        """The messages as they were when they were added; until they leave without their unique ids."""
        self.size_bytes = 0
        self.is_closed = False
        """Nothing more is added."""
        self.done = done
        self._wake: anyio.Event | None = None
        self._ids: list[str] = []
        self._offset_ids: list[str] = []
        self._batch: SendResult | None = None
        self._error: Exception | None = None

    def close(self) -> None:
        """Let it leave."""
        self.is_closed = True
        if self._wake is not None:
            self._wake.set()

    async def wait_closed(self, seconds: float) -> None:
        """Return when it is closed, at the latest after so long; for its one task."""
        self._wake = anyio.Event()
        with anyio.move_on_after(seconds):
            await self._wake.wait()

    def outgoing(self, maker: OutgoingMaker, topic: str, *, wait_store: bool) -> Outgoing:
        """The request; ClientError when it is over the body limit."""
        items = self.items
        ids = maker.next_ids(len(items))
        for item, unique_id in zip(items, ids, strict=True):
            item.properties = f"{UNIQUE_KEY_START}{unique_id}".encode() + item.properties
        return batch_of(maker, topic, items, ids, wait_store=wait_store)

    def succeed(self, batch: SendResult) -> None:
        """`batch` is the result of all together."""
        ids, offset_ids, count = batch.message_ids, batch.offset_message_id.split(","), len(self.items)
        if len(ids) == len(offset_ids) == count:
            self._ids, self._offset_ids, self._batch = ids, offset_ids, batch
            self.done.set()
        else:
            self.fail(SendError(f"the broker named {len(offset_ids)} of {count} messages of a batch"))

    def fail(self, error: Exception) -> None:
        """`error` met all together."""
        self._error = error
        self.done.set()

    def result(self, number: int) -> SendResult:
        """What became of the message that was added after `number` others; raises what met the batch."""
        batch = self._batch
        if batch is None:
            assert self._error is not None  # noqa: S101 - it is done: one of the two is there
            raise _again(self._error)
        return SendResult(
            batch.status,
            self._ids[number],
            self._offset_ids[number],
            batch.queue,
            batch.queue_offset + number,
            batch.transaction_id,
            batch.region_id,
            batch.trace_on,
        )


_Key = tuple[str, MessageQueue | None, bool]


class AutoBatcher:
    """Gathers for one producer; `tasks` is its nursery, `send` sends a batch with its retries."""

    def __init__(self, settings: AutoBatch, maker: OutgoingMaker, tasks: anyio.abc.TaskGroup, send: SendBatch) -> None:
        self._settings = settings
        self._maker = maker
        self._tasks = tasks
        self._send = send
        self._own_properties = maker.own_properties()
        self._gatherings: dict[_Key, Gathering] = {}
        self._gathered_bytes = 0
        self._event_type = type(anyio.Event())  # of this backend, which anyio.Event() would look up each time

    def add(self, message: Message, queue: MessageQueue | None) -> tuple[Gathering, int] | None:
        """The batch that takes the message, and its number in it: wait until that is `done`, then ask its `result`.

        None when the message is none for a batch: it is large, wanted later or a reply, or too much is gathered
        already.  ClientError as from the producer's send.
        """
        settings = self._settings
        body = message.body
        size = len(body)
        if (
            size >= settings.size_bytes
            or self._gathered_bytes + size > GATHERED_BYTES_MAX
            or message.is_for_later
            or isinstance(message, ReplyMessage)
        ):
            return None
        message.check(self._maker.body_size_max_bytes)
        tail = message.properties_tail(self._own_properties).encode()
        size += UNIQUE_KEY_BYTES + len(tail)
        key = (message.topic, queue, message.wait_store)
        gathering = self._gatherings.get(key)
        if gathering is None:
            gathering = self._gatherings[key] = Gathering(self._event_type())
            self._tasks.start_soon(self._run, key, gathering)
        items = gathering.items
        number = len(items)
        items.append(BatchItem(message.flag, body, tail))
        gathering.messages.append(message)
        gathering.size_bytes += size
        self._gathered_bytes += size
        if number + 1 >= settings.count or gathering.size_bytes >= settings.size_bytes:
            self._close(key, gathering)
        return gathering, number

    def _close(self, key: _Key, gathering: Gathering) -> None:
        if not gathering.is_closed:
            del self._gatherings[key]
            gathering.close()

    async def _run(self, key: _Key, gathering: Gathering) -> None:
        try:
            try:
                if not gathering.is_closed:
                    await gathering.wait_closed(self._settings.delay_seconds)
            finally:
                self._close(key, gathering)
            topic, queue, wait_store = key
            outgoing = gathering.outgoing(self._maker, topic, wait_store=wait_store)
            gathering.succeed(await self._send(outgoing, gathering.messages, queue))
        except Exception as error:  # noqa: BLE001 - an interceptor is the user's: what it raises goes to the senders
            gathering.fail(error)
        except BaseException:
            gathering.fail(ClientError("the producer closed before the batch was acknowledged"))
            raise
        finally:
            self._gathered_bytes -= gathering.size_bytes


def _again(error: Exception) -> Exception:
    """A fresh copy for each sender: each adds its own traceback."""
    if isinstance(error, SendError):
        return SendError(str(error), response_code=error.response_code, tries=error.tries)
    if isinstance(error, ClientError):
        return type(error)(str(error))
    wrapped = SendError(f"the batch was not sent: {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
