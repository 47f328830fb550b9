"""The broker's topic table: which topics exist here, with how many queues and which permission.

Invariants: every change raises the data version, marks the table as unsaved and tells `on_change` the topic, which is
how name servers learn of it; a topic that exists at boot cannot be deleted.  Saved as config/topics.json.
Source: RocketMQ TopicConfigManager (4.9), and the list of topics in compat with both versions (protocol/layouts.md).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator

import msgspec

from trio_rmq.broker import names
from trio_rmq.clock import wall_ms
from trio_rmq.config import BrokerConfig
from trio_rmq.errors import RequestError
from trio_rmq.limits import TOPICS_MAX
from trio_rmq.randomness import rng
from trio_rmq.wire.codes import ResponseCode
from trio_rmq.wire.sysflag import (
    PERMISSION_DEFAULT,
    PERMISSION_INHERIT,
    PERMISSION_READ,
    PERMISSION_WRITE,
    permission_text,
)
from trio_rmq.wire.topics import (
    DataVersion,
    TopicConfig,
    TopicConfigSerializeWrapper,
    decode_topic_table,
    encode_topic_table,
)

logger = logging.getLogger(__name__)

TopicChange = Callable[[str], None]
"""Told the name of a topic that was made, changed or deleted."""

NEW_TOPIC_QUEUES = 4
"""Queues that clients ask for when a topic is made on their first send (RocketMQ: defaultTopicQueueNums)."""

DLQ_QUEUES = 1
"""Queues of a dead-letter topic that messages go to (RocketMQ: DLQ_NUMS_PER_GROUP)."""

_FULL = PERMISSION_READ | PERMISSION_WRITE | PERMISSION_INHERIT


class TopicTable:
    """All topics of one broker."""

    def __init__(self, config: BrokerConfig, *, delay_levels: int, lmq_enable: bool = False) -> None:
        self._config = config
        self._lmq_enable = lmq_enable
        self._topics: dict[str, TopicConfig] = {}
        self._system: set[str] = set(names.SYSTEM_TOPICS)
        self.data_version = DataVersion(counter=0, timestamp=wall_ms())
        self.on_change: TopicChange | None = None
        self.unsaved = False
        """Whether the table differs from what was last encoded for its file."""
        self._add_system_topics(delay_levels)

    def _add_system_topics(self, delay_levels: int) -> None:
        config = self._config
        self._add_system(names.SELF_TEST_TOPIC, 1)
        if config.auto_create_topic_enable:
            self._add_system(names.DEFAULT_TOPIC, config.default_topic_queue_nums, _FULL)
        self._add_system(names.BENCHMARK_TOPIC, 1024)
        permission = PERMISSION_INHERIT
        if config.cluster_topic_enable:
            permission |= PERMISSION_READ | PERMISSION_WRITE
        self._add_system(config.broker_cluster_name, 16, permission)
        permission = PERMISSION_INHERIT
        if config.broker_topic_enable:
            permission |= PERMISSION_READ | PERMISSION_WRITE
        self._add_system(config.broker_name, 1, permission)
        self._add_system(names.OFFSET_MOVED_TOPIC, 1)
        self._add_system(names.SCHEDULE_TOPIC, delay_levels)
        if config.trace_topic_enable:
            self._add_system(config.msg_trace_topic_name, 1)
        self._add_system(config.broker_cluster_name + names.REPLY_SUFFIX, 1)

    def _add_system(self, name: str, queues: int, permission: int = PERMISSION_DEFAULT) -> None:
        self._system.add(name)
        self._topics[name] = TopicConfig(
            topic_name=name, read_queue_nums=queues, write_queue_nums=queues, perm=permission
        )

    # -- reading ------------------------------------------------------------------------------------------------

    def get(self, name: str) -> TopicConfig | None:
        """The topic, or None.  With enableLmq every `%LMQ%` topic is there, with one queue, registered nowhere."""
        topic = self._topics.get(name)
        if topic is None and self.is_light(name):
            return TopicConfig(topic_name=name, read_queue_nums=1, write_queue_nums=1, perm=PERMISSION_DEFAULT)
        return topic

    def is_light(self, name: str) -> bool:
        """Whether the name is that of a light message queue, whose topic is in no table."""
        return self._lmq_enable and name.startswith(names.LMQ_PREFIX)

    def __iter__(self) -> Iterator[TopicConfig]:
        return iter(list(self._topics.values()))

    def __len__(self) -> int:
        return len(self._topics)

    def is_system(self, name: str) -> bool:
        """Whether the topic belongs to the system: no tool may create or delete it."""
        return name in self._system

    def system_topics(self) -> list[str]:
        """All names that belong to the system."""
        return sorted(self._system)

    def wrapper(self, only: list[str] | None = None) -> TopicConfigSerializeWrapper:
        """The table with its version, as it is registered; `only` picks topics for an incremental registration."""
        chosen = self._topics if only is None else {name: self._topics[name] for name in only if name in self._topics}
        return TopicConfigSerializeWrapper(data_version=self.data_version, topic_config_table=dict(chosen))

    # -- changing -----------------------------------------------------------------------------------------------

    def update(self, topic: TopicConfig) -> None:
        """Make or replace a topic; the next registration sets its `order` flag as the name server's table says.

        Without effect on a light message queue.  RequestError SYSTEM_ERROR when there are TOPICS_MAX already.
        """
        if self.is_light(topic.topic_name):
            return
        old = self._topics.get(topic.topic_name)
        if old is None and len(self._topics) >= TOPICS_MAX:
            raise RequestError(
                ResponseCode.SYSTEM_ERROR, f"this broker has {TOPICS_MAX} topics, the most it takes: delete some"
            )
        logger.info("topic %s %s: %s", topic.topic_name, "made" if old is None else "changed", describe(topic))
        self._topics[topic.topic_name] = topic
        self._changed(topic.topic_name)

    def delete(self, name: str) -> bool:
        """Remove a topic; False when there was none."""
        if self._topics.pop(name, None) is None:
            return False
        logger.info("topic %s deleted", name)
        self._changed(name)
        return True

    def create_on_send(self, name: str, template_name: str, queue_nums: int, peer: str) -> TopicConfig:
        """The topic for a first send: like its template, with at most the queues the sender asks for.

        RequestError TOPIC_NOT_EXIST when there is no such template or topics are not made from it.
        """
        template = self._topics.get(template_name)
        if template is None:
            raise RequestError(
                ResponseCode.TOPIC_NOT_EXIST,
                f"topic[{name}] not exist, apply first please! (nor does its template {template_name})",
            )
        refused = template_name == names.DEFAULT_TOPIC and not self._config.auto_create_topic_enable
        if refused or not template.perm & PERMISSION_INHERIT:
            raise RequestError(
                ResponseCode.TOPIC_NOT_EXIST,
                f"topic[{name}] not exist, apply first please! (topics are not made from {template_name} here)",
            )
        queues = max(min(queue_nums, template.write_queue_nums), 0)
        topic = TopicConfig(
            topic_name=name,
            read_queue_nums=queues,
            write_queue_nums=queues,
            perm=template.perm & ~PERMISSION_INHERIT,
            topic_filter_type=template.topic_filter_type,
        )
        logger.warning(
            "topic %s made on the first send of %s, on this broker only: create it on every broker to spread its load",
            name,
            peer,
        )
        self.update(topic)
        return topic

    def create_internal(
        self, name: str, queue_nums: int, permission: int = PERMISSION_DEFAULT, *, unit_flags: int = 0
    ) -> TopicConfig:
        """The topic of that name, made when missing (retry, dead-letter and transaction topics)."""
        topic = self._topics.get(name)
        if topic is None:
            topic = TopicConfig(
                topic_name=name,
                read_queue_nums=queue_nums,
                write_queue_nums=queue_nums,
                perm=permission,
                topic_sys_flag=unit_flags,
            )
            self.update(topic)
        return topic

    def dead_letter_queue(self, group: str) -> tuple[str, int]:
        """The (topic, queue id) that takes a message which `group` gave up, made when missing."""
        topic = self.create_internal(names.dead_letter_topic(group), DLQ_QUEUES)
        return topic.topic_name, rng().randrange(DLQ_QUEUES)

    def settings_changed(self) -> None:
        """Count every topic as changed: a setting that shows in each one's registration, or admits sends, changed."""
        if self._config.auto_create_topic_enable and names.DEFAULT_TOPIC not in self._topics:
            self._add_system(names.DEFAULT_TOPIC, self._config.default_topic_queue_nums, _FULL)
        # New values, so that whoever keeps what it found out about a topic looks again.
        self._topics = {name: msgspec.structs.replace(topic) for name, topic in self._topics.items()}
        self._bump()
        if self.on_change is not None:
            for name in self._topics:
                self.on_change(name)

    def restore(self, queues: Iterable[tuple[str, int]]) -> None:
        """Make a topic for each (topic, queue id) that has messages and no topic: its making was not saved in time.

        A process that is killed at once after the first send to a new topic has acknowledged a message and may not
        have written topics.json.
        """
        missing: dict[str, int] = {}
        for name, queue_id in queues:
            if name.startswith(names.LMQ_PREFIX):
                continue
            if name not in self._topics and names.topic_problem(name) is None:
                missing[name] = max(missing.get(name, 0), queue_id + 1)
        for name, found in missing.items():
            count = found
            if not name.startswith((names.RETRY_PREFIX, names.DLQ_PREFIX)) and name not in self._system:
                count = max(found, min(NEW_TOPIC_QUEUES, self._config.default_topic_queue_nums))
            logger.warning("topic %s has messages but was not in topics.json: made anew with %d queues", name, count)
            self.create_internal(name, count)

    def apply_order_table(self, orders: dict[str, str]) -> None:
        """Take the name server's list of ordered topics: exactly those have the order flag."""
        changed = False
        for topic in self._topics.values():
            ordered = topic.topic_name in orders
            if topic.order != ordered and not self.is_system(topic.topic_name):
                topic.order = ordered
                changed = True
        if changed:
            self._bump()

    def _changed(self, name: str) -> None:
        self._bump()
        if self.on_change is not None:
            self.on_change(name)

    def _bump(self) -> None:
        self.data_version = self.data_version.next_version(wall_ms())
        self.unsaved = True

    # -- the file -----------------------------------------------------------------------------------------------

    def encode(self) -> bytes:
        """The content of topics.json; the table counts as saved."""
        self.unsaved = False
        return encode_topic_table(self.wrapper(), pretty=True)

    def load(self, content: bytes) -> None:
        """Take the content of topics.json; system topics keep the queues they were once given."""
        wrapper = decode_topic_table(content)
        self._topics.update(wrapper.topic_config_table)
        self.data_version = wrapper.data_version


def describe(topic: TopicConfig) -> str:
    """A topic in the words of RocketMQ's remarks."""
    return (
        f"TopicConfig [topicName={topic.topic_name}, readQueueNums={topic.read_queue_nums}, "
        f"writeQueueNums={topic.write_queue_nums}, perm={permission_text(topic.perm)}, "
        f"topicFilterType={topic.topic_filter_type}, topicSysFlag={topic.topic_sys_flag}, "
        f"order={str(topic.order).lower()}]"
    )
