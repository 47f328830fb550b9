"""Pulls that carry their own filter, and the look-up of an offset by time.

A pull that carries its filter needs no heartbeat before it; messages are filtered once more here by the tag's text,
because the broker compares hashes.  Source: RocketMQ PullAPIWrapper, DefaultMQPullConsumerImpl.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from trio_rmq.client.group_calls import PULL_ANSWERS, REQUEST_SECONDS
from trio_rmq.client.message import ReceivedMessage
from trio_rmq.errors import ResponseError
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.wire import headers
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.groups import MessageQueue
from trio_rmq.wire.heartbeat import EXPRESSION_TAG, SubscriptionData
from trio_rmq.wire.sysflag import PULL_SUBSCRIPTION, PULL_SUSPEND


class PullStatus(Enum):
    """What a pull met (RocketMQ PullStatus)."""

    FOUND = "FOUND"
    NO_NEW_MESSAGE = "NO_NEW_MSG"
    NO_MATCHED_MESSAGE = "NO_MATCHED_MSG"
    OFFSET_ILLEGAL = "OFFSET_ILLEGAL"


_STATUS = {
    ResponseCode.SUCCESS: PullStatus.FOUND,
    ResponseCode.PULL_NOT_FOUND: PullStatus.NO_NEW_MESSAGE,
    ResponseCode.PULL_RETRY_IMMEDIATELY: PullStatus.NO_MATCHED_MESSAGE,
    ResponseCode.PULL_OFFSET_MOVED: PullStatus.OFFSET_ILLEGAL,
}


@dataclass(frozen=True, slots=True)
class PullResult:
    """One pull's messages, where the next one begins, and the queue's first and next offset at the broker.

    FOUND with no messages: the broker's hashes let some through whose tags are others.
    """

    status: PullStatus
    messages: list[ReceivedMessage]
    next_offset: int
    min_offset: int
    max_offset: int


async def pull_filtered(
    remoting: RemotingClient,
    address: str,
    group: str,
    queue: MessageQueue,
    *,
    offset: int,
    subscription: SubscriptionData,
    max_messages: int,
    hold_seconds: float,
    namespace: str = "",
) -> PullResult:
    """One pull from `offset`; with nothing there the broker holds it for up to `hold_seconds`.

    `queue` and `group` are as brokers know them; the messages are shown without `namespace`.

    RemotingError when the broker does not answer, ResponseError when it refuses, ProtocolError or ClientError for
    messages that cannot be read.
    """
    is_tag = subscription.expression_type == EXPRESSION_TAG
    header = headers.PullMessageRequestHeader(
        consumer_group=group,
        topic=queue.topic,
        queue_id=queue.queue_id,
        queue_offset=offset,
        max_msg_nums=max_messages,
        sys_flag=PULL_SUBSCRIPTION | (PULL_SUSPEND if hold_seconds > 0 else 0),
        commit_offset=0,
        suspend_timeout_millis=round(hold_seconds * 1000),
        subscription=subscription.sub_string,
        sub_version=0 if is_tag else subscription.sub_version,
        expression_type=subscription.expression_type,
    )
    command = Command(RequestCode.PULL_MESSAGE, header=header)
    answer = await remoting.request(address, command, hold_seconds + REQUEST_SECONDS)
    if answer.code not in PULL_ANSWERS:
        raise ResponseError(answer.code, answer.remark, address=address)
    told = answer.decode_header(headers.PullMessageResponseHeader)
    messages = []
    if answer.code == ResponseCode.SUCCESS:
        messages = ReceivedMessage.pulled(queue, answer.body, namespace)
        if wanted := subscription.tags_set:
            messages = [message for message in messages if message.stored.tags in wanted]
    status = _STATUS[ResponseCode(answer.code)]
    return PullResult(status, messages, told.next_begin_offset, told.min_offset, told.max_offset)


async def offset_at_time(remoting: RemotingClient, address: str, queue: MessageQueue, timestamp_ms: int) -> int:
    """The offset of the first message stored at or after `timestamp_ms` (the broker's clock), else the next one."""
    header = headers.SearchOffsetRequestHeader(topic=queue.topic, queue_id=queue.queue_id, timestamp=timestamp_ms)
    command = Command(RequestCode.SEARCH_OFFSET_BY_TIMESTAMP, header=header)
    answer = await remoting.request(address, command, REQUEST_SECONDS)
    if answer.code != ResponseCode.SUCCESS:
        raise ResponseError(answer.code, answer.remark, address=address)
    return answer.decode_header(headers.SearchOffsetResponseHeader).offset
