"""A simulated machine: an address, a disk, a clock, and the one program that runs on it, life after life.

A crash is no cancellation.  First the disk's image is fixed, as a kill or a power loss leaves it; then the program's
world fails: every call to its disk raises, its sockets close, no new one can be made; only then are its tasks
cancelled, so that no clean-up code of the program reaches anything.  A stop, in contrast, is a cancellation alone.
"""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

import trio

from trio_rmq.errors import RocketMQError, StoreCorruptError
from trio_rmq.testing.faulty_disk import FaultyDisk, SimulatedCrash
from trio_rmq.testing.simulation.history import History
from trio_rmq.testing.world import World

RESTART_SECONDS = 1.0
"""From a program's own end to its next start."""


class Life:
    """One run of the program."""

    def __init__(self) -> None:
        self.alive = True
        self.scope = trio.CancelScope()

    def check(self) -> None:
        """Raise once the program is dead."""
        if not self.alive:
            raise SimulatedCrash


Program = Callable[["Machine", trio.TaskStatus[None]], Awaitable[None]]


class Machine:
    """One machine; `run` keeps its program running until `ending` is set and the program ended."""

    def __init__(self, world: World, history: History, name: str, address: str, program: Program) -> None:
        self.name = name
        self.address = address
        self.disk = FaultyDisk()
        self.wall_offset_ms = 0
        self.ending = False
        self.up = trio.Event()
        self.crashes = 0
        self._world = world
        self._history = history
        self._program = program
        self._life: Life | None = None
        self._down_seconds = RESTART_SECONDS
        self._silent = False
        self._numbers = 0

    async def run(self) -> None:
        """Start the program again whenever it ended."""
        while not self.ending:
            await self._live()
            await trio.sleep(self._down_seconds)
            self._down_seconds = RESTART_SECONDS
            if self._silent:
                self._silent = False
                self._world.network.revive(self.address)

    async def _live(self) -> None:
        life = self._life = Life()
        self._numbers += 1
        try:
            with (
                life.scope,
                self._world.node(
                    self.address, wall_offset_ms=lambda: self.wall_offset_ms, check=life.check, life=self._numbers
                ),
            ):
                async with trio.open_nursery() as nursery:
                    await nursery.start(self._start)
                    self.up.set()
                    self._history.add(self.name, "up")
        except BaseExceptionGroup as group:
            self._ended(life, group)
        finally:
            self._life = None
            self.up = trio.Event()
        if life.alive:  # it ended by itself, or was stopped
            self._world.network.kill_process(self.address)
            self.disk = self.disk.survivor_of_kill()
            self._history.add(self.name, "down")

    async def _start(self, *, task_status: trio.TaskStatus[None]) -> None:
        await self._program(self, task_status)

    def _ended(self, life: Life, group: BaseExceptionGroup) -> None:
        cancelled, rest = group.split(trio.Cancelled)
        if cancelled is not None and rest is None:
            raise group
        if not life.alive:
            return
        expected, defects = (rest or group).split((RocketMQError, OSError))
        if defects is not None:
            self._history.add(self.name, "raises", reason=_sentence(defects))
        corrupt = group.subgroup(StoreCorruptError)
        if corrupt is not None:
            self._history.add(self.name, "refuses to start", reason=_sentence(corrupt))
        elif expected is not None:
            self._history.add(self.name, "ends", reason=_sentence(expected))

    # ---- faults ------------------------------------------------------------------------------------------------

    def kill(self, down_seconds: float) -> bool:
        """Kill the program: all that was written stays.  False when it is not running."""
        return self._crash(lambda: self.disk.survivor_of_kill(), down_seconds)

    def lose_power(self, down_seconds: float, rng: Random) -> bool:
        """Cut the power: of what was not synced `rng` chooses what stays.

        False when the program is not running; the machine loses what it had not synced all the same.
        """
        if not self._crash(lambda: self.disk.survivor_of_power_loss(rng), down_seconds, silent=True):
            self.disk = self.disk.survivor_of_power_loss(rng)
            return False
        self._silent = True
        return True

    def _crash(self, survivor: Callable[[], FaultyDisk], down_seconds: float, *, silent: bool = False) -> bool:
        life = self._life
        if life is None or not life.alive:
            return False
        old, self.disk = self.disk, survivor()
        self.disk.operations = old.operations
        old.dead = True
        life.alive = False
        if silent:
            self._world.network.silence(self.address)
        else:
            self._world.network.kill_process(self.address)
        life.scope.cancel()
        self._down_seconds = max(down_seconds, 0.01)
        self.crashes += 1
        return True

    def stop(self) -> None:
        """Stop the program in order."""
        if self._life is not None:
            self._life.scope.cancel()


def _sentence(group: BaseExceptionGroup) -> str:
    leaf: BaseException = group
    while isinstance(leaf, BaseExceptionGroup):
        leaf = leaf.exceptions[0]
    where = traceback.extract_tb(leaf.__traceback__)
    place = f" ({Path(where[-1].filename).name}:{where[-1].lineno})" if where else ""
    return f"{type(leaf).__name__}: {leaf}{place}"
