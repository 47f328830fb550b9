"""What the command line needs, and a program that runs scenarios itself: systems by name, runs, plans, the report."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence

import trio

from trio_rmq.errors import ConfigError
from trio_rmq.testing.chaos.loading import load_scenario
from trio_rmq.testing.chaos.report import render
from trio_rmq.testing.chaos.runner import Result, Stage, run_scenario
from trio_rmq.testing.chaos.scenario import Scenario, make_plan
from trio_rmq.testing.chaos.systems import ApacheSystem, OurSystem, System

__all__ = ["Result", "Scenario", "Stage", "find_systems", "load_scenario", "plan_lines", "run_all", "write_report"]

APACHE_JARS = "RMQ_APACHE_JARS"
"""The environment's folder with Apache's jars, where none is named."""


def find_systems(which: str, jars: str | None) -> list[System]:
    """`ours`, `apache` or `both`; ConfigError for another word, or when Apache's jars are nowhere."""
    if which not in ("ours", "apache", "both"):
        raise ConfigError(f"--system {which}: ours, apache or both")
    systems: list[System] = []
    if which != "apache":
        systems.append(OurSystem())
    if which != "ours":
        folder = jars or os.environ.get(APACHE_JARS, "")
        if not folder:
            raise ConfigError(
                f"Apache's servers need their jars: name the folder with --apache-jars or {APACHE_JARS} "
                "(in a clone, `tests/interop/java-it` fetches them)"
            )
        systems.append(ApacheSystem(folder))
    return systems


def plan_lines(scenario: Scenario, seed: int) -> list[str]:
    """The plan that the seed makes, a line a fault."""
    return [str(strike) for strike in make_plan(scenario, seed)]


def run_all(
    scenarios: Sequence[Scenario],
    systems: Sequence[System],
    *,
    seed: int,
    folder: str,
    watcher: Callable[[Stage], None] | None = None,
    done: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Each scenario with each system, one after another, each in a Trio run and a folder of its own; `done` is told.

    Raises what `run_scenario` does; a single error comes out of the groups it was wrapped in.
    """
    results = []
    for scenario in scenarios:
        for system in systems:
            place = os.path.join(folder, f"{_slug(scenario.name)}-{_slug(system.name)}")
            os.makedirs(place, exist_ok=True)
            result = _run(scenario, system, seed, place, watcher)
            results.append(result)
            done(result)
    return results


def _run(scenario: Scenario, system: System, seed: int, folder: str, watcher: Callable[[Stage], None] | None) -> Result:
    async def main() -> Result:
        return await run_scenario(scenario, system, seed=seed, folder=folder, watcher=watcher)

    try:
        return trio.run(main)
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        raise error from None


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def write_report(results: Sequence[Result], path: str) -> None:
    """The HTML file."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(render(results))
