"""The smallest chaos scenario with Apache's servers and ours, in one report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.interop.peers import JAVA_IT, jars

pytestmark = pytest.mark.interop

SCENARIO = Path(__file__).parents[1] / "scenarios" / "kill-and-go-on.toml"


def test_both_systems_are_judged_in_one_report(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "trio_rmq.cli.main", "chaos", "run", str(SCENARIO), "--system", "both", "--json",
        "--report", str(tmp_path / "report.html"),
    ]  # fmt: skip
    environment = {**os.environ, "RMQ_APACHE_JARS": str(jars(JAVA_IT, "pom-server.xml"))}
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False, env=environment)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [run["system"] for run in told] == ["trio-rmq", "Apache 4.9.7"], done.stderr
    for run in told:
        states = {verdict["invariant"]: verdict["state"] for verdict in run["verdicts"]}
        assert states["lost"] == states["delivered"] == states["liveness"] == "kept", run
    assert "<th>trio-rmq</th><th>Apache 4.9.7</th>" in (tmp_path / "report.html").read_text()
