"""The SQL92 filters of connected and of absent groups: registered by heartbeats, kept in config/consumerFilter.json.

The rules are `filter/table.py`'s; here they get the clock and the file.  Invariant: a group's filters live exactly
while it has members; those of a group that comes back in time are revived.  Source: RocketMQ ConsumerFilterManager,
DefaultConsumerIdsChangeListener.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from trio_rmq.clock import wall_ms
from trio_rmq.filter.bloom import BloomFilter
from trio_rmq.filter.properties import PropertyText
from trio_rmq.filter.table import ConsumerFilterTable, RegisteredFilter
from trio_rmq.settings import BrokerConfig
from trio_rmq.wire.heartbeat import SubscriptionData

logger = logging.getLogger(__name__)


class ConsumerFilters:
    """All registered filters of one broker; a table that `Persistence` saves."""

    def __init__(self, config: BrokerConfig) -> None:
        self.bloom = BloomFilter(config.max_error_rate_of_bloom_filter, config.expect_consumer_num_use_filter)
        self._table = ConsumerFilterTable(self.bloom, keep_dead_ms=config.filter_data_clean_time_span)
        self.unsaved = False
        """Whether the table differs from what was last encoded for its file."""

    def get(self, topic: str, group: str) -> RegisteredFilter | None:
        """The group's filter of a topic; None when its last heartbeat named none that can be read."""
        return self._table.get(topic, group)

    def subscribed(self, group: str, subscriptions: Sequence[SubscriptionData]) -> None:
        """A member of the group said what it subscribes to."""
        if self._table.register_group(group, subscriptions, wall_ms()):
            self.unsaved = True

    def deserted(self, group: str) -> None:
        """The group's last member left."""
        if len(self._table) and self._table.unregister_group(group, wall_ms()):
            self.unsaved = True

    def bit_map(self, topic: str, properties: bytes) -> bytes | None:
        """The map of the filters that are true of a message with this property text; None without filters."""
        return self._table.bit_map(topic, PropertyText(properties)) if len(self._table) else None

    def may_match(self, registered: RegisteredFilter, bit_map: bytes | None, store_time_ms: int) -> bool:
        """Whether a message with that map can match a filter; False is certain."""
        return self._table.may_match(registered, bit_map, store_time_ms)

    def encode(self) -> bytes:
        """The content of consumerFilter.json; the table counts as saved."""
        self.unsaved = False
        return self._table.encode(wall_ms())

    def load(self, content: bytes) -> None:
        """Take the content of consumerFilter.json; one made with other settings of the bloom filter is left aside."""
        if not self._table.load(content, wall_ms()):
            logger.warning(
                "consumerFilter.json was written with another maxErrorRateOfBloomFilter or "
                "expectConsumerNumUseFilter and counts for nothing: heartbeats register filters anew"
            )
