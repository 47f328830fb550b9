"""`scripts/simulate`: a cluster a seed, with faults, on virtual time; a line for every promise that was not kept.

Exit status 1 when there was one.  `--seed X` begins there, `--seeds 1 --history` prints that run's history.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from trio_rmq.testing.simulation.plan import make_plan
from trio_rmq.testing.simulation.runner import Outcome, run_plan

SEEDS_A_JOB = 2
"""Given out ahead to each process."""


class Ran(NamedTuple):
    """A seed's outcome, as it comes from a process."""

    seed: int
    outcome: Outcome
    cpu_seconds: float


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; 0, or 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="simulate", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument("--seeds", type=int, default=20, help="how many (default: 20)")
    parser.add_argument("--seconds", type=float, default=120.0, help="virtual time with faults (default: 120)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    parser.add_argument("--cpu-seconds", type=float, metavar="N", help="begin no seed after this much CPU time in all")
    parser.add_argument("--history", action="store_true", help="print each run's history as JSON lines")
    options = parser.parse_args(words)
    return _simulate(options)


def _simulate(options: argparse.Namespace) -> int:
    console = Console(stderr=True)
    totals: Counter[str] = Counter()
    seeds, broken, simulated, cpu_seconds = 0, 0, 0.0, 0.0
    begin = time.monotonic()
    for ran in _runs(options):
        seeds += 1
        totals.update(ran.outcome.counts)
        simulated += ran.outcome.plan.options.seconds
        cpu_seconds += ran.cpu_seconds
        broken += bool(ran.outcome.problems)
        if options.history:
            sys.stdout.write(ran.outcome.history.decode())
        for problem in ran.outcome.problems[:10]:
            console.print(
                f"--seed {ran.seed} --seconds {options.seconds:g}: {problem.kind}: {problem.sentence}", soft_wrap=True
            )
        if options.seeds == 1 or ran.outcome.problems:
            print(f"seed {ran.seed}: history {ran.outcome.hash}")
    table = Table("what", "times", box=None)
    for what, count in sorted(totals.items()):
        table.add_row(what, str(count))
    console.print(table)
    print(
        f"{seeds} seeds, {simulated:.0f} simulated s with faults, {totals['invoke'] / simulated:.1f} sends a second, "
        f"{totals['crashes']} crashes of the broker; {cpu_seconds:.0f} s of CPU, {time.monotonic() - begin:.0f} s: "
        f"{broken} seeds broke a promise"
    )
    return 1 if broken else 0


def _runs(options: argparse.Namespace) -> Iterator[Ran]:
    """The seeds' outcomes, in the order of the seeds."""
    jobs = max(1, min(options.jobs, options.seeds))
    seeds = iter(range(options.seed, options.seed + options.seeds))
    if jobs == 1:
        used = 0.0
        for seed in seeds:
            if options.cpu_seconds is not None and used >= options.cpu_seconds:
                return
            ran = _run(seed, options.seconds)
            used += ran.cpu_seconds
            yield ran
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from _spread(pool, jobs, seeds, options)


def _spread(pool: ProcessPoolExecutor, jobs: int, seeds: Iterator[int], options: argparse.Namespace) -> Iterator[Ran]:
    """The same from several processes: each has a few seeds ahead, so that a bound on time is kept."""
    waiting: dict[int, Future[Ran]] = {}
    done: dict[int, Ran] = {}
    used, next_seed = 0.0, options.seed
    while True:
        while len(waiting) < jobs * SEEDS_A_JOB and (options.cpu_seconds is None or used < options.cpu_seconds):
            seed = next(seeds, None)
            if seed is None:
                break
            waiting[seed] = pool.submit(_run, seed, options.seconds)
        if not waiting:
            return
        wait(waiting.values(), return_when=FIRST_COMPLETED)
        for seed, future in [*waiting.items()]:
            if future.done():
                del waiting[seed]
                done[seed] = future.result()
                used += done[seed].cpu_seconds
        while next_seed in done:
            yield done.pop(next_seed)
            next_seed += 1


def _run(seed: int, seconds: float) -> Ran:
    logging.disable(logging.CRITICAL)  # what dying servers say is not what is looked at
    begin = time.process_time()
    outcome = run_plan(make_plan(seed, seconds))
    return Ran(seed, outcome, time.process_time() - begin)


if __name__ == "__main__":
    sys.exit(main())
