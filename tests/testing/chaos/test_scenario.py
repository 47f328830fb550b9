"""Scenario files: those that ship can be read, a seed makes one plan, what is wrong in one is said with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from trio_rmq.errors import ConfigError
from trio_rmq.testing.chaos.loading import load_scenario
from trio_rmq.testing.chaos.scenario import Scenario, make_plan

FOLDER = Path(__file__).parents[2] / "scenarios"
SHIPPED = {
    "kill-under-load",
    "kill-in-recovery",
    "pause-longer-than-a-lease",
    "half-open-consumers",
    "slow-disk",
    "full-disk",
    "failed-sync",
    "name-server-gone-and-back",
    "clock-stepped-both-ways",
    "rolling-restart",
    "kill-and-go-on",
}


def test_what_ships() -> None:
    assert {path.stem for path in FOLDER.glob("*.toml")} == SHIPPED


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_a_shipped_scenario_has_a_plan_within_its_time(name: str) -> None:
    scenario = load_scenario(FOLDER / f"{name}.toml")
    plan = make_plan(scenario, 7)
    assert scenario.name.replace(" ", "-") == name
    assert scenario.about
    assert plan
    assert all(0 <= strike.at < scenario.seconds for strike in plan)
    assert [strike.at for strike in plan] == sorted(strike.at for strike in plan)


def scenario(tmp_path: Path, text: str) -> Scenario:
    path = tmp_path / "scenario.toml"
    path.write_text(text)
    return load_scenario(path)


def test_one_seed_makes_one_plan_and_another_seed_another(tmp_path: Path) -> None:
    found = scenario(tmp_path, (FOLDER / "kill-under-load.toml").read_text())
    assert make_plan(found, 1) == make_plan(found, 1)
    assert make_plan(found, 1) != make_plan(found, 2)


TWO_FAULTS = """
name = "two"
seconds = 20
[cluster]
brokers = 3
[[fault]]
do = "kill"
at = [1, 3]
every = 4
target = "any broker"
seconds = [0, 1]
[[fault]]
do = "stop"
at = 2
every = 5
target = "each broker"
"""


def test_a_fault_has_dice_of_its_own(tmp_path: Path) -> None:
    both = scenario(tmp_path, TWO_FAULTS)
    kills = [strike for strike in make_plan(both, 3) if strike.do == "kill"]
    del both.fault[1]
    assert make_plan(both, 3) == kills


def test_each_broker_has_its_turn(tmp_path: Path) -> None:
    stops = [strike.target for strike in make_plan(scenario(tmp_path, TWO_FAULTS), 3) if strike.do == "stop"]
    assert stops == ["broker-a", "broker-b", "broker-c", "broker-a"]


def test_a_lease_that_apache_cannot_be_told_lasts_longer_there() -> None:
    found = load_scenario(FOLDER / "pause-longer-than-a-lease.toml")
    assert [strike.seconds for strike in make_plan(found, 1)] == [12.0]
    assert [strike.seconds for strike in make_plan(found, 1, apache=True)] == [135.0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name =", "Invalid"),
        ('name = "x"\nsecond = 3', "second"),
        ('name = "x"\n[[fault]]\ndo = "explode"', "no fault is called 'explode': choose among corrupt, cut"),
        ('name = "x"\n[[fault]]\ndo = "cut"\ntarget = "broker-a"', "an edge like producers->broker-a"),
        ('name = "x"\n[[fault]]\ndo = "kill"\ntarget = "producers->broker-a"', "a server like broker-a"),
        ('name = "x"\n[[fault]]\ndo = "power"', "track_unsynced = true"),
        ('name = "x"\n[[fault]]\ndo = "fill_disk"', "disk_bytes"),
        ('name = "x"\nworkload = []', "nothing can be judged"),
        ('name = "x"\n[[workload]]\nkind = "magic"', "magic"),
    ],
)
def test_what_is_wrong_is_said(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"scenario\.toml") as found:
        scenario(tmp_path, text)
    assert words in str(found.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_scenario(tmp_path / "none.toml")
