"""Allocation: the recorded answers of Apache's client, and what holds for every strategy that shares queues out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.client.allocation_inputs import STRATEGIES, answer, cases
from trio_rmq.client.allocation import AllocateByConsistentHash, Allocation, allocate_averagely
from trio_rmq.errors import ClientError
from trio_rmq.wire.groups import MessageQueue

VECTORS = Path(__file__).parents[2] / "protocol" / "vectors" / "allocation"
SHARING = [name for name in STRATEGIES if name != "CONFIG"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_answers_are_those_recorded_from_apache(strategy: str) -> None:
    recorded = json.loads((VECTORS / f"{strategy.lower()}.json").read_text())["cases"]
    assert len(recorded) == 25
    for case in recorded:
        assert case["strategy"] == strategy
        assert answer(case) == case["answer"], case


def test_the_vectors_say_where_they_come_from() -> None:
    provenance = (VECTORS / "PROVENANCE.md").read_text()
    assert "5.3.3" in provenance
    assert {path.name for path in VECTORS.glob("*.json")} == {f"{name.lower()}.json" for name in STRATEGIES}


@pytest.mark.parametrize("strategy", SHARING)
def test_no_queue_has_two_owners(strategy: str) -> None:
    for case in cases(strategy, 100, 7):
        members = sorted(set(case["client_ids"]))
        shares = [answer({**case, "client_ids": members, "client_id": member}) for member in members]
        owned = [place for share in shares if share is not None for place in share]
        assert len(owned) == len(set(owned)), case
        if strategy in ("AVG", "AVG_BY_CIRCLE"):
            assert len(owned) == len(case["queues"])


def test_consistent_hash_moves_only_the_queues_of_who_leaves() -> None:
    queues = [MessageQueue(topic="T", broker_name="b", queue_id=number) for number in range(64)]
    members = [f"10.0.0.{number}@1" for number in range(5)]
    share = AllocateByConsistentHash()
    before = {member: set(share(member, queues, members)) for member in members}
    for member in members[1:]:
        assert set(share(member, queues, members[1:])) >= before[member]


def test_an_own_strategy_is_a_plain_function() -> None:
    def everything(client_id: str, queues: Sequence[MessageQueue], client_ids: Sequence[str]) -> list[MessageQueue]:
        return list(queues)

    chosen: Allocation = everything
    assert chosen("a", [MessageQueue(topic="T")], ["b"]) == [MessageQueue(topic="T")]
    assert allocate_averagely("a", [MessageQueue(topic="T")], []) == []
    with pytest.raises(ClientError, match="virtual nodes"):
        AllocateByConsistentHash(-1)
