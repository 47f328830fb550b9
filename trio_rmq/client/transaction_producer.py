"""The transactional producer: a message that becomes visible when a local transaction has happened, or never.

`send_in_transaction` stores the message out of sight, runs the local transaction and tells the broker its end,
one-way, as RocketMQ's clients do.  An end that does not arrive, or is not known, is asked for by the broker: any live
producer of the group gets the message, and its check listener says what became of the transaction.  So the check
listener must know that from what the local transaction left behind, not from this process.

Invariants: nothing but SEND_OK lets the local transaction run; whatever a local transaction or a check raises, or when
it takes too long, the end is UNKNOWN and the broker asks again; a cancelled `send_in_transaction` tells no end.
Runs on Trio and asyncio.  Source: RocketMQ TransactionMQProducer, DefaultMQProducerImpl.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from typing import Any

import anyio
import msgspec

from trio_rmq.client.listening import guarded
from trio_rmq.client.message import Message, ReceivedMessage, SendResult, SendStatus
from trio_rmq.client.namespace import with_namespace, without_namespace
from trio_rmq.client.producer import Producer
from trio_rmq.client.queue_choice import select_by_hash
from trio_rmq.client.replies import ReplyMessage
from trio_rmq.client.tracing import bare_address, keys_text
from trio_rmq.clock import wall_ms
from trio_rmq.errors import ClientError, RemotingError
from trio_rmq.remoting.connection import Connection
from trio_rmq.wire import properties as prop
from trio_rmq.wire.codes import RequestCode
from trio_rmq.wire.command import FLAG_ONEWAY, Command
from trio_rmq.wire.groups import MessageQueue
from trio_rmq.wire.headers import CheckTransactionStateRequestHeader, EndTransactionRequestHeader
from trio_rmq.wire.record import decode_record
from trio_rmq.wire.sysflag import (
    TRANSACTION_COMMIT,
    TRANSACTION_NONE,
    TRANSACTION_PREPARED,
    TRANSACTION_ROLLBACK,
)
from trio_rmq.wire.trace import EndTransactionTrace

logger = logging.getLogger(__name__)

CHECKS_WAITING_MAX = 2000
"""Most checks that wait for their turn; the broker asks again about those above it (checkRequestHoldMax)."""

_PHYSICAL_OFFSET_DIGITS = 16
_CHECK_IMMUNITY = "CHECK_IMMUNITY_TIME_IN_SECONDS"


class TransactionState(Enum):
    """How a local transaction ended (RocketMQ LocalTransactionState)."""

    COMMIT = TRANSACTION_COMMIT
    ROLLBACK = TRANSACTION_ROLLBACK
    UNKNOWN = TRANSACTION_NONE
    """Not yet, or nobody can tell: the broker asks again."""


_TRACED_STATES = {
    TransactionState.COMMIT: "COMMIT_MESSAGE",
    TransactionState.ROLLBACK: "ROLLBACK_MESSAGE",
    TransactionState.UNKNOWN: "UNKNOW",
}
DEFAULT_REGION = "DefaultRegion"
"""Where a message is that does not say so."""

LocalTransaction = Callable[[str], Awaitable[TransactionState]]
"""Does what the message tells of; gets the transaction's id, by which a check can find it again."""
CheckListener = Callable[[ReceivedMessage], Awaitable[TransactionState]]
"""Says how the transaction of a message ended; `message.message_id` is the transaction's id."""


class TransactionSendResult(msgspec.Struct, frozen=True):
    """What became of a transactional send: `sent` of the message out of sight, `state` of the local transaction."""

    sent: SendResult
    transaction_id: str
    state: TransactionState
    error: Exception | None = None
    """What the local transaction raised; TimeoutError when it took too long."""


class TransactionProducer(Producer):
    """Sends messages in transactions; an async context manager.  `check` answers brokers, several at a time.

        async with TransactionProducer(check, group="payments", name_servers="127.0.0.1:9876") as producer:
            result = await producer.send_in_transaction(Message("Paid", b"order 7"), pay)

    `topics` are those whose brokers may ask from the start on, also about what others of the group began; the brokers
    of a topic that is sent to may ask anyway.  `local_timeout_seconds` and `check_timeout_seconds` bound one call each.
    The other settings are a Producer's.
    """

    def __init__(
        self,
        check: CheckListener,
        *,
        topics: Sequence[str] = (),
        local_timeout_seconds: float | None = None,
        check_timeout_seconds: float = 30.0,
        checks_at_once: int = 16,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self._check = check
        self._topics = topics
        self._local_timeout_seconds = local_timeout_seconds
        self._check_timeout_seconds = check_timeout_seconds
        self._checks_at_once = checks_at_once
        self._checks_waiting = 0
        self._group_name = with_namespace(self.namespace, self.group)

    async def __aenter__(self) -> TransactionProducer:
        self._limiter = anyio.Semaphore(self._checks_at_once)
        self._remoting.register(RequestCode.CHECK_TRANSACTION_STATE, self._asked)
        await super().__aenter__()
        for topic in self._topics:
            try:
                await self._sender.queues(with_namespace(self.namespace, topic))
            except ClientError as error:
                logger.warning("the brokers of topic %s are not yet known, and cannot ask: %s", topic, error)
        return self

    async def send_in_transaction(
        self,
        message: Message,
        local_transaction: LocalTransaction,
        *,
        queue: MessageQueue | None = None,
        timeout_seconds: float | None = None,
        check_immunity_seconds: int | None = None,
    ) -> TransactionSendResult:
        """Store the message out of sight, run the local transaction, and tell the broker how it ended.

        Errors of the first step as for `send`; from then on none is raised.  `check_immunity_seconds` is how long the
        broker does not ask about this message (its transactionTimeOut when not given).  Cancelled before the local
        transaction ended, the message stays out of sight until the check listener decides.
        """
        self._check_open()
        if isinstance(message, ReplyMessage):
            raise ClientError("a reply is delivered at once: send it outside of transactions")
        own = {prop.TRANSACTION_PREPARED: "true", prop.PRODUCER_GROUP: self._group_name}
        if check_immunity_seconds is not None:
            own[_CHECK_IMMUNITY] = str(check_immunity_seconds)
        if queue is None and message.sharding_key is not None:
            queue = await self.select_queue(message, select_by_hash)
        outgoing = self._maker.make(message, properties=self._maker.own_properties(own), sys_flag=TRANSACTION_PREPARED)
        sent = await self._sender.send(outgoing, message, queue=queue, timeout_seconds=timeout_seconds)
        transaction_id = sent.transaction_id or sent.message_id
        error: Exception | None = None
        if sent.status is not SendStatus.SEND_OK:
            state = TransactionState.ROLLBACK  # nobody knows whether the message is safe: so nothing may happen
        else:
            state, error = await self._decided(
                local_transaction,
                transaction_id,
                self._local_timeout_seconds,
                f"the local transaction {transaction_id}",
            )
        await self._end(message, outgoing.topic, sent, transaction_id, state, error)
        return TransactionSendResult(sent, transaction_id, state, error)

    async def _decided(
        self, listener: Callable[[Any], Awaitable[TransactionState]], argument: object, seconds: float | None, what: str
    ) -> tuple[TransactionState, Exception | None]:
        """What the user's function says, and what it raised; a cancellation passes."""
        try:
            with anyio.fail_after(seconds):
                state = await guarded(listener(argument))
            if not isinstance(state, TransactionState):
                raise ClientError(f"{what} returned {state!r}: return a TransactionState")
        except Exception as error:
            logger.error("%s failed, the broker will ask again", what, exc_info=error)
            return TransactionState.UNKNOWN, error
        return state, None

    async def _end(
        self,
        message: Message,
        topic: str,
        sent: SendResult,
        transaction_id: str,
        state: TransactionState,
        error: Exception | None,
    ) -> None:
        """Tell the broker; what does not arrive it asks for."""
        header = EndTransactionRequestHeader(
            producer_group=self._group_name,
            tran_state_table_offset=sent.queue_offset,
            commit_log_offset=int(sent.offset_message_id[-_PHYSICAL_OFFSET_DIGITS:], 16),
            commit_or_rollback=state.value,
            msg_id=sent.message_id,
            transaction_id=transaction_id,
        )
        remark = None if error is None else f"the local transaction raised {type(error).__name__}: {error}"
        command = Command(RequestCode.END_TRANSACTION, header=header, remark=remark, flag=FLAG_ONEWAY)
        try:
            address = await self._sender.master_address(topic, sent.queue.broker_name)
            if sent.trace_on:
                self._trace_end(
                    message.topic, sent.message_id, message.tags, keys_text(message), sent.region_id, address,
                    transaction_id, state,
                )  # fmt: skip
            await self._remoting.request_oneway(address, command)
        except (RemotingError, ClientError) as failure:
            logger.warning("the end of transaction %s is not told, the broker will ask: %s", transaction_id, failure)

    # -- what brokers ask -----------------------------------------------------------------------------------------

    async def _asked(self, connection: Connection, command: Command) -> None:
        """CHECK_TRANSACTION_STATE: answered by an END_TRANSACTION on the same connection."""
        header = command.decode_header(CheckTransactionStateRequestHeader)
        stored = decode_record(command.body)
        if self._checks_waiting >= CHECKS_WAITING_MAX:
            logger.warning(
                "%d checks wait already: the broker will ask again about %s", CHECKS_WAITING_MAX, header.msg_id
            )
            return
        self._checks_waiting += 1
        try:
            async with self._limiter:
                queue = MessageQueue(topic=stored.topic, broker_name=connection.address, queue_id=stored.queue_id)
                message = ReceivedMessage.from_record(stored, queue, self.namespace)
                state, error = await self._decided(
                    self._check, message, self._check_timeout_seconds, f"the check of transaction {message.message_id}"
                )
        finally:
            self._checks_waiting -= 1
        known, topic = message.properties, without_namespace(self.namespace, message.topic)
        if known.get(prop.TRACE_ON) != "false":
            self._trace_end(
                topic, message.message_id, message.tags, known.get(prop.KEYS),
                known.get(prop.MSG_REGION, DEFAULT_REGION), connection.address, header.transaction_id, state,
                from_check=True,
            )  # fmt: skip
        answer = EndTransactionRequestHeader(
            producer_group=self._group_name,
            tran_state_table_offset=header.tran_state_table_offset,
            commit_log_offset=header.commit_log_offset,
            commit_or_rollback=state.value,
            from_transaction_check=True,
            msg_id=message.message_id,
            transaction_id=header.transaction_id,
        )
        remark = None if error is None else f"the check raised {type(error).__name__}: {error}"
        await connection.send_oneway(
            Command(RequestCode.END_TRANSACTION, header=answer, remark=remark, flag=FLAG_ONEWAY)
        )

    def _trace_end(
        self,
        topic: str,
        message_id: str,
        tags: str | None,
        keys: str | None,
        region_id: str,
        address: str,
        transaction_id: str | None,
        state: TransactionState,
        *,
        from_check: bool = False,
    ) -> None:
        if self._traces is None:
            return
        trace = EndTransactionTrace(
            time_ms=wall_ms(),
            region_id=region_id,
            group=self.group,
            topic=topic,
            message_id=message_id,
            tags=tags,
            keys=keys,
            store_host=bare_address(address),
            transaction_id=transaction_id,
            state=_TRACED_STATES[state],
            from_check=from_check,
        )
        self._traces.note([trace])
