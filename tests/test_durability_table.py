"""docs/durability.md says of every cell what it is, and names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "durability.md").read_text()
CELLS = [
    cell.strip()
    for line in TEXT.splitlines()
    if line.startswith("|") and "---" not in line
    for cell in line.strip("|").split("|")[1:]
]
NAMED = sorted({*re.findall(r"`(tests/[\w/]+\.py::\w+)`", TEXT)})
HEADINGS = {"the process dies", "the system dies, or the power fails", "the disk is lost", "where it is shown"}


@pytest.mark.parametrize("named", NAMED)
def test_a_named_test_exists(named: str) -> None:
    path, _, name = named.partition("::")
    assert re.search(rf"def {name}\(", (ROOT / path).read_text()), f"{path} has no {name}"


def test_every_cell_says_what_it_is_and_which_test_shows_it() -> None:
    assert len(CELLS) > 30
    for cell in CELLS:
        if cell not in HEADINGS:
            assert re.match(r"(kept|may be lost|lost)\b.*: `tests/[\w/]+\.py::test_\w+`$", cell), cell
