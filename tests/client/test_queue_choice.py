"""Which queue: turns, avoidance, RocketMQ's latency tables, Java's hashes, namespaces' names, the sizes of batches."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_rmq.client import Compression, Message, MessageQueue, select_by_machine_room, select_randomly, split_batch
from trio_rmq.client.auto_batch import AutoBatch
from trio_rmq.client.batches import make_batch
from trio_rmq.client.latency_fault import LATENCY_TABLE, LatencyFaults
from trio_rmq.client.namespace import with_namespace, without_namespace
from trio_rmq.client.outgoing import OutgoingMaker
from trio_rmq.client.queue_choice import QueueTurns, java_hash
from trio_rmq.client.route_cache import Route
from trio_rmq.errors import ClientError, RouteNotFoundError


def queues(**counts: int) -> tuple[MessageQueue, ...]:
    return tuple(
        MessageQueue(topic="T", broker_name=name, queue_id=number)
        for name, count in sorted(counts.items())
        for number in range(count)
    )


def route(**counts: int) -> Route:
    return Route("T", queues(**counts), (), {name: {0: name} for name in counts}, 0.0)


def test_turns_are_fair_and_avoid_what_failed() -> None:
    turns, where = QueueTurns(), route(a=2, b=2)
    assert Counter(turns.next_queue(where, (), 0.0) for _ in range(40)) == dict.fromkeys(where.write_queues, 10)
    assert {turns.next_queue(where, {"a"}, 0.0).broker_name for _ in range(8)} == {"b"}
    assert {turns.next_queue(where, {"a", "b"}, 0.0).broker_name for _ in range(8)} == {"a", "b"}  # better than none
    with pytest.raises(RouteNotFoundError, match="no broker has a writable queue of T"):
        turns.next_queue(route(), (), 0.0)


def test_the_latency_table_is_rocketmqs() -> None:
    faults = LatencyFaults()
    for took, away in (
        (0.0, 0), (0.049, 0), (0.05, 0), (0.549, 0), (0.55, 30), (0.99, 30), (1, 60), (2, 120), (3, 180), (14.9, 180),
        (15, 600), (100, 600),
    ):  # fmt: skip
        assert faults.away_seconds(took) == away
    assert len(LATENCY_TABLE) == 7


def test_a_slow_or_failed_broker_is_left_alone_for_its_time() -> None:
    turns, where = QueueTurns(faults := LatencyFaults()), route(a=4, b=4)
    faults.note("a", 0.6, 100.0, failed=False)
    assert {turns.next_queue(where, (), 129.9).broker_name for _ in range(8)} == {"b"}
    assert {turns.next_queue(where, (), 130.0).broker_name for _ in range(8)} == {"a", "b"}
    faults.note("b", 0.001, 200.0, failed=True)  # counts as 30 s: ten minutes away
    assert {turns.next_queue(where, (), 799.0).broker_name for _ in range(8)} == {"a"}
    faults.note("b", 0.001, 800.0, failed=False)
    assert {turns.next_queue(where, (), 800.0).broker_name for _ in range(8)} == {"a", "b"}


def test_when_all_are_bad_the_better_half_is_used() -> None:
    turns, where = QueueTurns(faults := LatencyFaults()), route(a=2, b=2, c=2, d=2)
    for name, latency in (("a", 3.0), ("b", 0.6), ("c", 0.7), ("d", 2.0)):
        faults.note(name, latency, 0.0, failed=False)
    assert {turns.next_queue(where, (), 1.0).broker_name for _ in range(20)} == {"b", "c"}
    assert {turns.next_queue(where, {"b"}, 1.0).broker_name for _ in range(20)} == {"c"}


def test_your_own_table() -> None:
    faults = LatencyFaults([(1.0, 5.0), (0.0, 0.0), (10.0, 7.0)])
    assert [faults.away_seconds(took) for took in (0.5, 1.0, 30.0)] == [0.0, 5.0, 7.0]
    assert LatencyFaults([]).away_seconds(5) == 0.0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", 0), ("orders-7", 1234322255), ("polygenelubricants", -(2**31)), (True, 1231), (False, 1237), (7, 7),
        (-7, -7), (2**31, -(2**31)), (2**40 + 5, 261), (-(2**40), -256),
        (-(2**40) - 3, 258), (-(2**63), -(2**31)),
    ],
)  # fmt: skip
def test_javas_hashes(value: object, expected: int) -> None:
    """What Java 17 printed."""
    assert java_hash(value) == expected


@pytest.mark.parametrize("value", [1.5, None, 2**63, b"x", ("a",)])
def test_what_java_hashes_otherwise_is_refused(value: object) -> None:
    with pytest.raises(ClientError, match="no hash that all programs agree on"):
        java_hash(value)


def test_machine_rooms() -> None:
    all_queues = queues(**{"hz@a": 2, "hz@b": 2, "sh@a": 2, "plain": 2})
    message = Message("T", b"x")
    select = select_by_machine_room("hz", "bj")
    assert {select(all_queues, message, None).broker_name for _ in range(50)} == {"hz@a", "hz@b"}
    assert {select_randomly(all_queues, message, None) for _ in range(200)} == set(all_queues)
    with pytest.raises(ClientError, match="no broker of T is in bj: its queues are at hz@a, hz@b, plain, sh@a"):
        select_by_machine_room("bj")(all_queues, message, None)


def test_namespaces_wrap_as_javas_do() -> None:
    for name, wrapped in (
        ("Orders", "NS%Orders"),
        ("NS%Orders", "NS%Orders"),
        ("%RETRY%group", "%RETRY%NS%group"),
        ("%DLQ%group", "%DLQ%NS%group"),
        ("%RETRY%NS%group", "%RETRY%NS%group"),
        ("RMQ_SYS_TRACE_TOPIC", "RMQ_SYS_TRACE_TOPIC"),
        ("rmq_sys_anything", "rmq_sys_anything"),
        ("CID_RMQ_SYS_x", "CID_RMQ_SYS_x"),
        ("DEFAULT_PRODUCER", "DEFAULT_PRODUCER"),
        ("", ""),
    ):
        assert with_namespace("NS", name) == wrapped
    assert with_namespace("", "Orders") == "Orders"
    for wrapped, name in (
        ("NS%Orders", "Orders"), ("OTHER%Orders", "OTHER%Orders"), ("%RETRY%NS%group", "%RETRY%group"), ("x", "x"),
    ):  # fmt: skip
        assert without_namespace("NS", wrapped) == name


messages = st.builds(
    Message,
    topic=st.just("T"),
    body=st.binary(min_size=1, max_size=300),
    tags=st.none() | st.text("abc", min_size=1),
    properties=st.dictionaries(st.text("xyz", min_size=1), st.text("äö", min_size=1), max_size=3),
)


@given(st.lists(messages, max_size=40), st.integers(min_value=1, max_value=2000))
def test_split_batches_fit_keep_the_order_and_lose_nothing(given_messages: list[Message], size: int) -> None:
    maker = OutgoingMaker()
    batches = list(split_batch(given_messages, size))
    assert [message for batch in batches for message in batch] == given_messages
    for batch in batches:
        assert len(batch) == 1 or len(make_batch(maker, batch).body) <= size


def test_impossible_settings_are_refused() -> None:
    for count, size_bytes, delay in ((0, 1, 1.0), (1, 0, 1.0), (1, 3 * 2**20, 1.0), (1, 1, 0.0), (1, 1, 31.0)):
        with pytest.raises(ClientError, match="auto-batching wants"):
            AutoBatch(count, size_bytes, delay)
    with pytest.raises(ClientError, match="threshold"):
        Compression(threshold_bytes=0)
    with pytest.raises(ClientError, match="level"):
        Compression(level=10)


def test_a_body_that_does_not_shrink_is_left_alone() -> None:
    maker = OutgoingMaker(compression=Compression(threshold_bytes=1))
    assert maker.make(Message("T", b"ab")).sys_flag == 0
    assert maker.make(Message("T", b"a" * 100)).sys_flag & 1
