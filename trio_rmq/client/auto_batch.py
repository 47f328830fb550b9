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
from msgspec.structs import replace

from trio_rmq.client.batches import batch_of
from trio_rmq.client.message import Message, SendResult
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


class _Gathering:
    """A batch that is being gathered, or sent."""

    __slots__ = ("done", "error", "full", "ids", "items", "messages", "result", "size_bytes")

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.items: list[BatchItem] = []
        self.ids: list[str] = []
        self.size_bytes = 0
        self.full = anyio.Event()
        self.done = anyio.Event()
        self.result: list[SendResult] = []
        self.error: Exception | None = None


_Key = tuple[str, MessageQueue | None, bool]


class AutoBatcher:
    """Gathers for one producer; `tasks` is its nursery, `send` sends a batch with its retries."""

    def __init__(self, settings: AutoBatch, maker: OutgoingMaker, tasks: anyio.abc.TaskGroup, send: SendBatch) -> None:
        self._settings = settings
        self._maker = maker
        self._tasks = tasks
        self._send = send
        self._own_properties = maker.own_properties()
        self._gatherings: dict[_Key, _Gathering] = {}
        self._gathered_bytes = 0

    def takes(self, message: Message) -> bool:
        """Whether the message is one for a batch: small enough, wanted at once, and there is room."""
        if message.is_for_later or isinstance(message, ReplyMessage):
            return False
        size = len(message.body)
        return size < self._settings.size_bytes and self._gathered_bytes + size <= GATHERED_BYTES_MAX

    async def send(self, message: Message, queue: MessageQueue | None) -> SendResult:
        """Add the message to a batch, and wait until that is acknowledged; errors as of the producer's send."""
        maker, settings = self._maker, self._settings
        message.check(maker.body_size_max_bytes)
        unique_id = maker.next_id()
        properties = message.properties_text(unique_id, self._own_properties).encode()
        size = len(message.body) + len(properties)
        key = (message.topic, queue, message.wait_store)
        gathering = self._gatherings.get(key)
        if gathering is None:
            gathering = self._gatherings[key] = _Gathering()
            self._tasks.start_soon(self._run, key, gathering)
        index = len(gathering.ids)
        gathering.messages.append(message)
        gathering.items.append(BatchItem(message.flag, message.body, properties))
        gathering.ids.append(unique_id)
        gathering.size_bytes += size
        self._gathered_bytes += size
        if index + 1 >= settings.count or gathering.size_bytes >= settings.size_bytes:
            del self._gatherings[key]
            gathering.full.set()
        await gathering.done.wait()
        if gathering.error is not None:
            raise _again(gathering.error)
        return gathering.result[index]

    async def _run(self, key: _Key, gathering: _Gathering) -> None:
        try:
            with anyio.move_on_after(self._settings.delay_seconds):
                await gathering.full.wait()
            if self._gatherings.get(key) is gathering:
                del self._gatherings[key]
            topic, queue, wait_store = key
            outgoing = batch_of(self._maker, topic, gathering.items, gathering.ids, wait_store=wait_store)
            result = await self._send(outgoing, gathering.messages, queue)
            gathering.result = split_result(result)
            if len(gathering.result) != len(gathering.ids):
                gathering.error = SendError(
                    f"the broker acknowledged {len(gathering.result)} of {len(gathering.ids)} messages of a batch"
                )
        except Exception as error:  # noqa: BLE001 - an interceptor is the user's: what it raises goes to the senders
            gathering.error = error
        except BaseException:
            gathering.error = ClientError("the producer closed before the batch was acknowledged")
            raise
        finally:
            self._gathered_bytes -= gathering.size_bytes
            gathering.done.set()


def split_result(result: SendResult) -> list[SendResult]:
    """The result of each message of a batch, in order."""
    ids, offset_ids = result.message_id.split(","), result.offset_message_id.split(",")
    if len(ids) != len(offset_ids):
        return []
    return [
        replace(result, message_id=unique_id, offset_message_id=offset_id, queue_offset=result.queue_offset + index)
        for index, (unique_id, offset_id) in enumerate(zip(ids, offset_ids, strict=True))
    ]


def _again(error: Exception) -> Exception:
    """A fresh copy for each sender: each adds its own traceback."""
    if isinstance(error, SendError):
        return SendError(str(error), response_code=error.response_code, tries=error.tries)
    if isinstance(error, ClientError):
        return type(error)(str(error))
    wrapped = SendError(f"the batch was not sent: {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
