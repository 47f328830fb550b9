"""A test suite in another language, run against `trio-rmq testing serve`: Go's, on Apache's Go client."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.interop.peers import HERE, need

pytestmark = pytest.mark.interop

EXAMPLE = HERE.parents[1] / "docs" / "examples" / "testing" / "orders_test.go"


def test_a_go_suite_has_a_broker_of_its_own(tmp_path: Path) -> None:
    for source in (HERE / "go" / "go.mod", HERE / "go" / "go.sum", EXAMPLE):
        shutil.copy(source, tmp_path)
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "trio-rmq").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m trio_rmq.cli.main "$@"\n')
    (commands / "trio-rmq").chmod(0o755)
    environment = {**os.environ, "PATH": f"{commands}:{os.environ['PATH']}"}
    ran = subprocess.run(
        [need("go"), "test", "-v", "-count=1", "."],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "--- PASS: TestOrdersArrive" in ran.stdout
