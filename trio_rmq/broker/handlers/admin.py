"""Topics, groups and the broker itself by request: what tools and test helpers ask.

17 and 215 make and remove topics, 200 and 207 groups, each answered when its file is written; 21, 201, 351 and 352 list
them; 202 tells a topic's offsets; 25 and 26 the settings; 28 the broker's state.  Codes and remarks: RocketMQ
AdminBrokerProcessor (4.9).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

from trio_rmq.broker import names
from trio_rmq.broker.groups import GroupTable
from trio_rmq.broker.offsets import ConsumerOffsetTable
from trio_rmq.broker.topics import TopicTable
from trio_rmq.config import BrokerConfig, changed_settings
from trio_rmq.errors import ConfigError, ProtocolError, RequestError
from trio_rmq.remoting.handlers import HandlerTable, Later
from trio_rmq.remoting.session import Session
from trio_rmq.store.message_store import MessageStore
from trio_rmq.wire import headers
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.groups import (
    MessageQueue,
    SubscriptionGroupConfig,
    decode_group_config,
    decode_group_config_list,
    encode_group_config,
    encode_group_table,
)
from trio_rmq.wire.routes import KVTable, TopicList, encode_kv_table, encode_topic_list
from trio_rmq.wire.stats import TopicOffset, TopicStatsTable, encode_topic_stats
from trio_rmq.wire.topics import TopicConfig, encode_data_version, encode_topic_config, encode_topic_table

logger = logging.getLogger(__name__)

QUEUES_MAX = 100_000
"""Most queues of one topic: each costs memory once it is used."""

HOT_SETTINGS = frozenset(
    {
        "autoCreateSubscriptionGroup",
        "autoCreateTopicEnable",
        "brokerPermission",
        "enablePropertyFilter",
        "filterSupportRetry",
        "forceRegister",
        "longPollingEnable",
        "notifyConsumerIdsChangedEnable",
        "shortPollingTimeMills",
    }
)
"""Keys that a request may change: none that names a file, an address, a size on disk or who may connect."""

Saved = Callable[[], Awaitable[str | None]]
"""Waits until the tables as they are now are written; why they could not be, else None."""


def _answer_when_saved(request: Command, saved: Saved) -> Later:
    """Success, once what was changed survives a restart."""

    async def answer() -> Sequence[Command]:
        problem = await saved()
        if problem is not None:
            raise RequestError(ResponseCode.SYSTEM_ERROR, f"changed, but a restart will forget it: {problem}")
        return [request.reply()]

    return Later(answer)


class TopicAdminHandlers:
    """Topics by request."""

    def __init__(
        self, broker_name: str, topics: TopicTable, store: MessageStore, offsets: ConsumerOffsetTable, saved: Saved
    ) -> None:
        self._broker_name = broker_name
        self._topics = topics
        self._store = store
        self._offsets = offsets
        self._saved = saved

    def register(self, table: HandlerTable) -> None:
        """Put the handlers into `table`."""
        table.register(RequestCode.UPDATE_AND_CREATE_TOPIC, self.update_topic)
        table.register(RequestCode.DELETE_TOPIC_IN_BROKER, self.delete_topic)
        table.register(RequestCode.GET_ALL_TOPIC_CONFIG, self.all_topics)
        table.register(RequestCode.GET_TOPIC_CONFIG, self.topic_config)
        table.register(RequestCode.GET_TOPIC_STATS_INFO, self.topic_stats)
        table.register(RequestCode.GET_SYSTEM_TOPIC_LIST_FROM_BROKER, self.system_topics)

    def update_topic(self, session: Session, request: Command) -> Later:
        """17: make or change a topic; system topics and bad names are refused with 1."""
        header = request.decode_header(headers.CreateTopicRequestHeader)
        name = header.topic
        problem = names.topic_problem(name)
        if problem is not None:
            raise RequestError(ResponseCode.SYSTEM_ERROR, problem)
        if self._topics.is_system(name):
            raise RequestError(ResponseCode.SYSTEM_ERROR, f"The topic[{name}] is conflict with system topic.")
        for key, queues in (("readQueueNums", header.read_queue_nums), ("writeQueueNums", header.write_queue_nums)):
            if not 0 <= queues <= QUEUES_MAX:
                raise RequestError(ResponseCode.SYSTEM_ERROR, f"{key} {queues} must be from 0 to {QUEUES_MAX}")
        self._topics.update(
            TopicConfig(
                topic_name=name,
                read_queue_nums=header.read_queue_nums,
                write_queue_nums=header.write_queue_nums,
                perm=header.perm,
                topic_filter_type=header.topic_filter_type or "SINGLE_TAG",
                topic_sys_flag=header.topic_sys_flag or 0,
                order=bool(header.order),
            )
        )
        return _answer_when_saved(request, self._saved)

    def delete_topic(self, session: Session, request: Command) -> Later:
        """215: remove a topic, its queues and its groups' offsets; a missing one is no error."""
        name = request.decode_header(headers.DeleteTopicRequestHeader).topic
        problem = names.topic_problem(name)
        if problem is not None:
            raise RequestError(ResponseCode.SYSTEM_ERROR, problem)
        if self._topics.is_system(name):
            raise RequestError(ResponseCode.SYSTEM_ERROR, f"The topic[{name}] is conflict with system topic.")

        async def saved() -> str | None:
            self._topics.delete(name)
            self._offsets.remove_topic(name)
            await self._store.delete_topic(name)
            return await self._saved()

        return _answer_when_saved(request, saved)

    def all_topics(self, session: Session, request: Command) -> Command:
        """21: the whole topic table."""
        return request.reply(body=encode_topic_table(self._topics.wrapper()))

    def topic_config(self, session: Session, request: Command) -> Command:
        """351 (5.x): one topic."""
        name = request.decode_header(headers.GetTopicConfigRequestHeader).topic
        topic = self._topics.get(name)
        if topic is None:
            raise RequestError(ResponseCode.TOPIC_NOT_EXIST, f"No topic in this broker. topic: {name}")
        return request.reply(body=encode_topic_config(topic))

    def topic_stats(self, session: Session, request: Command) -> Command:
        """202: first and next offset of each queue, and when its last message was stored."""
        name = request.decode_header(headers.GetTopicStatsInfoRequestHeader).topic
        topic = self._topics.get(name)
        if topic is None:
            raise RequestError(ResponseCode.TOPIC_NOT_EXIST, f"topic[{name}] not exist")
        stats = TopicStatsTable()
        for queue_id in range(topic.write_queue_nums):
            first = max(self._store.min_offset(name, queue_id), 0)
            after = max(self._store.max_offset(name, queue_id), 0)
            last_time = self._store.store_time_at(name, queue_id, after - 1) if after > 0 else 0
            queue = MessageQueue(topic=name, broker_name=self._broker_name, queue_id=queue_id)
            stats.offset_table[queue] = TopicOffset(
                min_offset=first, max_offset=after, last_update_timestamp=max(last_time, 0)
            )
        return request.reply(body=encode_topic_stats(stats))

    def system_topics(self, session: Session, request: Command) -> Command:
        """305: names of the topics that belong to the system."""
        return request.reply(body=encode_topic_list(TopicList(topic_list=self._topics.system_topics())))


class GroupAdminHandlers:
    """Consumer groups by request."""

    def __init__(self, groups: GroupTable, offsets: ConsumerOffsetTable, saved: Saved) -> None:
        self._groups = groups
        self._offsets = offsets
        self._saved = saved

    def register(self, table: HandlerTable) -> None:
        """Put the handlers into `table`."""
        table.register(RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, self.update_group)
        table.register(RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST, self.update_groups)
        table.register(RequestCode.DELETE_SUBSCRIPTIONGROUP, self.delete_group)
        table.register(RequestCode.GET_ALL_SUBSCRIPTIONGROUP_CONFIG, self.all_groups)
        table.register(RequestCode.GET_SUBSCRIPTIONGROUP_CONFIG, self.group_config)
        table.register(RequestCode.GET_ALL_CONSUMER_OFFSET, self.all_offsets)

    def update_group(self, session: Session, request: Command) -> Later:
        """200: make or change a group."""
        return self._update(request, [decode_group_config(request.body)])

    def update_groups(self, session: Session, request: Command) -> Later:
        """225 (5.x): make or change several groups; none when one has a bad name."""
        return self._update(request, decode_group_config_list(request.body).group_config_list)

    def _update(self, request: Command, groups: Sequence[SubscriptionGroupConfig]) -> Later:
        for group in groups:
            problem = names.group_problem(group.group_name)
            if problem is not None:
                raise RequestError(ResponseCode.SYSTEM_ERROR, problem)
        for group in groups:
            self._groups.update(group)
        return _answer_when_saved(request, self._saved)

    def delete_group(self, session: Session, request: Command) -> Later:
        """207: remove a group, and its offsets when asked; a missing one is no error."""
        header = request.decode_header(headers.DeleteSubscriptionGroupRequestHeader)
        self._groups.delete(header.group_name)
        if header.clean_offset:
            self._offsets.remove_group(header.group_name)
        return _answer_when_saved(request, self._saved)

    def all_groups(self, session: Session, request: Command) -> Command:
        """201: the whole group table."""
        return request.reply(body=encode_group_table(self._groups.wrapper()))

    def group_config(self, session: Session, request: Command) -> Command:
        """352 (5.x): one group."""
        name = request.decode_header(headers.GetSubscriptionGroupConfigRequestHeader).group
        group = self._groups.get(name)
        if group is None:
            raise RequestError(ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST, f"No group in this broker. group: {name}")
        return request.reply(body=encode_group_config(group))

    def all_offsets(self, session: Session, request: Command) -> Command:
        """43: all consumed offsets."""
        unsaved = self._offsets.unsaved
        body = self._offsets.encode(pretty=False)
        self._offsets.unsaved = unsaved
        return request.reply(body=body)


class BrokerAdminHandlers:
    """The broker's settings and state; `properties` gives the settings, `runtime` the state, both flat texts.

    `config` is the one that every part of the broker reads; `changed` is told after a request changed it.
    """

    def __init__(
        self,
        config: BrokerConfig,
        topics: TopicTable,
        properties: Callable[[], dict[str, str]],
        runtime: Callable[[], dict[str, str]],
        changed: Callable[[], None],
    ) -> None:
        self._config = config
        self._topics = topics
        self._properties = properties
        self._runtime = runtime
        self._changed = changed

    def register(self, table: HandlerTable) -> None:
        """Put the handlers into `table`."""
        table.register(RequestCode.GET_BROKER_CONFIG, self.get_config)
        table.register(RequestCode.UPDATE_BROKER_CONFIG, self.update_config)
        table.register(RequestCode.GET_BROKER_RUNTIME_INFO, self.runtime_info)

    def get_config(self, session: Session, request: Command) -> Command:
        """26: the settings as properties text, with the topic table's version."""
        text = "".join(f"{key}={value}\n" for key, value in self._properties().items())
        header = headers.GetBrokerConfigResponseHeader(version=encode_data_version(self._topics.data_version).decode())
        return request.reply(header=header, body=text.encode())

    def update_config(self, session: Session, request: Command) -> Command:
        """25: change some of HOT_SETTINGS until the next start: all of what is asked, or nothing and 16."""
        try:
            values = changed_settings(self._config, request.body.decode(), HOT_SETTINGS)
        except UnicodeDecodeError:
            raise ProtocolError("the settings are no UTF-8 text") from None
        except ConfigError as error:
            logger.warning("%s may not change settings so: %s", session.peer, error)
            raise RequestError(ResponseCode.NO_PERMISSION, str(error)) from None
        for field, value in values.items():
            logger.warning("%s set to %s by %s, until the next start", field, value, session.peer)
            setattr(self._config, field, value)
        if values:
            self._changed()
        return request.reply()

    def runtime_info(self, session: Session, request: Command) -> Command:
        """28: the broker's state as a flat table of texts."""
        return request.reply(body=encode_kv_table(KVTable(table=self._runtime())))
