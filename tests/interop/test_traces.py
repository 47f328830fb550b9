"""Message traces: Apache's tool and decoder read ours, we read those of Apache's client; our broker and Apache's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from tests.interop.admin_peer import mqadmin
from tests.interop.peers import apache_broker, apache_name_server, our_broker, our_name_server, run_java_peer
from tests.interop.test_our_producer import Place, known_queues, registered
from tests.wire.test_trace import VECTORS
from trio_rmq.client import (
    ConsumeEndTrace,
    ConsumeStartTrace,
    EndTransactionTrace,
    Message,
    Producer,
    PullConsumer,
    PushConsumer,
    ReceivedMessage,
    SendTrace,
    Trace,
    TransactionProducer,
    TransactionState,
    decode_traces,
)
from trio_rmq.wire.trace import TracedMessageType, encode_traces

pytestmark = [pytest.mark.interop, pytest.mark.anyio]
TRACE_TOPIC = "RMQ_SYS_TRACE_TOPIC"


@pytest.fixture
def anyio_backend() -> str:
    return "trio"


@pytest.fixture(scope="module", params=["4.9.7", "5.3.3", "ours"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    name = str(request.param)
    scratch = tmp_path_factory.mktemp("traces")
    if name == "ours":
        with our_name_server(scratch) as namesrv, our_broker(scratch, namesrv.address, traceTopicEnable=True):
            yield Place(name, namesrv.address, scratch)
        return
    with (
        apache_name_server(scratch, version=name) as namesrv,
        apache_broker(scratch, namesrv.address, version=name, traceTopicEnable="true"),
    ):
        anyio.run(registered, namesrv.address)
        yield Place(name, namesrv.address, scratch)


def java(version: str, *arguments: str, scratch: Path) -> list[str]:
    done = run_java_peer(version, "JSON", arguments, scratch=scratch, program="interop.TracePeer")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout.splitlines()


@pytest.mark.parametrize("version", ["4.9.8", "5.3.3"])
def test_the_vectors_are_what_apaches_encoder_writes(version: str, tmp_path: Path) -> None:
    lines = [line.split(" ") for line in java(version, "vectors", scratch=tmp_path)]
    assert [{"name": name, "body": body, "keys": keys} for name, body, *keys in lines] == [
        {key: vector[key] for key in ("name", "body", "keys")} for vector in VECTORS
    ]


@pytest.mark.parametrize("version", ["4.9.8", "5.3.3"])
def test_apaches_decoder_reads_ours(version: str, tmp_path: Path) -> None:
    traces: list[Trace] = [
        SendTrace(
            time_ms=1, region_id="R", group="g", topic="T", message_id="M1", tags=None, keys="a b", store_host="h:1",
            body_size_bytes=5, cost_ms=6, message_type=TracedMessageType.DELAY, offset_message_id="O", success=False,
        ),
        ConsumeStartTrace(
            time_ms=2, region_id=None, group="c", request_id="Q", message_id="M2", retry_times=3, keys=None
        ),
        ConsumeEndTrace(
            request_id="Q", message_id="M2", cost_ms=4, success=False, keys="k", return_type=4, time_ms=5, group="c"
        ),
        EndTransactionTrace(
            time_ms=3, region_id="R", group="g", topic="T", message_id="M3", tags="t", keys=None, store_host="h:1",
            transaction_id="X", state="UNKNOW", from_check=True,
        ),
    ]  # fmt: skip
    lines = java(version, "decode", encode_traces(traces).hex(), scratch=tmp_path)
    assert [line for line in lines if line.startswith("TRACE")] == [
        "TRACE|Pub|R|g|T|M1|null|a b|5|Delay_Msg|O|false|0|0|null|null|false",
        "TRACE|SubBefore|null|c||M2||null|0|null||true|3|0|null|null|false",
        "TRACE|SubAfter||c||M2||k|0|null||false|0|4|null|null|false",
        "TRACE|EndTransaction|R|g|T|M3|t|null|0|Trans_msg_Commit||true|0|0|X|UNKNOW|true",
    ]


@pytest.mark.parametrize("traced", [TRACE_TOPIC, "OwnTraces"])
async def test_mqadmin_prints_our_traces(place: Place, traced: str) -> None:
    topic = f"Traced_{traced}"
    done = anyio.Event()
    calls = 0

    async def listen(messages: Sequence[ReceivedMessage]) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ValueError("the first time")
        done.set()

    async def check(message: ReceivedMessage) -> TransactionState:
        return TransactionState.UNKNOWN

    async def commit(transaction_id: str) -> TransactionState:
        return TransactionState.COMMIT

    trace = True if traced == TRACE_TOPIC else traced
    async with Producer(name_servers=place.name_server, group="our_tracing", trace=trace) as producer:
        sent = await producer.send(Message(topic, b"x", tags="t", keys="k1 k2"))
        with anyio.fail_after(60):
            await known_queues(producer, topic)
    async with PushConsumer(f"our_{topic}", name_servers=place.name_server, trace=trace) as consumer:
        with anyio.fail_after(60):
            await consumer.subscribe(topic, listen)
            await done.wait()
    async with TransactionProducer(
        check, name_servers=place.name_server, group="our_tracing_tx", trace=trace
    ) as transactional:
        ended = await transactional.send_in_transaction(Message(topic, b"y"), commit)
    await anyio.sleep(3)  # Apache's broker indexes in the background
    queries = [
        ["queryMsgTraceById", "-i", message_id, *(() if trace is True else ("-t", traced))]
        for message_id in (sent.message_id, ended.sent.message_id)
    ]
    first, second = mqadmin("4.9.8", place.name_server, queries, place.scratch / "tools")
    rows = [line.split() for line in first.splitlines() if line and not line.startswith("#")]
    assert sorted((row[0], row[1], row[-1]) for row in rows) == [
        ("Pub", "our_tracing", "success"),
        ("Sub", f"our_{topic}", "failed"),
        ("Sub", f"our_{topic}", "success"),
    ]
    rows = [line.split() for line in second.splitlines() if line and not line.startswith("#")]
    assert [(row[0], row[1], row[-1]) for row in rows] == [("Pub", "our_tracing_tx", "success")]


@pytest.mark.parametrize("version", ["4.9.8", "5.3.3"])
async def test_we_read_the_traces_of_apaches_client(place: Place, version: str) -> None:
    topic = f"Javas_{version.replace('.', '_')}"
    traced = f"{topic}_traces"
    async with Producer(name_servers=place.name_server) as producer:
        for name in (topic, traced):
            await producer.send(Message(name, b"makes the topic"))
            with anyio.fail_after(60):
                await known_queues(producer, name)
    lines = await anyio.to_thread.run_sync(
        lambda: java(version, "run", place.name_server, topic, traced, scratch=place.scratch)
    )
    assert "CONSUMED" in lines
    ids = {words[1]: words[2:] for line in lines if (words := line.split())[0] == "SENT"}
    everything = await readable(place.name_server, traced)
    told = [trace for trace in everything if isinstance(trace, SendTrace)]
    assert {trace.message_id: (trace.tags, trace.keys, trace.message_type) for trace in told} == {
        ids["plain"][0]: ("tag", "key-1 key-2", TracedMessageType.NORMAL),
        ids["delayed"][0]: (None, None, TracedMessageType.DELAY),
        ids["transaction"][0]: (None, None, TracedMessageType.HALF),
    }
    offset_ids = {trace.message_id: trace.offset_message_id for trace in told}
    for what in ("plain", "delayed"):  # Java's result of a transactional send has none
        assert offset_ids[ids[what][0]] == ids[what][1]
    assert {(trace.topic, trace.region_id, trace.success) for trace in told} == {(topic, "DefaultRegion", True)}
    [end] = [trace for trace in everything if isinstance(trace, EndTransactionTrace)]
    assert (end.message_id, end.state, end.from_check) == (ids["transaction"][0], "COMMIT_MESSAGE", False)
    ends = [trace for trace in everything if isinstance(trace, ConsumeEndTrace)]
    if (place.name, version) == ("4.9.7", "5.3.3"):
        # The client leaves out messages that do not say their region, and 4.9's broker lets none say it.
        assert ends == []
        return
    assert sorted(
        (trace.success, trace.return_type) for trace in ends if trace.message_id == ids["plain"][0]
    ) == [(False, 4), (True, 0)]  # fmt: skip
    starts = [trace for trace in everything if isinstance(trace, ConsumeStartTrace)]
    assert {trace.request_id for trace in starts} == {trace.request_id for trace in ends}


async def readable(name_server: str, topic: str) -> list[Trace]:
    """The traces, without the message that made the topic."""
    found: list[Trace] = []
    async with PullConsumer("our_trace_reader", name_servers=name_server) as reader:
        for queue in await reader.queues(topic):
            offset, end = await reader.min_offset(queue), await reader.max_offset(queue)
            while offset < end:
                result = await reader.pull(queue, offset)
                for message in result.messages:
                    if message.body != b"makes the topic":
                        found += decode_traces(message.body)
                offset = result.next_offset
    return found
