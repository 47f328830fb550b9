"""What `scripts/bench versus` makes of its figures: medians, ratios, bars, and the page and the picture of them."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from benchmark.load import BenchmarkError
from benchmark.report import Comparison, Goal, Report
from benchmark.versus.command import ROWS
from benchmark.versus.document import report_markdown, write_into_document
from benchmark.versus.loads import LOADS, measuring
from benchmark.versus.picture import picture

ROOT = Path(__file__).parents[1]


def two() -> Comparison:
    rates = {"ours": (30.0, 90.0, 60.0), "theirs": (40.0, 10.0, 30.0)}
    return Comparison(
        "k",
        "64 threads <1 KB>",
        {name: [{"messages_per_second": rate, "p99_us": 1e6 / rate} for rate in some] for name, some in rates.items()},
    )


def test_a_ratio_is_one_of_medians() -> None:
    comparison = two()
    assert comparison.median("ours", "messages_per_second") == 60
    assert comparison.ratio("messages_per_second") == 2
    assert comparison.ratio("p99_us") == pytest.approx(0.5)
    assert comparison.ratio("resident_mb") is None
    comparison.runs["ours"][1].pop("p99_us")
    assert comparison.ratio("p99_us") is None, "a run that lacks a figure leaves no median"
    comparison.runs["a third"] = comparison.runs["ours"]
    assert comparison.ratio("messages_per_second") is None, "of three there is no ratio"


def test_the_picture_is_svg_with_a_bar_a_ratio() -> None:
    root = ElementTree.fromstring(picture(Report(comparisons=[two()])))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "64 threads <1 KB>" in texts
    assert "ours : theirs" in texts
    assert {"2.00", "0.50"} <= set(texts)


def test_the_page_keeps_what_stands_around_the_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- versus: begin -->\nold\n<!-- versus: end -->\nafter\n")
    report = Report(comparisons=[two()], goals=[Goal("speed", 2.0, ">=", 1.5), Goal("p99", 0.5, "<=", 0.4)])
    write_into_document(report_markdown(report, "ratios.svg"), page, "versus")
    write_into_document(report_markdown(report, "ratios.svg"), page, "versus")  # again: nothing grows
    text = page.read_text()
    assert text.startswith("before\n<!-- versus: begin -->\n")
    assert text.endswith("<!-- versus: end -->\nafter\n")
    assert "old" not in text
    assert text.count("| speed | 2.000 | >= 1.5 | met |") == 1
    assert "| p99 | 0.500 | <= 0.4 | MISSED |" in text
    assert "![ratios](ratios.svg)" in text
    with pytest.raises(BenchmarkError, match="profile x: begin"):
        write_into_document("", page, "profile x")


def test_a_row_that_fails_is_told_and_the_next_one_measured(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report()
    written: list[int] = []
    for key in ("first", "second"):
        with measuring(report, key, lambda: written.append(len(report.comparisons))):
            if key == "first":
                raise BenchmarkError("it was [refused]")
            report.comparisons.append(two())
    assert report.failures == ["first: it was [refused]"]
    assert written == [0, 1]
    report.print()
    assert "NOT MEASURED: first: it was [refused]" in capsys.readouterr().out


def test_the_page_about_performance_has_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text((ROOT / "docs" / "performance.md").read_text())
    for what in ("versus", "profile threads64", "profile thread1", "profile backlog"):
        write_into_document("", page, what)


def test_every_row_has_its_own_name_and_every_load_a_bar() -> None:
    assert len(set(ROWS)) == len(ROWS)
    for load in LOADS:
        assert load.key == "idle" or any((load.throughput, load.p99, load.cpu)), load.key
