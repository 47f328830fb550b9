"""The tables as Markdown, put into a page between two marks."""

from __future__ import annotations

from pathlib import Path

from benchmark.load import BenchmarkError
from benchmark.report import COMPARED, Report, compared_cells

BEGIN, END = "<!-- versus: begin -->", "<!-- versus: end -->"


def write_into_document(report: Report, path: Path) -> None:
    """Replace what stands between the marks; BenchmarkError when they are not there."""
    text = path.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise BenchmarkError(f"{path} has no {BEGIN} followed by {END}: put both where the tables belong")
    path.write_text(f"{before}{BEGIN}\n{markdown(report)}{END}{after}")


def markdown(report: Report) -> str:
    """The conditions, the medians with their ratios, and the bars."""
    lines = [f"{report.machine}.", ""]
    lines += _table(
        ["load", "server", *(title for _, title, _ in COMPARED)],
        [
            ["" if number else comparison.title, name, *cells]
            for comparison in report.comparisons
            for number, (name, cells) in enumerate(compared_cells(comparison))
        ],
        words=2,
    )
    lines.append("")
    lines += _table(
        ["must reach", "reached", "wanted", ""],
        [
            [goal.name, f"{goal.reached:.3f}", f"{goal.relation} {goal.wanted:g}", "met" if goal.met else "MISSED"]
            for goal in report.goals
        ],
        words=1,
    )
    return "\n".join(lines) + "\n"


def _table(titles: list[str], rows: list[list[str]], *, words: int) -> list[str]:
    """A Markdown table whose first `words` columns are text and the others numbers."""
    rule = ["---" if column < words else "--:" for column in range(len(titles))]
    return ["| " + " | ".join(cells) + " |" for cells in (titles, rule, *rows)]
