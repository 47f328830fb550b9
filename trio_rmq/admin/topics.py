"""Topics over all brokers of a cluster: made, listed, looked at, deleted; and the offsets of their queues.

A topic has settings of its own at each broker; calls ask the masters one after the other.  A name server learns of a
change from the brokers, a moment after the call.  Source: RocketMQ's updateTopic, topicList, topicStatus and
deleteTopic sub-commands, MQAdminImpl.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from trio_rmq.admin.client import AdminClient
from trio_rmq.client import group_calls
from trio_rmq.client.names import DLQ_PREFIX, RETRY_PREFIX, check_topic
from trio_rmq.client.pull_calls import offset_at_time
from trio_rmq.client.route_cache import TEMPLATE_TOPIC
from trio_rmq.errors import ClientError, RouteNotFoundError
from trio_rmq.wire import headers
from trio_rmq.wire.codes import RequestCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.groups import MessageQueue, decode_group_names
from trio_rmq.wire.routes import decode_topic_list
from trio_rmq.wire.stats import decode_topic_stats
from trio_rmq.wire.sysflag import PERMISSION_DEFAULT, PERMISSION_READ, PERMISSION_WRITE
from trio_rmq.wire.topics import SINGLE_TAG, TopicConfig, decode_topic_table

QUEUES = 8
"""Queues that a new topic gets at each broker (updateTopic's default)."""


@dataclass(frozen=True, slots=True)
class QueueState:
    """One queue: the offsets of its first and its next message, and when its last one was stored (ms; 0: never)."""

    queue: MessageQueue
    min_offset: int
    max_offset: int
    last_stored_ms: int


@dataclass(slots=True)
class Topic:
    """One topic: its settings by broker name, its queues in order, and the groups that consume it."""

    name: str
    configs: dict[str, TopicConfig] = field(default_factory=dict)
    queues: list[QueueState] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)


async def create_topic(
    admin: AdminClient,
    name: str,
    *,
    write_queues: int = QUEUES,
    read_queues: int | None = None,
    permission: int = PERMISSION_DEFAULT,
    cluster: str | None = None,
    broker_name: str | None = None,
) -> list[str]:
    """Make a topic at every master, or of one cluster or broker, and return their names; an existing one is changed.

    Without `read_queues` there are as many as to write.  `permission` is a sum of PERMISSION_READ and PERMISSION_WRITE.
    ClientError for a bad name, number or permission; an error of one master leaves the topic at those before it.
    Written down by each broker on return.
    """
    check_topic(name)
    if permission & ~(PERMISSION_READ | PERMISSION_WRITE):
        raise ClientError(f"the permission {permission} is no sum of {PERMISSION_READ} (read) and {PERMISSION_WRITE}")
    if write_queues < 1 or (read_queues is not None and read_queues < 1):
        raise ClientError("a topic needs at least one queue to write and one to read")
    header = headers.CreateTopicRequestHeader(
        topic=name,
        default_topic=TEMPLATE_TOPIC,
        read_queue_nums=write_queues if read_queues is None else read_queues,
        write_queue_nums=write_queues,
        perm=permission,
        topic_filter_type=SINGLE_TAG,
    )
    masters = await admin.masters(cluster)
    if broker_name is not None:
        if broker_name not in masters:
            raise ClientError(f"no master of a broker {broker_name} is known; known: {', '.join(masters)}")
        masters = {broker_name: masters[broker_name]}
    for address in masters.values():
        await admin.ask(address, Command(RequestCode.UPDATE_AND_CREATE_TOPIC, header=header))
    return list(masters)


async def list_topics(
    admin: AdminClient, *, cluster: str | None = None, everything: bool = False
) -> dict[str, dict[str, TopicConfig]]:
    """The settings of every topic by its name and the broker's; `everything`: also the system's, retries, dead letters.

    RemotingError or ResponseError when one of the masters cannot say.
    """
    topics: dict[str, dict[str, TopicConfig]] = {}
    hidden: set[str] = set()
    for broker_name, address in (await admin.masters(cluster)).items():
        for name, config in (await _table_at(admin, address)).items():
            topics.setdefault(name, {})[broker_name] = config
        if not everything:
            answer = await admin.ask(address, Command(RequestCode.GET_SYSTEM_TOPIC_LIST_FROM_BROKER))
            hidden.update(decode_topic_list(answer.body).topic_list)
    if not everything:
        hidden.update(name for name in topics if name.startswith((RETRY_PREFIX, DLQ_PREFIX)))
    return {name: topics[name] for name in sorted(topics) if name not in hidden}


async def show_topic(admin: AdminClient, name: str, *, cluster: str | None = None) -> Topic:
    """One topic with its queues and groups; RouteNotFoundError when no broker has it."""
    topic = Topic(name)
    groups: set[str] = set()
    for broker_name, address in (await admin.masters(cluster)).items():
        config = (await _table_at(admin, address)).get(name)
        if config is None:
            continue
        topic.configs[broker_name] = config
        stats = headers.GetTopicStatsInfoRequestHeader(topic=name)
        answer = await admin.ask(address, Command(RequestCode.GET_TOPIC_STATS_INFO, header=stats))
        for queue, place in decode_topic_stats(answer.body).offset_table.items():
            state = QueueState(queue, place.min_offset, place.max_offset, place.last_update_timestamp)
            topic.queues.append(state)
        who = headers.QueryTopicConsumeByWhoRequestHeader(topic=name)
        answer = await admin.ask(address, Command(RequestCode.QUERY_TOPIC_CONSUME_BY_WHO, header=who))
        groups.update(decode_group_names(answer.body).group_list)
    if not topic.configs:
        raise RouteNotFoundError(f"no broker has the topic {name}: create it")
    topic.queues.sort(key=lambda state: state.queue.sort_key)
    topic.groups = sorted(groups)
    return topic


async def delete_topic(admin: AdminClient, name: str, *, cluster: str | None = None) -> list[str]:
    """Delete a topic with its messages' queues and its groups' offsets; returns the names of the masters asked.

    First at the masters, then at each name server, when it is one cluster's only there.  Where it is not, nothing
    happens; RouteNotFoundError when it is nowhere.  Producers that still send make it anew where brokers create topics.
    """
    check_topic(name)
    masters = await admin.masters(cluster)
    having = [broker for broker, address in masters.items() if name in await _table_at(admin, address)]
    if not having:
        raise RouteNotFoundError(f"no broker has the topic {name}: nothing was deleted")
    for broker in having:
        at_broker = headers.DeleteTopicRequestHeader(topic=name)
        await admin.ask(masters[broker], Command(RequestCode.DELETE_TOPIC_IN_BROKER, header=at_broker))
    at_name_server = headers.DeleteTopicFromNamesrvRequestHeader(topic=name, cluster_name=cluster)
    await admin.ask_every_name_server(Command(RequestCode.DELETE_TOPIC_IN_NAMESRV, header=at_name_server))
    return having


# -- queues ---------------------------------------------------------------------------------------------------------


async def topic_queues(admin: AdminClient, topic: str) -> list[MessageQueue]:
    """The topic's queues that can be read, as a name server knows them; RouteNotFoundError when it knows none."""
    route = await admin.route(topic)
    queues = [
        MessageQueue(topic=topic, broker_name=data.broker_name, queue_id=number)
        for data in route.queue_datas
        if data.perm & PERMISSION_READ
        for number in range(data.read_queue_nums)
    ]
    return sorted(queues, key=lambda queue: queue.sort_key)


async def min_offset(admin: AdminClient, queue: MessageQueue) -> int:
    """The offset of the queue's first message still kept; RouteNotFoundError when its broker has no master."""
    return await group_calls.min_offset(admin.remoting, await _master(admin, queue), queue)


async def max_offset(admin: AdminClient, queue: MessageQueue) -> int:
    """The offset that the queue's next message will have; errors as of `min_offset`."""
    return await group_calls.max_offset(admin.remoting, await _master(admin, queue), queue)


async def offset_for_timestamp(admin: AdminClient, queue: MessageQueue, timestamp_ms: int) -> int:
    """The offset of the first message stored at or after the time (milliseconds since 1970), else the next one."""
    return await offset_at_time(admin.remoting, await _master(admin, queue), queue, timestamp_ms)


async def _master(admin: AdminClient, queue: MessageQueue) -> str:
    masters = await admin.topic_masters(queue.topic)
    if queue.broker_name not in masters:
        raise RouteNotFoundError(f"no master of {queue.broker_name} serves {queue.topic} now: {', '.join(masters)} do")
    return masters[queue.broker_name]


async def _table_at(admin: AdminClient, address: str) -> dict[str, TopicConfig]:
    answer = await admin.ask(address, Command(RequestCode.GET_ALL_TOPIC_CONFIG))
    return decode_topic_table(answer.body).topic_config_table
