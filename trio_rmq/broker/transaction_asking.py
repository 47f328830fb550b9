"""Asking producers about their open transactions: whom, and with which words.

Source: RocketMQ AbstractTransactionalMessageCheckListener, ProducerManager.getAvailableChannel.
"""

from __future__ import annotations

import logging

from trio_rmq.broker import half_messages, names
from trio_rmq.broker.half_messages import HalfMessage
from trio_rmq.broker.members import Members
from trio_rmq.remoting.session import Session
from trio_rmq.wire.codes import RequestCode
from trio_rmq.wire.command import FLAG_ONEWAY, Command
from trio_rmq.wire.headers import CheckTransactionStateRequestHeader

logger = logging.getLogger(__name__)

UNREAD_BYTES_MAX = 1024 * 1024
"""A producer with more unread bytes than this is not asked more."""


class Asking:
    """Chooses a group's connected producers in turn."""

    def __init__(self, members: Members) -> None:
        self._members = members
        self._turn = 0

    def producer(self, group: str) -> Session | None:
        """A connected producer of the group, each in turn, one that reads what it is sent before one that does not."""
        sessions = [member.session for member in self._members.producers(group) if not member.session.closed]
        if not sessions:
            return None
        self._turn += 1
        turn = self._turn % len(sessions)
        turned = sessions[turn:] + sessions[:turn]
        return next((session for session in turned if is_reading(session)), turned[0])


def is_reading(session: Session) -> bool:
    """Whether the producer reads what it is sent."""
    return session.unwritten_bytes <= UNREAD_BYTES_MAX


def ask(session: Session, copy: HalfMessage) -> None:
    """Send CHECK_TRANSACTION_STATE for this copy; the answer is an END_TRANSACTION that names it, or nothing."""
    record = copy.record
    header = CheckTransactionStateRequestHeader(
        tran_state_table_offset=record.queue_offset,
        commit_log_offset=record.physical_offset,
        msg_id=copy.unique_key,
        transaction_id=copy.unique_key,
        offset_msg_id=record.offset_message_id,
    )
    session.send_nowait(
        Command(
            RequestCode.CHECK_TRANSACTION_STATE, header=header, body=half_messages.check_body(copy), flag=FLAG_ONEWAY
        )
    )


def say_parked(half: HalfMessage) -> None:
    """The log line for a transaction that nobody ended: it says whose it was."""
    address, port = half.record.born_host
    host = ".".join(map(str, address)) if len(address) == 4 else address.hex(":", 2)
    logger.error(
        "the transaction %s of producer group %r to %s-%d, sent by %s:%d, is given up after %d checks and parked in "
        "%s: look whether that group's producers know its end",
        half.unique_key, half.group, half.topic, half.queue_id, host, port, half.check_times,
        names.CHECK_MAX_TIME_TOPIC,
    )  # fmt: skip
