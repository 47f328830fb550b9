"""What a client tells every broker each 30 seconds: its producer groups, consumer groups and their subscriptions.

Fields stand in the order of their wire names, as fastjson writes them; a field that is None is not written (those only
5.x has).  Source: RocketMQ HeartbeatData, ConsumerData, SubscriptionData, FilterAPI.
"""

from __future__ import annotations

from typing import Any

import msgspec

from trio_rmq.errors import ProtocolError
from trio_rmq.wire.fastjson import BodyReader, encode_json, shown, shown_list
from trio_rmq.wire.hashing import java_string_hash

CONSUME_ACTIVELY = "CONSUME_ACTIVELY"
CONSUME_PASSIVELY = "CONSUME_PASSIVELY"
CONSUME_POP = "CONSUME_POP"
"""Consume types: pull, push, pop (5.x)."""

BROADCASTING = "BROADCASTING"
CLUSTERING = "CLUSTERING"
"""Message models."""

CONSUME_FROM_LAST_OFFSET = "CONSUME_FROM_LAST_OFFSET"
CONSUME_FROM_FIRST_OFFSET = "CONSUME_FROM_FIRST_OFFSET"
CONSUME_FROM_TIMESTAMP = "CONSUME_FROM_TIMESTAMP"
"""Where a group without stored offsets begins."""

EXPRESSION_TAG = "TAG"
EXPRESSION_SQL92 = "SQL92"
SUBSCRIBE_ALL = "*"

_SUBSCRIPTION_PARSE_FAILED = 23
_TAG_WHITESPACE = "".join(map(chr, range(0x21)))


class SubscriptionData(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """One topic's subscription: the user's text, and for tags their names and hashes; both empty mean all."""

    class_filter_mode: bool = shown(False)
    code_set: list[int] = shown_list()
    expression_type: str = shown(EXPRESSION_TAG)
    sub_string: str = shown(SUBSCRIBE_ALL)
    sub_version: int = shown(0)
    tags_set: list[str] = shown_list()
    topic: str = shown("")


class ConsumerData(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """One consumer group of a client."""

    consume_from_where: str = shown(CONSUME_FROM_LAST_OFFSET)
    consume_type: str = shown(CONSUME_PASSIVELY)
    group_name: str = shown("")
    message_model: str = shown(CLUSTERING)
    subscription_data_set: list[SubscriptionData] = shown_list()
    unit_mode: bool = shown(False)


class ProducerData(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """One producer group of a client."""

    group_name: str = shown("")


class HeartbeatData(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """A client's heartbeat; `heartbeat_fingerprint` and `without_sub` only from 5.x."""

    client_id: str = msgspec.field(name="clientID", default_factory=lambda: "")
    consumer_data_set: list[ConsumerData] = shown_list()
    heartbeat_fingerprint: int | None = None
    producer_data_set: list[ProducerData] = shown_list()
    without_sub: bool | None = None


class CheckClientRequestBody(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """A subscription that a client asks about before it uses it."""

    client_id: str = shown("")
    group: str = shown("")
    namespace: str | None = None
    subscription_data: SubscriptionData | None = None


_ORDINALS = {
    "consumeFromWhere": (
        CONSUME_FROM_LAST_OFFSET,
        "CONSUME_FROM_LAST_OFFSET_AND_FROM_MIN_WHEN_BOOT_FIRST",
        "CONSUME_FROM_MIN_OFFSET",
        "CONSUME_FROM_MAX_OFFSET",
        CONSUME_FROM_FIRST_OFFSET,
        CONSUME_FROM_TIMESTAMP,
    ),
    "consumeType": (CONSUME_ACTIVELY, CONSUME_PASSIVELY, CONSUME_POP),
    "messageModel": (BROADCASTING, CLUSTERING),
}


def _ordinals_to_names(tree: Any) -> Any:
    """Enumerations sent as numbers, which fastjson takes and some clients in other languages send, as names."""
    consumers = tree.get("consumerDataSet") if isinstance(tree, dict) else None
    for consumer in consumers if isinstance(consumers, list) else ():
        for key, names in _ORDINALS.items():
            value = consumer.get(key) if isinstance(consumer, dict) else None
            if type(value) is int and 0 <= value < len(names):
                consumer[key] = names[value]
    return tree


_heartbeat = BodyReader(HeartbeatData, repair=_ordinals_to_names)
_subscription = BodyReader(SubscriptionData)
_check_client = BodyReader(CheckClientRequestBody)


def decode_heartbeat(data: bytes) -> HeartbeatData:
    """The body of HEART_BEAT; ProtocolError when it is none."""
    return _heartbeat.decode(data)


def encode_heartbeat(heartbeat: HeartbeatData) -> bytes:
    """A heartbeat as JSON."""
    return encode_json(heartbeat)


def decode_check_client(data: bytes) -> CheckClientRequestBody:
    """The body of CHECK_CLIENT_CONFIG; ProtocolError when it is none."""
    return _check_client.decode(data)


def encode_check_client(body: CheckClientRequestBody) -> bytes:
    """A question about a subscription as JSON."""
    return encode_json(body)


def decode_subscription(data: bytes) -> SubscriptionData:
    """One subscription's JSON (CHECK_CLIENT_CONFIG, admin answers); ProtocolError when it is none."""
    return _subscription.decode(data)


def build_subscription(
    topic: str, expression: str | None, *, expression_type: str | None = EXPRESSION_TAG, sub_version: int = 0
) -> SubscriptionData:
    """The subscription that Java makes of `expression`.

    For tags: None, empty and `*` mean all; else tags parted by `||`, each trimmed as `String.trim` does, empty ones
    dropped, with their hashes.  Other types keep the text.  `sub_version` is wall clock milliseconds; of two
    subscriptions of a group the higher wins.  ProtocolError (SUBSCRIPTION_PARSE_FAILED) for text that is only bars, or
    an empty expression of another type.
    """
    if expression_type is not None and expression_type != EXPRESSION_TAG:
        if not expression:
            raise ProtocolError(
                f"an expression of type {expression_type} must not be empty",
                response_code=_SUBSCRIPTION_PARSE_FAILED,
            )
        return SubscriptionData(
            topic=topic, sub_string=expression, expression_type=expression_type, sub_version=sub_version
        )
    if not expression or expression == SUBSCRIBE_ALL:
        return SubscriptionData(topic=topic, sub_version=sub_version)
    parts = expression.split("||")
    if not any(parts):
        raise ProtocolError("a subscription of nothing but bars", response_code=_SUBSCRIPTION_PARSE_FAILED)
    tags = list(dict.fromkeys(tag for part in parts if (tag := part.strip(_TAG_WHITESPACE))))
    return SubscriptionData(
        topic=topic,
        sub_string=expression,
        tags_set=tags,
        code_set=list(dict.fromkeys(map(java_string_hash, tags))),
        sub_version=sub_version,
    )
