"""A run's figures, as a table for people and as JSON for programs."""

from __future__ import annotations

import json
import platform
import statistics
import sys
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from rich.console import Console
from rich.table import Table


@dataclass
class Row:
    """One measured run.  Times in microseconds of wall clock (latency) or server CPU; sizes in bytes."""

    name: str
    messages_per_second: float
    megabytes_per_second: float
    latency_p50_us: float
    latency_p99_us: float
    latency_max_us: float
    cpu_us_per_message: float
    server_resident_mb: float
    floor_cpu_us_per_message: float | None = None
    ratio_to_floor: float | None = None
    client_cpu_us_per_message: float | None = None


@dataclass
class Goal:
    """A figure that must be reached: `reached` compared with `wanted` by `relation`."""

    name: str
    reached: float
    relation: str
    wanted: float

    @property
    def met(self) -> bool:
        """Whether it is reached."""
        return self.reached >= self.wanted if self.relation == ">=" else self.reached <= self.wanted


@dataclass
class Comparison:
    """One load on several contenders: per contender the figures of each run, in the order of the runs.

    Figures ending in `_us` are microseconds, in `_mb` MB of 1,000,000 bytes; `cpu_us_per_message` is the server's CPU.
    """

    key: str
    title: str
    runs: dict[str, list[dict[str, float]]]

    def median(self, contender: str, figure: str) -> float | None:
        """The median of a figure over a contender's runs; None when a run lacks it."""
        values = [run[figure] for run in self.runs[contender] if figure in run]
        return statistics.median(values) if values and len(values) == len(self.runs[contender]) else None

    def ratio(self, figure: str) -> float | None:
        """Of two contenders, the first one's median over the second's; None without two such, or over 0."""
        if len(self.runs) != 2:
            return None
        first, second = (self.median(contender, figure) for contender in self.runs)
        return first / second if first is not None and second else None

    def as_dict(self) -> dict[str, object]:
        """With medians and ratios, for JSON."""
        figures = sorted({figure for runs in self.runs.values() for run in runs for figure in run})
        medians = {contender: {figure: self.median(contender, figure) for figure in figures} for contender in self.runs}
        ratios = {figure: self.ratio(figure) for figure in figures} if len(self.runs) == 2 else {}
        return {"key": self.key, "title": self.title, "medians": medians, "ratios": ratios, "runs": self.runs}


@dataclass
class Report:
    """All rows, comparisons and goals of one call."""

    machine: str = field(default_factory=lambda: f"{platform.machine()}, Python {platform.python_version()}")
    rows: list[Row] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """What could not be measured, and why."""

    def print(self) -> None:
        """The tables, to stdout."""
        console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160)
        if self.rows:
            table = Table("run", *_NUMBER_TITLES, title=self.machine)
            for column in table.columns[1:]:
                column.justify = "right"
            for row in self.rows:
                table.add_row(row.name, *_numbers(row))
            console.print(table)
        if self.comparisons:
            console.print(comparison_table(self.comparisons, self.machine))
        if self.goals:
            goals = Table("must reach", "reached", "wanted", "")
            for goal in self.goals:
                wanted = f"{goal.relation} {goal.wanted:g}"
                goals.add_row(goal.name, f"{goal.reached:.3f}", wanted, "met" if goal.met else "MISSED")
            console.print(goals)
        for failure in self.failures:
            console.print(f"NOT MEASURED: {failure}", markup=False)

    def as_json(self) -> str:
        """Everything as one JSON object."""
        goals = [{**asdict(goal), "met": goal.met} for goal in self.goals]
        rows = [asdict(row) for row in self.rows]
        told: dict[str, object] = {"machine": self.machine, "rows": rows, "goals": goals}
        if self.comparisons:
            told["failures"] = self.failures
            told["comparisons"] = [comparison.as_dict() for comparison in self.comparisons]
        return json.dumps(told, indent=2) + "\n"


_NUMBER_TITLES = (
    "messages/s",
    "MB/s",
    "p50 us",
    "p99 us",
    "max us",
    "CPU us/msg",
    "RSS MB",
    "floor us/msg",
    "of floor",
    "client us/msg",
)


def _numbers(row: Row) -> list[str]:
    floor = "" if row.floor_cpu_us_per_message is None else f"{row.floor_cpu_us_per_message:.2f}"
    ratio = "" if row.ratio_to_floor is None else f"{row.ratio_to_floor:.3f}"
    return [
        f"{row.messages_per_second:,.0f}",
        f"{row.megabytes_per_second:.1f}",
        f"{row.latency_p50_us:,.0f}",
        f"{row.latency_p99_us:,.0f}",
        f"{row.latency_max_us:,.0f}",
        f"{row.cpu_us_per_message:.2f}",
        f"{row.server_resident_mb:.1f}",
        floor,
        ratio,
        "" if row.client_cpu_us_per_message is None else f"{row.client_cpu_us_per_message:.1f}",
    ]


COMPARED = (
    ("messages_per_second", "messages/s", "{:,.0f}"),
    ("p50_us", "p50 us", "{:,.0f}"),
    ("p99_us", "p99 us", "{:,.0f}"),
    ("p999_us", "p99.9 us", "{:,.0f}"),
    ("cpu_us_per_message", "CPU ms / 1,000", "{:.2f}"),
    ("resident_mb", "RSS MB", "{:,.1f}"),
    ("anonymous_mb", "of it no file's", "{:,.1f}"),
    ("ready_seconds", "ready s", "{:.2f}"),
)
"""(figure, its title, how it is written) of a table of comparisons."""


def compared_cells(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """Per contender, and then for the ratio of two, the cells of a row as in COMPARED; "" for no figure."""
    lines = []
    for contender in comparison.runs:
        medians = [(comparison.median(contender, figure), form) for figure, _, form in COMPARED]
        lines.append((contender, ["" if value is None else form.format(value) for value, form in medians]))
    if len(comparison.runs) == 2:
        ratios = [comparison.ratio(figure) for figure, _, _ in COMPARED]
        lines.append(("ratio", ["" if value is None else f"{value:.3f}" for value in ratios]))
    return lines


def comparison_table(comparisons: Sequence[Comparison], machine: str) -> Table:
    """The medians of each contender and their ratios."""
    table = Table("load", "server", *(title for _, title, _ in COMPARED), title=machine)
    for column in table.columns[2:]:
        column.justify = "right"
    for comparison in comparisons:
        cells_of = compared_cells(comparison)
        for number, (name, cells) in enumerate(cells_of):
            table.add_row("" if number else comparison.title, name, *cells, end_section=number == len(cells_of) - 1)
    return table


def percentile(values: Sequence[float] | array[float], share: float) -> float:
    """The value that `share` of `values` do not exceed; 0 without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0
