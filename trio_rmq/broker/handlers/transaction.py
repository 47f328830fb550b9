"""END_TRANSACTION (37): a producer commits or rolls back a half message, of itself or because it was asked.

All that arrived in one read end together: the committed messages with one write, their op messages with another.
Checks, codes and remarks: RocketMQ EndTransactionProcessor; what it does not look at - whether the transaction has
ended already - is refused here, so that nothing is delivered twice.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from trio_rmq.broker.half_messages import HalfMessage
from trio_rmq.broker.transactions import Transactions
from trio_rmq.clock import wall_ms
from trio_rmq.errors import ProtocolError, RequestError, StoreFailedError
from trio_rmq.remoting.handlers import HandlerTable, Later, Reply
from trio_rmq.remoting.session import Session
from trio_rmq.store.message_store import MessageStore
from trio_rmq.store.messages import AppendStatus, NewMessage
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.headers import EndTransactionRequestHeader
from trio_rmq.wire.sysflag import TRANSACTION_COMMIT, TRANSACTION_NONE, TRANSACTION_ROLLBACK

logger = logging.getLogger(__name__)

_CODES = {
    AppendStatus.SERVICE_NOT_AVAILABLE: ResponseCode.SERVICE_NOT_AVAILABLE,
    AppendStatus.MESSAGE_ILLEGAL: ResponseCode.MESSAGE_ILLEGAL,
    AppendStatus.PROPERTIES_SIZE_EXCEEDED: ResponseCode.MESSAGE_ILLEGAL,
    AppendStatus.LMQ_CONSUME_QUEUE_NUM_EXCEEDED: ResponseCode.SYSTEM_ERROR,
}


class TransactionHandlers:
    """Ends transactions."""

    def __init__(self, store: MessageStore, transactions: Transactions) -> None:
        self._store = store
        self._transactions = transactions

    def register(self, table: HandlerTable) -> None:
        """Put the handler into `table`."""
        table.register_batch(RequestCode.END_TRANSACTION, self.end_many)

    def end_many(self, session: Session, requests: Sequence[Command]) -> Sequence[Reply | Later]:
        """End what a run of requests names; no answer to one that does not decide."""
        replies: list[Reply] = []
        commits: list[tuple[Command, HalfMessage, NewMessage]] = []
        rollbacks: list[tuple[Command, HalfMessage]] = []
        places: set[int] = set()
        for request, header, named in self._read(session, requests, replies):
            try:
                half = self._check(header, named)
                place = self._transactions.place_of(half)
                if place is None or place in places:
                    raise _refused(f"the transaction {half.unique_key} has ended already")
                if header.commit_or_rollback == TRANSACTION_COMMIT:
                    commits.append((request, half, self._transactions.committed(half)))
                else:
                    rollbacks.append((request, half))
                places.add(place)
            except RequestError as error:
                logger.warning("%s cannot end a transaction: %s", session.peer, error.remark)
                if not request.is_oneway:
                    replies.append(request.reply(error.response_code, remark=error.remark))
        results = self._transactions.end(
            [(half, message) for _, half, message in commits], [half for _, half in rollbacks]
        )
        stored = [request for request, _ in rollbacks]
        end = 0
        for (request, half, _), result in zip(commits, results, strict=True):
            if result.status is AppendStatus.PUT_OK:
                end = result.physical_offset + result.size_bytes
                stored.append(request)
            else:
                logger.error("the transaction %s cannot be committed: %s", half.unique_key, result.remark)
                if not request.is_oneway:
                    replies.append(request.reply(_CODES[result.status], remark=result.remark))
        answered = [request for request in stored if not request.is_oneway]
        if answered and self._store.sync_flush:
            return [*replies, self._after_sync(answered, end)]
        return [*replies, *(request.reply() for request in answered)]

    def _after_sync(self, requests: Sequence[Command], end: int) -> Later:
        async def wait() -> Sequence[Reply]:
            try:
                await self._store.wait_durable(end)
            except StoreFailedError as error:
                code, remark = ResponseCode.SERVICE_NOT_AVAILABLE, str(error)
                return [request.reply(code, remark=remark) for request in requests]
            return [request.reply() for request in requests]

        return Later(wait, answers=requests)

    def _read(
        self, session: Session, requests: Sequence[Command], replies: list[Reply]
    ) -> list[tuple[Command, EndTransactionRequestHeader, HalfMessage | None]]:
        """The requests that decide, with the half messages that they name; what cannot be read is answered."""
        decided: list[tuple[Command, EndTransactionRequestHeader]] = []
        for request in requests:
            try:
                header = request.decode_header(EndTransactionRequestHeader)
            except ProtocolError as error:
                if not request.is_oneway:
                    replies.append(request.reply(error.response_code, remark=str(error)))
                continue
            if header.commit_or_rollback in (TRANSACTION_COMMIT, TRANSACTION_ROLLBACK):
                decided.append((request, header))
            elif header.commit_or_rollback == TRANSACTION_NONE:
                logger.info(
                    "%s leaves the transaction %s undecided%s",
                    session.peer, header.msg_id, " although it was asked" if header.from_transaction_check else "",
                )  # fmt: skip
        if not decided:
            return []
        halves = self._transactions.find_many(
            [(header.tran_state_table_offset, header.commit_log_offset) for _, header in decided]
        )
        return [(request, header, half) for (request, header), half in zip(decided, halves, strict=True)]

    def _check(self, header: EndTransactionRequestHeader, half: HalfMessage | None) -> HalfMessage:
        """The half message, which the request may end; RequestError says why it may not."""
        if half is None:
            raise _refused("Find prepared transaction message failed")
        if (
            not header.from_transaction_check
            and half.immunity_ms is not None
            and wall_ms() - half.stored_ms > self._transactions.immunity_ms(half)
        ):
            raise RequestError(
                ResponseCode.ILLEGAL_OPERATION,
                f"the transaction is older than its CHECK_IMMUNITY_TIME_IN_SECONDS ({half.immunity_ms // 1000}): "
                "its end counts only as the answer to a check now",
            )
        if half.group != header.producer_group:
            raise _refused("The producer group wrong")
        if half.offset != header.tran_state_table_offset:
            raise _refused("The transaction state table offset wrong")
        return half


def _refused(remark: str) -> RequestError:
    return RequestError(ResponseCode.SYSTEM_ERROR, remark)
