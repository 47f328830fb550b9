"""The route table: topics -> queues, broker names -> addresses, clusters -> broker names, and who was heard last when.

Plain, synchronous state; times are seconds of the monotonic clock given by the caller.  Invariants: a broker name is in
its cluster exactly while it has an address; an address has live information exactly while it is in its broker's
addresses; a topic has an entry only while some broker has queues of it.  A registration *merges*: what it does not
mention stays.  Source of the rules: RocketMQ RouteInfoManager (4.9); protocol/README.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from trio_rmq.wire.registration import RegisterBrokerBody
from trio_rmq.wire.routes import MASTER_ID, BrokerData, ClusterInfo, QueueData, TopicRouteData
from trio_rmq.wire.sysflag import PERMISSION_WRITE
from trio_rmq.wire.topics import DataVersion, TopicConfig

TOPIC_FLAG_UNIT = 1
"""topicSysFlag: the topic belongs to a unit."""
TOPIC_FLAG_UNIT_SUBSCRIPTION = 2
"""topicSysFlag: consumers of several units subscribe to it."""


class BrokerKey(NamedTuple):
    """What identifies one broker process: two brokers never share all three."""

    cluster: str
    broker_name: str
    broker_id: int


@dataclass(slots=True)
class LiveBroker:
    """What is known of a registered broker address; times in seconds of the monotonic clock."""

    key: BrokerKey
    data_version: DataVersion
    ha_address: str
    last_heard: float
    timeout_seconds: float
    session: object

    @property
    def expires_at(self) -> float:
        """When the broker counts as dead unless it is heard before."""
        return self.last_heard + self.timeout_seconds


class Registered(NamedTuple):
    """What a registering slave learns of its master; both empty for a master, or when there is none."""

    ha_address: str
    master_address: str


class RouteTable:
    """All routes of one name server."""

    def __init__(self) -> None:
        self._queues: dict[str, dict[str, QueueData]] = {}
        self._brokers: dict[str, BrokerData] = {}
        self._clusters: dict[str, set[str]] = {}
        self._live: dict[str, LiveBroker] = {}
        self._filter_servers: dict[str, list[str]] = {}

    # -- brokers come and go ------------------------------------------------------------------------------------

    def register(
        self,
        key: BrokerKey,
        address: str,
        ha_address: str,
        body: RegisterBrokerBody | None,
        *,
        now: float,
        timeout_seconds: float,
        session: object = None,
    ) -> Registered:
        """Take a broker's registration.  Queue data changes only when the broker is new or its data version is."""
        broker = self._brokers.get(key.broker_name)
        is_new = broker is None
        if broker is not None and broker.cluster != key.cluster:
            self._leave_cluster(broker)
            broker.cluster = key.cluster
        self._clusters.setdefault(key.cluster, set()).add(key.broker_name)
        if broker is None:
            broker = BrokerData(broker_name=key.broker_name, cluster=key.cluster)
            self._brokers[key.broker_name] = broker
        for other_id in [i for i, a in broker.broker_addrs.items() if a == address and i != key.broker_id]:
            del broker.broker_addrs[other_id]  # a slave that became master, or the reverse
        replaced = broker.broker_addrs.get(key.broker_id)
        if replaced is None:
            is_new = True
        elif replaced != address:
            self._forget_address(replaced)
        broker.broker_addrs[key.broker_id] = address
        previous = self._live.get(address)
        wrapper = body.topic_config_serialize_wrapper if body is not None else None
        version = wrapper.data_version if wrapper is not None else DataVersion()
        if (
            wrapper is not None
            and key.broker_id == MASTER_ID
            and (is_new or previous is None or not version.same_as(previous.data_version))
        ):
            for topic in wrapper.topic_config_table.values():
                self.set_queues(key.broker_name, topic)
        self._live[address] = LiveBroker(key, version, ha_address, now, timeout_seconds, session)
        if body is not None:
            if body.filter_server_list:
                self._filter_servers[address] = body.filter_server_list
            else:
                self._filter_servers.pop(address, None)
        if key.broker_id != MASTER_ID:
            master_address = broker.broker_addrs.get(MASTER_ID)
            master = self._live.get(master_address) if master_address else None
            if master_address and master:
                return Registered(master.ha_address, master_address)
        return Registered("", "")

    def unregister(self, key: BrokerKey, address: str) -> None:
        """A broker says goodbye; nothing happens when it is not known under that address."""
        broker = self._brokers.get(key.broker_name)
        if broker is None or broker.broker_addrs.get(key.broker_id) != address:
            return
        self._remove_broker(key, address)

    def heard(self, address: str, *, now: float) -> bool:
        """Note a sign of life; False when the address is not registered."""
        live = self._live.get(address)
        if live is None:
            return False
        live.last_heard = now
        return True

    def remove_session(self, session: object) -> list[str]:
        """Remove all brokers that registered over a connection that closed; their addresses."""
        return self._remove_live([a for a, live in self._live.items() if live.session is session])

    def remove_expired(self, now: float) -> list[str]:
        """Remove all brokers that were silent for longer than their time-out; their addresses."""
        return self._remove_live([address for address, live in self._live.items() if live.expires_at <= now])

    def next_expiry(self) -> float:
        """The earliest time at which a broker may count as dead; infinity without brokers."""
        return min((live.expires_at for live in self._live.values()), default=math.inf)

    def live_broker(self, address: str) -> LiveBroker | None:
        """What is known of a registered address."""
        return self._live.get(address)

    def _remove_live(self, addresses: list[str]) -> list[str]:
        for address in addresses:
            self._remove_broker(self._live[address].key, address)
        return addresses

    def _forget_address(self, address: str) -> None:
        self._live.pop(address, None)
        self._filter_servers.pop(address, None)

    def _remove_broker(self, key: BrokerKey, address: str) -> None:
        self._forget_address(address)
        broker = self._brokers.get(key.broker_name)
        if broker is None:
            return
        if broker.broker_addrs.get(key.broker_id) == address:
            del broker.broker_addrs[key.broker_id]
        if broker.broker_addrs:
            return
        del self._brokers[key.broker_name]
        self._leave_cluster(broker)
        for topic in list(self._queues):
            self._drop_queues(topic, key.broker_name)

    def _leave_cluster(self, broker: BrokerData) -> None:
        names = self._clusters.get(broker.cluster, set())
        names.discard(broker.broker_name)
        if not names:
            self._clusters.pop(broker.cluster, None)

    # -- topics -------------------------------------------------------------------------------------------------

    def set_queues(self, broker_name: str, topic: TopicConfig) -> None:
        """The topic's queues on the brokers of that name are these."""
        self._queues.setdefault(topic.topic_name, {})[broker_name] = QueueData(
            broker_name=broker_name,
            perm=topic.perm,
            read_queue_nums=topic.read_queue_nums,
            topic_sys_flag=topic.topic_sys_flag,
            write_queue_nums=topic.write_queue_nums,
        )

    def register_topic(self, topic: str, queues: list[QueueData]) -> None:
        """Add queue data of known brokers to a topic that has no queues on them yet."""
        for data in queues:
            if data.broker_name in self._brokers:
                self._queues.setdefault(topic, {}).setdefault(data.broker_name, data)

    def delete_topic(self, topic: str, cluster: str | None = None) -> None:
        """Forget a topic, or only its queues on one cluster's brokers."""
        if cluster is None:
            self._queues.pop(topic, None)
            return
        for broker_name in self._clusters.get(cluster, ()):
            self._drop_queues(topic, broker_name)

    def change_write_permission(self, broker_name: str, *, writable: bool) -> int:
        """Take the write bit from every topic of a broker, or give it back; how many topics the broker has."""
        count = 0
        for brokers in self._queues.values():
            data = brokers.get(broker_name)
            if data is not None:
                data.perm = data.perm | PERMISSION_WRITE if writable else data.perm & ~PERMISSION_WRITE
                count += 1
        return count

    def _drop_queues(self, topic: str, broker_name: str) -> None:
        brokers = self._queues.get(topic)
        if brokers is not None and brokers.pop(broker_name, None) is not None and not brokers:
            del self._queues[topic]

    # -- what clients ask ---------------------------------------------------------------------------------------

    def route(self, topic: str) -> TopicRouteData | None:
        """Where the topic is; None when no live broker has queues of it."""
        queues = [data for name, data in self._queues.get(topic, {}).items() if name in self._brokers]
        if not queues:
            return None
        brokers = [self._brokers[data.broker_name] for data in queues]
        addresses = [address for broker in brokers for address in broker.broker_addrs.values()]
        return TopicRouteData(
            broker_datas=brokers,
            queue_datas=queues,
            filter_server_table={a: self._filter_servers[a] for a in addresses if a in self._filter_servers},
        )

    def cluster_info(self) -> ClusterInfo:
        """All brokers and clusters."""
        clusters = {name: sorted(brokers) for name, brokers in self._clusters.items()}
        return ClusterInfo(broker_addr_table=dict(self._brokers), cluster_addr_table=clusters)

    def topics(self) -> list[str]:
        """All topic names."""
        return list(self._queues)

    def topics_of_cluster(self, cluster: str) -> list[str]:
        """Names of the topics that have queues on a broker of the cluster."""
        names = self._clusters.get(cluster, set())
        return [topic for topic, brokers in self._queues.items() if not names.isdisjoint(brokers)]

    def system_topics(self) -> tuple[list[str], str]:
        """Names of clusters and brokers, each of which has a topic of its name; and some broker's address."""
        names = list(self._clusters) + [name for brokers in self._clusters.values() for name in sorted(brokers)]
        return names, next(iter(self._live), "")

    def unit_topics(self, *, unit: bool | None, subscription: bool | None) -> list[str]:
        """Topics whose first queue data has the unit and unit-subscription flags as asked; None: either."""
        found = []
        for topic, brokers in self._queues.items():
            flags = next(iter(brokers.values())).topic_sys_flag
            if unit is not None and bool(flags & TOPIC_FLAG_UNIT) is not unit:
                continue
            if subscription is not None and bool(flags & TOPIC_FLAG_UNIT_SUBSCRIPTION) is not subscription:
                continue
            found.append(topic)
        return found
