"""How far consumer groups are, as tools ask it: by group, topic, queue, over the whole broker; and cloned offsets.

208, 300, 303, 308, 314, 317, 321, and of 5.x 343 and 345.  Which topics count, in which queues and what is 0: RocketMQ
AdminBrokerProcessor, ConsumerOffsetManager (4.9).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

import trio

from trio_rmq.broker.consumer_filters import ConsumerFilters
from trio_rmq.broker.groups import GroupTable
from trio_rmq.broker.members import Members
from trio_rmq.broker.offsets import ConsumerOffsetTable
from trio_rmq.broker.topics import TopicTable
from trio_rmq.clock import wall_ms
from trio_rmq.errors import RequestError
from trio_rmq.filter.registration import encode_consumer_filter
from trio_rmq.limits import QUEUE_ENTRIES_SHOWN_MAX
from trio_rmq.remoting.handlers import HandlerTable, Later
from trio_rmq.remoting.session import Session
from trio_rmq.store.message_store import MessageStore
from trio_rmq.wire import headers
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.consumer_stats import (
    ConsumeQueueData,
    ConsumeStatsList,
    QueryConsumeQueueResponseBody,
    QueryConsumeTimeSpanBody,
    QueryCorrectionOffsetBody,
    QuerySubscriptionResponseBody,
    QueueTimeSpan,
    encode_consume_stats_list,
    encode_corrections,
    encode_queue_entries,
    encode_subscription_answer,
    encode_time_spans,
)
from trio_rmq.wire.groups import GroupList, MessageQueue, encode_group_names
from trio_rmq.wire.routes import TopicList, encode_topic_list
from trio_rmq.wire.stats import ConsumeStats, OffsetWrapper, encode_consume_stats
from trio_rmq.wire.topics import TopicConfig

logger = logging.getLogger(__name__)

LONG_MAX = 2**63 - 1
GROUPS_A_STEP = 100
"""Groups that are looked through before others have their turn."""

GetRate = Callable[[str, str], float]
"""Messages a second that a group gets of a topic, over the last minute."""


class ProgressHandlers:
    """Answers about consumed offsets; `get_rate(group, topic)` gives a group's rate."""

    def __init__(
        self,
        broker_name: str,
        address: str,
        store: MessageStore,
        topics: TopicTable,
        groups: GroupTable,
        members: Members,
        offsets: ConsumerOffsetTable,
        filters: ConsumerFilters,
        get_rate: GetRate,
    ) -> None:
        self._broker_name = broker_name
        self._address = address
        self._store = store
        self._topics = topics
        self._groups = groups
        self._members = members
        self._offsets = offsets
        self._filters = filters
        self._get_rate = get_rate

    def register(self, table: HandlerTable) -> None:
        """Put the handlers into `table`."""
        table.register(RequestCode.GET_CONSUME_STATS, self.consume_stats)
        table.register(RequestCode.QUERY_TOPIC_CONSUME_BY_WHO, self.groups_of_topic)
        table.register(RequestCode.QUERY_TOPICS_BY_CONSUMER, self.topics_of_group)
        table.register(RequestCode.QUERY_SUBSCRIPTION_BY_CONSUMER, self.subscription)
        table.register(RequestCode.QUERY_CONSUME_TIME_SPAN, self.time_spans)
        table.register(RequestCode.QUERY_CORRECTION_OFFSET, self.correction)
        table.register(RequestCode.CLONE_GROUP_OFFSET, self.clone)
        table.register(RequestCode.GET_BROKER_CONSUME_STATS, self.all_consume_stats)
        table.register(RequestCode.QUERY_CONSUME_QUEUE, self.queue_entries)

    # -- one group ----------------------------------------------------------------------------------------------

    def consume_stats(self, session: Session, request: Command) -> Command:
        """208: a group's offsets in one topic, in several (5.x), or in all in which it has committed."""
        header = request.decode_header(headers.GetConsumeStatsRequestHeader)
        group = header.consumer_group
        listed = [name for name in (header.topic_list or "").split(";") if name.strip()]
        topics = listed or ([header.topic] if header.topic and header.topic.strip() else None)
        stats = ConsumeStats()
        for topic in self._consumed_topics(group, topics or self._offsets.topics_of_group(group)):
            stats.offset_table.update(self._offsets_in(group, topic, topic.read_queue_nums))
            stats.consume_tps += self._get_rate(group, topic.topic_name)
        return request.reply(body=encode_consume_stats(stats))

    def _consumed_topics(self, group: str, names: Iterable[str]) -> list[TopicConfig]:
        """Those topics that exist and, while the group is connected, are subscribed to."""
        connected = self._members.consumer_group(group)
        subscribed = connected.subscriptions if connected is not None else {}
        found = (self._topics.get(name) for name in names)
        return [topic for topic in found if topic is not None and (not subscribed or topic.topic_name in subscribed)]

    def _offsets_in(self, group: str, topic: TopicConfig, queues: int) -> dict[MessageQueue, OffsetWrapper]:
        name = topic.topic_name
        table = {}
        for queue_id in range(queues):
            consumed = max(self._offsets.query(group, name, queue_id) or 0, 0)
            last_time = self._store.store_time_at(name, queue_id, consumed - 1) if consumed > 0 else 0
            table[self._queue(name, queue_id)] = OffsetWrapper(
                broker_offset=max(self._store.max_offset(name, queue_id), 0),
                consumer_offset=consumed,
                last_timestamp=max(last_time, 0),
            )
        return table

    def _queue(self, topic: str, queue_id: int) -> MessageQueue:
        return MessageQueue(topic=topic, broker_name=self._broker_name, queue_id=queue_id)

    def topics_of_group(self, session: Session, request: Command) -> Command:
        """343 (5.x): the topics in which a group has committed."""
        group = request.decode_header(headers.QueryTopicsByConsumerRequestHeader).group
        topics = TopicList(topic_list=sorted(self._offsets.topics_of_group(group)), broker_addr=self._address)
        return request.reply(body=encode_topic_list(topics))

    def subscription(self, session: Session, request: Command) -> Command:
        """345 (5.x): what a connected group subscribes to of a topic."""
        header = request.decode_header(headers.QuerySubscriptionByConsumerRequestHeader)
        connected = self._members.consumer_group(header.group)
        data = connected.subscriptions.get(header.topic or "") if connected is not None else None
        body = QuerySubscriptionResponseBody(group=header.group, topic=header.topic, subscription_data=data)
        return request.reply(body=encode_subscription_answer(body))

    # -- one topic ----------------------------------------------------------------------------------------------

    def groups_of_topic(self, session: Session, request: Command) -> Command:
        """300: the groups that subscribe to a topic or have committed in it."""
        topic = request.decode_header(headers.QueryTopicConsumeByWhoRequestHeader).topic
        groups = {*self._members.groups_of_topic(topic), *self._offsets.groups_of_topic(topic)}
        return request.reply(body=encode_group_names(GroupList(group_list=sorted(groups))))

    def time_spans(self, session: Session, request: Command) -> Command:
        """303: store times of each queue's first, last and consumed message, and how long the next one waits (ms)."""
        header = request.decode_header(headers.QueryConsumeTimeSpanRequestHeader)
        name = header.topic
        topic = self._topics.get(name)
        if topic is None:
            raise RequestError(ResponseCode.TOPIC_NOT_EXIST, f"topic[{name}] not exist")
        spans = []
        for queue_id in range(topic.write_queue_nums):
            after = self._store.max_offset(name, queue_id)
            first_time = self._store.earliest_store_time(name, queue_id)
            consumed = self._offsets.query(header.group, name, queue_id)
            span = QueueTimeSpan(
                message_queue=self._queue(name, queue_id),
                min_time_stamp=first_time,
                max_time_stamp=self._store.store_time_at(name, queue_id, after - 1),
                consume_time_stamp=first_time,
            )
            if consumed is not None and consumed > 0:
                span.consume_time_stamp = self._store.store_time_at(name, queue_id, consumed - 1)
            next_offset = max(consumed or 0, self._store.min_offset(name, queue_id), 0)
            if next_offset < after:
                span.delay_time = wall_ms() - self._store.store_time_at(name, queue_id, next_offset)
            spans.append(span)
        return request.reply(body=encode_time_spans(QueryConsumeTimeSpanBody(consume_time_span_set=spans)))

    def correction(self, session: Session, request: Command) -> Command:
        """308: the lowest offset of all groups by queue; 2^63 - 1 where the compared group is behind it.

        Groups named in filterGroups are left out; Apache forgets their offsets while it is at it.
        """
        header = request.decode_header(headers.QueryCorrectionOffsetHeader)
        topic = header.topic
        left_out = set((header.filter_groups or "").split(","))
        lowest: dict[int, int] = {}
        for group in self._offsets.groups_of_topic(topic):
            if group in left_out:
                continue
            for queue_id, offset in self._offsets.queues(group, topic).items():
                if offset >= self._store.min_offset(topic, queue_id):
                    lowest[queue_id] = min(offset, lowest.get(queue_id, LONG_MAX))
        for queue_id, offset in self._offsets.queues(header.compare_group, topic).items():
            if lowest.get(queue_id, LONG_MAX) > offset:
                lowest[queue_id] = LONG_MAX
        return request.reply(body=encode_corrections(QueryCorrectionOffsetBody(correction_offsets=lowest)))

    def clone(self, session: Session, request: Command) -> Command:
        """314: one group goes on where another does, in one topic or in all that the other consumes."""
        header = request.decode_header(headers.CloneGroupOffsetRequestHeader)
        asked = [header.topic] if header.topic and header.topic.strip() else None
        names = asked or self._offsets.topics_of_group(header.src_group)
        if not header.offline:
            names = [topic.topic_name for topic in self._consumed_topics(header.src_group, names)]
        for name in names:
            if self._topics.get(name) is not None and self._offsets.clone(header.src_group, header.dest_group, name):
                logger.info(
                    "group %s goes on in %s where group %s does (asked by %s)",
                    header.dest_group, name, header.src_group, session.peer,
                )  # fmt: skip
        return request.reply()

    # -- the whole broker ---------------------------------------------------------------------------------------

    def all_consume_stats(self, session: Session, request: Command) -> Later:
        """317: every group's offsets; `isOrder` keeps ordered topics only."""
        only_ordered = request.decode_header(headers.GetConsumeStatsInBrokerHeader).is_order

        async def answer() -> Sequence[Command]:
            body = ConsumeStatsList(broker_addr=self._address)
            for number, group in enumerate(self._groups):
                if number % GROUPS_A_STEP == 0:
                    await trio.lowlevel.checkpoint()
                figures = []
                names = self._offsets.topics_of_group(group.group_name)
                for topic in self._consumed_topics(group.group_name, names):
                    if only_ordered and not topic.order:
                        continue
                    stats = ConsumeStats(
                        offset_table=self._offsets_in(group.group_name, topic, topic.write_queue_nums),
                        consume_tps=self._get_rate(group.group_name, topic.topic_name),
                    )
                    body.total_diff += sum(
                        offset.broker_offset - offset.consumer_offset for offset in stats.offset_table.values()
                    )
                    figures.append(stats)
                body.consume_stats_list.append({group.group_name: figures})
            return [request.reply(body=encode_consume_stats_list(body))]

        return Later(answer)

    def queue_entries(self, session: Session, request: Command) -> Command:
        """321: entries of one queue as they stand in its files, and the group's subscription and filter."""
        header = request.decode_header(headers.QueryConsumeQueueRequestHeader)
        name, queue_id = header.topic or "", header.queue_id
        if not self._store.reader.has_queue(name, queue_id):
            raise RequestError(ResponseCode.SYSTEM_ERROR, f"{queue_id}@{name} is not exist!")
        body = QueryConsumeQueueResponseBody(
            min_queue_index=self._store.min_offset(name, queue_id),
            max_queue_index=self._store.max_offset(name, queue_id),
        )
        if header.consumer_group is not None:
            connected = self._members.consumer_group(header.consumer_group)
            body.subscription_data = connected.subscriptions.get(name) if connected is not None else None
            if body.subscription_data is None:
                body.filter_data = f"{header.consumer_group}@{name} is not online!"
            else:
                registered = self._filters.get(name, header.consumer_group)
                body.filter_data = "null" if registered is None else encode_consumer_filter(registered.data).decode()
        count = min(header.count, QUEUE_ENTRIES_SHOWN_MAX)
        entries = self._store.reader.queue_entries(name, queue_id, header.index, count)
        if entries is None:
            return request.reply(remark=f"Index {header.index} of {queue_id}@{name} is not exist!")
        body.queue_data = [
            ConsumeQueueData(physic_offset=physical, physic_size=size, tags_code=code)
            for physical, size, code in entries
        ]
        return request.reply(body=encode_queue_entries(body))
