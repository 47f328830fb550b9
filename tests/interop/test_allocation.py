"""Our allocation strategies answer as Apache's do: a thousand seeded inputs each, with both generations of its client.

`python -m tests.interop.test_allocation` writes protocol/vectors/allocation anew, from Apache's answers.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.client.allocation_inputs import STRATEGIES, Case, answer, cases
from tests.interop.peers import java_peer_class_path, need

pytestmark = pytest.mark.interop

COUNT = 1000
SEED = 5
VECTORS = Path(__file__).parents[2] / "protocol" / "vectors" / "allocation"
RECORDED_COUNT = 25
RECORDED_VERSION = "5.3.3"


def ask_java(version: str, asked: list[Case]) -> list[list[int] | None]:
    """The answers of Apache's client of that version."""
    lines = [
        "\t".join([
            case["strategy"], case["parameter"], case["client_id"],
            " ".join(";".join(map(str, queue)) for queue in case["queues"]), " ".join(case["client_ids"]),
        ])
        for case in asked
    ]  # fmt: skip
    done = subprocess.run(
        [need("java"), "-XX:+UseSerialGC", "-Xmx256m", "-cp", java_peer_class_path(version), "interop.AllocationPeer"],
        input="\n".join(lines) + "\n", capture_output=True, encoding="utf-8", timeout=120, check=True,
    )  # fmt: skip
    answers = done.stdout.split("\n")[: len(asked)]
    return [None if line == "refused" else [int(place) for place in line.split()] for line in answers]


@pytest.mark.parametrize("version", ["4.9.8", "5.3.3"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_thousand_answers_are_javas(version: str, strategy: str) -> None:
    asked = cases(strategy, COUNT, SEED)
    theirs = ask_java(version, asked)
    assert len(theirs) == COUNT
    for case, expected in zip(asked, theirs, strict=True):
        assert answer(case) == expected, case


def test_the_recorded_answers_are_javas() -> None:
    for path in sorted(VECTORS.glob("*.json")):
        recorded = json.loads(path.read_text())
        answers = [case.pop("answer") for case in recorded["cases"]]
        assert ask_java(RECORDED_VERSION, recorded["cases"]) == answers, path.name


def record() -> None:
    """Write the vector files."""
    VECTORS.mkdir(parents=True, exist_ok=True)
    for strategy in STRATEGIES:
        asked = cases(strategy, RECORDED_COUNT, SEED + 1)
        answers = ask_java(RECORDED_VERSION, asked)
        lines = [json.dumps({**case, "answer": theirs}) for case, theirs in zip(asked, answers, strict=True)]
        text = '{"provenance": "see PROVENANCE.md", "cases": [\n' + ",\n".join(lines) + "\n]}\n"
        (VECTORS / f"{strategy.lower()}.json").write_text(text)


if __name__ == "__main__":
    record()
