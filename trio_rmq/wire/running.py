"""What a consumer tells of itself when a broker asks: its running state, and how it took one message given directly.

Fields stand in the order of their wire names, as fastjson writes them.  Source: RocketMQ ConsumerRunningInfo,
ProcessQueueInfo, ConsumeStatus, ConsumeMessageDirectlyResult, CMResult.
"""

from __future__ import annotations

import msgspec

from trio_rmq.wire.fastjson import BodyReader, encode_fastjson, encode_json, shown, shown_dict, shown_list
from trio_rmq.wire.groups import MessageQueue
from trio_rmq.wire.heartbeat import SubscriptionData

PROP_NAMESERVER_ADDR = "PROP_NAMESERVER_ADDR"
PROP_THREADPOOL_CORE_SIZE = "PROP_THREADPOOL_CORE_SIZE"
PROP_CONSUME_ORDERLY = "PROP_CONSUMEORDERLY"
PROP_CONSUME_TYPE = "PROP_CONSUME_TYPE"
PROP_CLIENT_VERSION = "PROP_CLIENT_VERSION"
PROP_CONSUMER_START_TIMESTAMP = "PROP_CONSUMER_START_TIMESTAMP"
"""Properties that RocketMQ's tools look for."""

CR_SUCCESS = "CR_SUCCESS"
CR_LATER = "CR_LATER"
CR_ROLLBACK = "CR_ROLLBACK"
CR_COMMIT = "CR_COMMIT"
CR_THROW_EXCEPTION = "CR_THROW_EXCEPTION"
CR_RETURN_NULL = "CR_RETURN_NULL"
"""What became of a message that was given directly."""


class ProcessQueueInfo(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """One held queue: offsets are queue offsets, timestamps milliseconds since 1970; `droped` is RocketMQ's spelling.

    The `transaction_msg_*` fields tell of messages that an orderly listener is at.
    """

    cached_msg_count: int = shown(0)
    cached_msg_max_offset: int = shown(0)
    cached_msg_min_offset: int = shown(0)
    cached_msg_size_mib: int = msgspec.field(name="cachedMsgSizeInMiB", default_factory=lambda: 0)
    commit_offset: int = shown(0)
    droped: bool = shown(False)
    last_consume_timestamp: int = shown(0)
    last_lock_timestamp: int = shown(0)
    last_pull_timestamp: int = shown(0)
    locked: bool = shown(False)
    transaction_msg_count: int = shown(0)
    transaction_msg_max_offset: int = shown(0)
    transaction_msg_min_offset: int = shown(0)
    try_unlock_times: int = shown(0)


class ConsumeStatus(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One topic's figures of the last minute: times in milliseconds, TPS messages a second; failures of an hour."""

    consume_failed_msgs: int = msgspec.field(name="consumeFailedMsgs", default_factory=lambda: 0)
    consume_failed_tps: float = msgspec.field(name="consumeFailedTPS", default_factory=lambda: 0.0)
    consume_ok_tps: float = msgspec.field(name="consumeOKTPS", default_factory=lambda: 0.0)
    consume_rt: float = msgspec.field(name="consumeRT", default_factory=lambda: 0.0)
    pull_rt: float = msgspec.field(name="pullRT", default_factory=lambda: 0.0)
    pull_tps: float = msgspec.field(name="pullTPS", default_factory=lambda: 0.0)


class ConsumerRunningInfo(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """A consumer's properties, subscriptions, held queues and figures by topic; `jstack` says what runs, as text."""

    jstack: str | None = None
    mq_table: dict[MessageQueue, ProcessQueueInfo] = shown_dict()
    properties: dict[str, str] = shown_dict()
    status_table: dict[str, ConsumeStatus] = shown_dict()
    subscription_set: list[SubscriptionData] = shown_list()


class ConsumeMessageDirectlyResult(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """How a listener took one message: one of the CR_ words, and how long it took."""

    auto_commit: bool = shown(True)
    consume_result: str | None = None
    order: bool = shown(False)
    remark: str | None = None
    spent_time_mills: int = shown(0)


class _RunningText(msgspec.Struct, rename="camel"):
    jstack: str | None = None
    mq_table: dict[str, ProcessQueueInfo] = {}
    properties: dict[str, str] = {}
    status_table: dict[str, ConsumeStatus] = {}
    subscription_set: list[SubscriptionData] = []


_queue = BodyReader(MessageQueue)
_running = BodyReader(_RunningText)
_directly = BodyReader(ConsumeMessageDirectlyResult)


def decode_running_info(data: bytes) -> ConsumerRunningInfo:
    """The answer to GET_CONSUMER_RUNNING_INFO; ProtocolError when it is none."""
    text = _running.decode(data)
    return ConsumerRunningInfo(
        jstack=text.jstack,
        mq_table={_queue.decode(key.encode("utf-8", "surrogatepass")): info for key, info in text.mq_table.items()},
        properties=text.properties,
        status_table=text.status_table,
        subscription_set=text.subscription_set,
    )


def encode_running_info(info: ConsumerRunningInfo) -> bytes:
    """The answer to GET_CONSUMER_RUNNING_INFO, its queues keyed by objects."""
    return encode_fastjson(info)


def decode_directly_result(data: bytes) -> ConsumeMessageDirectlyResult:
    """The answer to CONSUME_MESSAGE_DIRECTLY; ProtocolError when it is none."""
    return _directly.decode(data)


def encode_directly_result(result: ConsumeMessageDirectlyResult) -> bytes:
    """The answer to CONSUME_MESSAGE_DIRECTLY as JSON."""
    return encode_json(result)
