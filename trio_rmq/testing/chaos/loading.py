"""Reads a scenario's file, strictly, and checks what no single field can tell."""

from __future__ import annotations

from pathlib import Path

import msgspec

from trio_rmq.errors import ConfigError
from trio_rmq.testing.chaos.faults import FAULTS
from trio_rmq.testing.chaos.scenario import Scenario


def load_scenario(path: str | Path) -> Scenario:
    """The scenario in the file; ConfigError names the file and what is wrong in it."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"the scenario {path} cannot be read: {error.strerror}") from None
    try:
        scenario = msgspec.toml.decode(content, type=Scenario)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"the scenario {path}: {error}") from None
    check_scenario(scenario, str(path))
    return scenario


def check_scenario(scenario: Scenario, where: str) -> None:
    """ConfigError for what no single field can tell."""
    for fault in scenario.fault:
        if fault.do not in FAULTS:
            raise ConfigError(f"{where}: no fault is called {fault.do!r}: choose among {', '.join(sorted(FAULTS))}")
        if FAULTS[fault.do].on_edge != ("->" in fault.target):
            wanted = "an edge like producers->broker-a" if FAULTS[fault.do].on_edge else "a server like broker-a"
            raise ConfigError(f"{where}: {fault.do} is for {wanted}, not for {fault.target!r}")
        if fault.do == "power" and not scenario.cluster.track_unsynced:
            raise ConfigError(f"{where}: power needs track_unsynced = true in [cluster]")
        if fault.do == "fill_disk" and not scenario.cluster.disk_bytes:
            raise ConfigError(f"{where}: fill_disk needs disk_bytes in [cluster]: a disk of its own")
    if not scenario.workload:
        raise ConfigError(f"{where}: without a [[workload]] nothing can be judged")
