"""What a program sends and receives: Message, SendResult, ReceivedMessage, MessageQueue.

A message is a body with a topic, tags, keys and text properties.  Names that RocketMQ keeps for itself are refused as
user properties.  Source of limits and reserved names: RocketMQ Validators, MessageConst.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from trio_rmq.client.compression import plain_body
from trio_rmq.errors import ClientError
from trio_rmq.limits import BODY_SIZE_MAX_BYTES, PROPERTIES_SIZE_MAX_BYTES, TOPIC_LENGTH_MAX
from trio_rmq.wire import properties as prop
from trio_rmq.wire.groups import MessageQueue
from trio_rmq.wire.ids import host_text
from trio_rmq.wire.record import StoredMessage

RESERVED_PROPERTIES = frozenset({
    "TRACE_ON", "MSG_REGION", "KEYS", "TAGS", "WAIT", "DELAY", "RETRY_TOPIC", "REAL_TOPIC", "REAL_QID", "TRAN_MSG",
    "PGROUP", "MIN_OFFSET", "MAX_OFFSET", "BUYER_ID", "ORIGIN_MESSAGE_ID", "TRANSFER_FLAG", "CORRECTION_FLAG",
    "MQ2_FLAG", "RECONSUME_TIME", "UNIQ_KEY", "MAX_RECONSUME_TIMES", "CONSUME_START_TIME", "POP_CK", "INSTANCE_ID",
    "CORRELATION_ID", "REPLY_TO_CLIENT", "TTL", "MSG_TYPE", "CLUSTER",
})  # fmt: skip
"""Property names with a meaning of their own; set them through the fields of Message."""


@dataclass(slots=True)
class Message:
    """A message to send.  `keys` are looked up in the index; `tags` is one tag that consumers can filter by."""

    topic: str
    body: bytes
    tags: str | None = None
    keys: str | Iterable[str] | None = None
    properties: Mapping[str, str] = field(default_factory=dict)
    flag: int = 0
    wait_store: bool = True
    """Whether the broker answers only after the message is stored as safely as it is configured to."""

    def check(self) -> None:
        """ClientError when a broker would refuse the message, with the mend."""
        if not self.topic or len(self.topic) > TOPIC_LENGTH_MAX:
            raise ClientError(f"the topic {self.topic!r} must have 1 to {TOPIC_LENGTH_MAX} characters")
        if not self.body:
            raise ClientError("the body is empty: a message needs at least one byte")
        if len(self.body) > BODY_SIZE_MAX_BYTES:
            raise ClientError(f"the body has {len(self.body)} bytes, more than {BODY_SIZE_MAX_BYTES}: split it")
        for name, value in self.properties.items():
            if name in RESERVED_PROPERTIES:
                raise ClientError(f"the property name {name} is reserved: choose another")
            if not name or not value:
                raise ClientError(f"the property {name!r} has an empty name or value")
            if any(mark in text for text in (name, value) for mark in "\x01\x02"):
                raise ClientError(f"the property {name!r} contains a control character that separates properties")

    def properties_text(self, unique_id: str) -> str:
        """The stored form of all properties; ClientError when it is too long."""
        fields: dict[str, str | None] = dict(self.properties)
        if self.keys is not None:
            fields[prop.KEYS] = self.keys if isinstance(self.keys, str) else prop.KEY_SEPARATOR.join(self.keys)
        fields[prop.UNIQUE_KEY] = unique_id
        fields[prop.WAIT] = "true" if self.wait_store else "false"
        fields[prop.TAGS] = self.tags or None
        text = prop.format_properties(fields)
        if len(text.encode()) > PROPERTIES_SIZE_MAX_BYTES:
            raise ClientError(f"the properties take more than {PROPERTIES_SIZE_MAX_BYTES} bytes: shorten or drop some")
        return text


class SendStatus(Enum):
    """How safely a sent message is stored (RocketMQ SendStatus); all but the first leave its durability open."""

    SEND_OK = 0
    FLUSH_DISK_TIMEOUT = 10
    SLAVE_NOT_AVAILABLE = 11
    FLUSH_SLAVE_TIMEOUT = 12


@dataclass(frozen=True, slots=True)
class SendResult:
    """Where a message went: `message_id` is the unique id, `offset_message_id` names the place in the broker's log."""

    status: SendStatus
    message_id: str
    offset_message_id: str
    queue: MessageQueue
    queue_offset: int


@dataclass(frozen=True, slots=True)
class ReceivedMessage:
    """A message as a consumer gets it; `body` is unpacked when the producer compressed it."""

    queue: MessageQueue
    stored: StoredMessage
    body: bytes
    properties: Mapping[str, str]

    @classmethod
    def from_record(cls, stored: StoredMessage, queue: MessageQueue) -> ReceivedMessage:
        """The message in a stored record; ClientError when its body does not unpack."""
        return cls(queue, stored, plain_body(stored), stored.property_map())

    @property
    def topic(self) -> str:
        """The topic it was sent to (of a retried message: its first)."""
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
    def queue_offset(self) -> int:
        """The message's offset in its queue."""
        return self.stored.queue_offset

    @property
    def tags(self) -> str | None:
        """The tag, if any."""
        return self.properties.get(prop.TAGS)

    @property
    def keys(self) -> list[str]:
        """The keys."""
        return self.properties.get(prop.KEYS, "").split()

    @property
    def reconsume_times(self) -> int:
        """How often consuming it failed before."""
        return self.stored.reconsume_times

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
    """What a listener says of its messages; returning None means SUCCESS, raising means RECONSUME_LATER."""

    SUCCESS = "SUCCESS"
    RECONSUME_LATER = "RECONSUME_LATER"


__all__ = ["ConsumeResult", "Message", "MessageQueue", "ReceivedMessage", "SendResult", "SendStatus"]
