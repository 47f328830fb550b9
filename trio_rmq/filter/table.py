"""All SQL92 filters a broker knows: registered by heartbeats, asked by pulls, and by appends that make bit maps.

Times are arguments, in Unix milliseconds; the caller keeps the file.  Invariants: every registration has its positions,
and its compiled filter if its expression can be read; at most CONSUMER_FILTERS_MAX of them.  The rules of versions,
death and revival are those of RocketMQ's ConsumerFilterManager.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from trio_rmq.errors import FilterError
from trio_rmq.filter.bloom import BitsArray, BloomFilter
from trio_rmq.filter.compile import Filter, compile_expression
from trio_rmq.filter.registration import (
    ConsumerFilterData,
    FilterTable,
    decode_consumer_filters,
    encode_consumer_filters,
)
from trio_rmq.limits import CONSUMER_FILTERS_MAX
from trio_rmq.wire.heartbeat import EXPRESSION_SQL92, EXPRESSION_TAG, SubscriptionData

KEEP_DEAD_MS = 24 * 3600 * 1000
"""How long a filter without consumers is kept (filterDataCleanTimeSpan)."""
_LOADED_DEAD_MS = 30_000


class RegisteredFilter:
    """A registration and its compiled filter, None when its expression can no longer be read."""

    __slots__ = ("data", "filter")

    def __init__(self, data: ConsumerFilterData, compiled: Filter | None) -> None:
        self.data = data
        self.filter = compiled


class ConsumerFilterTable:
    """The filters by topic and group; `bloom` has the settings of the broker's bit maps."""

    def __init__(self, bloom: BloomFilter | None = None, *, keep_dead_ms: int = KEEP_DEAD_MS) -> None:
        self.bloom = bloom or BloomFilter()
        self._keep_dead_ms = keep_dead_ms
        self._topics: dict[str, dict[str, RegisteredFilter]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def get(self, topic: str, group: str) -> RegisteredFilter | None:
        """The group's filter of the topic, dead ones too; None when there is none (a pull is answered 27)."""
        return self._topics.get(topic, {}).get(group)

    def of_topic(self, topic: str) -> Iterable[RegisteredFilter]:
        """All filters of the topic, dead ones too."""
        return self._topics.get(topic, {}).values()

    def register_group(self, group: str, subscriptions: Iterable[SubscriptionData], now_ms: int) -> bool:
        """Register what a heartbeat says of one group; its filters of other topics die.  Whether anything changed."""
        subscribed = list(subscriptions)
        changed = False
        for data in subscribed:
            changed |= self.register(data.topic, group, data.sub_string, data.expression_type, data.sub_version, now_ms)
        topics = {data.topic for data in subscribed}
        return self._bury((one for one in self._of_group(group) if one.data.topic not in topics), now_ms) or changed

    def register(
        self, topic: str, group: str, expression: str, expression_type: str | None, version: int, now_ms: int
    ) -> bool:
        """Register one filter; True when it is new, changed or revived, or has a newer version.

        Nothing happens for tags, an empty expression and an older version.  An expression that cannot be read is not
        registered, and takes the group's former one away: the client learns why from CHECK_CLIENT_CONFIG.
        """
        if expression_type in (None, "", EXPRESSION_TAG) or not expression:
            return False
        old = self.get(topic, group)
        if old is not None and version <= old.data.client_version:
            return version == old.data.client_version and _revive(old.data)
        positions = self.bloom.generate(f"{group}#{topic}")
        if old is not None and (old.data.expression, old.data.expression_type, old.data.bloom_filter_data) == (
            expression, expression_type, positions
        ):  # fmt: skip
            old.data.client_version = version
            _revive(old.data)
            return True
        compiled = _compiled(expression, expression_type)
        if compiled is None or (old is None and self._count >= CONSUMER_FILTERS_MAX):
            self._remove(topic, group)
            return False
        data = ConsumerFilterData(
            bloom_filter_data=positions, born_time=now_ms, client_version=version, consumer_group=group,
            expression=expression, expression_type=expression_type or "", topic=topic,
        )  # fmt: skip
        self._count += old is None
        self._topics.setdefault(topic, {})[group] = RegisteredFilter(data, compiled)
        return True

    def unregister_group(self, group: str, now_ms: int) -> bool:
        """The group's last consumer left: its filters die.  Whether any lived."""
        return self._bury(self._of_group(group), now_ms)

    def bit_map(self, topic: str, properties: Mapping[str, str]) -> bytes | None:
        """The map of the filters that are true of a message, kept beside its queue entry; None without filters."""
        registered = self._topics.get(topic)
        if not registered:
            return None
        bits = self.bloom.new_map()
        for one in registered.values():
            positions = one.data.bloom_filter_data
            if one.filter is not None and positions is not None and one.filter.matches(properties):
                self.bloom.hash_to(positions, bits)
        return bytes(bits)

    def may_match(self, registered: RegisteredFilter, bit_map: bytes | None, store_time_ms: int) -> bool:
        """Whether a message with this bit map can match, before its record is read; False is certain.

        True also for messages stored before the filter was registered, and for maps of other settings.
        """
        positions = registered.data.bloom_filter_data
        if bit_map is None or registered.filter is None or positions is None or not registered.data.knew(store_time_ms):
            return True
        if len(bit_map) * 8 != self.bloom.bit_count or not self.bloom.is_valid(positions):
            return True
        return self.bloom.is_hit(positions, BitsArray.of(bit_map))

    def clean(self, now_ms: int) -> None:
        """Forget the filters that have been dead for long."""
        for topic, groups in list(self._topics.items()):
            for group, one in list(groups.items()):
                if one.data.dead and now_ms - one.data.dead_time >= self._keep_dead_ms:
                    self._remove(topic, group)

    def encode(self, now_ms: int) -> bytes:
        """The bytes of consumerFilter.json; what has been dead for long is forgotten first."""
        self.clean(now_ms)
        return encode_consumer_filters(
            {topic: {group: one.data for group, one in groups.items()} for topic, groups in self._topics.items()}
        )

    def load(self, content: bytes, now_ms: int) -> bool:
        """Take over a consumerFilter.json; every filter is dead until its group's heartbeat.

        False, and nothing is taken, when the file was written with other settings of the bloom filter: the bit maps on
        disk are of no use then, and heartbeats register anew.  Raises ProtocolError for what is no such file.
        """
        table = decode_consumer_filters(content)
        if not all(self.bloom.is_valid(data.bloom_filter_data) for data in _all(table)):
            return False
        self._topics = {}
        self._count = 0
        for topic, groups in table.items():
            for group, data in groups.items():
                if data.dead_time == 0:
                    data.dead_time = max(now_ms - _LOADED_DEAD_MS, data.born_time)
                registered = RegisteredFilter(data, _compiled(data.expression, data.expression_type))
                self._topics.setdefault(topic, {})[group] = registered
        self._count = sum(map(len, self._topics.values()))
        return True

    def _of_group(self, group: str) -> Iterator[RegisteredFilter]:
        return (groups[group] for groups in self._topics.values() if group in groups)

    def _bury(self, registered: Iterable[RegisteredFilter], now_ms: int) -> bool:
        living = [one.data for one in registered if not one.data.dead]
        for data in living:
            data.dead_time = max(now_ms, data.born_time)
        return bool(living)

    def _remove(self, topic: str, group: str) -> None:
        groups = self._topics.get(topic, {})
        if groups.pop(group, None) is not None:
            self._count -= 1
            if not groups:
                del self._topics[topic]


def _all(table: FilterTable) -> Iterator[ConsumerFilterData]:
    return (data for groups in table.values() for data in groups.values())


def _revive(data: ConsumerFilterData) -> bool:
    """Whether it was dead."""
    dead = data.dead
    if dead:
        data.dead_time = 0
    return dead


def _compiled(expression: str, expression_type: str | None) -> Filter | None:
    if expression_type != EXPRESSION_SQL92:
        return None
    try:
        return compile_expression(expression)
    except FilterError:
        return None
