"""Offsets: consumed ones (14, 15), a queue's first and next (31, 30), by time (29), and the earliest store time (32).

Source: RocketMQ ConsumerManageProcessor and AdminBrokerProcessor (4.9).  A search by time gives the first message not
before the time (5.x's rule; protocol/differences.md).
"""

from __future__ import annotations

import logging

from trio_rmq.broker.offsets import ConsumerOffsetTable
from trio_rmq.errors import RequestError
from trio_rmq.remoting.handlers import HandlerTable
from trio_rmq.remoting.session import Session
from trio_rmq.store.message_store import MessageStore
from trio_rmq.wire import headers
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command

logger = logging.getLogger(__name__)


class OffsetHandlers:
    """Answers about queue offsets and keeps consumed ones."""

    def __init__(self, store: MessageStore, offsets: ConsumerOffsetTable) -> None:
        self._store = store
        self._offsets = offsets

    def register(self, table: HandlerTable) -> None:
        """Put the handlers into `table`."""
        table.register(RequestCode.QUERY_CONSUMER_OFFSET, self.query)
        table.register(RequestCode.UPDATE_CONSUMER_OFFSET, self.update)
        table.register(RequestCode.GET_MAX_OFFSET, self.max_offset)
        table.register(RequestCode.GET_MIN_OFFSET, self.min_offset)
        table.register(RequestCode.SEARCH_OFFSET_BY_TIMESTAMP, self.search)
        table.register(RequestCode.GET_EARLIEST_MSG_STORETIME, self.earliest_store_time)

    def query(self, session: Session, request: Command) -> Command:
        """14: where a group goes on; 0 for a new group on a queue that still has its first message; else 22."""
        header = request.decode_header(headers.QueryConsumerOffsetRequestHeader)
        offset = self._offsets.query(header.consumer_group, header.topic, header.queue_id)
        if offset is None:
            if self._store.min_offset(header.topic, header.queue_id) > 0:
                raise RequestError(
                    ResponseCode.QUERY_NOT_FOUND, "Not found, V3_0_6_SNAPSHOT maybe this group consumer boot first"
                )
            offset = 0
        return request.reply(header=headers.QueryConsumerOffsetResponseHeader(offset=offset))

    def update(self, session: Session, request: Command) -> Command:
        """15: a group goes on at this offset, stored as told."""
        header = request.decode_header(headers.UpdateConsumerOffsetRequestHeader)
        group, topic, queue_id, offset = header.consumer_group, header.topic, header.queue_id, header.commit_offset
        if queue_id < 0 or offset < 0:
            raise RequestError(
                ResponseCode.SYSTEM_ERROR, f"queue id {queue_id} and offset {offset} must not be negative"
            )
        before = self._offsets.commit(group, topic, queue_id, offset)
        if before is not None and before > offset:
            logger.warning(
                "group %s went back from %d to %d in queue %d of %s (client %s)",
                group, before, offset, queue_id, topic, session.peer,
            )  # fmt: skip
        return request.reply()

    def max_offset(self, session: Session, request: Command) -> Command:
        """30: the offset that the queue's next message will have."""
        header = request.decode_header(headers.GetMaxOffsetRequestHeader)
        offset = self._store.max_offset(header.topic, header.queue_id)
        return request.reply(header=headers.GetMaxOffsetResponseHeader(offset=offset))

    def min_offset(self, session: Session, request: Command) -> Command:
        """31: the offset of the queue's first message still kept."""
        header = request.decode_header(headers.GetMinOffsetRequestHeader)
        offset = self._store.min_offset(header.topic, header.queue_id)
        return request.reply(header=headers.GetMinOffsetResponseHeader(offset=offset))

    def search(self, session: Session, request: Command) -> Command:
        """29: the offset of the first message stored at that time (ms) or later."""
        header = request.decode_header(headers.SearchOffsetRequestHeader)
        offset = self._store.offset_by_time(header.topic, header.queue_id, header.timestamp)
        return request.reply(header=headers.SearchOffsetResponseHeader(offset=offset))

    def earliest_store_time(self, session: Session, request: Command) -> Command:
        """32: when the queue's first message still kept was stored (ms); -1 when there is none."""
        header = request.decode_header(headers.GetEarliestMsgStoretimeRequestHeader)
        timestamp = self._store.earliest_store_time(header.topic, header.queue_id)
        return request.reply(header=headers.GetEarliestMsgStoretimeResponseHeader(timestamp=timestamp))
