"""Consumer groups as they travel and as they stand in config files: settings, members, queue locks, offsets.

Fields stand in the order of their wire names, as fastjson writes them; a field that is None is not written (those only
5.x has).  Source: RocketMQ SubscriptionGroupConfig, LockBatchRequestBody, ConsumerConnection and their neighbours.
"""

from __future__ import annotations

from typing import Any

import msgspec

from trio_rmq.wire.fastjson import BodyReader, encode_fastjson, encode_json, shown, shown_dict, shown_list
from trio_rmq.wire.heartbeat import SubscriptionData
from trio_rmq.wire.topics import DataVersion


class MessageQueue(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True, frozen=True):
    """One queue of a topic on one broker name; a map key in some bodies."""

    broker_name: str = shown("")
    queue_id: int = shown(0)
    topic: str = shown("")

    @property
    def sort_key(self) -> tuple[str, str, int]:
        """Java's order of queues: topic, broker name, queue id; every member of a group must sort alike."""
        return self.topic, self.broker_name, self.queue_id


class SubscriptionGroupConfig(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """One consumer group's settings on one broker, with RocketMQ's defaults."""

    attributes: dict[str, str] | None = None
    broker_id: int = shown(0)
    consume_broadcast_enable: bool = shown(True)
    consume_enable: bool = shown(True)
    consume_from_min_enable: bool = shown(True)
    consume_message_orderly: bool | None = None
    consume_timeout_minute: int | None = None
    group_name: str = shown("")
    group_retry_policy: dict[str, Any] | None = None
    group_sys_flag: int | None = None
    notify_consumer_ids_changed_enable: bool = shown(True)
    retry_max_times: int = shown(16)
    retry_queue_nums: int = shown(1)
    subscription_data_set: list[dict[str, Any]] | None = None
    which_broker_when_consume_slowly: int = shown(1)


class SubscriptionGroupWrapper(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """The group table with its version; also the content of subscriptionGroup.json."""

    data_version: DataVersion = shown(DataVersion())
    forbidden_table: dict[str, dict[str, int]] | None = None
    subscription_group_table: dict[str, SubscriptionGroupConfig] = shown_dict()


class SubscriptionGroupList(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """Several groups to create or update at once (5.x)."""

    group_config_list: list[SubscriptionGroupConfig] = shown_list()


class GetConsumerListByGroupResponseBody(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """The client ids of a group's members."""

    consumer_id_list: list[str] = shown_list()


class LockBatchRequestBody(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """Which queues a client wants to hold for itself; `only_this_broker` only from 5.x."""

    client_id: str = shown("")
    consumer_group: str = shown("")
    mq_set: list[MessageQueue] = shown_list()
    only_this_broker: bool | None = None


class UnlockBatchRequestBody(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """Which queues a client gives back; `only_this_broker` only from 5.x."""

    client_id: str = shown("")
    consumer_group: str = shown("")
    mq_set: list[MessageQueue] = shown_list()
    only_this_broker: bool | None = None


class LockBatchResponseBody(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The queues that the client now holds; others are left out without an error."""

    lock_ok_mq_set: list[MessageQueue] = shown_list(name="lockOKMQSet")


class Connection(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """One connected client of a group."""

    client_addr: str = shown("")
    client_id: str = shown("")
    language: str = shown("OTHER")
    version: int = shown(0)


class ConsumerConnection(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """A consumer group's members and what they subscribe to."""

    connection_set: list[Connection] = shown_list()
    consume_from_where: str | None = None
    consume_type: str | None = None
    message_model: str | None = None
    subscription_table: dict[str, SubscriptionData] = shown_dict()


class ProducerConnection(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """A producer group's members."""

    connection_set: list[Connection] = shown_list()


class GroupList(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """The groups that consume a topic."""

    group_list: list[str] = shown_list()


class ConsumerOffsets(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """Consumed offsets: `topic@group` -> queue id -> next offset; also consumerOffset.json.  Version only from 5.x.

    `lmq_offset_table` (lmqConsumerOffset.json): those of `%LMQ%` groups, `topic@group` -> next offset.
    """

    data_version: DataVersion | None = None
    group_topic_map: dict[str, list[str]] | None = None
    lmq_offset_table: dict[str, int] | None = None
    offset_table: dict[str, dict[int, int]] = shown_dict()


class DelayOffsets(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """Progress of the delay queues: level -> next offset; also delayOffset.json.  Version only from 5.x.

    `log_offset` is ours, which Apache's reader skips: copies of what those offsets do not cover stand from there on.
    """

    data_version: DataVersion | None = None
    log_offset: int | None = None
    offset_table: dict[int, int] = shown_dict()


_group_config = BodyReader(SubscriptionGroupConfig)
_group_table = BodyReader(SubscriptionGroupWrapper)
_group_list = BodyReader(SubscriptionGroupList)
_consumer_list = BodyReader(GetConsumerListByGroupResponseBody)
_lock_request = BodyReader(LockBatchRequestBody)
_lock_response = BodyReader(LockBatchResponseBody)
_unlock_request = BodyReader(UnlockBatchRequestBody)
_consumer_connection = BodyReader(ConsumerConnection)
_producer_connection = BodyReader(ProducerConnection)
_group_names = BodyReader(GroupList)
_consumer_offsets = BodyReader(ConsumerOffsets)
_delay_offsets = BodyReader(DelayOffsets)


def decode_group_config(data: bytes) -> SubscriptionGroupConfig:
    """The body of UPDATE_AND_CREATE_SUBSCRIPTIONGROUP; ProtocolError when it is none."""
    return _group_config.decode(data)


def encode_group_config(group: SubscriptionGroupConfig) -> bytes:
    """One group's settings as JSON."""
    return encode_json(group)


def decode_group_config_list(data: bytes) -> SubscriptionGroupList:
    """Several groups' settings (5.x); ProtocolError when they are none."""
    return _group_list.decode(data)


def decode_group_table(data: bytes) -> SubscriptionGroupWrapper:
    """The group table, on the wire or in its file; ProtocolError when it is none."""
    return _group_table.decode(data)


def encode_group_table(table: SubscriptionGroupWrapper, *, pretty: bool = False) -> bytes:
    """The group table as JSON; `pretty` as it stands in subscriptionGroup.json."""
    return encode_fastjson(table, pretty=True) if pretty else encode_json(table)


def decode_consumer_list(data: bytes) -> GetConsumerListByGroupResponseBody:
    """The members of a group; ProtocolError when they are none."""
    return _consumer_list.decode(data)


def encode_consumer_list(members: GetConsumerListByGroupResponseBody) -> bytes:
    """The members of a group as JSON."""
    return encode_json(members)


def decode_lock_request(data: bytes) -> LockBatchRequestBody:
    """The body of LOCK_BATCH_MQ; ProtocolError when it is none."""
    return _lock_request.decode(data)


def encode_lock_request(request: LockBatchRequestBody) -> bytes:
    """The body of LOCK_BATCH_MQ as JSON."""
    return encode_json(request)


def decode_lock_response(data: bytes) -> LockBatchResponseBody:
    """The answer to LOCK_BATCH_MQ; ProtocolError when it is none."""
    return _lock_response.decode(data)


def encode_lock_response(response: LockBatchResponseBody) -> bytes:
    """The answer to LOCK_BATCH_MQ as JSON."""
    return encode_json(response)


def decode_unlock_request(data: bytes) -> UnlockBatchRequestBody:
    """The body of UNLOCK_BATCH_MQ; ProtocolError when it is none."""
    return _unlock_request.decode(data)


def encode_unlock_request(request: UnlockBatchRequestBody) -> bytes:
    """The body of UNLOCK_BATCH_MQ as JSON."""
    return encode_json(request)


def decode_consumer_connection(data: bytes) -> ConsumerConnection:
    """A consumer group's connections; ProtocolError when they are none."""
    return _consumer_connection.decode(data)


def encode_consumer_connection(connection: ConsumerConnection) -> bytes:
    """A consumer group's connections as JSON."""
    return encode_json(connection)


def decode_producer_connection(data: bytes) -> ProducerConnection:
    """A producer group's connections; ProtocolError when they are none."""
    return _producer_connection.decode(data)


def encode_producer_connection(connection: ProducerConnection) -> bytes:
    """A producer group's connections as JSON."""
    return encode_json(connection)


def decode_group_names(data: bytes) -> GroupList:
    """A list of groups; ProtocolError when it is none."""
    return _group_names.decode(data)


def encode_group_names(groups: GroupList) -> bytes:
    """A list of groups as JSON."""
    return encode_json(groups)


def decode_consumer_offsets(data: bytes) -> ConsumerOffsets:
    """Consumer offsets, on the wire or in their file, queue ids bare or quoted; ProtocolError when they are none."""
    return _consumer_offsets.decode(data, size_max_bytes=1 << 30)


def encode_consumer_offsets(offsets: ConsumerOffsets, *, pretty: bool = False) -> bytes:
    """Consumer offsets with bare queue ids; `pretty` as they stand in consumerOffset.json."""
    return encode_fastjson(offsets, pretty=pretty)


def decode_delay_offsets(data: bytes) -> DelayOffsets:
    """Delay progress, on the wire or in its file; ProtocolError when it is none."""
    return _delay_offsets.decode(data)


def encode_delay_offsets(offsets: DelayOffsets, *, pretty: bool = False) -> bytes:
    """Delay progress with bare levels; `pretty` as it stands in delayOffset.json."""
    return encode_fastjson(offsets, pretty=pretty)
