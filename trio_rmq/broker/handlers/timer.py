"""RECALL_MESSAGE (370): a producer takes back a message that waits for its time.

Checks, codes and remarks: RocketMQ 5.3.3 RecallMessageProcessor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trio_rmq.broker.deferring import Deferral, Deferring, Kind, decode_recall_handle, delete_key
from trio_rmq.broker.timers import Timers
from trio_rmq.broker.topics import TopicTable
from trio_rmq.clock import wall_ms
from trio_rmq.config import BrokerConfig
from trio_rmq.errors import RequestError, StoreFailedError
from trio_rmq.remoting.handlers import HandlerTable, Later, Reply
from trio_rmq.remoting.session import Session
from trio_rmq.store.message_store import MessageStore
from trio_rmq.store.messages import AppendStatus, NewMessage
from trio_rmq.wire import properties as prop
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.hashing import tags_code
from trio_rmq.wire.headers import RecallMessageRequestHeader, RecallMessageResponseHeader
from trio_rmq.wire.sysflag import PERMISSION_WRITE

_TAG = "_RECALL_TAG_"
_BODY = b"0"


class TimerHandlers:
    """Takes recalls; `max_delay_ms` is the longest delay there is, and so the longest time until a recall."""

    def __init__(
        self,
        config: BrokerConfig,
        store: MessageStore,
        topics: TopicTable,
        timers: Timers,
        deferring: Deferring,
        max_delay_ms: Callable[[], int],
    ) -> None:
        self._config = config
        self._store = store
        self._topics = topics
        self._timers = timers
        self._deferring = deferring
        self._max_delay_ms = max_delay_ms

    def register(self, table: HandlerTable) -> None:
        """Put the handler into `table`."""
        table.register(RequestCode.RECALL_MESSAGE, self.recall)

    def recall(self, session: Session, request: Command) -> Command | Later:
        """From the answer on the message is not delivered; RequestError when it is too late or cannot be."""
        header = request.decode_header(RecallMessageRequestHeader)
        config = self._config
        if not config.recall_message_enable:
            raise RequestError(ResponseCode.NO_PERMISSION, "recall failed, operation is forbidden")
        if not config.broker_permission & PERMISSION_WRITE:
            raise RequestError(ResponseCode.SERVICE_NOT_AVAILABLE, "recall failed, broker service not available")
        if self._topics.get(header.topic) is None:
            raise RequestError(ResponseCode.TOPIC_NOT_EXIST, f"recall failed, the topic[{header.topic}] not exist")
        handle = decode_recall_handle(header.recall_handle)
        if handle.topic != header.topic:
            raise RequestError(ResponseCode.ILLEGAL_OPERATION, "recall failed, topic not match")
        if handle.broker_name != config.broker_name:
            raise RequestError(ResponseCode.ILLEGAL_OPERATION, "recall failed, broker service not available")
        now_ms = wall_ms()
        left_ms = handle.timestamp_ms - 1 - now_ms
        if left_ms <= 0 or left_ms >= self._max_delay_ms():
            raise RequestError(ResponseCode.ILLEGAL_OPERATION, "recall failed, timestamp invalid")
        text = prop.format_properties(
            {
                prop.TAGS: _TAG,
                prop.TIMER_DEL_UNIQUE_KEY: delete_key(handle.topic, handle.unique_key),
                prop.UNIQUE_KEY: handle.unique_key,
                prop.TIMER_DELIVER_MS: str(handle.timestamp_ms),
                prop.PRODUCER_GROUP: header.producer_group,
            }
        )
        message = NewMessage(
            handle.topic, 0, _BODY, text, 0, 0, now_ms, session.peer_host, 0, 0, tags_code(_TAG)
        )  # fmt: skip
        stored = self._deferring.deferred(Deferral(Kind.TIMER, handle.timestamp_ms - 1), message)
        [result] = self._store.append([stored])
        if result.status is not AppendStatus.PUT_OK:
            raise RequestError(ResponseCode.SYSTEM_ERROR, f"recall failed, execute error: {result.remark}")
        self._timers.recall(handle.topic, handle.unique_key, handle.timestamp_ms)
        answer = request.reply(
            header=RecallMessageResponseHeader(msg_id=handle.unique_key), ext={"MSG_REGION": config.region_id}
        )
        if not self._store.sync_flush:
            return answer
        return self._after_sync(request, answer, result.physical_offset + result.size_bytes)

    def _after_sync(self, request: Command, answer: Command, end: int) -> Later:
        async def wait() -> Sequence[Reply]:
            try:
                await self._store.wait_durable(end)
            except StoreFailedError as error:
                return [request.reply(ResponseCode.SERVICE_NOT_AVAILABLE, remark=str(error))]
            return [answer]

        return Later(wait)
