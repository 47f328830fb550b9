"""Consumed offsets: where each group goes on in each queue.

Invariants: an offset is what a client committed last, whether higher or lower than before; the table in memory is what
the next save writes (config/consumerOffset.json, bare queue ids, every flushConsumerOffsetInterval and at the end).
Source: RocketMQ ConsumerOffsetManager (4.9).
"""

from __future__ import annotations

from collections.abc import Callable

from trio_rmq.broker.names import LMQ_PREFIX
from trio_rmq.wire.groups import ConsumerOffsets, decode_consumer_offsets, encode_consumer_offsets

SEPARATOR = "@"


class ConsumerOffsetTable:
    """All consumed offsets of one broker; an offset is the queue offset of the next message to consume.

    With `lmq_enable` the file has those of `%LMQ%` groups in a table of their own (RocketMQ's lmqConsumerOffset.json).
    """

    def __init__(self, *, lmq_enable: bool = False) -> None:
        self._lmq_enable = lmq_enable
        self._offsets: dict[str, dict[int, int]] = {}
        self.unsaved = False
        """Whether the table differs from what was last encoded for its file."""

    def commit(self, group: str, topic: str, queue_id: int, offset: int) -> int | None:
        """Note where `group` goes on; returns the offset before, or None."""
        queues = self._offsets.setdefault(f"{topic}{SEPARATOR}{group}", {})
        before = queues.get(queue_id)
        if before != offset:
            queues[queue_id] = offset
            self.unsaved = True
        return before

    def query(self, group: str, topic: str, queue_id: int) -> int | None:
        """Where `group` goes on, or None when it never committed."""
        return self._offsets.get(f"{topic}{SEPARATOR}{group}", {}).get(queue_id)

    def queues(self, group: str, topic: str) -> dict[int, int]:
        """All offsets of a group in a topic, by queue id."""
        return dict(self._offsets.get(f"{topic}{SEPARATOR}{group}", {}))

    def clone(self, source: str, target: str, topic: str) -> bool:
        """Let `target` go on where `source` does in the topic, whatever it had; False when that is nowhere."""
        queues = self._offsets.get(f"{topic}{SEPARATOR}{source}")
        if queues is None:
            return False
        self._offsets[f"{topic}{SEPARATOR}{target}"] = dict(queues)
        self.unsaved = True
        return True

    def topics_of_group(self, group: str) -> list[str]:
        """Topics in which the group has committed."""
        return [key.rpartition(SEPARATOR)[0] for key in self._offsets if key.rpartition(SEPARATOR)[2] == group]

    def groups_of_topic(self, topic: str) -> list[str]:
        """Groups that have committed in the topic."""
        return [key.rpartition(SEPARATOR)[2] for key in self._offsets if key.rpartition(SEPARATOR)[0] == topic]

    def remove_topic(self, topic: str) -> None:
        """Forget every group's offsets in a deleted topic, so that one made anew is read from its start."""
        self._remove(lambda key: key.rpartition(SEPARATOR)[0] == topic)

    def remove_group(self, group: str) -> None:
        """Forget a deleted group's offsets."""
        self._remove(lambda key: key.rpartition(SEPARATOR)[2] == group)

    def _remove(self, chosen: Callable[[str], bool]) -> None:
        for key in [key for key in self._offsets if chosen(key)]:
            del self._offsets[key]
            self.unsaved = True

    def encode(self, *, pretty: bool = True) -> bytes:
        """The content of consumerOffset.json; the table counts as saved."""
        self.unsaved = False
        if not self._lmq_enable:
            return encode_consumer_offsets(ConsumerOffsets(offset_table=self._offsets), pretty=pretty)
        light = {key: queues for key, queues in self._offsets.items() if _of_light_group(key)}
        return encode_consumer_offsets(
            ConsumerOffsets(
                offset_table={key: queues for key, queues in self._offsets.items() if key not in light},
                lmq_offset_table={key: offset for key, queues in light.items() for offset in queues.values()},
            ),
            pretty=pretty,
        )

    def load(self, content: bytes) -> None:
        """Take the content of consumerOffset.json or lmqConsumerOffset.json."""
        offsets = decode_consumer_offsets(content)
        self._offsets = offsets.offset_table
        for key, offset in (offsets.lmq_offset_table or {}).items():
            self._offsets[key] = {0: offset}


def _of_light_group(key: str) -> bool:
    return key.rpartition(SEPARATOR)[2].startswith(LMQ_PREFIX)
