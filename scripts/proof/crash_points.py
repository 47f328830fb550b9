"""`scripts/crash-points`: kills and power losses at every changing call of the store's canonical scenario.

Points are taken seed after seed, all settings and losses of each, as many as asked for.  Prints a table
of what died where, and every promise that was not kept with the words that repeat it; exit status 1 when there was one.
`--piece NAME` plants a defect of the museum first, which must be found.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from trio_rmq.testing.crash_points import LOSSES, SETTINGS, CrashPoint, count_points, try_point
from trio_rmq.testing.simulation.museum import piece_named


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; 0, or 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="crash-points", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="where to begin (default: 0)")
    parser.add_argument(
        "--points", type=int, default=2000, help="how many points (default: 2000; a seed has some 1,800)"
    )
    parser.add_argument("--only", metavar="SETTINGS/LOSS/SEED/NUMBER", help="one point, as a failure prints it")
    parser.add_argument("--piece", metavar="NAME", help="with this piece of the simulation's museum planted")
    options = parser.parse_args(words)
    logging.disable(logging.CRITICAL)  # what a dying store says is not what is looked at
    with piece_named(options.piece).plant() if options.piece else nullcontext():
        return _try(options)


def _try(options: argparse.Namespace) -> int:
    if options.only:
        settings, loss, seed, number = options.only.split("/")
        print(tried := try_point(CrashPoint(settings, loss, int(seed), int(number))))
        return 1 if tried.problem else 0
    return _run(options.seed, options.points)


def _points(seed: int, least: int) -> list[CrashPoint]:
    points: list[CrashPoint] = []
    while len(points) < least:
        points += _points_of(seed)
        seed += 1
    return points[:least]


def _points_of(seed: int) -> Iterator[CrashPoint]:
    for settings in SETTINGS:
        count = count_points(settings, seed)
        for loss in LOSSES:
            yield from (CrashPoint(settings, loss, seed, number) for number in range(1, count + 1))


def _run(seed: int, least: int) -> int:
    console = Console(stderr=True)
    points = _points(seed, least)
    died: Counter[tuple[str, str, str]] = Counter()
    again: Counter[str] = Counter()
    broken: list[tuple[CrashPoint, str]] = []
    begin = time.process_time()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for point in progress.track(points, description="points"):
            tried = try_point(point)
            died[point.settings, point.loss, tried.operation] += 1
            again[tried.recovery_operation] += 1
            if tried.problem:
                broken.append((point, tried.problem))
                console.print(f"broken at --only {'/'.join(map(str, point))}: {tried.problem}", soft_wrap=True)
    _print_table(died, again)
    print(
        f"{len(points)} points, seeds {seed} to {points[-1].seed}, each with a second death in the recovery: "
        f"{len(broken)} promises broken; {time.process_time() - begin:.0f} s of CPU"
    )
    return 1 if broken else 0


def _print_table(died: Counter[tuple[str, str, str]], again: Counter[str]) -> None:
    kinds = [(settings, loss) for settings in SETTINGS for loss in LOSSES]
    table = Table("died in", *(f"{settings} {loss}" for settings, loss in kinds), "in recovery", box=None)
    for operation in sorted({*(operation for _, _, operation in died), *again}):
        counts = [died[settings, loss, operation] for settings, loss in kinds]
        table.add_row(operation, *(str(count or "") for count in counts), str(again[operation] or ""))
    table.add_row(
        "all", *(str(sum(died[s, k, o] for s, k, o in died if (s, k) == kind)) for kind in kinds), str(again.total())
    )
    Console(width=140).print(table)


if __name__ == "__main__":
    sys.exit(main())
