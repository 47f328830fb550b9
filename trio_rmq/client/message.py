"""What a program sends and receives: Message, SendResult, ReceivedMessage, MessageQueue.

A message is a body with a topic, tags, keys and text properties.  Names that RocketMQ keeps for itself are refused as
user properties.  Source of limits and reserved names: RocketMQ Validators, MessageConst.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

import msgspec

from trio_rmq.client.compression import plain_body
from trio_rmq.client.names import check_topic
from trio_rmq.client.namespace import queue_without_namespace, without_namespace
from trio_rmq.errors import ClientError
from trio_rmq.limits import BODY_SIZE_MAX_BYTES, PROPERTIES_SIZE_MAX_BYTES
from trio_rmq.wire import properties as prop
from trio_rmq.wire.groups import MessageQueue
from trio_rmq.wire.ids import host_text
from trio_rmq.wire.record import StoredMessage, decode_record, glance_records

RESERVED_PROPERTIES = frozenset({
    "TRACE_ON", "MSG_REGION", "KEYS", "TAGS", "WAIT", "DELAY", "RETRY_TOPIC", "REAL_TOPIC", "REAL_QID", "TRAN_MSG",
    "PGROUP", "MIN_OFFSET", "MAX_OFFSET", "BUYER_ID", "ORIGIN_MESSAGE_ID", "TRANSFER_FLAG", "CORRECTION_FLAG",
    "MQ2_FLAG", "RECONSUME_TIME", "UNIQ_KEY", "MAX_RECONSUME_TIMES", "CONSUME_START_TIME", "POP_CK", "INSTANCE_ID",
    "CORRELATION_ID", "REPLY_TO_CLIENT", "TTL", "MSG_TYPE", "CLUSTER", "__SHARDINGKEY", "TIMER_DELIVER_MS",
    "TIMER_DELAY_MS", "TIMER_DELAY_SEC", "TIMER_OUT_MS", "TIMER_DEL_UNIQKEY", "__transactionId__",
})  # fmt: skip
"""Property names with a meaning of their own; set them through the fields of Message."""

UNIQUE_KEY_START = f"{prop.UNIQUE_KEY}\x01"
"""How the properties of every message that we send begin; its unique id follows."""
UNIQUE_KEY_BYTES = len(UNIQUE_KEY_START) + 32
"""The beginning with an id of 32 digits."""


@dataclass(slots=True)
class Message:
    """A message to send.  `keys` are looked up in the index; `tags` is one tag that consumers can filter by.

    Messages with one `sharding_key` go to one queue, in the order they are sent in, and so does Java's client given the
    same text and queues.
    """

    topic: str
    body: bytes
    tags: str | None = None
    keys: str | Iterable[str] | None = None
    properties: Mapping[str, str] = field(default_factory=dict)
    flag: int = 0
    wait_store: bool = True
    """Whether the broker answers only after the message is stored as safely as it is configured to."""
    sharding_key: str | None = None
    deliver_at_ms: int | None = None
    """When it is to be delivered, in ms since 1970 by the broker's clock; `SendResult.recall_handle` takes it back."""
    delay_ms: int | None = None
    """How long after it was stored it is to be delivered; counts more than `deliver_at_ms`.  Both need a broker that
    has timers: ours, or RocketMQ's from 5.0 on; an older one delivers at once."""
    delay_level: int = 0
    """A level of the broker's table messageDelayLevel, whose delay it waits (as brokers come, 1 is 1 s and 18 is 2 h);
    0: none.  Every broker has it."""

    @property
    def is_for_later(self) -> bool:
        """Whether it has a delay or a time of delivery."""
        return bool(self.delay_level) or self.delay_ms is not None or self.deliver_at_ms is not None

    def check(self, body_size_max_bytes: int = BODY_SIZE_MAX_BYTES) -> None:
        """ClientError when a broker would refuse the message, with the mend."""
        if self.topic not in _checked_topics:
            check_topic(self.topic)
            if len(_checked_topics) >= CHECKED_TOPICS_MAX:
                _checked_topics.clear()
            _checked_topics.add(self.topic)
        size = len(self.body)
        if not size:
            raise ClientError("the body is empty: a message needs at least one byte")
        if size > body_size_max_bytes:
            raise ClientError(f"the body has {size} bytes, more than {body_size_max_bytes}: split it")
        if self.delay_level < 0:
            raise ClientError(f"the delay level {self.delay_level} is negative: levels begin at 1, 0 means none")
        for name, value in self.properties.items():
            if name in RESERVED_PROPERTIES:
                raise ClientError(f"the property name {name} is reserved: choose another")
            if not name or not value:
                raise ClientError(f"the property {name!r} has an empty name or value")
            if any(mark in text for text in (name, value) for mark in "\x01\x02"):
                raise ClientError(f"the property {name!r} contains a control character that separates properties")

    def properties_text(self, unique_id: str, own: Mapping[str, str] | None = None) -> str:
        """The stored form of all properties, `own` being RocketMQ's; ClientError when it is too long."""
        return f"{UNIQUE_KEY_START}{unique_id}{self.properties_tail(own)}"

    def properties_tail(self, own: Mapping[str, str] | None = None) -> str:
        """What follows the unique id in `properties_text`; ClientError when both together are too long."""
        text = "\x02WAIT\x01true" if self.wait_store else "\x02WAIT\x01false"
        if self.tags:
            text += _field(prop.TAGS, self.tags)
        if self.keys is not None:
            keys = self.keys if isinstance(self.keys, str) else prop.KEY_SEPARATOR.join(self.keys)
            if keys:
                text += _field(prop.KEYS, keys)
        if self.sharding_key:
            text += _field(prop.SHARDING_KEY, self.sharding_key)
        if self.delay_level:
            text += f"\x02{prop.DELAY}\x01{self.delay_level}"
        if self.delay_ms is not None:
            text += f"\x02{prop.TIMER_DELAY_MS}\x01{self.delay_ms}"
        elif self.deliver_at_ms is not None:
            text += f"\x02{prop.TIMER_DELIVER_MS}\x01{self.deliver_at_ms}"
        if self.properties:
            text += "".join([f"\x02{name}\x01{value}" for name, value in self.properties.items()])
        if own:
            text += "".join([f"\x02{name}\x01{value}" for name, value in own.items()])
        if len(text) > PROPERTIES_SIZE_MAX_BYTES // 4 - UNIQUE_KEY_BYTES:  # UTF-8 has up to 4 bytes a character
            size = len(text.encode()) + UNIQUE_KEY_BYTES
            if size > PROPERTIES_SIZE_MAX_BYTES:
                raise ClientError(
                    f"the properties take {size} bytes, more than {PROPERTIES_SIZE_MAX_BYTES}: shorten or drop some"
                )
        return text


CHECKED_TOPICS_MAX = 10_000
"""Most topics whose names are remembered as legal."""
_checked_topics: set[str] = set()


def _field(name: str, value: str) -> str:
    if "\x01" in value or "\x02" in value:
        raise ClientError(f"the {name.lower()} contain a control character that separates properties")
    return f"\x02{name}\x01{value}"


class SendStatus(Enum):
    """How safely a sent message is stored (RocketMQ SendStatus); all but the first leave its durability open."""

    SEND_OK = 0
    FLUSH_DISK_TIMEOUT = 10
    SLAVE_NOT_AVAILABLE = 11
    FLUSH_SLAVE_TIMEOUT = 12


class SendResult(msgspec.Struct, frozen=True, gc=False):
    """Where a message went: `message_id` is the unique id, `offset_message_id` names the place in the broker's log.

    Of a batch both have the ids of all messages, joined by commas; `queue_offset` is its first message's.
    """

    status: SendStatus
    message_id: str
    offset_message_id: str
    queue: MessageQueue
    queue_offset: int
    transaction_id: str | None = None
    region_id: str = "DefaultRegion"
    """Where the broker says it is; a part of message traces."""
    trace_on: bool = True
    """Whether the broker wants messages traced."""
    recall_handle: str | None = None
    """Takes back a message that waits for its time (`Producer.recall`); of other messages None."""

    @property
    def message_ids(self) -> list[str]:
        """The unique ids of all messages of a batch, in order; of a single message the one."""
        return self.message_id.split(",")


class ReceivedMessage(msgspec.Struct, eq=False, gc=False):
    """A message as a consumer gets it.  `queue` is where it was read, `stored` the record as the broker keeps it.

    `reconsume_times` is how often consuming it failed before; a consumer that retries in place counts on.  The record
    is decoded, the body unpacked and the properties read when they are asked for first.  A Struct because it is made in
    C, not compared; nothing in it refers back to it.
    """

    queue: MessageQueue
    queue_offset: int
    """The message's offset in its queue."""
    reconsume_times: int
    stored_body_size_bytes: int
    """Bytes of the body as the broker keeps it, maybe packed."""
    _records: bytes | None = None
    _position: int = 0
    _stored: StoredMessage | None = None
    _body: bytes | None = None
    _properties: Mapping[str, str] | None = None
    namespace: str = ""
    """The consumer's namespace, without which `topic` and `queue` are shown."""

    @classmethod
    def from_record(cls, stored: StoredMessage, queue: MessageQueue, namespace: str = "") -> ReceivedMessage:
        """The message in a stored record."""
        queue = queue_without_namespace(namespace, queue)
        size = len(stored.body)
        return cls(queue, stored.queue_offset, stored.reconsume_times, size, _stored=stored, namespace=namespace)

    @classmethod
    def pulled(cls, queue: MessageQueue, body: bytes, namespace: str = "") -> list[ReceivedMessage]:
        """The messages of a pull response's body; ProtocolError when it does not hold whole records and only these."""
        queue = queue_without_namespace(namespace, queue)
        messages = [
            cls(queue, queue_offset, reconsume_times, body_size, body, position)
            for position, queue_offset, reconsume_times, body_size in glance_records(body)
        ]
        if namespace:
            for message in messages:
                message.namespace = namespace
        return messages

    @property
    def stored(self) -> StoredMessage:
        """The record; ProtocolError when its topic is no UTF-8."""
        stored = self._stored
        if stored is None:
            assert self._records is not None  # noqa: S101 - one of the two is there
            stored = self._stored = decode_record(self._records, self._position)
            self._records = None
        return stored

    def __repr__(self) -> str:
        queue = self.queue
        place = f"{queue.broker_name} {queue.queue_id}:{self.queue_offset}"
        return f"<message {self.message_id} of {self.topic} at {place}>"

    @property
    def body(self) -> bytes:
        """The body as its producer gave it; ClientError when it is compressed and does not unpack."""
        if self._body is None:
            self._body = plain_body(self.stored)
        return self._body

    @property
    def properties(self) -> Mapping[str, str]:
        """All properties, the user's and RocketMQ's."""
        if self._properties is None:
            self._properties = self.stored.property_map()
        return self._properties

    @property
    def topic(self) -> str:
        """The topic it was sent to (of a retried message: its first)."""
        return without_namespace(self.namespace, self.full_topic)

    @property
    def full_topic(self) -> str:
        """The same as brokers know it, with its namespace."""
        return self.properties.get(prop.RETRY_TOPIC, self.stored.topic)

    @property
    def message_id(self) -> str:
        """The producer's unique id, or the offset message id when the producer gave none."""
        return self.properties.get(prop.UNIQUE_KEY) or self.offset_message_id

    @property
    def offset_message_id(self) -> str:
        """Store host and physical offset as hex."""
        return self.stored.offset_message_id

    @property
    def tags(self) -> str | None:
        """The tag, if any."""
        return self.properties.get(prop.TAGS)

    @property
    def keys(self) -> list[str]:
        """The keys."""
        return self.properties.get(prop.KEYS, "").split()

    @property
    def born_timestamp_ms(self) -> int:
        """When the producer made it, by its clock."""
        return self.stored.born_timestamp_ms

    @property
    def store_timestamp_ms(self) -> int:
        """When the broker stored it, by its clock."""
        return self.stored.store_timestamp_ms

    @property
    def born_host(self) -> str:
        """The producer's address as the broker saw it."""
        return host_text(self.stored.born_host)


class ConsumeResult(Enum):
    """What a listener says of its messages; returning None means SUCCESS, raising means RECONSUME_LATER.

    RECONSUME_LATER gives them back to the broker, which delivers them again after a while; an orderly consumer instead
    suspends the queue for a moment and tries them again in place, for which SUSPEND_CURRENT_QUEUE_A_MOMENT is the
    other name.
    """

    SUCCESS = "SUCCESS"
    RECONSUME_LATER = "RECONSUME_LATER"
    SUSPEND_CURRENT_QUEUE_A_MOMENT = "SUSPEND_CURRENT_QUEUE_A_MOMENT"


@dataclass(frozen=True, slots=True)
class ConsumeLater:
    """RECONSUME_LATER in detail, from a listener.

    The first `consumed_count` messages are done, the others are not.  They come again after `delay_level` of the
    broker's delay table: 0 lets the broker choose (longer each time), -1 gives up at once and dead-letters them.  An
    orderly consumer tries them again in place after `suspend_seconds` (0.01 to 30; None: its own).
    """

    delay_level: int = 0
    consumed_count: int = 0
    suspend_seconds: float | None = None


__all__ = ["ConsumeLater", "ConsumeResult", "Message", "MessageQueue", "ReceivedMessage", "SendResult", "SendStatus"]
