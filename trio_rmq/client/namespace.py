"""Namespaces: one word before the names of topics and groups, `TENANT%Orders`, that a client adds and takes away.

The retry and dead-letter prefixes stay in front (`%RETRY%TENANT%group`), names of the system have no namespace, and a
name that has the namespace already is left alone.  Source: RocketMQ NamespaceUtil, TopicValidator, MixAll.
"""

from __future__ import annotations

from collections.abc import Iterable

from trio_rmq.client.names import DLQ_PREFIX, RETRY_PREFIX, is_system_group, is_system_topic
from trio_rmq.wire.groups import MessageQueue

SEPARATOR = "%"


def with_namespace(namespace: str, name: str) -> str:
    """The topic or group `name` as brokers know it."""
    if not namespace or not name or is_system_topic(name) or is_system_group(name):
        return name
    prefix, bare = _split_prefix(name)
    if bare.startswith(namespace + SEPARATOR):
        return name
    return f"{prefix}{namespace}{SEPARATOR}{bare}"


def without_namespace(namespace: str, name: str) -> str:
    """The topic or group as the program knows it: without this namespace, if it has it."""
    if not namespace or not name:
        return name
    prefix, bare = _split_prefix(name)
    return prefix + bare.removeprefix(namespace + SEPARATOR)


def _split_prefix(name: str) -> tuple[str, str]:
    for prefix in (RETRY_PREFIX, DLQ_PREFIX):
        if name.startswith(prefix):
            return prefix, name.removeprefix(prefix)
    return "", name


def queue_with_namespace(namespace: str, queue: MessageQueue) -> MessageQueue:
    """`queue` by its topic's name as brokers know it."""
    return _named(queue, with_namespace(namespace, queue.topic)) if namespace else queue


def queue_without_namespace(namespace: str, queue: MessageQueue) -> MessageQueue:
    """`queue` by its topic's name as the program knows it."""
    return _named(queue, without_namespace(namespace, queue.topic)) if namespace else queue


def queues_without_namespace(namespace: str, queues: Iterable[MessageQueue]) -> list[MessageQueue]:
    """The same of several."""
    return [queue_without_namespace(namespace, queue) for queue in queues]


def _named(queue: MessageQueue, topic: str) -> MessageQueue:
    if topic == queue.topic:
        return queue
    return MessageQueue(topic=topic, broker_name=queue.broker_name, queue_id=queue.queue_id)
