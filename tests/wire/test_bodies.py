"""Bodies whose shapes no recording holds: object keys, both route forms, 5.x fields; and hostile bytes for all."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_rmq.errors import ProtocolError
from trio_rmq.wire import groups, heartbeat, routes, stats, topics
from trio_rmq.wire.groups import MessageQueue

DECODERS: list[Callable[[bytes], object]] = [
    topics.decode_topic_config,
    topics.decode_data_version,
    topics.decode_topic_table,
    routes.decode_route,
    routes.decode_cluster_info,
    routes.decode_topic_list,
    routes.decode_kv_table,
    heartbeat.decode_subscription,
    groups.decode_group_config,
    groups.decode_group_config_list,
    groups.decode_group_table,
    groups.decode_consumer_list,
    groups.decode_lock_request,
    groups.decode_lock_response,
    groups.decode_unlock_request,
    groups.decode_consumer_connection,
    groups.decode_producer_connection,
    groups.decode_group_names,
    groups.decode_consumer_offsets,
    groups.decode_delay_offsets,
    stats.decode_topic_stats,
    stats.decode_consume_stats,
    stats.decode_reset_offset,
    stats.decode_consumer_status,
]
texts = st.text(st.characters(codec="utf-8"), max_size=6)
longs = st.integers(-(1 << 63), (1 << 63) - 1)
queues = st.builds(MessageQueue, topic=texts, broker_name=texts, queue_id=st.integers(0, 1 << 31))
route_data = st.builds(
    routes.TopicRouteData,
    order_topic_conf=st.none() | texts,
    broker_datas=st.lists(
        st.builds(
            routes.BrokerData,
            broker_addrs=st.dictionaries(st.integers(0, 99), texts, max_size=3),
            broker_name=texts,
            cluster=texts,
            zone_name=st.none() | texts,
            enable_acting_master=st.none() | st.booleans(),
        ),
        max_size=2,
    ),
    queue_datas=st.lists(st.builds(routes.QueueData, broker_name=texts, perm=st.integers(0, 15)), max_size=2),
)


@given(route_data, st.booleans())
def test_routes_read_back_in_both_forms(route: routes.TopicRouteData, standard: bool) -> None:
    encoded = routes.encode_route(route, standard_json=standard)
    assert routes.decode_route(encoded) == route
    if standard:
        assert encoded.isascii()


def test_which_route_form_is_asked_for() -> None:
    route = routes.TopicRouteData(broker_datas=[routes.BrokerData(broker_addrs={1: "b:1", 0: "a:1"})])
    assert b'{1:"b:1",0:"a:1"}' in routes.encode_route(route, standard_json=routes.wants_standard_json(317, None))
    assert b'{"0":"a:1","1":"b:1"}' in routes.encode_route(route, standard_json=routes.wants_standard_json(401, False))
    assert routes.wants_standard_json(121, True)
    info = routes.ClusterInfo(broker_addr_table={"b": route.broker_datas[0]})
    assert b'{1:"b:1",0:"a:1"}' in routes.encode_cluster_info(info)
    assert routes.decode_cluster_info(routes.encode_cluster_info(info)) == info


@given(st.dictionaries(queues, st.builds(stats.TopicOffset, max_offset=longs), max_size=3))
def test_topic_statistics_read_back(table: dict[MessageQueue, stats.TopicOffset]) -> None:
    body = stats.TopicStatsTable(offset_table=table)
    assert stats.decode_topic_stats(stats.encode_topic_stats(body)) == body


@given(st.dictionaries(queues, st.builds(stats.OffsetWrapper, consumer_offset=longs), max_size=3), st.floats(0, 1e6))
def test_consumer_statistics_read_back(table: dict[MessageQueue, stats.OffsetWrapper], rate: float) -> None:
    body = stats.ConsumeStats(offset_table=table, consume_tps=rate)
    assert stats.decode_consume_stats(stats.encode_consume_stats(body)) == body


@given(st.dictionaries(queues, longs, max_size=3))
def test_offsets_by_queue_read_back(table: dict[MessageQueue, int]) -> None:
    reset = stats.ResetOffsetBody(offset_table=table)
    assert stats.decode_reset_offset(stats.encode_reset_offset(reset)) == reset
    status = stats.GetConsumerStatusBody(message_queue_table=table, consumer_table={"client": table})
    assert stats.decode_consumer_status(stats.encode_consumer_status(status)) == status


def test_the_object_keys_of_java() -> None:
    body = stats.ResetOffsetBody(offset_table={MessageQueue(topic="t", broker_name="b", queue_id=0): 5})
    assert stats.encode_reset_offset(body) == b'{"offsetTable":{{"brokerName":"b","queueId":0,"topic":"t"}:5}}'


def test_queues_sort_as_in_java() -> None:
    found = [
        MessageQueue(topic=t, broker_name=b, queue_id=q) for t, b, q in [("a", "b", 10), ("a", "b", 9), ("B", "c", 0)]
    ]
    assert [queue.queue_id for queue in sorted(found, key=lambda queue: queue.sort_key)] == [0, 9, 10]


def test_fields_of_5_x_are_kept_and_left_out_when_absent() -> None:
    old = groups.encode_group_config(groups.SubscriptionGroupConfig(group_name="g"))
    assert b"attributes" not in old
    new = groups.decode_group_config(
        b'{"attributes":{},"consumeMessageOrderly":false,"consumeTimeoutMinute":15,"groupName":"g","groupSysFlag":0,'
        b'"groupRetryPolicy":{"type":"CUSTOMIZED"},"subscriptionDataSet":[{"topic":"t","version":1}]}'
    )
    assert groups.decode_group_config(groups.encode_group_config(new)) == new
    assert new.retry_max_times == 16
    lock = groups.LockBatchRequestBody(client_id="c", only_this_broker=True)
    assert groups.encode_lock_request(lock).endswith(b'"mqSet":[],"onlyThisBroker":true}')


@given(st.dictionaries(texts, st.dictionaries(st.integers(0, 9), longs, max_size=3), max_size=3), st.booleans())
def test_offset_files_read_back(table: dict[str, dict[int, int]], pretty: bool) -> None:
    offsets = groups.ConsumerOffsets(offset_table=table)
    assert groups.decode_consumer_offsets(groups.encode_consumer_offsets(offsets, pretty=pretty)) == offsets


SAMPLES = [
    stats.encode_topic_stats(stats.TopicStatsTable(offset_table={MessageQueue(topic="t"): stats.TopicOffset()})),
    routes.encode_route(
        routes.TopicRouteData(broker_datas=[routes.BrokerData(broker_addrs={0: "a:1"})]), standard_json=False
    ),
    groups.encode_group_table(
        groups.SubscriptionGroupWrapper(subscription_group_table={"g": groups.SubscriptionGroupConfig()}), pretty=True
    ),
    groups.encode_lock_request(groups.LockBatchRequestBody(mq_set=[MessageQueue(topic="t")])),
]


@pytest.mark.parametrize("decode", DECODERS, ids=lambda decode: decode.__name__)
@given(data=st.data())
def test_hostile_bytes_raise_only_protocol_errors(decode: Callable[[bytes], object], data: st.DataObject) -> None:
    sample = bytearray(data.draw(st.sampled_from(SAMPLES)))
    for _ in range(data.draw(st.integers(0, 3))):
        sample[data.draw(st.integers(0, len(sample) - 1))] = data.draw(st.integers(0, 255))
    for candidate in (data.draw(st.binary(max_size=40)), bytes(sample)):
        try:
            decode(candidate)
        except ProtocolError:
            continue
