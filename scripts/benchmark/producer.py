"""`scripts/bench producer`: what our own producer reaches, beside ready-made frames on the same server.

Each run has a fresh server and `tasks` tasks that send through one producer: one message after another, or - as is
natural for many small ones - a handful after another, by `send_many`.
"""

from __future__ import annotations

import time
from array import array
from dataclasses import dataclass, replace

import anyio

from benchmark.report import Goal, Report, Row, percentile
from benchmark.runs import TOPIC, Plan, run
from benchmark.servers import MeasuredServer, our_server
from trio_rmq.client import AutoBatch, Message, Producer, SendResult, blocking

GROUP = "benchmark"
TOPIC_SECONDS = 1.5
"""After so long a topic that a send made stands in the route that name servers tell."""
HANDFUL = 16
"""Messages that a task sends together where it uses `send_many`."""


@dataclass(frozen=True)
class ProducerPlan:
    """What one run does."""

    backend: str
    size: int
    tasks: int
    seconds: float
    transport: str = "tcp"
    auto_batch: AutoBatch | None = None
    handful: int = 0
    """Messages of one `send_many`; 0: each has a `send` of its own."""

    @property
    def name(self) -> str:
        """As in the table's first column."""
        what = f"producer {self.size} B {self.transport} {self.backend}{', auto-batching' if self.auto_batch else ''}"
        return f"{what}, {self.tasks} tasks" + (f" of send_many({self.handful})" if self.handful else "")


def run_producers(report: Report, *, seconds: float, tasks: int = 64, rounds: int = 3, goals: bool = True) -> None:
    """All rows, and the goals that compare them; each goal's figure is the median of `rounds` alternating runs."""
    frames = Plan("send", "tcp", "JSON", 1024, 1, 1, 1, tasks, seconds, None, floor=False)
    ratios: dict[str, list[float]] = {}
    rows: dict[str, list[Row]] = {}

    def measured(row: Row) -> Row:
        rows.setdefault(row.name, []).append(row)
        return row

    for _ in range(rounds):
        ready_made = measured(run(frames))
        for backend in ("trio", "asyncio"):
            plan = ProducerPlan(backend, 1024, tasks, seconds)
            row = measured(run_producer(plan))
            ratios.setdefault(f"{plan.name}: messages/s, of ready-made frames", []).append(
                row.messages_per_second / ready_made.messages_per_second
            )
            measured(run_producer(replace(plan, transport="ws")))
            measured(run_producer(replace(plan, size=100)))
            for many, handful in ((tasks, 0), (8 * tasks, 0), (tasks, HANDFUL)):
                # Half of what is under way to a batch, or 32 KiB: one is gathered while another is on its way.
                gather = AutoBatch(count=many * max(handful, 1) // 2)
                gathering = replace(plan, size=100, tasks=many, auto_batch=gather, handful=handful)
                gathered = measured(run_producer(gathering))
                if handful:  # a task for each message costs more to wake than the message: those rows are told, no more
                    ratios.setdefault(f"{gathering.name}: messages/s, times {tasks} tasks at 1024 B", []).append(
                        gathered.messages_per_second / row.messages_per_second
                    )
    for several in rows.values():
        several.sort(key=lambda row: row.messages_per_second)
        report.rows.append(several[len(several) // 2])
    if goals:
        for name, reached in ratios.items():
            wanted = 3.0 if "auto" in name else 0.4
            report.goals.append(Goal(name, sorted(reached)[len(reached) // 2], ">=", wanted))


def run_producer(plan: ProducerPlan) -> Row:
    """One plan on a fresh server."""
    with our_server() as server:
        return anyio.run(_measure, server, plan, backend=plan.backend)


def run_blocking_producer(size: int, seconds: float) -> Row:
    """One thread that sends one message after another through the blocking producer, on a fresh server."""
    latencies: array[float] = array("d")
    body = bytes(size)
    with our_server() as server, blocking.Producer(name_servers=server.name_server, group=GROUP) as producer:
        producer.send(Message(TOPIC, body))  # makes the topic

        def load(until: float, noted: array[float]) -> None:
            while (began := time.perf_counter()) < until:
                producer.send(Message(TOPIC, body))
                noted.append(time.perf_counter() - began)

        load(time.perf_counter() + max(seconds / 5, TOPIC_SECONDS), array("d"))
        producer.refresh_route(TOPIC)
        began, cpu, server_cpu = time.perf_counter(), time.process_time(), server.cpu_seconds()
        load(began + seconds, latencies)
        took, cpu, server_cpu = (
            time.perf_counter() - began, time.process_time() - cpu, server.cpu_seconds() - server_cpu,
        )  # fmt: skip
        return _row(f"producer {size} B tcp blocking, 1 thread", size, latencies, took, cpu, server_cpu, server)


async def _measure(server: MeasuredServer, plan: ProducerPlan) -> Row:
    name_server = f"{'ws://' if plan.transport == 'ws' else ''}{server.name_server}"
    latencies: array[float] = array("d")
    body = bytes(plan.size)
    async with Producer(name_servers=name_server, group=GROUP, auto_batch=plan.auto_batch) as producer:
        await producer.send(Message(TOPIC, body))  # makes the topic
        warm_until = time.perf_counter() + plan.seconds / 5

        async def load(until: float, noted: array[float]) -> None:
            async def send() -> None:
                while (began := time.perf_counter()) < until:
                    await producer.send(Message(TOPIC, body))
                    noted.append(time.perf_counter() - began)

            async def send_handfuls() -> None:
                while (began := time.perf_counter()) < until:
                    outcomes = await producer.send_many([Message(TOPIC, body) for _ in range(plan.handful)])
                    took = time.perf_counter() - began
                    for outcome in outcomes:
                        if not isinstance(outcome, SendResult):
                            raise outcome
                        noted.append(took)

            async with anyio.create_task_group() as group:
                for _ in range(plan.tasks):
                    group.start_soon(send_handfuls if plan.handful else send)

        await load(warm_until, array("d"))
        began, cpu, server_cpu = time.perf_counter(), time.process_time(), server.cpu_seconds()
        await load(began + plan.seconds, latencies)
        took, cpu, server_cpu = (
            time.perf_counter() - began, time.process_time() - cpu, server.cpu_seconds() - server_cpu,
        )  # fmt: skip
    return _row(plan.name, plan.size, latencies, took, cpu, server_cpu, server)


def _row(
    name: str,
    size: int,
    latencies: array[float],
    took: float,
    cpu: float,
    server_cpu: float,
    server: MeasuredServer,
) -> Row:
    count = len(latencies)
    return Row(
        name=name,
        messages_per_second=count / took,
        megabytes_per_second=count * size / took / 1e6,
        latency_p50_us=percentile(latencies, 0.5) * 1e6,
        latency_p99_us=percentile(latencies, 0.99) * 1e6,
        latency_max_us=max(latencies, default=0.0) * 1e6,
        cpu_us_per_message=server_cpu / count * 1e6,
        server_resident_mb=server.resident_mb(),
        client_cpu_us_per_message=cpu / count * 1e6,
    )
