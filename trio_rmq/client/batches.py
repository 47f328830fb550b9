"""Batches: several messages of one topic in one send request, which is stored as one piece.

All go to one queue, share the answer, and are acknowledged together; consumers get single messages.  Bodies are not
compressed.  Source: RocketMQ MessageBatch, MessageDecoder.encodeMessages.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from trio_rmq.client.message import Message
from trio_rmq.client.names import RETRY_PREFIX
from trio_rmq.client.namespace import with_namespace
from trio_rmq.client.outgoing import Outgoing, OutgoingMaker
from trio_rmq.client.replies import ReplyMessage
from trio_rmq.clock import wall_ms
from trio_rmq.errors import ClientError
from trio_rmq.wire import properties as prop
from trio_rmq.wire.batch import BatchItem, encode_batch

ITEM_OVERHEAD_BYTES = 22
"""What a batch adds to a message besides its body and properties."""
OWN_PROPERTIES_BYTES = 64
"""Room for the unique id and the other properties that a message gets when it leaves."""


def make_batch(maker: OutgoingMaker, messages: Sequence[Message]) -> Outgoing:
    """The messages as one request; ClientError for none, for mixed topics or `wait_store`, or over the body limit."""
    if not messages:
        raise ClientError("the batch is empty: give at least one message")
    first = messages[0]
    items: list[BatchItem] = []
    ids: list[str] = []
    own = maker.own_properties()
    for message in messages:
        if message.topic != first.topic:
            raise ClientError(
                f"a batch has one topic, this one has {first.topic} and {message.topic}: send a batch for each"
            )
        if message.wait_store != first.wait_store:
            raise ClientError("all messages of a batch must have the same wait_store: send a batch for each")
        if isinstance(message, ReplyMessage):
            raise ClientError("a reply goes to the one client that asked: send it singly")
        if message.is_for_later:
            raise ClientError("the messages of a batch are delivered at once: send those for a later time singly")
        message.check(maker.body_size_max_bytes)
        unique_id = maker.next_id()
        ids.append(unique_id)
        items.append(BatchItem(message.flag, message.body, message.properties_text(unique_id, own).encode()))
    return batch_of(maker, first.topic, items, ids, wait_store=first.wait_store)


def batch_of(
    maker: OutgoingMaker, topic: str, items: Sequence[BatchItem], ids: Sequence[str], *, wait_store: bool
) -> Outgoing:
    """The request for items that are checked already; ClientError when together they are over the body limit."""
    if topic.startswith(RETRY_PREFIX):
        raise ClientError(f"{topic} takes no batches: send singly")
    body = encode_batch(items)
    if len(body) > maker.body_size_max_bytes:
        raise ClientError(
            f"the batch of {len(items)} messages has {len(body)} bytes, more than {maker.body_size_max_bytes}: "
            "split it (split_batch)"
        )
    # No unique id of the batch's own: brokers add its properties to each message's, whose ids it would replace.
    text = f"{prop.WAIT}\x01{'true' if wait_store else 'false'}"
    outgoing = Outgoing(topic, body, text, ",".join(ids), wall_ms(), is_batch=True)
    if maker.namespace:
        outgoing.topic, outgoing.user_topic = with_namespace(maker.namespace, topic), topic
    return outgoing


def split_batch(messages: Iterable[Message], size_max_bytes: int = 1024 * 1024) -> Iterator[list[Message]]:
    """The messages, in order, as lists that each make a batch of at most `size_max_bytes`.

    A message that is larger by itself comes alone: send it singly.  The size counts properties and overhead.
    """
    batch: list[Message] = []
    size = 0
    for message in messages:
        item = message_size_bytes(message)
        if batch and size + item > size_max_bytes:
            yield batch
            batch, size = [], 0
        batch.append(message)
        size += item
    if batch:
        yield batch


def message_size_bytes(message: Message) -> int:
    """What the message takes in a batch, at most."""
    text = message.properties_text("", None)
    return ITEM_OVERHEAD_BYTES + OWN_PROPERTIES_BYTES + len(message.body) + len(text.encode())
