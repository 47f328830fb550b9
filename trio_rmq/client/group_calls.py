"""The requests by which a member of a consumer group talks to brokers: heartbeat, members, offsets, pull, give back.

Each function makes one request, checks its answer and raises ResponseError for a refusal.  Nothing here keeps state.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from trio_rmq.client.message import ReceivedMessage
from trio_rmq.client.route_cache import TEMPLATE_TOPIC
from trio_rmq.clock import wall_ms
from trio_rmq.errors import RemotingError, ResponseError
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.wire import headers
from trio_rmq.wire import properties as prop
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.groups import (
    LockBatchRequestBody,
    MessageQueue,
    UnlockBatchRequestBody,
    decode_consumer_list,
    decode_lock_response,
    encode_lock_request,
    encode_unlock_request,
)
from trio_rmq.wire.heartbeat import (
    EXPRESSION_TAG,
    CheckClientRequestBody,
    HeartbeatData,
    SubscriptionData,
    encode_check_client,
    encode_heartbeat,
)
from trio_rmq.wire.sysflag import COMPRESSED, COMPRESSION_MASK, PULL_COMMIT_OFFSET, PULL_SUSPEND

REQUEST_SECONDS = 5.0
PULL_SUSPEND_MS = 15_000
"""How long a broker may hold a pull."""
PULL_SECONDS = 30.0
"""After how long a held pull counts as lost."""
PULL_ANSWERS = frozenset({
    ResponseCode.SUCCESS, ResponseCode.PULL_NOT_FOUND, ResponseCode.PULL_RETRY_IMMEDIATELY,
    ResponseCode.PULL_OFFSET_MOVED,
})  # fmt: skip
"""Answers that carry offsets."""
RETRY_PRODUCER_GROUP = "CLIENT_INNER_PRODUCER"
"""In whose name messages are sent to retry topics, as Java's client does."""
_STORED = frozenset({
    ResponseCode.SUCCESS, ResponseCode.FLUSH_DISK_TIMEOUT, ResponseCode.SLAVE_NOT_AVAILABLE,
    ResponseCode.FLUSH_SLAVE_TIMEOUT,
})  # fmt: skip


async def _ask(remoting: RemotingClient, address: str, command: Command, seconds: float = REQUEST_SECONDS) -> Command:
    answer = await remoting.request(address, command, seconds)
    if answer.code != ResponseCode.SUCCESS:
        raise ResponseError(answer.code, answer.remark, address=address)
    return answer


async def send_heartbeat(remoting: RemotingClient, address: str, data: HeartbeatData) -> str:
    """Tell a broker that the client lives and what it subscribes to; what is wrong with its groups, or nothing."""
    answer = await _ask(remoting, address, Command(RequestCode.HEART_BEAT, body=encode_heartbeat(data)))
    return answer.remark or ""


async def check_subscription(
    remoting: RemotingClient, address: str, client_id: str, group: str, subscription: SubscriptionData
) -> None:
    """Ask a broker whether it takes a subscription."""
    body = CheckClientRequestBody(client_id=client_id, group=group, subscription_data=subscription)
    await _ask(remoting, address, Command(RequestCode.CHECK_CLIENT_CONFIG, body=encode_check_client(body)))


async def unregister(
    remoting: RemotingClient,
    address: str,
    client_id: str,
    group: str | None = None,
    *,
    producer_group: str | None = None,
) -> None:
    """Leave the consumer group `group`, or the producer group, at a broker."""
    header = headers.UnregisterClientRequestHeader(
        client_id=client_id, consumer_group=group, producer_group=producer_group
    )
    await _ask(remoting, address, Command(RequestCode.UNREGISTER_CLIENT, header=header))


async def member_ids(remoting: RemotingClient, address: str, group: str) -> list[str]:
    """The client ids of the group's members as a broker knows them."""
    header = headers.GetConsumerListByGroupRequestHeader(consumer_group=group)
    answer = await _ask(remoting, address, Command(RequestCode.GET_CONSUMER_LIST_BY_GROUP, header=header))
    return decode_consumer_list(answer.body).consumer_id_list


async def committed_offset(remoting: RemotingClient, address: str, group: str, queue: MessageQueue) -> int | None:
    """Where the group goes on in the queue; None when it never committed."""
    return _committed(await remoting.request(address, _offset_question(group, queue), REQUEST_SECONDS), address)


async def committed_offsets(
    remoting: RemotingClient, address: str, group: str, queues: Sequence[MessageQueue]
) -> list[int | None]:
    """`committed_offset` of each of a broker's queues, asked with one write; the first error of any comes out."""
    commands = [_offset_question(group, queue) for queue in queues]
    answers = await remoting.request_many(address, commands, REQUEST_SECONDS)
    return [_committed(answer, address) for answer in answers]


def _offset_question(group: str, queue: MessageQueue) -> Command:
    header = headers.QueryConsumerOffsetRequestHeader(consumer_group=group, topic=queue.topic, queue_id=queue.queue_id)
    return Command(RequestCode.QUERY_CONSUMER_OFFSET, header=header)


def _committed(answer: Command | RemotingError, address: str) -> int | None:
    if isinstance(answer, RemotingError):
        raise answer
    if answer.code == ResponseCode.QUERY_NOT_FOUND:
        return None
    if answer.code != ResponseCode.SUCCESS:
        raise ResponseError(answer.code, answer.remark, address=address)
    return answer.decode_header(headers.QueryConsumerOffsetResponseHeader).offset


async def commit(remoting: RemotingClient, address: str, group: str, queue: MessageQueue, offset: int) -> None:
    """Tell the broker where the group goes on; acknowledged on return."""
    header = headers.UpdateConsumerOffsetRequestHeader(
        consumer_group=group, topic=queue.topic, queue_id=queue.queue_id, commit_offset=offset
    )
    await _ask(remoting, address, Command(RequestCode.UPDATE_CONSUMER_OFFSET, header=header))


async def max_offset(remoting: RemotingClient, address: str, queue: MessageQueue) -> int:
    """The offset that the queue's next message will have."""
    header = headers.GetMaxOffsetRequestHeader(topic=queue.topic, queue_id=queue.queue_id)
    answer = await _ask(remoting, address, Command(RequestCode.GET_MAX_OFFSET, header=header))
    return answer.decode_header(headers.GetMaxOffsetResponseHeader).offset


async def min_offset(remoting: RemotingClient, address: str, queue: MessageQueue) -> int:
    """The offset of the queue's first message still kept."""
    header = headers.GetMinOffsetRequestHeader(topic=queue.topic, queue_id=queue.queue_id)
    answer = await _ask(remoting, address, Command(RequestCode.GET_MIN_OFFSET, header=header))
    return max(answer.decode_header(headers.GetMinOffsetResponseHeader).offset, 0)


async def pull(
    remoting: RemotingClient,
    address: str,
    group: str,
    queue: MessageQueue,
    *,
    offset: int,
    commit_offset: int,
    sub_version: int,
    expression_type: str = EXPRESSION_TAG,
    max_messages: int,
    now: float | None = None,
    on_answer: Callable[[Command], None] | None = None,
) -> Command:
    """One pull, held by the broker when nothing is there; the filter is the one of the heartbeat.

    `now` is anyio's current time, from who knows it already; `on_answer` as of Connection.request.
    """
    header = headers.PullMessageRequestHeader(
        consumer_group=group,
        topic=queue.topic,
        queue_id=queue.queue_id,
        queue_offset=offset,
        max_msg_nums=max_messages,
        sys_flag=PULL_SUSPEND | (PULL_COMMIT_OFFSET if commit_offset > 0 else 0),
        commit_offset=commit_offset,
        suspend_timeout_millis=PULL_SUSPEND_MS,
        sub_version=sub_version,
        expression_type=expression_type,
    )
    command = Command(RequestCode.PULL_MESSAGE, header=header)
    answer = await remoting.request(address, command, PULL_SECONDS, now, at_once=True, on_answer=on_answer)
    if answer.code not in PULL_ANSWERS:
        raise ResponseError(answer.code, answer.remark, address=address)
    return answer


async def give_back(
    remoting: RemotingClient,
    address: str,
    group: str,
    message: ReceivedMessage,
    *,
    delay_level: int,
    max_reconsume_times: int,
) -> None:
    """Ask the broker to deliver the message again later; with `delay_level` 0 the broker chooses the delay."""
    header = headers.ConsumerSendMsgBackRequestHeader(
        offset=message.stored.physical_offset,
        group=group,
        delay_level=delay_level,
        origin_msg_id=message.message_id,
        origin_topic=message.full_topic,
        unit_mode=False,
        max_reconsume_times=max_reconsume_times,
    )
    await _ask(remoting, address, Command(RequestCode.CONSUMER_SEND_MSG_BACK, header=header))


async def send_retry(
    remoting: RemotingClient,
    address: str,
    group: str,
    queue: MessageQueue,
    message: ReceivedMessage,
    *,
    reconsume_times: int,
    max_reconsume_times: int,
    delay_level: int,
) -> None:
    """Send a copy of the message to `queue` of the group's retry topic, as a retry that is due after `delay_level`."""
    fields: dict[str, str | None] = dict(message.properties)
    fields.setdefault(prop.ORIGIN_MESSAGE_ID, message.message_id)
    fields[prop.RETRY_TOPIC] = message.full_topic
    fields[prop.DELAY] = str(delay_level)
    for name in (prop.TRANSACTION_PREPARED, prop.RECONSUME_TIME, prop.MAX_RECONSUME_TIMES):
        fields[name] = None
    header = headers.SendMessageRequestHeader(
        producer_group=RETRY_PRODUCER_GROUP,
        topic=queue.topic,
        default_topic=TEMPLATE_TOPIC,
        default_topic_queue_nums=1,
        queue_id=queue.queue_id,
        sys_flag=message.stored.sys_flag & (COMPRESSED | COMPRESSION_MASK),
        born_timestamp=wall_ms(),
        flag=message.stored.flag,
        properties=prop.format_properties(fields),
        reconsume_times=reconsume_times,
        unit_mode=False,
        max_reconsume_times=max_reconsume_times,
        batch=False,
    )
    answer = await remoting.request(
        address, Command(RequestCode.SEND_MESSAGE, header=header, body=message.stored.body), REQUEST_SECONDS
    )
    if answer.code not in _STORED:
        raise ResponseError(answer.code, answer.remark, address=address)


async def lock_queues(
    remoting: RemotingClient, address: str, group: str, client_id: str, queues: Collection[MessageQueue]
) -> set[MessageQueue]:
    """Take, or renew, the locks of queues of one broker; those that this client has now, the others being another's."""
    body = LockBatchRequestBody(client_id=client_id, consumer_group=group, mq_set=list(queues))
    answer = await _ask(remoting, address, Command(RequestCode.LOCK_BATCH_MQ, body=encode_lock_request(body)))
    return set(decode_lock_response(answer.body).lock_ok_mq_set)


async def unlock_queues(
    remoting: RemotingClient, address: str, group: str, client_id: str, queues: Collection[MessageQueue]
) -> None:
    """Give locks of queues of one broker back."""
    body = UnlockBatchRequestBody(client_id=client_id, consumer_group=group, mq_set=list(queues))
    await _ask(remoting, address, Command(RequestCode.UNLOCK_BATCH_MQ, body=encode_unlock_request(body)))
