"""A run's figures, as a table for people and as JSON for programs."""

from __future__ import annotations

import json
import platform
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
class Report:
    """All rows and goals of one call."""

    machine: str = field(default_factory=lambda: f"{platform.machine()}, Python {platform.python_version()}")
    rows: list[Row] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)

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
        if self.goals:
            goals = Table("must reach", "reached", "wanted", "")
            for goal in self.goals:
                wanted = f"{goal.relation} {goal.wanted:g}"
                goals.add_row(goal.name, f"{goal.reached:.3f}", wanted, "met" if goal.met else "MISSED")
            console.print(goals)

    def as_json(self) -> str:
        """Everything as one JSON object."""
        goals = [{**asdict(goal), "met": goal.met} for goal in self.goals]
        rows = [asdict(row) for row in self.rows]
        return json.dumps({"machine": self.machine, "rows": rows, "goals": goals}, indent=2) + "\n"


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


def percentile(values: Sequence[float] | array[float], share: float) -> float:
    """The value that `share` of `values` do not exceed; 0 without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0
