"""`scripts/simulate`: a cluster a seed, with faults, on virtual time; a line for every promise that was not kept.

Exit status 1 when there was one.  `--seed X` begins there; `--seeds 1 --history` prints that run's history, `--print`
its plan as JSON; `--plan FILE` runs a plan.  `--shrink` makes a plan that breaks a promise small, `--keep FILE` writes
it.  `--piece NAME` plants a defect of the museum; `--museum` looks for each of them, with exit status 1 when one is not
found or an oddity is reported.
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
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from trio_rmq.testing.simulation.museum import DEFECTS, ODDITIES, find, piece_named
from trio_rmq.testing.simulation.plan import Plan, decode_plan, encode_plan, make_plan
from trio_rmq.testing.simulation.runner import Outcome, run_plan
from trio_rmq.testing.simulation.shrinking import shrink

SEEDS_A_JOB = 2
"""Given out ahead to each process."""


class Ran(NamedTuple):
    """A plan's outcome, as it comes from a process."""

    outcome: Outcome
    cpu_seconds: float


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; 0, or 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="simulate", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument("--seeds", type=int, help="how many (default: 20; of the museum 200)")
    parser.add_argument("--seconds", type=float, help="virtual time with faults (default: 120; of the museum 30 or 60)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    parser.add_argument("--cpu-seconds", type=float, metavar="N", help="begin no seed after this much CPU time in all")
    parser.add_argument("--history", action="store_true", help="print each run's history as JSON lines")
    parser.add_argument("--print", action="store_true", help="print the first seed's plan as JSON, and run nothing")
    parser.add_argument("--plan", type=Path, metavar="FILE", help="run the plan in this file instead of seeds")
    parser.add_argument("--shrink", action="store_true", help="make the plan of the first seed, or of the file, small")
    parser.add_argument("--runs", type=int, default=500, help="how many runs shrinking may take (default: 500)")
    parser.add_argument("--schedules", type=int, default=1, help="other seeds for each smaller plan (default: 1)")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="write the smallest plan there")
    parser.add_argument("--piece", metavar="NAME", default="", help="with this piece of the museum planted")
    parser.add_argument("--museum", action="store_true", help="look for every piece of the museum")
    options = parser.parse_args(words)
    options.seeds = options.seeds or (200 if options.museum else 20)
    if not options.museum:
        options.seconds = options.seconds or 120.0
    logging.disable(logging.CRITICAL)  # what dying servers say is not what is looked at
    if options.museum:
        return _museum(options)
    plan = make_plan(options.seed, options.seconds) if options.plan is None else decode_plan(options.plan.read_bytes())
    if options.print:
        sys.stdout.write(encode_plan(plan).decode())
        return 0
    if options.shrink:
        return _shrink(plan, options)
    return _simulate(options, [plan] if options.plan is not None else None)


def _planted(piece: str) -> AbstractContextManager[None]:
    return piece_named(piece).plant() if piece else nullcontext()


def _shrink(plan: Plan, options: argparse.Namespace) -> int:
    with _planted(options.piece):
        kinds = {problem.kind for problem in run_plan(plan).problems}
        if not kinds:
            print("this plan breaks no promise: there is nothing to shrink")
            return 0
        shrunk = shrink(
            plan,
            lambda smaller: bool(kinds & {problem.kind for problem in run_plan(smaller).problems}),
            runs_max=options.runs,
            schedules=options.schedules,
        )
        problems = run_plan(shrunk.plan).problems
    for problem in problems[:10]:
        print(f"{problem.kind}: {problem.sentence}")
    small = shrunk.plan
    print(
        f"{len(plan.faults)} faults, {len(plan.sends)} sends in {plan.options.seconds:g} s became {len(small.faults)}, "
        f"{len(small.sends)} and {small.options.seconds:g} s in {shrunk.runs} runs"
    )
    if options.keep is None:
        sys.stdout.write(encode_plan(small).decode())
    else:
        options.keep.write_bytes(encode_plan(small))
    return 1


def _museum(options: argparse.Namespace) -> int:
    table = Table("piece", "breach", "seed", "runs", "broken", box=None)
    wrong: list[str] = []
    pieces = [piece_named(options.piece)] if options.piece else [*DEFECTS, *ODDITIES]
    with ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for name, seed, runs, kinds in pool.map(
            partial(_look_for, options.seed, options.seeds, options.seconds), [piece.name for piece in pieces]
        ):
            piece = piece_named(name)
            table.add_row(name, piece.breach or "none", "-" if seed is None else str(seed), str(runs), ", ".join(kinds))
            if (seed is None) == (piece in DEFECTS):
                wrong.append(name)
    Console(width=140).print(table)
    print(f"{len(pieces)} pieces, up to {options.seeds} seeds each: wrong are {', '.join(wrong) or 'none'}")
    return 1 if wrong else 0


def _look_for(first: int, count: int, seconds: float | None, name: str) -> tuple[str, int | None, int, list[str]]:
    logging.disable(logging.CRITICAL)
    found = find(piece_named(name), range(first, first + count), seconds=seconds)
    return name, found.seed, found.runs, sorted({problem.kind for problem in found.problems})


def _simulate(options: argparse.Namespace, plans: list[Plan] | None) -> int:
    console = Console(stderr=True)
    totals: Counter[str] = Counter()
    seeds, broken, simulated, cpu_seconds = 0, 0, 0.0, 0.0
    begin = time.monotonic()
    for ran in _runs(options) if plans is None else (_run(plan, options.piece) for plan in plans):
        plan = ran.outcome.plan
        seeds += 1
        totals.update(ran.outcome.counts)
        simulated += plan.options.seconds
        cpu_seconds += ran.cpu_seconds
        broken += bool(ran.outcome.problems)
        if options.history:
            sys.stdout.write(ran.outcome.history.decode())
        for problem in ran.outcome.problems[:10]:
            console.print(
                f"--seed {plan.seed} --seconds {plan.options.seconds:g}: {problem.kind}: {problem.sentence}",
                soft_wrap=True,
            )
        if plans or options.seeds == 1 or ran.outcome.problems:
            print(f"seed {plan.seed}: history {ran.outcome.hash}")
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
            ran = _run_seed(seed, options.seconds, options.piece)
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
            waiting[seed] = pool.submit(_run_seed, seed, options.seconds, options.piece)
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


def _run_seed(seed: int, seconds: float, piece: str) -> Ran:
    logging.disable(logging.CRITICAL)
    return _run(make_plan(seed, seconds), piece)


def _run(plan: Plan, piece: str) -> Ran:
    begin = time.process_time()
    with _planted(piece):
        outcome = run_plan(plan)
    return Ran(outcome, time.process_time() - begin)


if __name__ == "__main__":
    sys.exit(main())
