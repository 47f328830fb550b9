"""Where topics and brokers are, as a name server tells it: route data, cluster info, topic lists, key/value tables.

Fields stand in the order of their wire names, as fastjson writes them; a field that is None is not written.
Broker ids are bare numbers for old readers and strings for those that ask for standard JSON; both are read.
Source: RocketMQ TopicRouteData, ClusterInfo, TopicList, KVTable.
"""

from __future__ import annotations

from typing import Any

import msgspec

from trio_rmq.wire.fastjson import BodyReader, encode_fastjson, encode_json, shown, shown_dict, shown_list

VERSION_4_9_4 = 401
"""MQVersion ordinal from which a client's route request is answered in standard JSON."""

MASTER_ID = 0
"""The broker id of a master."""


class QueueData(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """A topic's queues on the brokers of one name."""

    broker_name: str = shown("")
    perm: int = shown(0)
    read_queue_nums: int = shown(0)
    topic_sys_flag: int = shown(0)
    write_queue_nums: int = shown(0)


class BrokerData(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """The brokers of one name: `address:port` by broker id, 0 being the master; the last two fields only from 5.x."""

    broker_addrs: dict[int, str] = shown_dict()
    broker_name: str = shown("")
    cluster: str = shown("")
    enable_acting_master: bool | None = None
    zone_name: str | None = None


class TopicRouteData(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """All that a client needs to find one topic; `order_topic_conf` is `broker:queues;...` for ordered topics."""

    broker_datas: list[BrokerData] = shown_list()
    filter_server_table: dict[str, list[str]] = shown_dict()
    order_topic_conf: str | None = None
    queue_datas: list[QueueData] = shown_list()
    topic_queue_mapping_by_broker: dict[str, Any] | None = None


class ClusterInfo(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """Every broker by name, and the broker names of every cluster."""

    broker_addr_table: dict[str, BrokerData] = shown_dict()
    cluster_addr_table: dict[str, list[str]] = shown_dict()


class TopicList(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """Topic names; `broker_addr` only in answers about system topics."""

    broker_addr: str | None = None
    topic_list: list[str] = shown_list()


class KVTable(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """A flat table of texts: the answer to a registration, a broker's run-time information."""

    table: dict[str, str] = shown_dict()


_route = BodyReader(TopicRouteData)
_cluster = BodyReader(ClusterInfo)
_topic_list = BodyReader(TopicList)
_kv_table = BodyReader(KVTable)


def wants_standard_json(version: int, accept_standard_json_only: bool | None) -> bool:
    """Whether a route request with this header is answered in standard JSON (quoted ids, sorted maps, ASCII)."""
    return version >= VERSION_4_9_4 or bool(accept_standard_json_only)


def decode_route(data: bytes) -> TopicRouteData:
    """The body of a GET_ROUTEINFO_BY_TOPIC answer; ProtocolError when it is none."""
    return _route.decode(data)


def encode_route(route: TopicRouteData, *, standard_json: bool) -> bytes:
    """Route data in the form that `wants_standard_json` chose."""
    return encode_fastjson(route, standard=standard_json)


def decode_cluster_info(data: bytes) -> ClusterInfo:
    """The body of a GET_BROKER_CLUSTER_INFO answer; ProtocolError when it is none."""
    return _cluster.decode(data)


def encode_cluster_info(info: ClusterInfo) -> bytes:
    """Cluster info; broker ids are always bare, whatever the asker's version."""
    return encode_fastjson(info)


def decode_topic_list(data: bytes) -> TopicList:
    """A list of topics; ProtocolError when it is none."""
    return _topic_list.decode(data)


def encode_topic_list(topics: TopicList) -> bytes:
    """A list of topics as JSON."""
    return encode_json(topics)


def decode_kv_table(data: bytes) -> KVTable:
    """A table of texts; ProtocolError when it is none."""
    return _kv_table.decode(data)


def encode_kv_table(table: KVTable) -> bytes:
    """A table of texts as JSON."""
    return encode_json(table)
