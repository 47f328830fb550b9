"""CONSUMER_SEND_MSG_BACK (36): a consumer could not use a message and wants it again later.

The record is looked up in the log and stored once more, for the group's retry topic and with a delay level, or for its
dead-letter topic when it came back too often.  Answered when the copy has the durability the store promises: RocketMQ
does not wait for the sync, and may lose a retry that it acknowledged.
Rules, codes and remarks: RocketMQ SendMessageProcessor.asyncConsumerSendMsgBack (4.9).
"""

from __future__ import annotations

from collections.abc import Sequence

from trio_rmq.broker import names
from trio_rmq.broker.delay import delayed_properties
from trio_rmq.broker.groups import GroupTable, retries_most
from trio_rmq.broker.stats import BrokerStats
from trio_rmq.broker.topics import TopicTable
from trio_rmq.config import BrokerConfig
from trio_rmq.errors import RequestError, StoreFailedError
from trio_rmq.randomness import rng
from trio_rmq.remoting.handlers import HandlerTable, Later
from trio_rmq.remoting.session import Session
from trio_rmq.store.message_store import MessageStore
from trio_rmq.store.messages import AppendStatus, NewMessage
from trio_rmq.wire import properties as prop
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.groups import SubscriptionGroupConfig
from trio_rmq.wire.hashing import tags_code
from trio_rmq.wire.headers import ConsumerSendMsgBackRequestHeader
from trio_rmq.wire.record import StoredMessage, decode_record
from trio_rmq.wire.sysflag import PERMISSION_WRITE, permission_text

UNIT_SUBSCRIPTION = 2
"""The topic flag of a retry topic whose group runs in unit mode (TopicSysFlag)."""
FIRST_RETRY_LEVEL = 3
"""The delay level of a first retry, one higher each time, where the consumer leaves the choice to the broker."""


class SendBackHandlers:
    """Takes messages back; `delay_levels` is how many levels there are."""

    def __init__(
        self,
        config: BrokerConfig,
        store: MessageStore,
        topics: TopicTable,
        groups: GroupTable,
        stats: BrokerStats,
        *,
        delay_levels: int,
    ) -> None:
        self._config = config
        self._store = store
        self._topics = topics
        self._groups = groups
        self._stats = stats
        self._delay_levels = delay_levels

    def register(self, table: HandlerTable) -> None:
        """Put the handler into `table`."""
        table.register(RequestCode.CONSUMER_SEND_MSG_BACK, self.send_back)

    def send_back(self, session: Session, request: Command) -> Command | Later:
        """36: store the record at the header's physical offset again, for a retry or as a dead letter."""
        header = request.decode_header(ConsumerSendMsgBackRequestHeader)
        group = self._group(header.group)
        if group.retry_queue_nums <= 0:
            return request.reply()
        retry = self._topics.create_internal(
            names.retry_topic(header.group),
            group.retry_queue_nums,
            unit_flags=UNIT_SUBSCRIPTION if header.unit_mode else 0,
        )
        if not retry.perm & PERMISSION_WRITE:
            raise RequestError(
                ResponseCode.NO_PERMISSION,
                f"the topic[{retry.topic_name}] sending message is forbidden: its permission is "
                f"{permission_text(retry.perm)}",
            )
        record = self._store.record_at(header.offset)
        if record is None:
            raise RequestError(ResponseCode.SYSTEM_ERROR, f"look message by offset failed, {header.offset}")
        most = retries_most(request, group, header.max_reconsume_times)
        found = decode_record(record)
        message = self._returned(found, header, group, most)
        result = self._store.append([message], accepted=True)[0]
        if result.status is not AppendStatus.PUT_OK:
            raise RequestError(ResponseCode.SYSTEM_ERROR, f"{result.status.name}: {result.remark}")
        self._stats.count_send_back(found.get_property(prop.RETRY_TOPIC) or found.topic, header.group)
        if self._store.sync_flush:
            return self._when_synced(request, result.physical_offset + result.size_bytes)
        return request.reply()

    def _group(self, name: str) -> SubscriptionGroupConfig:
        group = self._groups.find(name)
        if group is None:
            raise RequestError(
                ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST, f"subscription group not exist, {name}; create it first"
            )
        permission = self._config.broker_permission
        if not permission & PERMISSION_WRITE:
            raise RequestError(
                ResponseCode.NO_PERMISSION,
                f"the broker[{self._config.broker_ip1}] sending message is forbidden: its brokerPermission is "
                f"{permission_text(permission)}",
            )
        return group

    def _returned(
        self,
        record: StoredMessage,
        header: ConsumerSendMsgBackRequestHeader,
        group: SubscriptionGroupConfig,
        most: int,
    ) -> NewMessage:
        """What is stored: the record with its history in its properties, counted once more."""
        text = record.properties.decode("utf-8", "replace")
        if prop.property_of(text, prop.RETRY_TOPIC) is None:
            text = prop.append_property(text, prop.RETRY_TOPIC, record.topic)
        origin = prop.property_of(text, prop.ORIGIN_MESSAGE_ID)
        if origin is None or origin.isspace():
            text = prop.with_property(text, prop.ORIGIN_MESSAGE_ID, record.offset_message_id)
        text = prop.with_property(text, prop.WAIT, "false")
        tags = prop.property_of(text, prop.TAGS)
        message = NewMessage(
            names.retry_topic(group.group_name),
            rng().randrange(group.retry_queue_nums),
            record.body,
            text,
            record.flag,
            record.sys_flag,
            record.born_timestamp_ms,
            record.born_host,
            record.reconsume_times + 1,
            0,
            tags_code(tags),
        )
        if record.reconsume_times >= most or header.delay_level < 0:
            message.topic, message.queue_id = self._topics.dead_letter_queue(group.group_name)
            message.properties = prop.with_property(text, prop.DELAY, "0")
            return message
        level = min(header.delay_level or FIRST_RETRY_LEVEL + record.reconsume_times, self._delay_levels)
        if level:
            message.properties = delayed_properties(text, level, message.topic, message.queue_id)
            message.topic, message.queue_id = names.SCHEDULE_TOPIC, level - 1
        return message

    def _when_synced(self, request: Command, end: int) -> Later:
        async def wait() -> Sequence[Command]:
            try:
                await self._store.wait_durable(end)
            except StoreFailedError as error:
                raise RequestError(ResponseCode.SYSTEM_ERROR, str(error)) from None
            return [request.reply()]

        return Later(wait)
