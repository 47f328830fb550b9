"""Running a plan: the machines, the faults at their times, the healing, the end, and the verdict.

Safety phase: the plan's faults and sends.  Liveness phase: all faults end, every machine is up; within a bound of
virtual time each producer's sends to every queue must be acknowledged and the group must have consumed all that is
stored.  Then the broker is stopped, killed or loses power once more, and what its disk holds is read and verified.
"""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import NamedTuple

import trio

from trio_rmq.errors import ProtocolError, RocketMQError
from trio_rmq.store.message_store import MessageStore, open_message_store
from trio_rmq.store.offline.verify import verify_store
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.testing.simulation.checkers import Evidence, Problem, Queue, Stored, check
from trio_rmq.testing.simulation.clients import (
    TOPIC,
    TOPICS,
    ConsumerProgram,
    ProducerProgram,
    is_whole,
    kinds_of,
    name_of,
    queue_label,
)
from trio_rmq.testing.simulation.history import History
from trio_rmq.testing.simulation.machine import Machine
from trio_rmq.testing.simulation.plan import PRODUCERS, QUEUES, Fault, Plan
from trio_rmq.testing.simulation.programs import (
    BROKER,
    NAME_SERVER,
    BrokerProgram,
    run_name_server,
    store_config,
)
from trio_rmq.testing.simulation.promises import (
    Clock,
    Messages,
    broken_delays,
    broken_key_order,
    broken_orderly_calls,
    broken_transactions,
    seen_before_commit,
)
from trio_rmq.testing.virtual_network import Link
from trio_rmq.testing.world import World, named_rng, simulate
from trio_rmq.wire.record import decode_records

LIVENESS_SECONDS = 240.0
"""Bound of the liveness phase: a name server drops a silent broker after 120 s, and clients ask again every 30 s."""
OWED_SECONDS = 60.0
"""How long delays and commits are waited for where a power loss may have let a group pass them."""
CONSUMERS = 2


class Outcome(NamedTuple):
    """What became of a plan."""

    plan: Plan
    problems: list[Problem]
    hash: str
    """Of the history: the same in every process for the same plan and code."""
    counts: Counter[str]
    """Kinds of events, and crashes of the broker under "crashes"."""
    seconds: float
    """Virtual time, both phases."""
    history: bytes
    """JSON lines."""


def run_plan(plan: Plan) -> Outcome:
    """Run the plan in a Trio run of its own."""
    options = plan.options
    link = Link(
        latency_seconds=options.latency_seconds,
        jitter_seconds=options.jitter_seconds,
        split_chance=options.split_chance,
    )

    async def main(world: World) -> Outcome:
        return await _Run(world, plan).run()

    return simulate(main, seed=plan.seed, link=link, give_up_seconds=60.0, connect_seconds=20.0)


class _Run:
    def __init__(self, world: World, plan: Plan) -> None:
        self.world = world
        self.plan = plan
        self.history = History()
        history = self.history
        self.broker_program = BrokerProgram(plan.options, named_rng(plan.seed, "disk"))
        self.broker = Machine(world, history, "broker", BROKER, self.broker_program.run)
        self.name_server = Machine(world, history, "name server", NAME_SERVER, run_name_server)
        self.kinds = kinds_of(plan)
        """Of messages, besides plain ones."""
        self.producers = [ProducerProgram(number, plan, history) for number in range(PRODUCERS)]
        self.consumers = [ConsumerProgram(number, plan, history) for number in range(CONSUMERS)]
        self.machines = [self.name_server, self.broker]
        clients: list[ProducerProgram | ConsumerProgram] = [*self.producers, *self.consumers]
        for number, program in enumerate(clients):
            self.machines.append(Machine(world, history, program.name, f"10.0.1.{number + 1}", program.run))
        self.by_name = {machine.name: machine for machine in self.machines}
        self.healing = trio.Event()
        self.converged = False
        self.sync_flush = plan.options.flush_disk_type == "SYNC_FLUSH"

    async def run(self) -> Outcome:
        async with trio.open_nursery() as nursery:
            for machine in self.machines:
                nursery.start_soon(machine.run)
                with trio.move_on_after(5.0):
                    await machine.up.wait()
            begin = trio.current_time()
            async with trio.open_nursery() as faults:
                for fault in self.plan.faults:
                    faults.start_soon(self._inject, begin, fault)
                await trio.sleep_until(begin + self.plan.options.seconds)
                self.healing.set()
            self.history.add("world", "healed")
            with trio.move_on_after(LIVENESS_SECONDS):
                await self._converge()
                self.converged = True
            disk = await self._end()
            nursery.cancel_scope.cancel()
        self.history.add("world", "end", converged=self.converged)
        return await self._judge(disk)

    # ---- faults ------------------------------------------------------------------------------------------------

    async def _inject(self, begin: float, fault: Fault) -> None:
        with trio.move_on_at(begin + fault.at):
            await self.healing.wait()
            return
        broker, disk = self.broker, self.broker.disk
        match fault.kind:
            case "kill":
                self._note(fault, crashed=broker.kill(fault.seconds))
            case "power":
                self._note(fault, crashed=broker.lose_power(fault.seconds, Random(fault.seed)))
            case "slow disk":
                self._note(fault)
                self.broker_program.slow = True
                await self._last(fault)
                self.broker_program.slow = False
            case "sync error":
                self._note(fault)
                disk.fail_next("fdatasync", times=fault.amount)
            case "write error":
                self._note(fault)
                disk.fail_next("pwrite", times=fault.amount)
            case "disk full":
                self._note(fault)
                disk.capacity_bytes = 0
                await self._last(fault)
                disk.capacity_bytes = self.broker.disk.capacity_bytes = None
            case "cut" | "one-way cut":
                self._note(fault)
                one_way = fault.kind == "one-way cut"
                ends = [self.by_name[fault.target].address, BROKER]
                if fault.seed % 2:
                    ends.reverse()
                self.world.network.cut(*ends, one_way=one_way)
                await self._last(fault)
                self.world.network.heal(*ends)
            case "reset":
                self._note(fault, count=self.world.network.reset(self.by_name[fault.target].address, BROKER))
            case "clock step":
                self._note(fault)
                broker.wall_offset_ms += fault.amount
            case "consumer killed":
                self._note(fault, crashed=self.by_name[f"consumer {fault.seed % CONSUMERS}"].kill(fault.seconds))
            case "consumer stopped":
                self._note(fault)
                self.by_name[f"consumer {fault.seed % CONSUMERS}"].stop()
            case "name server killed":
                self._note(fault, crashed=self.name_server.kill(fault.seconds))
            case "name server silent":
                crashed = self.name_server.lose_power(fault.seconds, Random(fault.seed))
                self.history.add("world", fault.kind, crashed=crashed)
            case other:
                raise ValueError(f"no fault is called {other!r}")

    def _note(self, fault: Fault, **more: object) -> None:
        self.history.add("world", fault.kind, target=fault.target, seconds=fault.seconds, amount=fault.amount, **more)

    async def _last(self, fault: Fault) -> None:
        with trio.move_on_after(fault.seconds):
            await self.healing.wait()

    # ---- liveness ----------------------------------------------------------------------------------------------

    async def _converge(self) -> None:
        for producer in self.producers:
            await producer.done.wait()
        for producer in self.producers:
            for queue_id in range(QUEUES):
                number = 0
                while not await producer.send(f"last-{producer.name[-1]}-{queue_id}-{number}".encode(), queue_id):
                    number += 1
                    await trio.sleep(1.0)
        may_miss = bool(Messages(self._evidence([], {})).losses) and not self.sync_flush
        with trio.move_on_after(OWED_SECONDS if may_miss else LIVENESS_SECONDS):
            while Messages(self._evidence([], {})).owed():  # noqa: ASYNC110 - nor what consumers note
                await trio.sleep(1.0)
        while not await self._is_drained():  # noqa: ASYNC110 - what the broker tells wakes nobody here
            await trio.sleep(1.0)

    async def _is_drained(self) -> bool:
        """Whether the groups have committed all that is stored, as the broker tells."""
        acknowledged = {event.value.get("kind", "plain") for event in self.history.events if event.what == "ok"}
        kinds = [kind for kind in ("plain", *self.kinds) if kind in acknowledged]
        for program in self.consumers:
            if program.consumer is not None:
                with self.world.node(self.by_name[program.name].address):
                    try:
                        lags = await program.lags(kinds)
                    except RocketMQError:
                        return False
                return len(lags) == QUEUES * len(kinds) and not any(lags)
        return False

    # ---- the end -----------------------------------------------------------------------------------------------

    async def _end(self) -> FaultyDisk:
        """End the broker as the plan says; its disk."""
        for machine in self.machines:
            machine.ending = True
        last, broker = self.plan.options.last, self.broker
        crashed = False
        if last == "power":
            crashed = broker.lose_power(1.0, named_rng(self.plan.seed, "last"))
            self.history.add("world", "power", crashed=crashed)
        elif last == "kill":
            crashed = broker.kill(1.0)
        if not crashed:
            for machine in reversed(self.machines):
                machine.stop()
            await trio.sleep(60.0)
        return broker.disk

    async def _judge(self, disk: FaultyDisk) -> Outcome:
        config = store_config(self.plan.options)
        disk.latency = None
        stored: list[Stored] = []
        begins: dict[Queue, int] = {}
        problems: list[Problem] = []
        try:
            async with open_message_store(config, disk=disk) as store:
                for topic in (TOPIC, *(TOPICS[kind] for kind in self.kinds)):
                    for queue_id in range(QUEUES):
                        label = queue_label(topic, queue_id)
                        begins[label] = store.min_offset(topic, queue_id)
                        stored += _read_queue(store, topic, queue_id, problems)
            verified = verify_store(config, disk=disk)
            problems += [Problem("damaged", str(finding)) for finding in verified.findings if finding.damage]
        except ProtocolError as error:
            problems.append(Problem("unreadable", f"a queue serves what is no record: {error}"))
        except RocketMQError as error:
            problems.append(Problem("corrupt", f"the store cannot be opened at the end: {error}"))
        evidence = self._evidence(stored, begins)
        problems += check(evidence)
        if self.kinds:
            problems += self._broken_promises(Messages(evidence))
        counts = Counter(event.what for event in self.history.events)
        counts["crashes"] = self.broker.crashes
        counts["stored"] = len(stored)
        return Outcome(
            self.plan,
            problems,
            self.history.hash(),
            counts,
            self.history.events[-1].time_us / 1e6,
            self.history.lines(),
        )

    def _evidence(self, stored: list[Stored], begins: dict[Queue, int]) -> Evidence:
        worst = self.broker_program.worst_sync_seconds
        return Evidence(self.history.events, stored, begins, self.sync_flush, worst, self.converged)

    def _broken_promises(self, messages: Messages) -> list[Problem]:
        """What is promised of the kinds that are not plain."""
        clock = Clock(messages.events)
        return [
            *(Problem("delays", sentence) for sentence in broken_delays(messages, clock.rise_ms)),
            *(Problem("transactions", sentence) for sentence in broken_transactions(messages)),
            *(Problem("transactions", sentence) for sentence in seen_before_commit(messages)),
            *(Problem("order", sentence) for sentence in broken_key_order(messages)),
            *(Problem("order", sentence) for sentence in broken_orderly_calls(messages.events)),
        ]


def _read_queue(store: MessageStore, topic: str, queue_id: int, problems: list[Problem]) -> list[Stored]:
    """All messages of the queue; what cannot be read, or is changed, is a problem."""
    label = queue_label(topic, queue_id)
    stored: list[Stored] = []
    offset = store.min_offset(topic, queue_id)
    while offset < store.max_offset(topic, queue_id):
        found = store.get_messages(topic, queue_id, offset, max_count=32)
        records = list(decode_records(found.body))
        if not records:
            problems.append(Problem("unreadable", f"queue {label} offset {offset}: {found.status}"))
            break
        for record in records:
            name, properties = name_of(record.body), record.property_map()
            if not is_whole(name, properties) or 0 in record.properties:
                place = f"queue {label} offset {record.queue_offset}"
                problems.append(Problem("changed", f"{place} holds {name[:40]!r} with {properties}"))
            stored.append(Stored(label, record.queue_offset, name))
        offset = records[-1].queue_offset + 1
    return stored
