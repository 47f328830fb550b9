"""Consumer groups over all brokers of a cluster: which there are, who is in one, how far it is, putting it elsewhere.

Every call asks each master, for a group's offsets lie where its queues are.  Answers of brokers that never heard of the
group are left out.  Source: RocketMQ's consumerProgress, consumerConnection, resetOffsetByTime sub-commands.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from trio_rmq.admin.client import AdminClient
from trio_rmq.client.instance import check_group
from trio_rmq.client.pull_calls import offset_at_time
from trio_rmq.errors import ClientError, ResponseError
from trio_rmq.wire import headers
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.groups import (
    ConsumerConnection,
    MessageQueue,
    SubscriptionGroupConfig,
    decode_consumer_connection,
    decode_group_table,
)
from trio_rmq.wire.heartbeat import SubscriptionData
from trio_rmq.wire.stats import TopicOffset, decode_consume_stats, decode_reset_offset, decode_topic_stats

END = -1
"""As a time to go on from: the end of each queue, whatever is there now."""


@dataclass(frozen=True, slots=True)
class GroupMember:
    """One connected client of a group: its id, the address it comes from, its language and version."""

    client_id: str
    address: str
    language: str
    version: int


@dataclass(slots=True)
class Group:
    """One group: its settings by broker name, its members and what they subscribe to, both empty when offline.

    `problems` are what brokers say is wrong with it: members that subscribe differently, and so miss messages.
    """

    name: str
    configs: dict[str, SubscriptionGroupConfig] = field(default_factory=dict)
    members: dict[str, GroupMember] = field(default_factory=dict)
    subscriptions: dict[str, SubscriptionData] = field(default_factory=dict)
    consume_type: str = ""
    message_model: str = ""
    consume_from_where: str = ""
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class QueueProgress:
    """One queue: the offset of its next message, of the group's next one, and the store time (ms) of the last consumed.

    The time is 0 when nothing was consumed, or when that message is gone.
    """

    queue: MessageQueue
    broker_offset: int
    consumer_offset: int
    last_consumed_ms: int

    @property
    def lag(self) -> int:
        """How many offsets the group has still to consume."""
        return self.broker_offset - self.consumer_offset


async def list_groups(
    admin: AdminClient, *, cluster: str | None = None
) -> dict[str, dict[str, SubscriptionGroupConfig]]:
    """The settings of every group by its name and the broker's; RemotingError or ResponseError when one cannot say."""
    groups: dict[str, dict[str, SubscriptionGroupConfig]] = {}
    for broker_name, address in (await admin.masters(cluster)).items():
        answer = await admin.ask(address, Command(RequestCode.GET_ALL_SUBSCRIPTIONGROUP_CONFIG))
        for name, config in decode_group_table(answer.body).subscription_group_table.items():
            groups.setdefault(name, {})[broker_name] = config
    return dict(sorted(groups.items()))


async def show_group(admin: AdminClient, name: str, *, cluster: str | None = None) -> Group:
    """One group with its members; ClientError when no broker knows it and nobody is connected."""
    check_group(name)
    group = Group(name, configs=(await list_groups(admin, cluster=cluster)).get(name, {}))
    for broker_name, address in (await admin.masters(cluster)).items():
        found = await _connection(admin, address, name)
        if found is None:
            continue
        connection, remark = found
        for member in connection.connection_set:
            group.members[member.client_id] = GroupMember(
                member.client_id, member.client_addr, member.language, member.version
            )
        group.subscriptions.update(connection.subscription_table)
        group.consume_type = connection.consume_type or ""
        group.message_model = connection.message_model or ""
        group.consume_from_where = connection.consume_from_where or ""
        if remark:
            group.problems.append(f"{broker_name}: {remark}")
    if not group.configs and not group.members:
        raise ClientError(f"no broker knows the group {name}: start a consumer of it, or create it")
    return group


async def _connection(admin: AdminClient, address: str, group: str) -> tuple[ConsumerConnection, str] | None:
    """The group's members at one broker and the broker's remark; None when nobody is online there."""
    header = headers.GetConsumerConnectionListRequestHeader(consumer_group=group)
    try:
        answer = await admin.ask(address, Command(RequestCode.GET_CONSUMER_CONNECTION_LIST, header=header))
    except ResponseError as error:
        if error.response_code == ResponseCode.CONSUMER_NOT_ONLINE:
            return None
        raise
    return decode_consumer_connection(answer.body), answer.remark or ""


async def group_progress(
    admin: AdminClient, name: str, *, topic: str | None = None, cluster: str | None = None
) -> list[QueueProgress]:
    """How far a group is in every queue in which it ever committed, or of one topic; in order of the queues."""
    check_group(name)
    progress: list[QueueProgress] = []
    for address in (await admin.masters(cluster)).values():
        progress += await _progress_at(admin, address, name, topic)
    return sorted(progress, key=lambda one: one.queue.sort_key)


async def reset_group(
    admin: AdminClient, name: str, topic: str, timestamp_ms: int, *, force: bool = True
) -> dict[MessageQueue, int]:
    """Have a group go on in a topic at the first message not stored before a time; END is the end.  The new offsets.

    Without `force` no queue goes forward.  Connected members are told by the broker and commit the offsets themselves,
    some ten seconds later with Java's; for a group that is offline they are committed on return.  Errors leave the
    queues of the brokers asked before as they were set.  RouteNotFoundError for an unknown topic.
    """
    check_group(name)
    offsets: dict[MessageQueue, int] = {}
    for address in (await admin.topic_masters(topic)).values():
        if await _connection(admin, address, name) is not None:
            header = headers.ResetOffsetRequestHeader(group=name, topic=topic, timestamp=timestamp_ms, is_force=force)
            answer = await admin.ask(address, Command(RequestCode.INVOKE_BROKER_TO_RESET_OFFSET, header=header))
            offsets.update(decode_reset_offset(answer.body).offset_table)
        else:
            offsets.update(await _reset_offline(admin, address, name, topic, timestamp_ms, force=force))
    return dict(sorted(offsets.items(), key=lambda item: item[0].sort_key))


async def _reset_offline(
    admin: AdminClient, address: str, group: str, topic: str, timestamp_ms: int, *, force: bool
) -> dict[MessageQueue, int]:
    header = headers.GetTopicStatsInfoRequestHeader(topic=topic)
    answer = await admin.ask(address, Command(RequestCode.GET_TOPIC_STATS_INFO, header=header))
    places = decode_topic_stats(answer.body).offset_table
    consumed = {one.queue: one.consumer_offset for one in await _progress_at(admin, address, group, topic)}
    table: dict[MessageQueue, int] = {}
    for queue, place in places.items():
        wanted = await _offset_at(admin, address, queue, place, timestamp_ms)
        if not force:
            wanted = min(wanted, consumed.get(queue, wanted))
        commit = headers.UpdateConsumerOffsetRequestHeader(
            consumer_group=group, topic=topic, queue_id=queue.queue_id, commit_offset=wanted
        )
        await admin.ask(address, Command(RequestCode.UPDATE_CONSUMER_OFFSET, header=commit))
        table[queue] = wanted
    return table


async def _progress_at(admin: AdminClient, address: str, group: str, topic: str | None) -> list[QueueProgress]:
    header = headers.GetConsumeStatsRequestHeader(consumer_group=group, topic=topic)
    answer = await admin.ask(address, Command(RequestCode.GET_CONSUME_STATS, header=header))
    return [
        QueueProgress(queue, offset.broker_offset, offset.consumer_offset, offset.last_timestamp)
        for queue, offset in decode_consume_stats(answer.body).offset_table.items()
    ]


async def _offset_at(
    admin: AdminClient, address: str, queue: MessageQueue, place: TopicOffset, timestamp_ms: int
) -> int:
    if timestamp_ms == END:
        return place.max_offset
    return await offset_at_time(admin.remoting, address, queue, timestamp_ms)
