"""What a run will do, before it runs: printed options, an explicit list of faults and one of operations.

Each part is drawn from a random stream of its own, so that taking one fault or operation away leaves the others as
they are.  A plan is plain data: it goes to JSON and back, a fault and a send a line, and a failing one can be made
smaller by hand or by `shrinking`.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import msgspec
from msgspec.structs import replace

from trio_rmq.testing.world import named_rng

QUEUES = 4
"""Of each topic."""
PRODUCERS = 2
OPERATIONS_A_SECOND = 21.0
"""Sends of all kinds together."""
PREFIXES = {"plain": "p", "delays": "d", "transactions": "t", "keyed": "k"}
"""Every kind of message -> how the names of its messages begin; each kind has a topic of its own."""
RATES: dict[str, tuple[float, ...]] = {
    "delays": (0.0, 0.3, 0.8),
    "transactions": (0.0, 0.3, 0.8),
    "keyed": (0.0, 0.7, 1.5),
}
"""Kind -> messages a second, of both producers, among which the seed chooses; the rest is plain."""
DELAYS_MS = (1000, 4000, 10_000)
"""Of the delay levels from 1 on."""
ENDS = ("commit", "commit", "rollback", "asked commit", "asked rollback", "asked twice commit")
"""How transactions end: told at once, or only when the broker asks for the first or the second time."""
SIZES_BYTES = (12, 40, 200, 600, 3000)
"""Of bodies: from several records in one sector of the disk to bodies with whole sectors, which can be lost alone."""
QUIET_SECONDS = 2.0
"""At the beginning, without faults: the topic is made."""


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What stays the same for a whole run."""

    seconds: float
    """Length of the safety phase, of virtual time."""
    flush_disk_type: str
    latency_seconds: float
    jitter_seconds: float
    split_chance: float
    """How often a read or write of a socket is cut short."""
    sync_seconds: float
    """Mean time of a sync while the disk is well."""
    log_file_bytes: int
    consume_seconds: float
    """How long a consumer works on one message."""
    last: str
    """What ends the broker's last life: stop, kill or power."""
    kinds: list[str]
    """The faults that are on; the others are off for the whole run (swarm testing)."""
    rates: dict[str, float] = {}
    """Messages a second of the kinds that are not plain."""
    ordered_seconds: float = 0.0
    """How long an orderly consumer works on one message."""


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One fault at a time of the safety phase."""

    at: float
    kind: str
    target: str = ""
    seconds: float = 0.0
    """How long it lasts, or how long a machine stays down."""
    amount: int = 0
    """Of a clock step: milliseconds; of a failing call: how many times."""
    seed: int = 0
    """What a power loss leaves is chosen by it."""


class Send(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One message to send, not before `at`; a producer sends those of one kind one after another."""

    at: float
    producer: int
    number: int
    queue_id: int
    size_bytes: int
    kind: str = "plain"
    delay_level: int = 0
    end: str = ""
    """Of a transaction: one of ENDS."""
    fails: int = 0
    """Of a keyed one: how often a consumer's first tries fail."""

    @property
    def name(self) -> str:
        """What names it among all messages of the run."""
        return f"{PREFIXES[self.kind]}{self.producer}-{self.number}"

    @property
    def body(self) -> bytes:
        """The message: its name, and dots up to its size."""
        return self.name.encode().ljust(self.size_bytes, b".")


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that one run is told."""

    seed: int
    options: Options
    faults: list[Fault]
    sends: list[Send]


WEIGHTS: dict[str, float] = {
    "kill": 3.0,
    "power": 4.0,
    "slow disk": 2.0,
    "sync error": 1.0,
    "write error": 0.5,
    "disk full": 0.7,
    "cut": 1.5,
    "one-way cut": 1.0,
    "reset": 1.5,
    "clock step": 1.0,
    "consumer killed": 0.7,
    "consumer stopped": 0.5,
    "name server killed": 0.5,
    "name server silent": 0.3,
}
"""Fault -> how often, beside the others."""


_FOLLOWED = ("kill", "power", "sync error", "write error", "disk full")

LINK_FAULTS = ("cut", "one-way cut", "reset")
"""Faults of the connection between the broker and the target."""

TARGETS = ("producer 0", "producer 1", "consumer 0", "consumer 1", "name server")
"""Machines that a fault of a link may cut off from the broker."""


def encode_plan(plan: Plan) -> bytes:
    """The plan as JSON, a fault and a send a line; `decode_plan` reads it."""
    encode = msgspec.json.encode
    faults, sends = (b",".join(b"\n  " + encode(item) for item in items) for items in (plan.faults, plan.sends))
    return b'{\n "seed": %d,\n "options": %s,\n "faults": [%s],\n "sends": [%s]\n}\n' % (
        plan.seed,
        encode(plan.options),
        faults,
        sends,
    )


def decode_plan(content: bytes) -> Plan:
    """What `encode_plan` wrote, or a person; ValueError names what is wrong with it."""
    plan = msgspec.json.decode(content, type=Plan)
    for fault in plan.faults:
        if fault.kind not in WEIGHTS:
            raise ValueError(f"no fault is called {fault.kind!r}: choose one of {', '.join(WEIGHTS)}")
        if fault.target not in TARGETS and (fault.target or fault.kind in LINK_FAULTS):
            raise ValueError(f"no machine is called {fault.target!r}: choose one of {', '.join(TARGETS)}")
    for send in plan.sends:
        if not (0 <= send.producer < PRODUCERS and 0 <= send.queue_id < QUEUES):
            raise ValueError(f"{send} is for no producer below {PRODUCERS} or no queue below {QUEUES}")
        if send.kind not in PREFIXES:
            raise ValueError(f"no kind of message is called {send.kind!r}: choose one of {', '.join(PREFIXES)}")
        if (send.kind == "transactions") != (send.end in ENDS):
            raise ValueError(f"{send} needs an end of {', '.join(ENDS)} if it is a transaction, else none")
        if (send.kind == "delays") != (0 < send.delay_level <= len(DELAYS_MS)):
            raise ValueError(f"{send} needs a delay level up to {len(DELAYS_MS)} if it is delayed, else none")
    return plan


def make_plan(seed: int, seconds: float = 120.0) -> Plan:
    """The plan of this seed."""
    options = _with_rates(named_rng(seed, "rates"), _options(named_rng(seed, "options"), seconds))
    faults = _faults(named_rng(seed, "faults"), options)
    faults = sorted([*faults, *_followers(named_rng(seed, "followers"), options, faults)], key=lambda fault: fault.at)
    sends = sorted(_sends(seed, options), key=lambda send: (send.at, send.producer, send.kind))
    return Plan(seed, options, faults, sends)


def _options(rng: Random, seconds: float) -> Options:
    kinds = [kind for kind in WEIGHTS if rng.random() < 0.75]
    if "kill" not in kinds and "power" not in kinds:
        kinds.append(rng.choice(["kill", "power"]))
    return Options(
        seconds=seconds,
        flush_disk_type=rng.choice(["SYNC_FLUSH", "SYNC_FLUSH", "ASYNC_FLUSH"]),
        latency_seconds=rng.choice([0.0002, 0.002, 0.02]),
        jitter_seconds=rng.choice([0.0, 0.002, 0.02]),
        split_chance=rng.choice([0.0, 0.0, 0.1, 0.5]),
        sync_seconds=rng.choice([0.001, 0.005, 0.02]),
        log_file_bytes=rng.choice([16_384, 65_536]),
        consume_seconds=rng.choice([0.0, 0.0, 0.05]),
        last=rng.choice(["stop", "kill", "power"]),
        kinds=kinds,
    )


def _faults(rng: Random, options: Options) -> list[Fault]:
    faults: list[Fault] = []
    at = QUIET_SECONDS
    every = rng.choice([3.0, 6.0, 10.0])
    weights = [WEIGHTS[kind] for kind in options.kinds]
    while True:
        at = round(at + rng.expovariate(1 / every), 3)
        if at >= options.seconds:
            return faults
        kind = rng.choices(options.kinds, weights)[0]
        faults.append(
            Fault(
                at,
                kind,
                target=rng.choice(TARGETS),
                seconds=round(min(rng.expovariate(1 / 2.0), 20.0), 3),
                amount=rng.choice([-60_000, -2000, 2000, 60_000]) if kind == "clock step" else 1,
                seed=rng.getrandbits(31),
            )
        )


def _followers(rng: Random, options: Options, faults: list[Fault]) -> Iterator[Fault]:
    """Crashes soon after another fault: in the recovery from it, or before its traces are gone."""
    kinds = [kind for kind in ("kill", "power") if kind in options.kinds]
    for fault in faults:
        if fault.kind in _FOLLOWED and rng.random() < 0.3:
            at = round(fault.at + (fault.seconds if fault.kind in kinds else 0.0) + rng.expovariate(1 / 0.7), 3)
            if at < options.seconds:
                seconds = round(rng.expovariate(1 / 0.5), 3)
                yield Fault(at, rng.choice(kinds), seconds=seconds, amount=1, seed=rng.getrandbits(31))


def _with_rates(rng: Random, options: Options) -> Options:
    return replace(
        options,
        rates={kind: rate for kind, rates in RATES.items() if (rate := rng.choice(rates))},
        ordered_seconds=rng.choice([0.0, 0.05, 0.3]),
    )


def _sends(seed: int, options: Options) -> Iterator[Send]:
    plain = OPERATIONS_A_SECOND - sum(options.rates.values())
    for kind, rate in {"plain": plain, **options.rates}.items():
        rng = named_rng(seed, "sends" if kind == "plain" else f"sends/{kind}")
        for producer in range(PRODUCERS):
            at, number = QUIET_SECONDS / 2, 0
            while True:
                at = round(at + rng.expovariate(rate / PRODUCERS), 4)
                if at >= options.seconds:
                    break
                size = rng.choice(SIZES_BYTES)
                yield _own(rng, Send(at, producer, number, rng.randrange(QUEUES), size, kind))
                number += 1


def _own(rng: Random, send: Send) -> Send:
    """With what only its kind has."""
    match send.kind:
        case "delays":
            return replace(send, delay_level=rng.randint(1, len(DELAYS_MS)))
        case "transactions":
            return replace(send, end=rng.choice(ENDS))
        case "keyed":
            return replace(send, fails=int(rng.random() < 0.05))
    return send
