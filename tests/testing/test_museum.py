"""The simulation finds the planted defects of the museum, and does not report what is only odd."""

from __future__ import annotations

import pytest

from trio_rmq.testing.simulation.museum import DEFECTS, ODDITIES, find, piece_named
from trio_rmq.testing.simulation.piece import Piece, replaced
from trio_rmq.testing.simulation.plan import make_plan
from trio_rmq.testing.simulation.runner import run_plan

SEEDS = 200
QUICK = (
    "queue files trusted",
    "names left out",
    "only what is synced",
    "half the delay",
    "rollback committed",
    "failed ones later",
)
"""Pieces that show under one of the first seeds."""


def piece_id(piece: Piece) -> str:
    return piece.name


@pytest.mark.parametrize("piece", [*DEFECTS, *ODDITIES], ids=piece_id)
def test_a_piece_can_be_planted_and_leaves_nothing_behind(piece: Piece) -> None:
    with piece.plant():
        pass
    with piece.plant():
        pass


@pytest.mark.parametrize("name", QUICK)
def test_a_quick_piece_is_found(name: str) -> None:
    assert find(piece_named(name), range(20)).seed is not None


@pytest.mark.parametrize("piece", ODDITIES, ids=piece_id)
def test_an_oddity_is_not_reported(piece: Piece) -> None:
    found = find(piece, range(2), seconds=20.0)
    assert (found.runs, found.problems) == (2, [])


@pytest.mark.slow
@pytest.mark.parametrize("piece", DEFECTS, ids=piece_id)
def test_every_piece_is_found(piece: Piece) -> None:
    assert find(piece, range(SEEDS)).seed is not None


@pytest.mark.slow
@pytest.mark.parametrize("piece", ODDITIES, ids=piece_id)
def test_no_oddity_is_reported(piece: Piece) -> None:
    assert find(piece, range(SEEDS)).problems == []


def test_the_museum_is_large_enough_and_its_names_are_its_own() -> None:
    names = [piece.name for piece in (*DEFECTS, *ODDITIES)]
    assert len(names) == len({*names})
    assert len(DEFECTS) >= 25
    with pytest.raises(ValueError, match="no piece is called 'none'"):
        piece_named("none")


def test_a_piece_whose_code_is_gone_says_so() -> None:
    with pytest.raises(AttributeError, match="must follow the code"), replaced(Piece, "gone", None):
        pass


def test_what_a_program_raises_by_mistake_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trio_rmq.broker.topics.TopicTable.encode", lambda self: 1 / 0)
    problems = run_plan(make_plan(0, 10.0)).problems
    assert any(problem.kind == "raised" and "ZeroDivisionError" in problem.sentence for problem in problems)
