"""Message traces against a real broker, on {trio, asyncio} x {tcp, websocket}: what is told of each message."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import pytest

from tests.client.test_producer import LIMIT_SECONDS, known_queues, make_topic, stored
from trio_rmq.client import (
    AutoBatch,
    ConsumeEndTrace,
    ConsumeLater,
    ConsumeResult,
    ConsumeStartTrace,
    EndTransactionTrace,
    LitePullConsumer,
    Message,
    Producer,
    PushConsumer,
    ReceivedMessage,
    SendTrace,
    Trace,
    TransactionProducer,
    TransactionState,
    decode_traces,
)
from trio_rmq.wire.trace import ConsumeReturnType, TracedMessageType

pytestmark = pytest.mark.anyio


async def traces_in(name_server: str, topic: str) -> list[Trace]:
    """All traces that the topic has, in order."""
    messages = await stored(name_server, topic)
    found = [trace for queue in messages.values() for message in queue for trace in decode_traces(message.body)]
    return sorted(found, key=lambda trace: trace.time_ms or 0)


async def test_what_a_producer_tells(name_server: str, broker: str, topic: str) -> None:
    traced = f"{topic}_traces"
    async with Producer(name_servers=name_server, group=topic, trace=traced) as producer:
        await make_topic(producer, topic)
        plain = await producer.send(Message(topic, b"plain", tags="t", keys=["k1", "k2"]))
        large = await producer.send(Message(topic, b"x" * 10_000))
        later = await producer.send(Message(topic, b"later", delay_level=1))
        batch = await producer.send_batch([Message(topic, b"one", keys="k3"), Message(topic, b"three", tags="u")])
        await producer.send_oneway(Message(topic, b"nobody knows"))
        await producer.send(Message(traced, b"no trace of what is sent to the trace topic"))
    messages = [message for queue in (await stored(name_server, traced)).values() for message in queue]
    carriers = [message for message in messages if not message.body.startswith(b"no trace")]
    assert len(carriers) == 1
    [carrier] = carriers
    _, *traces = decode_traces(carrier.body)
    assert set(carrier.keys) >= {plain.message_id, "k1", "k2", "k3", *batch.message_ids}
    assert all(isinstance(trace, SendTrace) for trace in traces)
    told = [trace for trace in traces if isinstance(trace, SendTrace)]
    assert [trace.message_id for trace in told] == [
        plain.message_id, large.message_id, later.message_id, *batch.message_ids,
    ]  # fmt: skip
    assert [trace.offset_message_id for trace in told[:3]] == [sent.offset_message_id for sent in (plain, large, later)]
    assert [(trace.tags, trace.keys) for trace in told] == [
        ("t", "k1 k2"), (None, None), (None, None), (None, "k3"), ("u", None),
    ]  # fmt: skip
    assert [trace.message_type for trace in told] == [
        TracedMessageType.NORMAL, TracedMessageType.NORMAL, TracedMessageType.DELAY, *[TracedMessageType.NORMAL] * 2,
    ]  # fmt: skip
    assert [trace.body_size_bytes for trace in told if trace.message_id != large.message_id] == [5, 5, 3, 5]
    assert told[1].body_size_bytes < 1000  # packed
    for trace in told:
        assert (trace.topic, trace.group, trace.region_id, trace.success) == (topic, topic, "DefaultRegion", True)
        assert trace.store_host == broker.rpartition("/")[2]
        assert trace.time_ms > 1_600_000_000_000
        assert 0 <= trace.cost_ms < 60_000


async def test_gathered_sends_and_namespaces_are_told_as_the_program_knows_them(name_server: str, topic: str) -> None:
    traced = f"{topic}_traces"
    async with Producer(
        name_servers=name_server, group=topic, trace=traced, namespace="NS", auto_batch=AutoBatch()
    ) as producer:
        results = []

        async def send(number: int) -> None:
            results.append(await producer.send(Message(topic, b"%d" % number, keys=f"k{number}")))

        async with anyio.create_task_group() as tasks:
            for number in range(10):
                tasks.start_soon(send, number)
    told = [trace for trace in await traces_in(name_server, traced) if isinstance(trace, SendTrace)]
    assert {trace.message_id for trace in told} == {result.message_id for result in results}
    assert {trace.keys for trace in told} == {f"k{number}" for number in range(10)}
    assert {(trace.topic, trace.group) for trace in told} == {(topic, topic)}


async def test_what_a_transaction_producer_tells(name_server: str, topic: str) -> None:
    traced = f"{topic}_traces"
    asked = anyio.Event()

    async def check(message: ReceivedMessage) -> TransactionState:
        asked.set()
        return TransactionState.ROLLBACK

    async def commit(transaction_id: str) -> TransactionState:
        return TransactionState.COMMIT

    async def forget(transaction_id: str) -> TransactionState:
        return TransactionState.UNKNOWN

    async with TransactionProducer(check, name_servers=name_server, group=topic, trace=traced) as producer:
        done = await producer.send_in_transaction(Message(topic, b"x", tags="t", keys="k"), commit)
        open_one = await producer.send_in_transaction(Message(topic, b"y"), forget, check_immunity_seconds=1)
        with anyio.fail_after(LIMIT_SECONDS):
            await asked.wait()
    told = await traces_in(name_server, traced)
    sent = [trace for trace in told if isinstance(trace, SendTrace)]
    assert [(trace.message_id, trace.message_type) for trace in sent] == [
        (done.sent.message_id, TracedMessageType.HALF), (open_one.sent.message_id, TracedMessageType.HALF),
    ]  # fmt: skip
    ends = [trace for trace in told if isinstance(trace, EndTransactionTrace)]
    assert [(end.message_id, end.state, end.from_check) for end in ends] == [
        (done.sent.message_id, "COMMIT_MESSAGE", False),
        (open_one.sent.message_id, "UNKNOW", False),
        (open_one.sent.message_id, "ROLLBACK_MESSAGE", True),
    ]
    assert (ends[0].tags, ends[0].keys, ends[0].transaction_id) == ("t", "k", done.transaction_id)
    assert {(end.topic, end.group, end.region_id) for end in ends} == {(topic, topic, "DefaultRegion")}


@pytest.mark.parametrize("orderly", [False, True], ids=["concurrent", "orderly"])
async def test_what_a_push_consumer_tells(name_server: str, topic: str, orderly: bool) -> None:
    traced = f"{topic}_traces"
    enough = anyio.Event()
    calls: list[list[bytes]] = []
    # A concurrent consumer gets what raised only after ten seconds again.
    wanted = sorted([[b"makes the topic"], *[[b"raises"]] * (1 + orderly), *[[b"fails"]] * 2, [b"works"]])

    async def listen(messages: Sequence[ReceivedMessage]) -> ConsumeResult | ConsumeLater | None:
        bodies = [message.body for message in messages]
        calls.append(bodies)
        if bodies == [b"raises"] and messages[0].reconsume_times == 0:
            raise ValueError("the first time")
        if bodies == [b"fails"] and messages[0].reconsume_times == 0:
            return ConsumeLater(delay_level=1, suspend_seconds=0.01)
        if sorted(calls) == wanted:
            enough.set()
        return None

    async with Producer(name_servers=name_server) as producer:
        queues = await make_topic(producer, topic)
        for body in (b"raises", b"fails", b"works"):
            await producer.send(Message(topic, body, keys=body.decode()), queue=queues[0])
    async with PushConsumer(
        topic, name_servers=name_server, trace=traced, orderly=orderly, suspend_seconds=0.01, local_retry_seconds=0.01
    ) as consumer:
        await consumer.subscribe(topic, listen)
        with anyio.fail_after(2 * LIMIT_SECONDS):
            await enough.wait()
    told = await traces_in(name_server, traced)
    starts = [trace for trace in told if isinstance(trace, ConsumeStartTrace)]
    ends = [trace for trace in told if isinstance(trace, ConsumeEndTrace)]
    assert len(told) == len(starts) + len(ends) == 2 * len(wanted)
    assert {trace.request_id for trace in starts} == {trace.request_id for trace in ends}
    assert len({trace.request_id for trace in starts}) == len(wanted)
    again = [("raises", True, 0)] if orderly else []
    assert sorted((end.keys or "", end.success, end.return_type) for end in ends) == sorted([
        ("", True, 0), ("fails", False, 4), ("fails", True, 0), ("raises", False, 2), ("works", True, 0), *again,
    ])  # fmt: skip
    assert sorted((start.keys or "", start.retry_times) for start in starts) == sorted([
        ("", 0), ("fails", 0), ("fails", 1), ("raises", 0), ("works", 0), *[("raises", 1)] * orderly,
    ])  # fmt: skip
    assert {trace.group for trace in told} == {topic}


async def test_what_a_lite_pull_consumer_tells(name_server: str, topic: str) -> None:
    traced = f"{topic}_traces"
    async with Producer(name_servers=name_server) as producer:
        await make_topic(producer, topic)
        await producer.send(Message(traced, b"a topic of its own"))
        sent = [await producer.send(Message(topic, b"%d" % number, keys=f"k{number}")) for number in range(5)]
        polls: list[list[ReceivedMessage]] = []
        async with LitePullConsumer("group", name_servers=name_server, trace=traced) as consumer:
            with anyio.fail_after(LIMIT_SECONDS):
                await consumer.assign([*await known_queues(producer, topic), *await known_queues(producer, traced)])
                while sum(map(len, polls)) < 7:  # with those that make the topics
                    polls.append(await consumer.poll(2))
    handed_out = [[message.message_id for message in poll if message.topic == topic] for poll in polls]
    told = [
        trace
        for queue in (await stored(name_server, traced)).values()
        for message in queue
        if message.body != b"a topic of its own"
        for trace in decode_traces(message.body)
    ]
    starts = [trace for trace in told if isinstance(trace, ConsumeStartTrace)]
    ends = [trace for trace in told if isinstance(trace, ConsumeEndTrace)]
    assert len(told) == len(starts) + len(ends) == 12
    for traces in (starts, ends):  # each poll's messages under one id, and none of what is in the trace topic
        calls: dict[str, list[str]] = {}
        for trace in traces:
            calls.setdefault(trace.request_id, []).append(trace.message_id)
        assert sorted(calls.values()) == sorted(ids for ids in handed_out if ids)
    assert {trace.message_id: trace.keys for trace in starts}.items() >= {
        result.message_id: f"k{number}" for number, result in enumerate(sent)
    }.items()
    assert {(trace.group, trace.retry_times) for trace in starts} == {("group", 0)}
    assert {(trace.success, trace.return_type) for trace in ends} == {(True, ConsumeReturnType.SUCCESS)}


async def test_a_traced_consumer_of_traces_makes_none_of_them(name_server: str, topic: str) -> None:
    traced = f"{topic}_traces"
    seen = anyio.Event()

    async def listen(messages: Sequence[ReceivedMessage]) -> None:
        seen.set()

    async with Producer(name_servers=name_server, trace=traced) as producer:
        await make_topic(producer, topic)
    async with PushConsumer(topic, name_servers=name_server, trace=traced) as consumer:
        await consumer.subscribe(traced, listen)
        with anyio.fail_after(LIMIT_SECONDS):
            await seen.wait()
    assert not any(isinstance(trace, ConsumeStartTrace) for trace in await traces_in(name_server, traced))
