"""Message traces on virtual time: whatever becomes of them harms no sending; bounds; calls that take too long."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import pytest
import trio

from tests.client.test_producer_bad_brokers import NAMES as BAD_NAMES
from tests.client.test_producer_bad_brokers import BadServer, never
from tests.client.test_producer_bad_brokers import run as run_bad
from tests.client.test_producer_virtual import BROKERS, CLIENT, NAMES, TOPIC, Cluster, run
from trio_rmq.client import (
    ConsumeEndTrace,
    ConsumeStartTrace,
    Message,
    Producer,
    PullConsumer,
    PushConsumer,
    RecallTrace,
    ReceivedMessage,
    SendStatus,
    Trace,
    decode_traces,
    tracing,
)
from trio_rmq.testing.world import World
from trio_rmq.wire.command import Command
from trio_rmq.wire.properties import property_of
from trio_rmq.wire.routes import TopicRouteData, encode_route


async def carriers(topic: str) -> list[ReceivedMessage]:
    """The messages of a trace topic."""
    found: list[ReceivedMessage] = []
    async with PullConsumer("reader", name_servers=NAMES) as consumer:
        for queue in await consumer.queues(topic):
            offset, end = 0, await consumer.max_offset(queue)
            while offset < end:
                result = await consumer.pull(queue, offset)
                found += result.messages
                offset = result.next_offset
    return found


async def traces_in(topic: str) -> list[Trace]:
    return [trace for message in await carriers(topic) for trace in decode_traces(message.body)]


def made_up(number: int, group: str = "g", size: int = 200) -> RecallTrace:
    message_id = f"{number:06}"
    return RecallTrace(
        time_ms=number, region_id="x" * size, group=group, topic="T", message_id=message_id, success=True
    )


def test_a_trace_topic_that_nobody_has_costs_one_line_and_no_send(caplog: pytest.LogCaptureFixture) -> None:
    async def program(a: BadServer, b: BadServer) -> None:
        async with Producer(name_servers=BAD_NAMES, trace="Nobodys") as producer:
            for _ in range(5):
                began = trio.current_time()
                assert (await producer.send(Message(TOPIC, b"x"))).status is SendStatus.SEND_OK
                assert trio.current_time() - began < 0.1
                await trio.sleep(1)
        assert a.asked + b.asked == 5

    with caplog.at_level(logging.WARNING):
        run_bad(program)
    lines = [record.message for record in caplog.records if "traces" in record.message]
    assert len(lines) == 1
    assert "1 traces are lost" in lines[0]
    assert "knows the topic Nobodys" in lines[0]


def test_a_broker_that_swallows_traces_holds_up_no_send_and_the_end_a_second() -> None:
    async def program(a: BadServer, b: BadServer) -> None:
        async with Producer(name_servers=BAD_NAMES, trace=True) as producer:
            assert (await producer.send(Message(TOPIC, b"x"))).status is SendStatus.SEND_OK
            for server in (a, b):
                server.route = _with_any_topic(server)
                server.answer = never
            await trio.sleep(2)
            for server in (a, b):
                server.answer = BadServer(server.name).answer
            assert (await producer.send(Message(TOPIC, b"y"))).status is SendStatus.SEND_OK
            for server in (a, b):
                server.answer = never
            began = trio.current_time()
        assert trio.current_time() - began < 2.1

    run_bad(program)


def _with_any_topic(server: BadServer) -> Callable[[Command], Command]:
    body = encode_route(TopicRouteData(broker_datas=server.brokers, queue_datas=server.queues), standard_json=True)
    return lambda request: request.reply(body=body)


def test_more_than_the_bound_are_lost_and_said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "TRACES_WAITING_MAX", 10)

    async def program(world: World, servers: Cluster) -> None:
        async with Producer(name_servers=NAMES, trace="Traces") as producer:
            sender = producer._traces
            assert sender is not None
            sender.note([made_up(number) for number in range(8)])
            sender.note([made_up(number) for number in range(8, 25)])
            await trio.sleep(2)
            sender.note([made_up(100)])
        numbers = sorted(trace.time_ms for trace in await traces_in("Traces") if isinstance(trace, RecallTrace))
        assert numbers == [*range(10), 100]

    with caplog.at_level(logging.WARNING):
        run(program)
    assert any("8 traces wait for Traces already" in record.message for record in caplog.records)
    assert any("15 traces are lost" in record.message for record in caplog.records)


def test_many_traces_go_in_few_messages_within_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "KEYS_SIZE_MAX_BYTES", 10_000)  # the simulated store has small log files

    async def program(world: World, servers: Cluster) -> None:
        async with Producer(name_servers=NAMES, trace="Traces") as producer:
            sender = producer._traces
            assert sender is not None
            sender.note([made_up(number) for number in range(1000)])  # by their size
            await trio.sleep(3)
            sender.note([made_up(number, size=1) for number in range(1000, 7000)])  # by their keys
            sender.note([made_up(7000, group="a\x01b"), made_up(7001)])
        messages = await carriers("Traces")
        assert len(messages) == 7
        numbers = []
        for message in messages:
            own = [trace for trace in decode_traces(message.body) if isinstance(trace, RecallTrace)]
            numbers += [trace.time_ms for trace in own]
            assert len(message.body) <= tracing.BODY_SIZE_MAX_BYTES
            assert set(message.keys) == {trace.message_id for trace in own}
            assert len((property_of(message.stored.properties.decode(), "KEYS") or "").encode()) <= 10_000
        assert sorted(numbers) == [*range(7000), 7001]

    run(program)


def test_a_first_trace_waits_half_a_second_and_many_do_not_wait() -> None:
    async def program(world: World, servers: Cluster) -> None:
        async with Producer(name_servers=NAMES, trace="Traces") as producer:
            sender = producer._traces
            assert sender is not None
            sender.note([made_up(0)])
            await trio.sleep(1)  # the topic is there now
            for count, seconds in ((1, 0.4), (tracing.ENOUGH_TRACES, 0.1)):
                before = len(await carriers("Traces"))
                sender.note([made_up(number) for number in range(count)])
                await trio.sleep(seconds)
                now = len(await carriers("Traces"))
                assert (now > before) is (count > 1)
                await trio.sleep(1)

    run(program)


def test_a_broker_that_wants_no_traces_gets_none() -> None:
    async def program(world: World, servers: Cluster) -> None:
        for name in BROKERS:
            servers.kill(name)
            await trio.sleep(1)
            await servers.start_broker(name, trace_on=False)
        async with Producer(name_servers=NAMES, trace="Traces") as producer:
            for _ in range(4):
                assert not (await producer.send(Message(TOPIC, b"x"))).trace_on
            await producer.send(Message("Traces", b"makes the topic"))
            await trio.sleep(2)
        assert [message.body for message in await carriers("Traces")] == [b"makes the topic"]

    run(program)


@pytest.mark.parametrize("orderly", [False, True], ids=["concurrent", "orderly"])
def test_a_call_that_takes_too_long_is_told_so(orderly: bool) -> None:
    async def program(world: World, servers: Cluster) -> None:
        async def listen(messages: Sequence[ReceivedMessage]) -> None:
            await trio.sleep_forever()

        async with Producer(name_servers=NAMES) as producer:
            await producer.send(Message(TOPIC, b"x", keys="k"))
        async with PushConsumer(
            "readers", name_servers=NAMES, trace="Traces", consume_timeout_seconds=5, grace_seconds=0,
            orderly=orderly, suspend_seconds=30,
        ) as consumer:  # fmt: skip
            await consumer.subscribe(TOPIC, listen)
            await trio.sleep(25)
        told = await traces_in("Traces")
        ends = [trace for trace in told if isinstance(trace, ConsumeEndTrace)]
        assert [(end.success, end.return_type, end.keys) for end in ends[:1]] == [(False, 1, "k")]
        assert 5000 <= ends[0].cost_ms <= 21_000
        assert any(isinstance(trace, ConsumeStartTrace) for trace in told)

    run(program)


def test_a_cancelled_producer_still_tells() -> None:
    async def program(world: World, servers: Cluster) -> None:
        with trio.move_on_after(1):
            async with Producer(name_servers=NAMES, trace="Traces") as producer:
                while True:
                    await trio.sleep(0.3)
                    await producer.send(Message(TOPIC, b"x"))
        assert len(await traces_in("Traces")) == 3

    run(program)


def test_traces_wait_while_their_broker_is_cut_off_no_longer_than_their_send() -> None:
    async def program(world: World, servers: Cluster) -> None:
        async with Producer(name_servers=NAMES, trace="Traces") as producer:
            await producer.send(Message(TOPIC, b"x"))
            await trio.sleep(2)
            for address in BROKERS.values():
                world.network.cut(CLIENT, address)
            sender = producer._traces
            assert sender is not None
            sender.note([made_up(1)])
            await trio.sleep(10)
            for address in BROKERS.values():
                world.network.heal(CLIENT, address)
            sender.note([made_up(2)])
            await trio.sleep(10)
        numbers = [trace.time_ms for trace in await traces_in("Traces") if isinstance(trace, RecallTrace)]
        assert 2 in numbers

    run(program)
