"""The rows that set ours beside ours: ws:// and TCP, idle connections and none, many queues and few, two brokers."""

from __future__ import annotations

import resource
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import trio

from benchmark.frames import PULL_COUNT
from benchmark.load import BenchmarkError, Loaded, run_load
from benchmark.producer import ProducerPlan, run_producer
from benchmark.report import Comparison, Goal, Report, percentile
from benchmark.runs import Plan, create_topics, fill_queue, load_server, pull_units, send_units, warm_topic
from benchmark.servers import MeasuredServer, our_server
from benchmark.versus.java_client import Figures
from benchmark.versus.loads import OURS, Terms, compare, measure_threads, measuring
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.wire.codes import RequestCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.frame import encode_frame
from trio_rmq.wire.routes import decode_cluster_info, decode_kv_table

IDLE_CONNECTIONS = 10_000
ACTIVE_CONNECTIONS = 64
WIDE_QUEUES = 50_000
IN_FLIGHT = 64
BROKERS = 2
ROLLING = (
    "mappedFileSizeCommitLog=16777216", "diskMaxUsedSpaceRatio=1", "diskSpaceCleanForciblyRatio=1",
    "diskSpaceWarningLevelRatio=99",
)  # fmt: skip
"""Log files of 16 MiB, deleted as soon as they are full, since the disk counts as full."""
DELETE_SECONDS = 0.5
UNKNOWN_CODE = 29_999
"""A request that no handler has: the server only reads it and answers."""


def run_own(report: Report, chosen: list[str], terms: Terms, done: Callable[[], None]) -> None:
    """The rows in `chosen` into `report`, with their goals; `done` is called after each."""
    for key, measure in OWN.items():
        if key in chosen:
            with measuring(report, key, done):
                comparison, goals = measure(terms)
                report.comparisons.append(comparison)
                report.goals += goals


def _websocket(terms: Terms) -> tuple[Comparison, list[Goal]]:
    def over(transport: str) -> Callable[[], Figures]:
        def run() -> Figures:
            plan = ProducerPlan("trio", 1024, IN_FLIGHT, terms.seconds, transport)
            row = run_producer(plan)
            return {
                "messages_per_second": row.messages_per_second,
                "p50_us": row.latency_p50_us,
                "p99_us": row.latency_p99_us,
                "cpu_us_per_message": row.cpu_us_per_message,
                "resident_mb": row.server_resident_mb,
            }

        return run

    title = f"our producer, {IN_FLIGHT} tasks, 1 KB"
    comparison = compare("ws", title, terms, {"over ws://": over("ws"), "over TCP": over("tcp")})
    return comparison, _ratio_goals(comparison, {"messages_per_second": 0.5}, "ws:// of TCP")


def _connections(terms: Terms) -> tuple[Comparison, list[Goal]]:
    _raise_file_limit(IDLE_CONNECTIONS + 1000)

    def with_idle(count: int) -> Callable[[], Figures]:
        def run() -> Figures:
            with our_server(folder=terms.folder) as server:
                plan = _plan(terms, clients=ACTIVE_CONNECTIONS)
                units = send_units(plan)
                warm_topic(server, plan, units)
                before = server.anonymous_mb()
                with _idle_connections(server, count):
                    each_kb = (server.anonymous_mb() - before) * 1000 / count if count else 0.0
                    figures = _loaded(server, *load_server(server, plan, units))
            return {**figures, **({"connection_kb": each_kb} if count else {})}

        return run

    title = f"{ACTIVE_CONNECTIONS} active connections, 1 KB"
    some = f"{IDLE_CONNECTIONS:,} idle beside"
    comparison = compare("connections", title, terms, {some: with_idle(IDLE_CONNECTIONS), "none beside": with_idle(0)})
    goals = _ratio_goals(comparison, {"messages_per_second": 0.8}, f"{some}, of none")
    each_kb = comparison.median(some, "connection_kb")
    return comparison, [*goals, Goal("memory of an idle connection, KB", each_kb or 0.0, "<=", 30)]


@contextmanager
def _idle_connections(server: MeasuredServer, count: int) -> Iterator[None]:
    """Connections that have asked once and been answered, and then are silent."""
    host, _, port = server.address.rpartition(":")
    request = encode_frame(Command(UNKNOWN_CODE))
    opened: list[socket.socket] = []
    try:
        for _ in range(count):
            opened.append(socket.create_connection((host, int(port))))
            opened[-1].sendall(request)
            if not opened[-1].recv(4096):
                raise BenchmarkError(f"the server closed connection {len(opened)} of {count}")
        yield
    finally:
        for connection in opened:
            connection.close()


def _raise_file_limit(wanted: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < wanted:
        raise BenchmarkError(
            f"{wanted:,} open files are needed and {hard:,} allowed: raise the hard limit (ulimit -Hn)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # the server inherits it


def _queues(terms: Terms) -> tuple[Comparison, list[Goal]]:
    narrow = _plan(terms)
    wide = replace(narrow, queues=WIDE_QUEUES)

    def among(plan: Plan) -> Callable[[], Figures]:
        def run() -> Figures:
            with our_server(folder=terms.folder) as server:
                if plan.queues == WIDE_QUEUES:
                    trio.run(create_topics, server.address, WIDE_QUEUES)
                units = send_units(plan)
                _send_each_once(server, plan)
                in_turn, _ = load_server(server, plan, units)
                few = _loaded(server, *load_server(server, narrow, send_units(narrow)))
                pulls = replace(narrow, kind="pull", in_flight=16)
                pulled, _ = load_server(server, pulls, pull_units(pulls, fill_queue(server, pulls)))
            return {
                **few,
                "in_turn_per_second": in_turn.messages / in_turn.seconds,
                "pulled_per_second": pulled.messages / pulled.seconds,
            }

        return run

    title = f"{IN_FLIGHT} in flight, 1 KB, to four queues"
    many = f"{WIDE_QUEUES:,} queues"
    comparison = compare("queues", title, terms, {many: among(wide), f"{narrow.queues} queues": among(narrow)})
    wanted = {"messages_per_second": 0.85, "in_turn_per_second": 0.85, "pulled_per_second": 0.85}
    goals = _ratio_goals(comparison, wanted, f"{many}, of {narrow.queues}")
    few_mb, many_mb = (comparison.median(name, "anonymous_mb") for name in (f"{narrow.queues} queues", many))
    return comparison, [
        *goals,
        Goal(f"{many}: memory above {narrow.queues}, MB", (many_mb or 0) - (few_mb or 0), "<=", 200),
    ]


def _send_each_once(server: MeasuredServer, plan: Plan) -> None:
    units = send_units(plan)
    run_load(
        server.address, units, clients=1, in_flight=256, websocket=False, seconds=0, server_cpu=lambda: 0.0,
        units_total=max(plan.queues, units.count),
    )  # fmt: skip


def _turns(terms: Terms) -> tuple[Comparison, list[Goal]]:
    """Sends while log files are begun, synced and deleted; what counts is the longest turn of the event loop."""

    def run() -> Figures:
        with our_server(*ROLLING, folder=terms.folder) as server:
            with _deleting(server.address):
                figures = measure_threads(IN_FLIGHT)(server, terms)
            (told,) = trio.run(_runtime_information, server.name_server)
        if not int(told["commitLogMinOffset"]):
            raise BenchmarkError("no log file was deleted: --seconds are too few, or the disk is empty")
        return {**figures, "longest_turn_ms": float(told["loopTurnCpuLongestMs"])}

    comparison = compare("turns", "64 threads, 1 KB, log files come and go", terms, {OURS: run})
    longest_ms = comparison.median(OURS, "longest_turn_ms") or 0.0
    return comparison, [Goal("longest turn of the event loop, ms of CPU", longest_ms, "<=", 10)]


@contextmanager
def _deleting(address: str) -> Iterator[None]:
    """Ask for deletions by hand all the while: by itself a broker begins to delete a minute after its start."""
    ended = threading.Event()

    async def ask() -> None:
        async with RemotingClient() as client:
            while not ended.is_set():
                await client.request(address, Command(RequestCode.DELETE_EXPIRED_COMMITLOG))
                await trio.sleep(DELETE_SECONDS)

    thread = threading.Thread(target=trio.run, args=(ask,))
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _brokers(terms: Terms) -> tuple[Comparison, list[Goal]]:
    """Each broker has as many sends in flight as the single one: with half, a turn's own cost would weigh double."""

    def with_options(threads: int, *options: str) -> Callable[[], Figures]:
        def run() -> Figures:
            with our_server(folder=terms.folder, options=options) as server:
                figures = measure_threads(threads)(server, terms)
                told = trio.run(_runtime_information, server.name_server)
                stored = [int(table["putMessageTimesTotal"]) for table in told]
            return {**figures, "least_of_most": min(stored) / max(stored)}

        return run

    title = f"{IN_FLIGHT} threads a broker, 1 KB"
    two, one = f"--brokers {BROKERS}", "standalone"
    several = with_options(BROKERS * IN_FLIGHT, "--brokers", str(BROKERS))
    comparison = compare("brokers", title, terms, {two: several, one: with_options(IN_FLIGHT)})
    return comparison, [
        Goal(f"{two}: CPU a message, of one broker's", comparison.ratio("cpu_us_per_message") or 0.0, "<=", 1.1),
        Goal(f"{two}: least used broker, of the most used", comparison.median(two, "least_of_most") or 0.0, ">=", 0.9),
    ]


async def _runtime_information(name_server: str) -> list[dict[str, str]]:
    """What each broker that the name server knows tells of itself."""
    async with RemotingClient() as client:
        clusters = await client.request(name_server, Command(RequestCode.GET_BROKER_CLUSTER_INFO))
        tables = []
        for broker in decode_cluster_info(clusters.body).broker_addr_table.values():
            answer = await client.request(broker.broker_addrs[0], Command(RequestCode.GET_BROKER_RUNTIME_INFO))
            tables.append(decode_kv_table(answer.body).table)
    return tables


def _plan(terms: Terms, clients: int = 1) -> Plan:
    return Plan("send", "tcp", "ROCKETMQ", 1024, 1, 1, clients, IN_FLIGHT, terms.seconds, None, floor=False)


def _loaded(server: MeasuredServer, loaded: Loaded, cpu: float) -> Figures:
    return {
        "messages_per_second": loaded.messages / loaded.seconds,
        "p50_us": percentile(loaded.latencies, 0.5) * 1e6,
        "p99_us": percentile(loaded.latencies, 0.99) * 1e6,
        "p999_us": percentile(loaded.latencies, 0.999) * 1e6,
        "cpu_us_per_message": cpu / loaded.messages * 1e6,
        "resident_mb": server.resident_mb(),
        "anonymous_mb": server.anonymous_mb(),
    }


_FIGURE_NAMES = {
    "messages_per_second": "messages/s",
    "in_turn_per_second": "messages/s to all in turn",
    "pulled_per_second": f"messages/s in pulls of {PULL_COUNT}",
}


def _ratio_goals(comparison: Comparison, wanted: dict[str, float], what: str) -> list[Goal]:
    return [
        Goal(f"{what}: {_FIGURE_NAMES[figure]}", comparison.ratio(figure) or 0.0, ">=", bar)
        for figure, bar in wanted.items()
    ]


OWN = {"ws": _websocket, "connections": _connections, "queues": _queues, "brokers": _brokers, "turns": _turns}
OWN_ROWS = tuple(OWN)
