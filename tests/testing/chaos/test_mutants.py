"""Builds broken on purpose are caught, each by the invariant that it breaks; run by `scripts/test -m chaos`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trio_rmq.testing.chaos.front import run_all
from trio_rmq.testing.chaos.mutants import MUTANTS
from trio_rmq.testing.chaos.scenario import ClusterShape, Fault, Kind, Scenario, Workload
from trio_rmq.testing.chaos.systems import OurSystem

pytestmark = pytest.mark.chaos

KILL = Fault(do="kill", at=2.5, seconds=0.2)
POWER = Fault(do="power", at=2.5, seconds=0.2)
SLOW_SYNCS = Fault(do="slow_disk", at=0.5, seconds=6.0, delay_seconds=0.5)

CAUGHT: list[tuple[str, str, Kind, list[Fault], dict[str, Any]]] = [
    ("acknowledge before write", "lost", "plain", [KILL], {}),
    ("acknowledge before sync", "lost", "plain", [SLOW_SYNCS, POWER], {"flush": "SYNC_FLUSH", "track_unsynced": True}),
    ("drop offset commits", "progress", "plain", [KILL], {}),
    ("skip a write", "lost", "plain", [KILL], {}),
    ("deliver early", "delays", "delays", [KILL], {}),
]
"""Mutant, the invariant that catches it, workload, faults, the cluster's shape."""


def run(name: str, kind: Kind, faults: list[Fault], shape: dict[str, Any], folder: Path) -> dict[str, str]:
    """The state of each invariant after a short run."""
    scenario = Scenario(
        name=name, seconds=6, settle_seconds=20, recovery_seconds=60, cluster=ClusterShape(**shape),
        workload=[Workload(kind=kind, rate=30)], fault=faults,
    )  # fmt: skip
    (result,) = run_all([scenario], [OurSystem()], seed=2, folder=str(folder))
    return {verdict.invariant: verdict.state for verdict in result.verdicts}


def test_each_mutant_has_its_run() -> None:
    assert {mutant for mutant, *_ in CAUGHT} == set(MUTANTS)


@pytest.mark.parametrize(("mutant", "invariant", "kind", "faults", "shape"), CAUGHT)
def test_a_mutant_is_caught_and_the_sound_build_is_not(
    mutant: str, invariant: str, kind: Kind, faults: list[Fault], shape: dict[str, Any], tmp_path: Path
) -> None:
    assert run(mutant, kind, faults, {**shape, "mutants": [mutant]}, tmp_path)[invariant] == "broken"
    assert "broken" not in run("sound", kind, faults, shape, tmp_path).values()
