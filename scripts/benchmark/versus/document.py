"""Tables as Markdown, put into a page between two marks, so that no figure is copied by hand."""

from __future__ import annotations

from pathlib import Path

from benchmark.load import BenchmarkError
from benchmark.report import COMPARED, Report, compared_cells


def write_into_document(text: str, path: Path, what: str) -> None:
    """Replace what stands between the marks of `what`; BenchmarkError when they are not there."""
    begin_mark, end_mark = f"<!-- {what}: begin -->", f"<!-- {what}: end -->"
    page = path.read_text()
    before, begin, rest = page.partition(begin_mark)
    _, end, after = rest.partition(end_mark)
    if not begin or not end:
        raise BenchmarkError(f"{path} has no {begin_mark} followed by {end_mark}: put both where this belongs")
    path.write_text(f"{before}{begin_mark}\n{text}{end_mark}{after}")


def report_markdown(report: Report, picture: str | None) -> str:
    """The conditions, the medians with their ratios, the bars, and the picture at that path."""
    lines = [f"{report.machine}.", ""]
    if picture is not None:
        lines += [f"![ratios]({picture})", ""]
    lines += markdown_table(
        ["load", "server", *(title for _, title, _ in COMPARED)],
        [
            ["" if number else comparison.title, name, *cells]
            for comparison in report.comparisons
            for number, (name, cells) in enumerate(compared_cells(comparison))
        ],
        words=2,
    )
    lines.append("")
    lines += markdown_table(
        ["must reach", "reached", "wanted", ""],
        [
            [goal.name, f"{goal.reached:.3f}", f"{goal.relation} {goal.wanted:g}", "met" if goal.met else "MISSED"]
            for goal in report.goals
        ],
        words=1,
    )
    return "\n".join(lines) + "\n"


def markdown_table(titles: list[str], rows: list[list[str]], *, words: int) -> list[str]:
    """A Markdown table whose first `words` columns are text and the others numbers."""
    rule = ["---" if column < words else "--:" for column in range(len(titles))]
    return ["| " + " | ".join(cells) + " |" for cells in (titles, rule, *rows)]
