"""`scripts/bench send`, `pull` and `all`: parses options, runs, prints."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmark.frames import PULL_COUNT, Units, encode_units, pull_command, send_command
from benchmark.load import BenchmarkError, Connection, Loaded, run_load
from benchmark.report import Goal, Report, Row, percentile
from benchmark.servers import MeasuredServer, floor_server, our_server
from trio_rmq.wire.command import Command, SerializeType

TOPIC = "Benchmark"
QUEUES = 4
UNITS_DISTINCT_BYTES = 16 * 1024 * 1024
"""How much is encoded beforehand; it is sent round and round."""


@dataclass(frozen=True)
class Plan:
    """What one run does."""

    kind: str
    transport: str
    headers: str
    size: int
    batch: int
    per_message: int
    clients: int
    in_flight: int
    seconds: float
    messages: int | None
    floor: bool

    @property
    def serialize_type(self) -> SerializeType:
        """Header encoding of the requests."""
        return SerializeType.CBOR if self.transport == "ws" else SerializeType[self.headers]

    @property
    def name(self) -> str:
        """As in the table's first column."""
        encoding = "CBOR" if self.transport == "ws" else self.headers
        what = f"{self.kind} {self.size} B {self.transport} {encoding}"
        if self.kind == "pull":
            what += f" of {PULL_COUNT}"
        if self.batch > 1:
            what += f" batch {self.batch}"
        if self.transport == "ws":
            what += f", {self.per_message} a message"
        return f"{what}, {self.clients} x {max(1, self.in_flight // self.clients)}"


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; 0, or 1 when a goal of `all` is missed, or 2 when nothing could be measured."""
    options = _parser().parse_args(words)
    report = Report()
    try:
        if options.command == "all":
            _run_all(report, options.seconds)
        else:
            report.rows.append(_run(_plan(options)))
    except BenchmarkError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    report.print()
    if options.json == "-":
        print(report.as_json(), end="")
    elif options.json:
        Path(options.json).write_text(report.as_json())
    return 0 if all(goal.met for goal in report.goals) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measures a standalone server of this clone.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, about in (
        ("send", "pipelined sends"),
        ("pull", f"pulls of {PULL_COUNT}"),
        ("all", "the figures to reach"),
    ):
        command = commands.add_parser(name, help=about)
        command.add_argument("--json", metavar="FILE", help="write the figures there as JSON; - prints them")
        command.add_argument("--seconds", type=float, default=3.0, help="measured time of a run (default 3)")
        if name == "all":
            continue
        command.add_argument("--transport", choices=("tcp", "ws"), default="tcp")
        command.add_argument("--headers", choices=("JSON", "ROCKETMQ"), default="JSON", help="header encoding over TCP")
        command.add_argument("--size", type=int, default=1024, help="body bytes of a message (default 1024)")
        command.add_argument("--batch", type=int, default=1, help="messages of one send request (default 1)")
        command.add_argument(
            "--per-message", type=int, default=64, help="commands of one WebSocket message (default 64)"
        )
        command.add_argument("--clients", type=int, default=1, help="connections (default 1)")
        command.add_argument("--in-flight", type=int, default=64, help="requests unanswered at a time, all connections")
        command.add_argument("--messages", type=int, help="move this many messages, not so many seconds")
        command.add_argument("--no-floor", action="store_true", help="leave the floor out")
    return parser


def _plan(options: argparse.Namespace) -> Plan:
    return Plan(
        kind=options.command,
        transport=options.transport,
        headers=options.headers,
        size=options.size,
        batch=options.batch if options.command == "send" else 1,
        per_message=options.per_message if options.transport == "ws" else 1,
        clients=options.clients,
        in_flight=options.in_flight,
        seconds=options.seconds,
        messages=options.messages,
        floor=not options.no_floor and options.transport == "tcp",
    )


def _run(plan: Plan) -> Row:
    """One plan on a fresh server, with its floor."""
    with our_server() as server:
        if plan.kind == "pull":
            count = _fill(server, plan)
            units = _pull_units(plan, count)
        else:
            units = _send_units(plan)
        answer = _warm_topic(server, plan, units)
        loaded, cpu = _load(server, plan, units)
        resident_mb = server.resident_mb()
    floor_us = None
    if plan.floor:
        with floor_server(answer) as floor:
            floor_loaded, floor_cpu = _load(floor, plan, units)
        floor_us = floor_cpu / floor_loaded.messages * 1e6
    return _row(plan, units, loaded, cpu, resident_mb, floor_us)


def _row(plan: Plan, units: Units, loaded: Loaded, cpu: float, resident_mb: float, floor_us: float | None) -> Row:
    cpu_us = cpu / loaded.messages * 1e6
    moved = loaded.messages * plan.size
    return Row(
        name=plan.name,
        messages_per_second=loaded.messages / loaded.seconds,
        megabytes_per_second=moved / loaded.seconds / 1e6,
        latency_p50_us=percentile(loaded.latencies, 0.5) * 1e6,
        latency_p99_us=percentile(loaded.latencies, 0.99) * 1e6,
        latency_max_us=max(loaded.latencies, default=0.0) * 1e6,
        cpu_us_per_message=cpu_us,
        server_resident_mb=resident_mb,
        floor_cpu_us_per_message=floor_us,
        ratio_to_floor=None if floor_us is None else floor_us / cpu_us,
    )


def _load(server: MeasuredServer, plan: Plan, units: Units) -> tuple[Loaded, float]:
    total = None if plan.messages is None else max(1, plan.messages // (units.answers * units.messages))
    return run_load(
        server.address,
        units,
        clients=plan.clients,
        in_flight=max(1, plan.in_flight // units.answers),
        websocket=plan.transport == "ws",
        seconds=plan.seconds,
        server_cpu=server.cpu_seconds,
        units_total=total,
    )


def _send_units(plan: Plan) -> Units:
    count = max(64, min(20_000, UNITS_DISTINCT_BYTES // (plan.size * plan.batch + 400)) // plan.per_message)

    def command_of(number: int) -> Command:
        return send_command(TOPIC, number % QUEUES, number, plan.size, plan.batch, plan.serialize_type)

    return encode_units(
        command_of, count, websocket=plan.transport == "ws", per_unit=plan.per_message, messages=plan.batch
    )


def _pull_units(plan: Plan, messages: int) -> Units:
    pulls = messages // PULL_COUNT

    def command_of(number: int) -> Command:
        return pull_command(TOPIC, 0, number % pulls * PULL_COUNT, number, plan.serialize_type)

    return encode_units(
        command_of,
        max(1, pulls // plan.per_message),
        websocket=plan.transport == "ws",
        per_unit=plan.per_message,
        messages=PULL_COUNT,
    )


def _fill(server: MeasuredServer, plan: Plan) -> int:
    """Put messages for the pulls into queue 0; returns how many."""
    count = max(PULL_COUNT * 64, min(64_000, UNITS_DISTINCT_BYTES * 2 // (plan.size + 200))) // PULL_COUNT * PULL_COUNT
    units = encode_units(
        lambda number: send_command(TOPIC, 0, number, plan.size, 1, SerializeType.JSON),
        count,
        websocket=False,
        per_unit=1,
        messages=1,
    )
    first = replace(units, starts=units.starts[:2])
    run_load(
        server.address, first, clients=1, in_flight=1, websocket=False, seconds=0, server_cpu=lambda: 0.0, units_total=1
    )
    rest = replace(units, starts=units.starts[1:])
    run_load(
        server.address, rest, clients=1, in_flight=256, websocket=False, seconds=0, server_cpu=lambda: 0.0,
        units_total=count - 1,
    )  # fmt: skip
    return count


def _warm_topic(server: MeasuredServer, plan: Plan, units: Units) -> bytes:
    """One unit by itself: creates the topic, and shows that the server answers it; returns the answer's bytes."""
    connection = Connection(server.address, units, 0, 1, websocket=plan.transport == "ws")
    with connection.socket:
        connection.start()
        while connection.waiting:
            connection.receive(Loaded().latencies, more=False)
        connection.check()
        return connection.last_answer


def _run_all(report: Report, seconds: float) -> None:
    base = Plan("send", "tcp", "JSON", 1024, 1, 1, 1, 64, seconds, None, floor=True)
    best: dict[tuple[str, int], Row] = {}
    for size in (10, 1024):
        for headers in ("JSON", "ROCKETMQ"):
            row = _median_run(replace(base, size=size, headers=headers))
            report.rows.append(row)
            best[headers, size] = row
            wanted = 0.08 if size == 10 else 0.15
            report.goals.append(
                Goal(
                    f"send {size} B {headers}: messages per CPU second, of the floor",
                    row.ratio_to_floor or 0,
                    ">=",
                    wanted,
                )
            )
    for size in (10, 1024):
        row = _median_run(replace(base, kind="pull", size=size, in_flight=16, floor=False))
        report.rows.append(row)
        report.goals.append(
            Goal(f"pull of {PULL_COUNT}, {size} B: messages/s, times the send rate",
                 row.messages_per_second / best["JSON", size].messages_per_second, ">=", 3)
        )  # fmt: skip
    websocket = replace(base, transport="ws", size=10, in_flight=256, floor=False)
    single = _median_run(replace(websocket, per_message=1))
    packed = _median_run(replace(websocket, per_message=64))
    report.rows += [single, packed]
    gain = packed.messages_per_second / single.messages_per_second
    report.goals.append(Goal("WebSocket: 64 commands a message, times 1", gain, ">=", 5))
    _measure_start(report)


def _median_run(plan: Plan, rounds: int = 3) -> Row:
    """The run whose ratio (or rate) is the median of `rounds`."""
    rows = [_run(plan) for _ in range(rounds)]
    rows.sort(key=lambda row: row.ratio_to_floor if row.ratio_to_floor is not None else row.messages_per_second)
    return rows[rounds // 2]


def _measure_start(report: Report, rounds: int = 5, idle_seconds: float = 10.0) -> None:
    """From the start of the process to the first acknowledged send; then an idle server's memory and CPU."""
    times: list[float] = []
    resident_mb = idle_cpu = 0.0
    plan = Plan("send", "tcp", "JSON", 10, 1, 1, 1, 1, 1, None, floor=False)
    units = _send_units(plan)
    for number in range(rounds):
        with our_server() as server:
            if number == rounds - 1:
                time.sleep(1)  # what follows a start is not idling
                cpu = server.cpu_seconds()
                time.sleep(idle_seconds)
                resident_mb = server.resident_mb()
                idle_cpu = (server.cpu_seconds() - cpu) / idle_seconds
            else:
                _warm_topic(server, plan, units)
                times.append(time.perf_counter() - server.started)
    report.goals += [
        Goal("seconds from process start to the first acknowledged send", statistics.median(times), "<=", 0.4),
        Goal("resident MB of the idle standalone", resident_mb, "<=", 45),
        Goal("idle CPU, per cent", idle_cpu * 100, "<=", 1),
    ]


if __name__ == "__main__":
    sys.exit(main())
