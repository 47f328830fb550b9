"""A message as it leaves: its topic in its namespace, its body packed, its properties as text.

Made from a `Message` by `OutgoingMaker`, once, before the first try, so that every try sends the same bytes and the
same unique id.  What adds to a message - a transaction's properties, a delay, a reply's address - gives its properties
and system flags here.  Source: RocketMQ DefaultMQProducerImpl.sendKernelImpl.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from trio_rmq.client.compression import Compression
from trio_rmq.client.instance import DEFAULT_HOST, process_id
from trio_rmq.client.message import Message
from trio_rmq.client.namespace import with_namespace
from trio_rmq.client.replies import ReplyMessage
from trio_rmq.clock import wall_ms
from trio_rmq.limits import BODY_SIZE_MAX_BYTES
from trio_rmq.randomness import rng
from trio_rmq.wire import properties as prop
from trio_rmq.wire.ids import UniqueIdGenerator


class Outgoing(msgspec.Struct):
    """One send request's content; of a batch, `message_id` has the ids of all, joined by commas, as RocketMQ does."""

    topic: str
    body: bytes
    properties: str
    message_id: str
    born_ms: int
    """When it was made, by the wall clock."""
    flag: int = 0
    sys_flag: int = 0
    is_batch: bool = False
    user_topic: str = ""
    """The topic without its namespace, for the result; empty when it has none."""
    is_reply: bool = False
    first_broker: str = ""
    """The broker to try first, if the topic has a queue there."""


class OutgoingMaker:
    """Makes outgoing messages for one producer, whose `namespace`, body limit and compression it applies."""

    def __init__(
        self,
        *,
        namespace: str = "",
        body_size_max_bytes: int = BODY_SIZE_MAX_BYTES,
        compression: Compression | None = None,
    ) -> None:
        self.namespace = namespace
        self.body_size_max_bytes = body_size_max_bytes
        self._compression = compression
        self._unique_ids = UniqueIdGenerator(DEFAULT_HOST, process_id(), rng().getrandbits(32))

    def next_id(self) -> str:
        """A unique message id."""
        return self._unique_ids.next_id(wall_ms())

    def next_ids(self, count: int) -> list[str]:
        """`count` unique message ids of one moment."""
        return self._unique_ids.next_ids(wall_ms(), count)

    def make(self, message: Message, *, properties: Mapping[str, str] | None = None, sys_flag: int = 0) -> Outgoing:
        """`message` ready to leave, with RocketMQ's own `properties` and bits of `sys_flag` added.

        ClientError for a message that a broker would refuse.
        """
        message.check(self.body_size_max_bytes)
        if isinstance(message, ReplyMessage):
            properties = {**(properties or {}), **message.own_properties}
        now_ms = wall_ms()
        unique_id = self._unique_ids.next_id(now_ms)
        text = message.properties_text(unique_id, self.own_properties(properties) if self.namespace else properties)
        body = message.body
        compression = self._compression
        if compression is not None and len(body) >= compression.threshold_bytes:
            body, flags = compression.pack(body)
            sys_flag |= flags
        outgoing = Outgoing(message.topic, body, text, unique_id, now_ms, message.flag, sys_flag)
        if isinstance(message, ReplyMessage):  # whose topic is the cluster's, in no namespace
            outgoing.is_reply, outgoing.first_broker = True, message.first_broker
        elif self.namespace:
            outgoing.user_topic = message.topic
            outgoing.topic = with_namespace(self.namespace, message.topic)
        return outgoing

    def own_properties(self, properties: Mapping[str, str] | None = None) -> Mapping[str, str] | None:
        """`properties` and what the namespace adds to them; None for none at all."""
        if not self.namespace:
            return properties
        return {**(properties or {}), prop.INSTANCE_ID: self.namespace}
