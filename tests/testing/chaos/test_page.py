"""docs/chaos.md: its scenario and program are files that work, and its tables name what there is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

from trio_rmq.testing.chaos.faults import FAULTS
from trio_rmq.testing.chaos.judge import TITLES
from trio_rmq.testing.chaos.loading import load_scenario
from trio_rmq.testing.chaos.scenario import Kind, make_plan

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "chaos.md").read_text()


def test_the_scenario_on_the_page_is_the_file_and_has_a_plan() -> None:
    path = DOCS / "examples" / "chaos.toml"
    (shown,) = re.findall(r"```toml\n(.+?)```", PAGE, re.DOTALL)
    assert shown == path.read_text()
    assert [strike.do for strike in make_plan(load_scenario(path), 1)] == ["kill", "cut"]


def test_every_fault_workload_and_promise_is_on_the_page() -> None:
    rows = re.findall(r"^\| (`.+?) \|", PAGE, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(FAULTS)
    (workloads,) = re.findall(r"\*\*Workloads\.\*\* (.+?)\n\n", PAGE, re.DOTALL)
    assert set(re.findall(r"`(\w+)`", workloads)) == set(get_args(Kind))
    assert f"**Promises.** {', '.join(TITLES)}:" in PAGE


def test_the_lines_of_the_program_on_the_page_are_the_files() -> None:
    (shown,) = re.findall(r"```python\n(.+?)```", PAGE, re.DOTALL)
    program = (DOCS / "examples" / "chaos_cluster.py").read_text()
    lines = [line.strip() for line in shown.splitlines()]
    assert [line for line in lines if line not in program and "change(delay_seconds" not in line] == []


def test_the_program_works(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", str(DOCS / "examples" / "chaos_cluster.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "killed: SEND_OK",
        "cut off: not acknowledged",
        "slow disk: SEND_OK",
        "syncs that were slow: True",
    ]
