"""The process dies at changing calls of the canonical scenario and again inside the recovery; power fails likewise.

`scripts/crash-points` tries every point; here is a sample that differs from settings to settings, and proof that a
store which breaks its promises is caught.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

import pytest

from trio_rmq.store import consume_queues
from trio_rmq.testing.crash_points import LOSSES, SETTINGS, CrashPoint, count_points, try_point
from trio_rmq.testing.disk_files import File
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.testing.simulation.museum import piece_named


def problems(settings: str, loss: str, seed: int, numbers: Iterable[int]) -> list[tuple[CrashPoint, str]]:
    found = []
    for number in numbers:
        point = CrashPoint(settings, loss, seed, number)
        tried = try_point(point)
        if tried.problem:
            found.append((point, f"{tried.operation}, then {tried.recovery_operation}: {tried.problem}"))
    return found


def sample(settings: str, loss: str, seed: int, count: int) -> list[int]:
    points = count_points(settings, seed)
    assert points > 200, "the scenario became short"
    return Random(f"{settings}/{loss}/{seed}").sample(range(1, points + 1), count)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_sample_of_points(settings: str, loss: str) -> None:
    assert problems(settings, loss, 0, sample(settings, loss, 0, 20)) == []


@pytest.mark.parametrize("settings", ["marks", "units"])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_sample_of_points_where_queues_are_synced_with_all_else(
    settings: str, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where they are many."""
    monkeypatch.setattr(consume_queues, "_SYNCED_ONE_BY_ONE_MAX", 0)
    assert problems(settings, loss, 0, sample(settings, loss, 0, 12)) == []


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("loss", LOSSES)
def test_every_point(settings: str, loss: str) -> None:
    for seed in range(3):
        assert problems(settings, loss, seed, range(1, count_points(settings, seed) + 1)) == []


def test_a_point_repeats_exactly() -> None:
    point = CrashPoint("marks", "power", 3, 77)
    assert try_point(point) == try_point(point)


def test_records_torn_inside_their_properties_are_not_served() -> None:
    """Two points at which that happened: the checksum covers bodies only."""
    assert try_point(CrashPoint("sync", "kill", 0, 35)).problem == ""
    assert try_point(CrashPoint("sync", "power", 0, 206)).problem == ""


def test_syncs_that_do_nothing_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def lie(self: FaultyDisk, file: File, count: int) -> None:
        self.syncs += 1

    numbers = sample("sync", "power", 0, 20)
    monkeypatch.setattr(FaultyDisk, "_finish_sync", lie)
    assert len(problems("sync", "power", 0, numbers)) > 5


@pytest.mark.parametrize(
    ("name", "settings", "loss"),
    [
        ("early answer", "sync", "power"),
        ("names left out", "sync", "power"),
        ("queue files trusted", "async", "kill"),
        ("only what is synced", "async", "kill"),
        ("cut in memory", "sync", "power"),
        ("metadata in place", "marks", "power"),
    ],
)
def test_a_piece_of_the_museum_is_caught(name: str, settings: str, loss: str) -> None:
    numbers = sample(settings, loss, 0, 40)
    with piece_named(name).plant():
        assert any(try_point(CrashPoint(settings, loss, 0, number)).problem for number in numbers)
