"""The requests by which a member of a consumer group talks to brokers: heartbeat, members, offsets, pull, give back.

Each function makes one request, checks its answer and raises ResponseError for a refusal.  Nothing here keeps state.
"""

from __future__ import annotations

from trio_rmq.errors import ResponseError
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.wire import headers
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.groups import MessageQueue, decode_consumer_list
from trio_rmq.wire.heartbeat import HeartbeatData, encode_heartbeat
from trio_rmq.wire.record import StoredMessage
from trio_rmq.wire.sysflag import PULL_COMMIT_OFFSET, PULL_SUSPEND

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


async def _ask(remoting: RemotingClient, address: str, command: Command, seconds: float = REQUEST_SECONDS) -> Command:
    answer = await remoting.request(address, command, seconds)
    if answer.code != ResponseCode.SUCCESS:
        raise ResponseError(answer.code, answer.remark, address=address)
    return answer


async def send_heartbeat(remoting: RemotingClient, address: str, data: HeartbeatData) -> None:
    """Tell a broker that the client lives and what it subscribes to."""
    await _ask(remoting, address, Command(RequestCode.HEART_BEAT, body=encode_heartbeat(data)))


async def unregister(remoting: RemotingClient, address: str, client_id: str, group: str) -> None:
    """Leave the group at a broker."""
    header = headers.UnregisterClientRequestHeader(client_id=client_id, consumer_group=group)
    await _ask(remoting, address, Command(RequestCode.UNREGISTER_CLIENT, header=header))


async def member_ids(remoting: RemotingClient, address: str, group: str) -> list[str]:
    """The client ids of the group's members as a broker knows them."""
    header = headers.GetConsumerListByGroupRequestHeader(consumer_group=group)
    answer = await _ask(remoting, address, Command(RequestCode.GET_CONSUMER_LIST_BY_GROUP, header=header))
    return decode_consumer_list(answer.body).consumer_id_list


async def committed_offset(remoting: RemotingClient, address: str, group: str, queue: MessageQueue) -> int | None:
    """Where the group goes on in the queue; None when it never committed."""
    header = headers.QueryConsumerOffsetRequestHeader(consumer_group=group, topic=queue.topic, queue_id=queue.queue_id)
    try:
        answer = await _ask(remoting, address, Command(RequestCode.QUERY_CONSUMER_OFFSET, header=header))
    except ResponseError as error:
        if error.response_code == ResponseCode.QUERY_NOT_FOUND:
            return None
        raise
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
    max_messages: int,
) -> Command:
    """One pull, held by the broker when nothing is there; the filter is the one of the heartbeat."""
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
        expression_type="TAG",
    )
    answer = await remoting.request(address, Command(RequestCode.PULL_MESSAGE, header=header), PULL_SECONDS)
    if answer.code not in PULL_ANSWERS:
        raise ResponseError(answer.code, answer.remark, address=address)
    return answer


async def give_back(
    remoting: RemotingClient, address: str, group: str, message: StoredMessage, *, max_reconsume_times: int
) -> None:
    """Ask the broker to deliver the message again later; the broker chooses the delay."""
    header = headers.ConsumerSendMsgBackRequestHeader(
        offset=message.physical_offset,
        group=group,
        delay_level=0,
        origin_msg_id=message.get_property("UNIQ_KEY") or message.offset_message_id,
        origin_topic=message.topic,
        unit_mode=False,
        max_reconsume_times=max_reconsume_times,
    )
    await _ask(remoting, address, Command(RequestCode.CONSUMER_SEND_MSG_BACK, header=header))
