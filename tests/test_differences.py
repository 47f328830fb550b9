"""protocol/differences.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = [
    [cell.strip() for cell in line.strip().strip("|").split("|")]
    for line in (ROOT / "protocol" / "differences.md").read_text().splitlines()
    if re.match(r"\| \d+ \|", line)
]


def test_rows_are_numbered_in_order() -> None:
    assert [int(row[0]) for row in ROWS] == list(range(1, len(ROWS) + 1))


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_each_row_is_held_by_a_test_or_not_built_yet(row: list[str]) -> None:
    held = row[-1]
    if held == "not built yet":
        return
    path, _, name = held.partition("::")
    source = (ROOT / path).read_text()
    assert not name or re.search(rf"def {name}\(", source), f"{path} has no {name}"
