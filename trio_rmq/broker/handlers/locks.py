"""Queue locks by request: LOCK_BATCH_MQ (41), UNLOCK_BATCH_MQ (42).  Source: RocketMQ AdminBrokerProcessor (4.9)."""

from __future__ import annotations

import trio

from trio_rmq.broker.locks import QueueLocks
from trio_rmq.remoting.handlers import HandlerTable
from trio_rmq.remoting.session import Session
from trio_rmq.wire.codes import RequestCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.groups import (
    LockBatchResponseBody,
    decode_lock_request,
    decode_unlock_request,
    encode_lock_response,
)


class LockHandlers:
    """Gives queues to one client of a group at a time."""

    def __init__(self, locks: QueueLocks) -> None:
        self._locks = locks

    def register(self, table: HandlerTable) -> None:
        """Put the handlers into `table`."""
        table.register(RequestCode.LOCK_BATCH_MQ, self.lock)
        table.register(RequestCode.UNLOCK_BATCH_MQ, self.unlock)

    def lock(self, session: Session, request: Command) -> Command:
        """41: the answer names the queues that the client holds now; others are left out."""
        asked = decode_lock_request(request.body)
        mine = self._locks.lock(asked.consumer_group, asked.client_id, asked.mq_set, now=trio.current_time())
        return request.reply(body=encode_lock_response(LockBatchResponseBody(lock_ok_mq_set=mine)))

    def unlock(self, session: Session, request: Command) -> Command:
        """42: the client gives its locks back."""
        asked = decode_unlock_request(request.body)
        self._locks.unlock(asked.consumer_group, asked.client_id, asked.mq_set)
        return request.reply()
