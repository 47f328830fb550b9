"""What a pull wants of its queue: tags or a SQL92 filter, told by the request itself or by the group's heartbeats.

Invariant: a filter by tags costs a set, and no record is looked at for it.  Codes, remarks and their order: RocketMQ
PullMessageProcessor, ExpressionMessageFilter, ExpressionForRetryMessageFilter (4.9).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from trio_rmq.broker.consumer_filters import ConsumerFilters
from trio_rmq.broker.members import Members
from trio_rmq.broker.names import RETRY_PREFIX
from trio_rmq.errors import FilterError, RequestError
from trio_rmq.filter.compile import Filter, compile_expression
from trio_rmq.filter.properties import PropertyText
from trio_rmq.settings import BrokerConfig
from trio_rmq.wire import properties as prop
from trio_rmq.wire.codes import ResponseCode
from trio_rmq.wire.headers import PullMessageRequestHeader
from trio_rmq.wire.heartbeat import (
    BROADCASTING,
    EXPRESSION_SQL92,
    EXPRESSION_TAG,
    SUBSCRIBE_ALL,
    SubscriptionData,
    build_subscription,
)
from trio_rmq.wire.record import record_properties
from trio_rmq.wire.sysflag import PULL_SUBSCRIPTION

TEXTS_KEPT_MAX = 10_000
"""Most tag texts of requests whose hashes are remembered."""
_TAG_TYPES = (EXPRESSION_TAG, "", None)


class Wanted(NamedTuple):
    """Which messages: those with these tag hashes (None: all), and of those whose record `accept` takes (None: all)."""

    tags_codes: frozenset[int] | None = None
    accept: Callable[[bytes], bool] | None = None
    accept_entry: Callable[[bytes | None, int], bool] | None = None
    """Of a message's bit map and store time (ms), where its queue entry has them: False spares its record's reading."""


ALL = Wanted()


def is_tag_type(expression_type: str | None) -> bool:
    """Whether an expression of that type is one of tags (RocketMQ ExpressionType.isTagType)."""
    return expression_type in _TAG_TYPES


def compile_or_refuse(expression: str, expression_type: str | None) -> Filter:
    """The compiled filter; RequestError SUBSCRIPTION_PARSE_FAILED with the place and the mend for what is none."""
    if expression_type != EXPRESSION_SQL92:
        raise RequestError(
            ResponseCode.SUBSCRIPTION_PARSE_FAILED,
            f"the consumer's subscription has the unknown type {expression_type}: use TAG or SQL92",
        )
    try:
        return compile_expression(expression)
    except FilterError as error:
        raise RequestError(
            ResponseCode.SUBSCRIPTION_PARSE_FAILED, f"parse the consumer's subscription failed: {error}"
        ) from None


def refuse_unless_enabled(config: BrokerConfig, expression_type: str | None) -> None:
    """RequestError SYSTEM_ERROR while enablePropertyFilter is off."""
    if not config.enable_property_filter:
        raise RequestError(
            ResponseCode.SYSTEM_ERROR,
            f"The broker does not support consumer to filter message by {expression_type}"
            " (set enablePropertyFilter=true)",
        )


class Subscriptions:
    """Finds out what a pull wants."""

    def __init__(self, config: BrokerConfig, members: Members, filters: ConsumerFilters) -> None:
        self._config = config
        self._members = members
        self._filters = filters
        self._texts: dict[str, Wanted] = {SUBSCRIBE_ALL: ALL, "": ALL}

    def wanted(self, header: PullMessageRequestHeader, *, broadcast_enabled: bool) -> Wanted:
        """What this pull wants; RequestError when its subscription is missing, old or cannot be read."""
        if header.sys_flag & PULL_SUBSCRIPTION:
            return self._requested(header)
        return self._subscribed(header, broadcast_enabled=broadcast_enabled)

    def _requested(self, header: PullMessageRequestHeader) -> Wanted:
        text = header.subscription or ""
        if is_tag_type(header.expression_type):
            known = self._texts.get(text)
            if known is None:
                known = _by_tags(build_subscription(header.topic, text))
                if len(self._texts) > TEXTS_KEPT_MAX:
                    self._texts.clear()
                    self._texts.update({SUBSCRIBE_ALL: ALL, "": ALL})
                self._texts[text] = known
            return known
        build_subscription(header.topic, text, expression_type=header.expression_type)  # refuses an empty expression
        compiled = compile_or_refuse(text, header.expression_type)
        refuse_unless_enabled(self._config, header.expression_type)
        return Wanted(accept=self._accept(header.topic, header.consumer_group, compiled))

    def _subscribed(self, header: PullMessageRequestHeader, *, broadcast_enabled: bool) -> Wanted:
        connected = self._members.consumer_group(header.consumer_group)
        if connected is None:
            raise RequestError(ResponseCode.SUBSCRIPTION_NOT_EXIST, "the consumer's group info not exist")
        if connected.message_model == BROADCASTING and not broadcast_enabled:
            raise RequestError(
                ResponseCode.NO_PERMISSION,
                f"the consumer group[{header.consumer_group}] can not consume by broadcast way",
            )
        data = connected.subscriptions.get(header.topic)
        if data is None:
            raise RequestError(ResponseCode.SUBSCRIPTION_NOT_EXIST, "the consumer's subscription not exist")
        if data.sub_version < header.sub_version:
            raise RequestError(ResponseCode.SUBSCRIPTION_NOT_LATEST, "the consumer's subscription not latest")
        if is_tag_type(data.expression_type):
            return _by_tags(data)
        registered = self._filters.get(header.topic, header.consumer_group)
        if registered is None:
            raise RequestError(
                ResponseCode.FILTER_DATA_NOT_EXIST,
                "The broker's consumer filter data is not exist!Your expression may be wrong!",
            )
        if registered.data.client_version < header.sub_version:
            raise RequestError(ResponseCode.FILTER_DATA_NOT_LATEST, "the consumer's consumer filter data not latest")
        refuse_unless_enabled(self._config, data.expression_type)
        if data.class_filter_mode:
            return ALL
        may_match = self._filters.may_match
        return Wanted(
            accept=self._accept(header.topic, header.consumer_group, registered.filter),
            accept_entry=lambda bit_map, store_time_ms: may_match(registered, bit_map, store_time_ms),
        )

    def _accept(self, topic: str, group: str, compiled: Filter | None) -> Callable[[bytes], bool] | None:
        if self._config.filter_support_retry and topic.startswith(RETRY_PREFIX):
            return self._accept_retry(topic.removeprefix(RETRY_PREFIX))
        if compiled is None:
            return None
        matches = compiled.matches
        return lambda record: matches(PropertyText(record_properties(record)))

    def _accept_retry(self, group: str) -> Callable[[bytes], bool]:
        """By the filter that the group has for the topic from which each message was given back; all without one."""

        def accept(record: bytes) -> bool:
            properties = PropertyText(record_properties(record))
            registered = self._filters.get(properties.get(prop.RETRY_TOPIC) or "", group)
            return registered is None or registered.filter is None or registered.filter.matches(properties)

        return accept


def _by_tags(data: SubscriptionData) -> Wanted:
    """The tag hashes a subscription wants; all messages for `*`, an empty set when its text names no tag."""
    if data.class_filter_mode or data.sub_string in (SUBSCRIBE_ALL, ""):
        return ALL
    return Wanted(frozenset(data.code_set or build_subscription(data.topic, data.sub_string).code_set))
