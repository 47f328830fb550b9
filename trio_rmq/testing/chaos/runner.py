"""Carrying out a plan: cluster, workloads, faults at their times, healing, coming to rest, observing, the verdict.

Safety phase: faults and workloads together.  Liveness phase: all faults end, every server is up; each producer's last
messages to every queue must be acknowledged, every group must have consumed all there is, within a bound.  Then what
is stored is read through the brokers, they are stopped, and their files verified.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence

import msgspec
import trio

from trio_rmq.errors import RocketMQError
from trio_rmq.testing.chaos.chaos_disk import TAIL_MAX
from trio_rmq.testing.chaos.cluster import Cluster
from trio_rmq.testing.chaos.faults import FAULTS
from trio_rmq.testing.chaos.judge import Judge, Observation, Verdict
from trio_rmq.testing.chaos.observer import group_progress, observe, verify_files
from trio_rmq.testing.chaos.scenario import DELAY_LEVELS_MS, Scenario, Strike, make_plan
from trio_rmq.testing.chaos.sources import CONSUMERS, OBSERVER, PRODUCERS, connecting_from, telling_sources
from trio_rmq.testing.chaos.systems import ApacheSystem, System
from trio_rmq.testing.chaos.workloads.clients import Clients
from trio_rmq.testing.chaos.workloads.kinds import run_producer
from trio_rmq.testing.simulation.checkers import Problem
from trio_rmq.testing.simulation.history import Event, History
from trio_rmq.testing.world import named_rng

USUAL_SETTINGS: dict[str, str | int | bool] = {
    "mappedFileSizeCommitLog": 4 * 1024 * 1024,
    "mappedFileSizeConsumeQueue": 60_000,
    "maxIndexNum": 20_000,
    "maxHashSlotNum": 5_000,
    "flushCommitLogThoroughInterval": 1000,
    "flushConsumeQueueThoroughInterval": 3000,
    "flushConsumerOffsetInterval": 1000,
    "flushDelayOffsetInterval": 1000,
    "transactionTimeOut": 2000,
    "transactionCheckInterval": 3000,
    "registerNameServerPeriod": 10_000,
    "messageDelayLevel": " ".join(f"{delay_ms // 1000}s" for delay_ms in DELAY_LEVELS_MS),
}
"""Small files and short intervals, so that each service has its turns; a scenario's settings count more."""
LOOK_SECONDS = 0.5
PEACE_SECONDS = 1.0
"""From a fault's end to the next one at the same target: on a slow machine they come later than planned."""
REAL_SYNC_SECONDS = 1.0
"""A bound for the syncs of a machine that others use too."""

Watcher = Callable[["Stage"], None]
"""Told what stands now, several times a second: for a live view."""


class Stage(msgspec.Struct):
    """A run as it stands: which phase, how long, and all that happened so far."""

    system: str
    phase: str
    seconds: float
    events: list[Event]
    up: dict[str, bool]
    """Server -> whether it serves."""


class Result(msgspec.Struct):
    """What became of one scenario with one system."""

    scenario: str
    about: str
    system: str
    seed: int
    plan: list[str]
    impossible: list[str]
    """Faults of the plan that this system cannot be given, and why."""
    verdicts: list[Verdict]
    events: list[Event]
    seconds: float
    deeds: dict[str, int]
    """Faults of disks that took place: `broker: action call` -> how often."""

    @property
    def broken(self) -> list[Verdict]:
        """The invariants that were not kept."""
        return [verdict for verdict in self.verdicts if verdict.state == "broken"]


async def run_scenario(
    scenario: Scenario,
    system: System,
    *,
    seed: int,
    folder: str,
    watcher: Watcher | None = None,
) -> Result:
    """Run it in the present Trio run, on real time; files go below `folder`, which must exist.

    ConfigError when the machine cannot give what the scenario needs, NodeError when a server does not start at all.
    """
    with telling_sources():
        return await _Run(scenario, system, seed, folder, watcher).run()


class _Run:
    def __init__(self, scenario: Scenario, system: System, seed: int, folder: str, watcher: Watcher | None) -> None:
        self.scenario = scenario
        self.system = system
        self.seed = seed
        self.folder = folder
        self.watcher = watcher
        self.history = History()
        self.phase = "starting"
        planned = make_plan(scenario, seed, apache=isinstance(system, ApacheSystem))
        self.impossible = sorted({
            f"{strike.do}: {why}" for strike in planned if (why := system.cannot(strike.do)) is not None
        })  # fmt: skip
        self.plan = [strike for strike in planned if system.cannot(strike.do) is None]
        self.producing: list[trio.Event] = []
        self.everybody: list[Clients] = []
        self.struck: dict[tuple[str, str], trio.Lock] = {}

    def _cluster(self) -> Cluster:
        shape = self.scenario.cluster
        settings = {**USUAL_SETTINGS, "flushDiskType": shape.flush, **shape.settings}
        return Cluster(
            self.folder,
            self.system,
            name_servers=shape.name_servers,
            brokers=shape.brokers,
            settings={key: _text(value) for key, value in settings.items()},
            name_server_settings={key: _text(value) for key, value in shape.name_server_settings.items()},
            restart_seconds=shape.restart_seconds,
            disk_bytes=shape.disk_bytes,
            track_unsynced=shape.track_unsynced,
            mutants=shape.mutants,
            seed=self.seed,
            note=self.history.add,
        )

    async def run(self) -> Result:
        async with trio.open_nursery() as watching:
            try:
                async with self._cluster() as cluster:
                    watching.start_soon(self._watch, cluster)
                    seen = await self._work(cluster)
                    deeds = self._deeds(cluster)
            finally:
                watching.cancel_scope.cancel()
        self.history.add("world", "end", converged=seen.converged)
        judge = Judge(self.scenario, self.history.events, seen, self._worst_sync_seconds())
        result = Result(
            self.scenario.name, self.scenario.about, self.system.name, self.seed,
            [str(strike) for strike in self.plan], self.impossible, judge.verdicts(), self.history.events,
            self.history.events[-1].time_us / 1e6, deeds,
        )  # fmt: skip
        _keep(self.folder, result)
        return result

    async def _watch(self, cluster: Cluster) -> None:
        if self.watcher is None:
            return
        begin = trio.current_time()
        while True:
            up = {name: node.is_up for name, node in cluster.nodes.items()}
            seconds = trio.current_time() - begin
            self.watcher(Stage(self.system.name, self.phase, seconds, self.history.events, up))
            await trio.sleep(LOOK_SECONDS)

    # ---- both phases ---------------------------------------------------------------------------------------------

    async def _work(self, cluster: Cluster) -> Observation:
        for number, workload in enumerate(self.scenario.workload):
            clients = Clients(cluster, self.history, workload, number, named_rng(self.seed, f"workload {number}"))
            self.everybody.append(clients)
            await clients.make_topic()
        async with trio.open_nursery() as clients_nursery:
            self._start_clients(clients_nursery)
            self.phase = "faults"
            self.history.add("world", "begin")
            await self._safety(cluster)
            self.phase = "coming to rest"
            converged = False
            with trio.move_on_after(self.scenario.settle_seconds), connecting_from(OBSERVER):
                await self._settle(cluster)
                converged = True
            self.history.add("world", "rest", converged=converged)
            clients_nursery.cancel_scope.cancel()
        self.phase = "observing"
        with connecting_from(OBSERVER):
            seen = await observe(cluster, self.everybody, converged=converged)
        return seen._replace(problems=[*seen.problems, *await self._end(cluster)])

    def _start_clients(self, nursery: trio.Nursery) -> None:
        for clients in self.everybody:
            with connecting_from(CONSUMERS):
                nursery.start_soon(clients.keep_members)
            for number in range(clients.workload.producers):
                done = trio.Event()
                self.producing.append(done)
                with connecting_from(PRODUCERS):
                    nursery.start_soon(self._produce, clients, number, done)

    async def _produce(self, clients: Clients, number: int, done: trio.Event) -> None:
        await run_producer(clients, number, done.set)

    async def _safety(self, cluster: Cluster) -> None:
        begin = trio.current_time()
        async with trio.open_nursery() as faults:
            for strike in self.plan:
                faults.start_soon(self._strike, cluster, begin, strike)
            await trio.sleep_until(begin + self.scenario.seconds)
        cluster.heal()
        for node in cluster.nodes.values():
            if not node.is_up:
                await self._guarded(node.name, node.start)
        self.history.add("world", "healed")
        for clients in self.everybody:
            clients.ending.set()

    async def _strike(self, cluster: Cluster, begin: float, strike: Strike) -> None:
        """One fault, not before the last one of its row is over and clients had a moment of peace.

        All that is done to one process is one row; else faults of one kind at one target are.
        """
        await trio.sleep_until(begin + strike.at)
        row = "its process" if FAULTS[strike.do].on_process else strike.do
        async with self.struck.setdefault((strike.target, row), trio.Lock()):
            await self._strike_now(cluster, strike)
            await trio.sleep(PEACE_SECONDS)

    async def _strike_now(self, cluster: Cluster, strike: Strike) -> None:
        what = {"do": strike.do, "target": strike.target}
        self.history.add("world", "fault", **what, seconds=strike.seconds, step_ms=strike.step_ms)

        async def carry_out() -> None:
            await FAULTS[strike.do].strike(cluster, strike)

        await self._guarded(strike.target, carry_out)
        if strike.do == "wipe":
            for clients in self.everybody:
                await self._guarded(strike.target, clients.make_topic)
        self.history.add("world", "fault over", **what)

    async def _guarded(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """A server that cannot be started again is a finding, not the end of the run."""
        try:
            await work()
        except RocketMQError as error:
            self.history.add(name, "fault failed", reason=str(error))

    async def _settle(self, cluster: Cluster) -> None:
        for done in self.producing:
            await done.wait()
        while not await self._is_at_rest(cluster):  # noqa: ASYNC110 - what brokers tell wakes nobody here
            await trio.sleep(LOOK_SECONDS)

    async def _is_at_rest(self, cluster: Cluster) -> bool:
        """Whether every group has committed all that is stored, and all that was to come later has come."""
        seen = {event.value["id"] for event in self.history.events if event.what == "consumed"}
        if any(name not in seen for name in self._awaited()):
            return False
        try:
            for clients in self.everybody:
                for progress in await group_progress(cluster, clients):
                    if progress.end and progress.committed != progress.end:
                        return False
        except RocketMQError:
            return False
        return True

    def _awaited(self) -> Sequence[str]:
        """Acknowledged messages that become visible later than their acknowledgement."""
        ends = {
            event.value["id"]: event.value.get("end", "") for event in self.history.events if event.what == "invoke"
        }
        return [
            event.value["id"]
            for event in self.history.events
            if event.what == "ok"
            and (
                event.value["kind"] == "delays"
                or (event.value["kind"] == "transactions" and ends[event.value["id"]].endswith("commit"))
            )
        ]

    async def _end(self, cluster: Cluster) -> list[Problem]:
        """Stop the brokers in order, and verify their files."""
        self.phase = "verifying files"
        for node in cluster.brokers:
            try:
                await node.stop()
            except RocketMQError as error:
                return [Problem("corrupt", str(error))]
        return verify_files(cluster)

    def _deeds(self, cluster: Cluster) -> dict[str, int]:
        counts: dict[str, int] = {}
        for node in cluster.brokers:
            for deed in node.deeds():
                key = f"{node.name}: {deed.action} {deed.call}"
                counts[key] = counts.get(key, 0) + 1
        return counts

    def _worst_sync_seconds(self) -> float:
        """The longest that a sync may have taken, for what a power loss may take under ASYNC_FLUSH."""
        delays = [strike.fault.delay_seconds * TAIL_MAX for strike in self.plan if strike.do == "slow_disk"]
        return max([REAL_SYNC_SECONDS, *delays])


def _text(value: str | int | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _keep(folder: str, result: Result) -> None:
    """The history as JSON lines, and the verdict, beside the servers' folders."""
    with open(os.path.join(folder, "history.jsonl"), "wb") as file:
        for event in result.events:
            file.write(msgspec.json.encode(event) + b"\n")
    verdict = {
        "scenario": result.scenario, "system": result.system, "seed": result.seed, "plan": result.plan,
        "impossible": result.impossible, "verdicts": result.verdicts, "deeds": result.deeds,
    }  # fmt: skip
    with open(os.path.join(folder, "verdict.json"), "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(verdict), indent=2))
