"""Names of topics and groups that a client checks before a broker has to.

Source: RocketMQ Validators, TopicValidator, MixAll.
"""

from __future__ import annotations

import re

from trio_rmq.errors import ClientError
from trio_rmq.limits import GROUP_LENGTH_MAX, TOPIC_LENGTH_MAX

RETRY_PREFIX = "%RETRY%"
DLQ_PREFIX = "%DLQ%"

NOT_SENDABLE_TOPICS = frozenset({
    "SCHEDULE_TOPIC_XXXX", "RMQ_SYS_TRANS_HALF_TOPIC", "RMQ_SYS_TRANS_OP_HALF_TOPIC", "TRANS_CHECK_MAX_TIME_TOPIC",
    "SELF_TEST_TOPIC", "OFFSET_MOVED_EVENT",
})  # fmt: skip
"""Topics that clients may not send to."""
SYSTEM_TOPICS = NOT_SENDABLE_TOPICS | {"TBW102", "BenchmarkTest", "RMQ_SYS_TRACE_TOPIC"}
SYSTEM_TOPIC_PREFIX = "rmq_sys_"
_SYSTEM_GROUP_PREFIX = "CID_RMQ_SYS_"
_SYSTEM_GROUPS = frozenset({
    "DEFAULT_CONSUMER", "DEFAULT_PRODUCER", "TOOLS_CONSUMER", "SCHEDULE_CONSUMER", "FILTERSRV_CONSUMER",
    "__MONITOR_CONSUMER", "CLIENT_INNER_PRODUCER", "SELF_TEST_P_GROUP", "SELF_TEST_C_GROUP", "CID_ONS-HTTP-PROXY",
    "CID_ONSAPI_PERMISSION", "CID_ONSAPI_OWNER", "CID_ONSAPI_PULL", "CID_RMQ_SYS_TRANS",
})  # fmt: skip
_legal = re.compile(r"[%|a-zA-Z0-9_-]+").fullmatch


def is_system_topic(topic: str) -> bool:
    """Whether the topic is one of RocketMQ's own."""
    return topic in SYSTEM_TOPICS or topic.startswith(SYSTEM_TOPIC_PREFIX)


def is_system_group(group: str) -> bool:
    """Whether the group is one of RocketMQ's own."""
    return group in _SYSTEM_GROUPS or group.startswith(_SYSTEM_GROUP_PREFIX)


def check_topic(topic: str) -> None:
    """ClientError, with the mend, for a topic that cannot be sent to."""
    if not topic or len(topic) > TOPIC_LENGTH_MAX:
        raise ClientError(f"the topic {topic!r} must have 1 to {TOPIC_LENGTH_MAX} characters")
    if not _legal(topic):
        raise ClientError(f"the topic {topic!r} has illegal characters: use a-z, A-Z, 0-9, %, |, - and _")
    if topic in NOT_SENDABLE_TOPICS:
        raise ClientError(f"the topic {topic} is the system's own: send to another")


def check_producer_group(group: str) -> None:
    """ClientError, with the mend, for a name that brokers refuse as a producer group's."""
    if not _legal(group) or len(group) > GROUP_LENGTH_MAX:
        raise ClientError(
            f"the group {group!r} must have 1 to {GROUP_LENGTH_MAX} characters of a-z, A-Z, 0-9, %, |, - and _"
        )
