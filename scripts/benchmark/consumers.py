"""`scripts/bench consumer`: a backlog drained by a push consumer, and how soon a message reaches a waiting one.

The client runs in this process, against a fresh server in another; pulls of ready-made frames stand beside it.
"""

from __future__ import annotations

import math
import statistics
import time
from array import array
from collections.abc import Sequence
from dataclasses import replace

import anyio

from benchmark.load import BenchmarkError, run_load
from benchmark.report import Goal, Report, Row, percentile
from benchmark.runs import TOPIC, Plan, run, send_units, warm_topic
from benchmark.servers import MeasuredServer, our_server
from trio_rmq.client import Message, Producer, PushConsumer, ReceivedMessage
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.wire.command import Command

BACKENDS = ("trio", "asyncio")
LIMIT_SECONDS = 120
SETTLE_SECONDS = 0.002
"""Before each of what is timed, so that it does not run into the rest of what came before."""
IDLE_LOOK_SECONDS = 0.5
IDLE_CPU_SECONDS = 0.02
"""A server that takes no more CPU than this between two looks is idle."""
IDLE_WAIT_SECONDS = 20.0
UNKNOWN_CODE = 29_999
"""A request that no handler has: the server only reads it and answers."""


def run_consumers(report: Report, *, seconds: float, messages: int = 200_000, rounds: int = 3) -> None:
    """All rows, and the goals that compare them; each goal's figure is the median of `rounds` alternating runs."""
    frames = Plan("pull", "tcp", "JSON", 1024, 1, 1, 1, 64, seconds, None, floor=False)
    rows: dict[str, list[Row]] = {}
    ratios: dict[str, list[float]] = {}

    def measured(row: Row) -> Row:
        rows.setdefault(row.name, []).append(row)
        return row

    for _ in range(rounds):
        ready_made = measured(run(frames))
        for backend in BACKENDS:
            drained = measured(drain(backend, 1024, messages))
            ratios.setdefault(f"{drained.name}: messages/s, of ready-made pulls", []).append(
                drained.messages_per_second / ready_made.messages_per_second
            )
            for transport in ("tcp", "ws"):
                row, ratio = _wake(backend, transport)
                ratios.setdefault(f"{measured(row).name}: median, times a no-op's round trip", []).append(ratio)
    for same in rows.values():
        same.sort(key=lambda row: row.messages_per_second)
        report.rows.append(same[len(same) // 2])
    for name, values in ratios.items():
        goal = (">=", 0.4) if name.startswith("drain") else ("<=", 3)
        report.goals.append(Goal(name, statistics.median(values), *goal))


def drain(backend: str, size: int, messages: int) -> Row:
    """A backlog in four queues, from subscribing to the last call of an empty listener."""
    with our_server() as server:
        _fill(server, size, messages)
        _wait_idle(server)
        before = server.cpu_seconds()
        seconds, cpu = anyio.run(_consume_all, server.name_server, messages, backend=backend)
        server_cpu, resident_mb = server.cpu_seconds() - before, server.resident_mb()
    return Row(
        name=f"drain {size} B tcp {backend}",
        messages_per_second=messages / seconds,
        megabytes_per_second=messages * size / seconds / 1e6,
        latency_p50_us=0.0,
        latency_p99_us=0.0,
        latency_max_us=0.0,
        cpu_us_per_message=server_cpu / messages * 1e6,
        client_cpu_us_per_message=cpu / messages * 1e6,
        server_resident_mb=resident_mb,
    )


def _fill(server: MeasuredServer, size: int, messages: int) -> None:
    plan = Plan("send", "tcp", "JSON", size, 1, 1, 1, 256, 0, messages, floor=False)
    units = send_units(plan)
    warm_topic(server, plan, units)
    left = replace(units, starts=units.starts[1:])  # the first one made the topic
    run_load(
        server.address, left, clients=1, in_flight=plan.in_flight, websocket=False, seconds=0,
        server_cpu=lambda: 0.0, units_total=messages - 1,
    )  # fmt: skip


def _wait_idle(server: MeasuredServer) -> None:
    """Wait until the server has done what is left of filling it - the index follows the log - for some seconds at most.

    What it does of that during the drain would count as the drain's.
    """
    until = time.perf_counter() + IDLE_WAIT_SECONDS
    before, now = -math.inf, server.cpu_seconds()
    while now - before > IDLE_CPU_SECONDS and time.perf_counter() < until:
        time.sleep(IDLE_LOOK_SECONDS)
        before, now = now, server.cpu_seconds()


async def _consume_all(name_server: str, count: int) -> tuple[float, float]:
    left = count
    done = anyio.Event()

    async def listen(messages: Sequence[ReceivedMessage]) -> None:
        nonlocal left
        left -= len(messages)
        if left <= 0:  # the load sends some more than it was asked for
            done.set()

    async with PushConsumer("Drain", name_servers=name_server) as consumer:
        started, cpu = time.perf_counter(), time.process_time()
        await consumer.subscribe(TOPIC, listen)
        with anyio.move_on_after(LIMIT_SECONDS):
            await done.wait()
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    if left > 0:
        raise BenchmarkError(f"{left} of {count} messages were not consumed within {LIMIT_SECONDS} s")
    return seconds, cpu


def _wake(backend: str, transport: str, rounds: int = 1000) -> tuple[Row, float]:
    """From the call that sends to the listener's, one by one; and the median time over that of a no-op's round trip."""
    scheme = "ws://" if transport == "ws" else ""
    with our_server() as server:
        before = server.cpu_seconds()
        times, trips, cpu = anyio.run(
            _send_one_by_one, scheme + server.name_server, scheme + server.address, rounds, backend=backend
        )
        server_cpu, resident_mb = server.cpu_seconds() - before, server.resident_mb()
    row = Row(
        name=f"send to a waiting consumer {transport} {backend}",
        messages_per_second=rounds / sum(times),
        megabytes_per_second=0.0,
        latency_p50_us=percentile(times, 0.5) * 1e6,
        latency_p99_us=percentile(times, 0.99) * 1e6,
        latency_max_us=max(times) * 1e6,
        cpu_us_per_message=server_cpu / rounds * 1e6,
        client_cpu_us_per_message=cpu / rounds * 1e6,
        server_resident_mb=resident_mb,
    )
    return row, statistics.median(times) / statistics.median(trips)


async def _send_one_by_one(name_server: str, broker: str, rounds: int) -> tuple[array[float], array[float], float]:
    times, trips = array("d"), array("d")
    heard = anyio.Event()
    heard_at = 0.0

    async def listen(messages: Sequence[ReceivedMessage]) -> None:
        nonlocal heard_at
        heard_at = time.perf_counter()
        heard.set()

    async with Producer(name_servers=name_server) as producer, RemotingClient() as remoting:
        place = (await producer.send(Message(TOPIC, b"first"))).queue
        async with PushConsumer("Wake", name_servers=name_server) as consumer:
            await consumer.subscribe(TOPIC, listen)
            await heard.wait()
            cpu = time.process_time()
            for _ in range(rounds):
                await anyio.sleep(SETTLE_SECONDS)
                started = time.perf_counter()
                await remoting.request(broker, Command(UNKNOWN_CODE), 10)
                trips.append(time.perf_counter() - started)
                await anyio.sleep(SETTLE_SECONDS)
                heard = anyio.Event()
                started = time.perf_counter()
                await producer.send(Message(TOPIC, b"x"), queue=place)
                await heard.wait()
                times.append(heard_at - started)
            cpu = time.process_time() - cpu
    return times, trips, cpu
