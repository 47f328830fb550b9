"""Scenarios: a TOML file, read strictly, and the plan that a seed makes of it - every fault with its time and target.

Where a scenario leaves room - `at = [2, 4]`, `target = "any broker"` - the seed chooses, and the plan can be printed
before a run.  What the processes make of it is not repeatable, and is not meant to be.
"""

from __future__ import annotations

from random import Random
from typing import Literal

import msgspec

from trio_rmq.testing.world import named_rng

Span = float | tuple[float, float]
"""A number, or the bounds between which the seed chooses one."""

Kind = Literal["plain", "keyed", "batches", "transactions", "delays"]
DELAY_LEVELS_MS = (1000, 3000, 6000)
"""Delay levels 1 to 3 of every cluster under test: `messageDelayLevel` is set to them."""


class ClusterShape(msgspec.Struct, forbid_unknown_fields=True):
    """The servers."""

    name_servers: int = 1
    brokers: int = 1
    flush: Literal["SYNC_FLUSH", "ASYNC_FLUSH"] = "ASYNC_FLUSH"
    restart_seconds: float = 1.0
    """After how long a broker that ended by itself is started again."""
    disk_bytes: int = 0
    """The size of each broker's disk; 0: the machine's."""
    track_unsynced: bool = False
    """Whether power can be lost: notes all that is not synced, which makes writes slower."""
    mutants: list[str] = []
    settings: dict[str, str | int | bool] = {}
    """More keys for brokers."""
    name_server_settings: dict[str, str | int | bool] = {}


class Workload(msgspec.Struct, forbid_unknown_fields=True):
    """What clients do until the faults have ended."""

    kind: Kind = "plain"
    producers: int = 1
    rate: float = 20.0
    """Messages a second, each producer; of batches: batches."""
    body_bytes: int = 100
    consumers: int = 1
    members: tuple[int, int] | None = None
    """The group grows and shrinks between these sizes, instead of having `consumers`."""
    change_seconds: float = 3.0
    queues: int = 4
    """On each broker."""
    batch: int = 8
    keys: int = 6
    timeout_seconds: float = 3.0


class Fault(msgspec.Struct, forbid_unknown_fields=True):
    """One fault, or with `every` a row of them, as the scenario has it."""

    do: str
    at: Span = 0.0
    """Seconds after the workload's begin."""
    target: str = "broker-a"
    """A server; `any broker`; `each broker`, one after another; or an edge like `consumers->broker-a`."""
    seconds: Span = 0.0
    """How long it lasts; of a server that is down, until it is started again."""
    seconds_apache: float | None = None
    """How long it lasts for Apache's servers, whose leases cannot be set."""
    every: float = 0.0
    """Pause to the next one, until the scenario's end."""
    calls: tuple[str, ...] = ("fdatasync",)
    error: str = "EIO"
    path: str = ""
    times: int = 0
    first: int = 1
    delay_seconds: float = 0.0
    bytes_per_second: float = 0.0
    fragment_bytes: int = 0
    corrupt_chance: float = 0.0
    step_ms: int | tuple[int, int] = 0
    leave_bytes: int = 0
    kills: int = 3
    python: str = ""
    """Of an upgrade: the other interpreter; empty: the same one again."""


class Scenario(msgspec.Struct, forbid_unknown_fields=True):
    """A whole scenario."""

    name: str
    about: str = ""
    seconds: float = 20.0
    """How long clients work while faults happen."""
    settle_seconds: float = 60.0
    """Within this time after the last fault all that is stored must be consumed."""
    recovery_seconds: float = 30.0
    """Within this time after a fault's end the broker must acknowledge again."""
    delay_late_seconds: float = 10.0
    """Most that a delayed message may be late; time during which a fault lasted does not count."""
    cluster: ClusterShape = msgspec.field(default_factory=ClusterShape)
    workload: list[Workload] = msgspec.field(default_factory=lambda: [Workload()])
    fault: list[Fault] = []


class Strike(msgspec.Struct, frozen=True):
    """One planned fault: when, what, at whom, how long; `fault` has the rest."""

    at: float
    do: str
    target: str
    seconds: float
    step_ms: int
    seed: int
    fault: Fault

    def __str__(self) -> str:
        lasting = f" for {self.seconds:.2f} s" if self.seconds else ""
        step = f" by {self.step_ms} ms" if self.step_ms else ""
        return f"{self.at:7.2f} s  {self.do} {self.target}{lasting}{step}"


def make_plan(scenario: Scenario, seed: int, *, apache: bool = False) -> list[Strike]:
    """Every fault of the scenario by time; the same for the same seed, and a fault's dice are its own."""
    strikes: list[Strike] = []
    for number, fault in enumerate(scenario.fault):
        rng = named_rng(seed, f"fault {number}")
        at, turn = _within(rng, fault.at), 0
        while True:
            for target in _targets(rng, fault.target, scenario.cluster.brokers, turn):
                seconds = _within(rng, fault.seconds)
                if apache and fault.seconds_apache is not None:
                    seconds = fault.seconds_apache
                step = fault.step_ms if isinstance(fault.step_ms, int) else rng.randint(*fault.step_ms)
                strikes.append(Strike(at, fault.do, target, seconds, step, rng.getrandbits(32), fault))
            turn += 1
            at += fault.every
            if not fault.every or at >= scenario.seconds:
                break
    return sorted(strikes, key=lambda strike: strike.at)


def _within(rng: Random, span: Span) -> float:
    return float(span) if isinstance(span, int | float) else rng.uniform(*span)


def _targets(rng: Random, target: str, brokers: int, turn: int) -> list[str]:
    names = [f"broker-{chr(ord('a') + number)}" for number in range(brokers)]
    if "any broker" in target:
        return [target.replace("any broker", rng.choice(names))]
    if "each broker" in target:
        return [target.replace("each broker", names[turn % len(names)])]
    return [target]
