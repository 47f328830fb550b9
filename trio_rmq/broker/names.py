"""Names of topics and groups: which are valid, which belong to the system, and the names derived from others.

Source: RocketMQ TopicValidator, Validators, MixAll (4.9); codes and remarks as its brokers answer them.
"""

from __future__ import annotations

import re

from trio_rmq.limits import GROUP_LENGTH_MAX, TOPIC_LENGTH_MAX

DEFAULT_TOPIC = "TBW102"
"""The template of topics that are made on first send."""
SCHEDULE_TOPIC = "SCHEDULE_TOPIC_XXXX"
BENCHMARK_TOPIC = "BenchmarkTest"
HALF_TOPIC = "RMQ_SYS_TRANS_HALF_TOPIC"
OP_HALF_TOPIC = "RMQ_SYS_TRANS_OP_HALF_TOPIC"
CHECK_MAX_TIME_TOPIC = "TRANS_CHECK_MAX_TIME_TOPIC"
TIMER_TOPIC = "rmq_sys_wheel_timer"
"""Messages that wait for a time, as 5.x stores them."""
SELF_TEST_TOPIC = "SELF_TEST_TOPIC"
OFFSET_MOVED_TOPIC = "OFFSET_MOVED_EVENT"
TRACE_TOPIC = "RMQ_SYS_TRACE_TOPIC"
TRANSACTION_GROUP = "CID_RMQ_SYS_TRANS"
"""The group whose consumed offsets say how far half and op messages are done with."""
RETRY_PREFIX = "%RETRY%"
DLQ_PREFIX = "%DLQ%"
LMQ_PREFIX = "%LMQ%"
"""Light message queues: topics and groups that exist unregistered (enableLmq)."""
REPLY_SUFFIX = "_REPLY_TOPIC"

SYSTEM_TOPICS = frozenset(
    {
        DEFAULT_TOPIC,
        SCHEDULE_TOPIC,
        BENCHMARK_TOPIC,
        HALF_TOPIC,
        OP_HALF_TOPIC,
        CHECK_MAX_TIME_TOPIC,
        TIMER_TOPIC,
        SELF_TEST_TOPIC,
        OFFSET_MOVED_TOPIC,
        TRACE_TOPIC,
    }
)
"""Topics that no tool may create or delete; besides these the cluster's, the broker's and the reply topic."""

NOT_SENDABLE_TOPICS = frozenset(
    {SCHEDULE_TOPIC, HALF_TOPIC, OP_HALF_TOPIC, CHECK_MAX_TIME_TOPIC, TIMER_TOPIC, SELF_TEST_TOPIC, OFFSET_MOVED_TOPIC}
)
"""Topics that clients may not send to."""

SYSTEM_GROUPS = (
    "TOOLS_CONSUMER",
    "FILTERSRV_CONSUMER",
    "SELF_TEST_C_GROUP",
    "CID_ONS-HTTP-PROXY",
    "CID_ONSAPI_PULL",
    "CID_ONSAPI_PERMISSION",
    "CID_ONSAPI_OWNER",
    "CID_RMQ_SYS_TRANS",
)
"""Groups that exist from the start."""

_valid = re.compile(r"[%|a-zA-Z0-9_-]+").fullmatch


def topic_problem(topic: str) -> str | None:
    """Why `topic` is no valid topic name, in RocketMQ's words; None when it is one."""
    if not topic or topic.isspace():
        return "The specified topic is blank."
    if _valid(topic) is None:
        return "The specified topic contains illegal characters, allowing only ^[%|a-zA-Z0-9_-]+$"
    if len(topic) > TOPIC_LENGTH_MAX:
        return "The specified topic is longer than topic max length."
    return None


def group_problem(group: str) -> str | None:
    """Why `group` is no valid group name; None when it is one."""
    if not group or group.isspace():
        return "the specified group is blank"
    if _valid(group) is None:
        return f"the specified group[{group}] contains illegal characters, allowing only ^[%|a-zA-Z0-9_-]+$"
    if len(group) > GROUP_LENGTH_MAX:
        return f"the specified group is longer than {GROUP_LENGTH_MAX} characters"
    return None


def retry_topic(group: str) -> str:
    """The topic of messages that `group` gave back."""
    return RETRY_PREFIX + group


def dead_letter_topic(group: str) -> str:
    """The topic of messages that `group` gave up."""
    return DLQ_PREFIX + group
