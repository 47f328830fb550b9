"""`trio-rmq chaos run`: scenarios of faults against real server processes, with a live view and a report.

Only parsing and printing; `testing.chaos` does the work, and is loaded by this command alone.  Exit status: 0 every
promise was kept; 1 one was broken; 2 wrong usage, or a scenario or machine that does not do; 130 interrupted.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from trio_rmq.cli.logs import set_up_logging
from trio_rmq.errors import ConfigError

if TYPE_CHECKING:
    from trio_rmq.testing.chaos.front import Result, Stage

EVENTS_SHOWN = 8
EVIDENCE_SHOWN = 3
_TOLD = ("up", "down", "ends", "fault", "fault over", "fault failed", "power", "half open", "reset", "filled", "healed")
_STYLES = {"kept": "green", "broken": "bold red", "not exercised": "dim"}

chaos_app = typer.Typer(
    name="chaos",
    help="Torment real servers as a scenario says, and judge what they promised.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@chaos_app.callback()
def _chaos() -> None:
    """Torment real servers as a scenario says, and judge what they promised."""


@chaos_app.command()
def run(
    scenarios: Annotated[list[Path], typer.Argument(metavar="SCENARIO.toml...", help="what is to happen")],
    seed: Annotated[int, typer.Option(help="chooses what the scenarios leave open")] = 1,
    system: Annotated[str, typer.Option(help="ours, apache or both: one report compares them")] = "ours",
    apache_jars: Annotated[
        str | None, typer.Option(metavar="DIR", help="Apache's server jars (default: $RMQ_APACHE_JARS)")
    ] = None,
    report: Annotated[str, typer.Option(metavar="FILE", help="the HTML report")] = "chaos-report.html",
    keep: Annotated[
        str | None, typer.Option(metavar="DIR", help="keep histories, verdicts, stores and the servers' output there")
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="only print what would happen")] = False,
    json: Annotated[bool, typer.Option("--json", help="print the verdicts as JSON lines, and no live view")] = False,
) -> None:
    """Run scenarios against servers, one after another; the exit status tells the verdict."""
    from trio_rmq.testing.chaos import front

    loaded = [front.load_scenario(path) for path in scenarios]
    if plan:
        for scenario in loaded:
            print(f"{scenario.name}, seed {seed}")
            print("\n".join(front.plan_lines(scenario, seed)))
        return
    systems = front.find_systems(system, apache_jars)
    with _place(keep) as folder, _View(live=not json and sys.stdout.isatty()) as view:
        set_up_logging("INFO", os.path.join(folder, "clients.log"))
        results = front.run_all(
            loaded, systems, seed=seed, folder=folder, watcher=view.show, done=_print_json if json else view.done
        )
    front.write_report(results, report)
    if not json:
        print(f"report  {report}")
    if any(result.broken for result in results):
        raise typer.Exit(1)


@contextmanager
def _place(keep: str | None) -> Iterator[str]:
    """The folder for all files: the one named, or one that goes at the end."""
    if keep is not None:
        if os.path.exists(keep) and os.listdir(keep):
            raise ConfigError(f"--keep {keep} is not empty: name a new folder")
        os.makedirs(keep, exist_ok=True)
        yield keep
        return
    folder = tempfile.mkdtemp(prefix="trio-rmq-chaos-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _print_json(result: Result) -> None:
    import msgspec

    verdicts = {"scenario": result.scenario, "system": result.system, "seed": result.seed, "verdicts": result.verdicts}
    print(msgspec.json.encode({**verdicts, "impossible": result.impossible}).decode(), flush=True)


class _View:
    """What is seen while it runs; a context manager.  Without a terminal only what ended is printed."""

    def __init__(self, *, live: bool) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._live = Live(console=self._console, refresh_per_second=4, transient=True) if live else None

    def __enter__(self) -> _View:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, stage: Stage) -> None:
        """Draw how a run stands."""
        if self._live is not None:
            self._live.update(_stage_view(stage))

    def done(self, result: Result) -> None:
        """Print a run's verdicts."""
        console = self._console
        console.print(f"[bold]{result.scenario}[/] with {result.system}, seed {result.seed}, {result.seconds:.0f} s")
        for verdict in result.verdicts:
            state = Text(f"  {verdict.state:14}", style=_STYLES[verdict.state])
            console.print(state, Text(f"{verdict.invariant:13}{verdict.counted}"))
            for sentence in verdict.evidence[:EVIDENCE_SHOWN]:
                console.print(Text(f"                 {sentence}"))
            if verdict.broken > EVIDENCE_SHOWN:
                console.print(Text(f"                 and {verdict.broken - EVIDENCE_SHOWN} more"))
        for reason in result.impossible:
            console.print(Text(f"  not possible   {reason}"))


def _stage_view(stage: Stage) -> Group:
    """The run in a few lines: servers, counts, the newest events."""
    counts = Counter(event.what for event in stage.events)
    servers = Text("  ")
    for name, up in stage.up.items():
        servers.append(f"{name} {'up' if up else 'down'}  ", style="green" if up else "red")
    numbers = Table.grid(padding=(0, 2))
    numbers.add_row("sent", "acknowledged", "refused", "no answer", "consumed")
    numbers.add_row(*(str(counts[what]) for what in ("invoke", "ok", "refused", "info", "consumed")))
    newest = [event for event in stage.events if event.what in _TOLD][-EVENTS_SHOWN:]
    lines = Text()
    for event in newest:
        lines.append(f"  {event.time_us / 1e6:7.2f} s  {event.process} {event.what} {_words(event.value)}\n")
    return Group(Text(f"{stage.system}: {stage.phase}, {stage.seconds:.0f} s", style="bold"), servers, numbers, lines)


def _words(value: dict[str, object]) -> str:
    return " ".join(str(part) for key, part in value.items() if key in ("do", "target", "status", "reason"))[:100]
