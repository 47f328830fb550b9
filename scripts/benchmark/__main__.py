"""`scripts/bench send`, `pull`, `producer`, `consumer`, `later`, `delay`, `embedded`, `store`, `versus`, `all`."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmark.consumers import run_consumers
from benchmark.delay import run_delay
from benchmark.embedded import SUITE_TESTS, run_embedded
from benchmark.frames import PULL_COUNT
from benchmark.later import run_later
from benchmark.load import BenchmarkError
from benchmark.producer import run_producers
from benchmark.report import Goal, Report, Row
from benchmark.runs import Plan, median_run, run, send_units, warm_topic
from benchmark.servers import our_server
from benchmark.store import PARTS, run_store
from benchmark.versus.command import add_versus_options, run_versus


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; 0, or 1 when a goal of `all` is missed, or 2 when something could not be measured."""
    options = _parser().parse_args(words)
    report = Report()
    try:
        if options.command == "all":
            _run_all(report, options.seconds)
        elif options.command == "versus":
            run_versus(report, options)
        elif options.command == "producer":
            run_producers(report, seconds=options.seconds, tasks=options.tasks, rounds=options.rounds)
        elif options.command == "later":
            run_later(report, pending=options.messages, seconds=options.seconds)
        elif options.command == "delay":
            run_delay(report, seconds=options.seconds)
        elif options.command == "embedded":
            run_embedded(report, tests=options.tests)
        elif options.command == "consumer":
            run_consumers(report, seconds=options.seconds, messages=options.messages, rounds=options.rounds)
        elif options.command == "store":
            with TemporaryDirectory(prefix="bench-store-", dir=options.folder) as folder:
                run_store(
                    report,
                    Path(folder),
                    seconds=options.seconds,
                    depth=options.messages,
                    size=options.bytes,
                    queues=options.queues,
                    parts=options.part or PARTS,
                )
        else:
            report.rows.append(run(_plan(options)))
    except BenchmarkError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    report.print()
    if options.json == "-":
        print(report.as_json(), end="")
    elif options.json:
        Path(options.json).write_text(report.as_json())
    if report.failures:
        return 2
    return 0 if all(goal.met for goal in report.goals) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measures a standalone server of this clone.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, about in (
        ("send", "pipelined sends"),
        ("pull", f"pulls of {PULL_COUNT}"),
        ("producer", "our own producer beside ready-made frames, on Trio and on asyncio, and the figures to reach"),
        ("consumer", "our own push consumer beside ready-made pulls, on Trio and on asyncio, and the figures to reach"),
        ("later", "transactions beside plain sends, timers: memory, a burst, lateness"),
        ("delay", "messages with a delay level: a burst, lateness"),
        ("embedded", "brokers inside tests: the first one's start, and a suite with one for each test"),
        ("all", "the figures to reach"),
        ("store", "the store by itself: appends, syncs, depth and width, restarts"),
        ("versus", "Apache 4.9.7 and this clone in turn under Apache's Java client, and the ratios to reach"),
    ):
        command = commands.add_parser(name, help=about)
        command.add_argument("--json", metavar="FILE", help="write the figures there as JSON; - prints them")
        if name == "versus":
            add_versus_options(command)
            continue
        if name == "embedded":
            command.add_argument("--tests", type=int, default=SUITE_TESTS, help=f"(default {SUITE_TESTS})")
            continue
        command.add_argument("--seconds", type=float, default=3.0, help="measured time of a run (default 3)")
        if name == "store":
            command.add_argument(
                "--messages", type=int, default=10_000_000, help="messages of the depth (default 10 million)"
            )
            command.add_argument("--bytes", type=int, default=20, help="size of the depth's bodies (default 20)")
            command.add_argument("--queues", type=int, default=50_000, help="width (default 50,000)")
            command.add_argument(
                "--part", choices=PARTS, action="append", help="only this part; may be given again (default: all)"
            )
            command.add_argument("--folder", help="where the stores are made (default: the folder for temporary files)")
        if name == "producer":
            command.add_argument("--tasks", type=int, default=64, help="tasks that send at once (default 64)")
            command.add_argument("--rounds", type=int, default=3, help="a figure is the median of so many (default 3)")
        if name == "consumer":
            command.add_argument("--messages", type=int, default=200_000, help="the backlog (default 200,000)")
            command.add_argument("--rounds", type=int, default=3, help="a figure is the median of so many (default 3)")
        if name == "later":
            command.add_argument("--messages", type=int, default=1_000_000, help="timers that wait (default 1 million)")
        if name in ("all", "store", "producer", "consumer", "later", "delay"):
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
        command.add_argument("--queues", type=int, default=4, help="sends go to so many queues in turn (default 4)")
        command.add_argument("--no-floor", action="store_true", help="leave the floor out")
        command.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings of the server")
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
        queues=options.queues,
        settings=tuple(options.settings),
    )


def _run_all(report: Report, seconds: float) -> None:
    base = Plan("send", "tcp", "JSON", 1024, 1, 1, 1, 64, seconds, None, floor=True)
    best: dict[tuple[str, int], Row] = {}
    for size in (10, 1024):
        for headers in ("JSON", "ROCKETMQ"):
            row = median_run(replace(base, size=size, headers=headers))
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
        row = median_run(replace(base, kind="pull", size=size, in_flight=16, floor=False))
        report.rows.append(row)
        report.goals.append(
            Goal(f"pull of {PULL_COUNT}, {size} B: messages/s, times the send rate",
                 row.messages_per_second / best["JSON", size].messages_per_second, ">=", 3)
        )  # fmt: skip
    websocket = replace(base, transport="ws", size=10, in_flight=256, floor=False)
    single = median_run(replace(websocket, per_message=1))
    packed = median_run(replace(websocket, per_message=64))
    report.rows += [single, packed]
    gain = packed.messages_per_second / single.messages_per_second
    report.goals.append(Goal("WebSocket: 64 commands a message, times 1", gain, ">=", 5))
    _measure_start(report)


def _measure_start(report: Report, rounds: int = 5, idle_seconds: float = 10.0) -> None:
    """From the start of the process to the first acknowledged send; then an idle server's memory and CPU."""
    times: list[float] = []
    resident_mb = idle_cpu = 0.0
    plan = Plan("send", "tcp", "JSON", 10, 1, 1, 1, 1, 1, None, floor=False)
    units = send_units(plan)
    for number in range(rounds):
        with our_server() as server:
            if number == rounds - 1:
                time.sleep(1)  # what follows a start is not idling
                cpu = server.cpu_seconds()
                time.sleep(idle_seconds)
                resident_mb = server.resident_mb()
                idle_cpu = (server.cpu_seconds() - cpu) / idle_seconds
            else:
                warm_topic(server, plan, units)
                times.append(time.perf_counter() - server.started)
    report.goals += [
        Goal("seconds from process start to the first acknowledged send", statistics.median(times), "<=", 0.4),
        Goal("resident MB of the idle standalone", resident_mb, "<=", 45),
        Goal("idle CPU, per cent", idle_cpu * 100, "<=", 1),
    ]


if __name__ == "__main__":
    sys.exit(main())
