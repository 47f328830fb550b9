"""Inputs for the allocation strategies, made from a seed, and each strategy by the name that the recorded vectors use.

A case is a JSON object: strategy, parameter (virtual nodes, or the rooms), client_id, queues as [topic, broker, id],
client_ids.
"""

from __future__ import annotations

import random
from typing import Any

from trio_rmq.client.allocation import (
    AllocateByConfig,
    AllocateByConsistentHash,
    AllocateByMachineRoom,
    AllocateMachineRoomNearby,
    Allocation,
    allocate_averagely,
    allocate_averagely_by_circle,
)
from trio_rmq.errors import ClientError
from trio_rmq.wire.groups import MessageQueue

STRATEGIES = (
    "AVG", "AVG_BY_CIRCLE", "CONFIG", "MACHINE_ROOM", "MACHINE_ROOM_NEARBY-AVG", "MACHINE_ROOM_NEARBY-AVG_BY_CIRCLE",
    "CONSISTENT_HASH",
)  # fmt: skip
ROOMS = ("east", "west", "south", "\uff21", "\U0001f3e0", "")

Case = dict[str, Any]


def cases(strategy: str, count: int, seed: int) -> list[Case]:
    """`count` cases of one strategy; odd ones among them: strangers, members named twice, brokers in no room."""
    rng = random.Random(f"{strategy} {seed}")
    return [_case(rng, strategy) for _ in range(count)]


def _case(rng: random.Random, strategy: str) -> Case:
    rooms = rng.sample(ROOMS[:-1], rng.randint(1, 4)) + ([""] if rng.random() < 0.05 else [])
    separator = "@" if strategy == "MACHINE_ROOM" else "-"
    brokers = [
        rng.choice([*rooms, rng.choice(ROOMS)])
        + rng.choice([separator] * 9 + ["@@"])
        + f"broker{i}"
        + "@" * (i % 7 == 6)
        for i in range(rng.randint(1, 8))
    ]
    topic = rng.choice(["Topic", "%RETRY%group", "T\u00f6pic"])
    queues = [[topic, broker, number] for broker in brokers for number in range(rng.randint(1, 8))]
    members = [
        f"{rng.choice(rooms)}-10.0.{rng.randint(0, 255)}.{i}@{rng.getrandbits(20)}" for i in range(rng.randint(1, 12))
    ]
    if rng.random() < 0.05:
        members.append(rng.choice(members))
    members.sort()
    client_id = "east-stranger" if rng.random() < 0.03 else rng.choice(members)
    parameter = {"MACHINE_ROOM": ",".join(rooms), "CONSISTENT_HASH": str(rng.choice([10, 10, 0, 1, 3, 100]))}
    return {
        "strategy": strategy,
        "parameter": parameter.get(strategy, ""),
        "client_id": client_id,
        "queues": queues,
        "client_ids": members,
    }


def strategy_of(case: Case, queues: list[MessageQueue]) -> Allocation:
    """Our strategy for a case; CONFIG holds every third queue."""
    name, parameter = case["strategy"], case["parameter"]
    if name == "AVG":
        return allocate_averagely
    if name == "AVG_BY_CIRCLE":
        return allocate_averagely_by_circle
    if name == "CONFIG":
        return AllocateByConfig(queues[::3])
    if name == "MACHINE_ROOM":
        return AllocateByMachineRoom(parameter.split(","))
    if name == "CONSISTENT_HASH":
        return AllocateByConsistentHash(int(parameter))
    inner = allocate_averagely if name.endswith("-AVG") else allocate_averagely_by_circle
    return AllocateMachineRoomNearby(
        lambda queue: queue.broker_name.partition("-")[0], lambda client: client.partition("-")[0], inner=inner
    )


def answer(case: Case) -> list[int] | None:
    """The places of the queues that our strategy gives, or None when it refuses."""
    queues = [
        MessageQueue(topic=topic, broker_name=broker, queue_id=number) for topic, broker, number in case["queues"]
    ]
    try:
        own = strategy_of(case, queues)(case["client_id"], queues, case["client_ids"])
    except ClientError:
        return None
    return [queues.index(queue) for queue in own]
