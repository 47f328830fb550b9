"""Which topics a client may send to: what a send, single or batch, and a reply are checked for before anything else.

The checks of one and the same topic pass only once; what is asked of each send is its queue id.
Checks, codes and remarks: RocketMQ AbstractSendMessageProcessor.msgCheck (4.9).
"""

from __future__ import annotations

import logging

from trio_rmq.broker import names
from trio_rmq.broker.topics import TopicTable, describe
from trio_rmq.config import BrokerConfig
from trio_rmq.errors import RequestError
from trio_rmq.randomness import rng
from trio_rmq.remoting.session import Session
from trio_rmq.wire.codes import ResponseCode
from trio_rmq.wire.headers import SendMessageRequestHeader, SendMessageRequestHeaderV2
from trio_rmq.wire.sysflag import PERMISSION_WRITE, permission_text
from trio_rmq.wire.topics import TopicConfig

logger = logging.getLogger(__name__)

RETRY_QUEUES = 1
CHECKED_TOPICS_MAX = 100_000
"""Most topics whose checks are remembered."""

SendHeader = SendMessageRequestHeader | SendMessageRequestHeaderV2


class SendableTopics:
    """The topics of `topics`, checked for sends."""

    def __init__(self, config: BrokerConfig, topics: TopicTable) -> None:
        self._config = config
        self._topics = topics
        self._checked: dict[str, TopicConfig] = {}
        self._warned_topics: set[str] = set()

    def topic(self, session: Session, header: SendHeader) -> TopicConfig:
        """The topic that may be sent to, made on first use; RequestError says why not."""
        name = header.topic
        topic = self._topics.get(name)
        if topic is None or self._checked.get(name) is not topic:
            topic = self._checked[name] = self._checked_topic(session, header, topic)
        check_queue(session, header.queue_id, topic)
        return topic

    def _checked_topic(self, session: Session, header: SendHeader, topic: TopicConfig | None) -> TopicConfig:
        name = header.topic
        permission = self._config.broker_permission
        if not permission & PERMISSION_WRITE:
            raise RequestError(
                ResponseCode.NO_PERMISSION,
                f"the broker[{self._config.broker_ip1}] sending message is forbidden: its brokerPermission is "
                f"{permission_text(permission)}; send to another broker",
            )
        if topic is None:
            problem = names.topic_problem(name)
            if problem is not None:
                raise RequestError(ResponseCode.SYSTEM_ERROR, problem)
            if name in names.NOT_SENDABLE_TOPICS:
                raise _not_sendable(name)
            if name.startswith(names.RETRY_PREFIX):
                topic = self._topics.create_internal(name, RETRY_QUEUES)
            else:
                topic = self._topics.create_on_send(
                    name, header.default_topic, header.default_topic_queue_nums, session.peer
                )
        if name in names.NOT_SENDABLE_TOPICS:
            raise _not_sendable(name)
        if not topic.perm & PERMISSION_WRITE and name not in self._warned_topics:
            self._warned_topics.add(name)
            logger.warning(
                "topic %s is not writable, yet %s sends to it (accepted, as RocketMQ does)", name, session.peer
            )
        if len(self._checked) > CHECKED_TOPICS_MAX:
            self._checked.clear()
        return topic


def check_queue(session: Session, queue_id: int, topic: TopicConfig) -> None:
    """RequestError when the topic has no such queue, neither to write to nor to read from."""
    if queue_id >= topic.write_queue_nums and queue_id >= topic.read_queue_nums:
        raise RequestError(
            ResponseCode.SYSTEM_ERROR,
            f"request queueId[{queue_id}] is illegal, {describe(topic)} Producer: {session.peer}",
        )


def any_queue_id(topic: TopicConfig) -> int:
    """A queue of the topic for a send that asks for none (a negative queue id)."""
    return rng().randrange(max(topic.write_queue_nums, 1))


def _not_sendable(name: str) -> RequestError:
    return RequestError(ResponseCode.NO_PERMISSION, f"Sending message to topic[{name}] is forbidden.")
