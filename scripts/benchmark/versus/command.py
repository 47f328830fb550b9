"""`scripts/bench versus`: its options, and the rows in their order."""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
from pathlib import Path

from benchmark.load import BenchmarkError
from benchmark.report import Report
from benchmark.versus.document import report_markdown, write_into_document
from benchmark.versus.loads import LOADS, Terms, run_loads
from benchmark.versus.own import OWN_ROWS, run_own
from benchmark.versus.peers import PEERS, run_peers
from benchmark.versus.picture import picture
from benchmark.versus.profile import profile

ROWS = (*(load.key for load in LOADS), *OWN_ROWS)


def add_versus_options(command: argparse.ArgumentParser) -> None:
    """What `versus` takes beside --json."""
    command.add_argument(
        "--rows", default=",".join(ROWS), metavar="NAME,...", help=f"rows to run, of {', '.join(ROWS)} (default: all)"
    )
    command.add_argument("--peer", default="", metavar="NAME,...", help="Python clients' servers too: redis, nats")
    command.add_argument("--rounds", type=int, default=5, help="a figure is the median of so many (default 5)")
    command.add_argument("--seconds", type=int, default=10, help="measured time of a run (default 10)")
    command.add_argument("--warm-up", type=int, default=5, help="seconds of load before it (default 5)")
    command.add_argument("--queues", type=int, default=8, help="queues of the topic (default 8)")
    command.add_argument("--backlog", type=int, default=500_000, help="messages of the row backlog (default 500,000)")
    command.add_argument("--rate", type=int, help="messages/s of half-rate (default: half of Apache's in this call)")
    command.add_argument("--folder", help="where the stores are made (default: the folder for temporary files)")
    command.add_argument("--profile", metavar="ROW", help="where our server's time goes under that row's load, instead")
    command.add_argument("--picture", metavar="FILE", help="draw the ratios there, as SVG")
    command.add_argument(
        "--document", metavar="FILE", help="put tables and picture between the marks of that Markdown file"
    )


def run_versus(report: Report, options: argparse.Namespace) -> None:
    """Run the chosen rows; files asked for are written anew after each, so that a run cut short leaves what it had."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that servers and stores are removed
    chosen, peers = _words(options.rows, ROWS), _words(options.peer, PEERS)
    terms = Terms(
        options.rounds, options.seconds, options.warm_up, options.queues, options.backlog, options.folder, options.rate
    )

    if options.profile:
        profile(options.profile, terms, None if options.document is None else Path(options.document))
        return
    report.machine += (
        f", {os.cpu_count()} processors, {platform.system()} {platform.release()}; {terms.rounds} rounds of "
        f"{terms.seconds} s after {terms.warm_seconds} s, {terms.queues} queues"
    )

    def done() -> None:
        if options.json not in (None, "-"):
            Path(options.json).write_text(report.as_json())
        if options.picture:
            Path(options.picture).write_text(picture(report))
        if options.document:
            page = Path(options.document)
            shown = os.path.relpath(options.picture, page.parent) if options.picture else None
            write_into_document(report_markdown(report, shown), page, "versus")

    run_loads(report, chosen, terms, done)
    run_own(report, chosen, terms, done)
    run_peers(report, peers, terms, done)


def _words(text: str, known: tuple[str, ...]) -> list[str]:
    words = [word for word in text.split(",") if word]
    for word in words:
        if word not in known:
            raise BenchmarkError(f"{word!r} is none of {', '.join(known)}")
    return words
