"""`scripts/simulate`: a cluster a seed, with faults, on virtual time; a line for every promise that was not kept.

Exit status 1 when there was one.  `--seed X` begins there, `--seeds 1 --history` prints that run's history.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from trio_rmq.testing.simulation.plan import make_plan
from trio_rmq.testing.simulation.runner import run_plan


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; 0, or 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="simulate", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument("--seeds", type=int, default=20, help="how many (default: 20)")
    parser.add_argument("--seconds", type=float, default=120.0, help="virtual time with faults (default: 120)")
    parser.add_argument("--history", action="store_true", help="print each run's history as JSON lines")
    options = parser.parse_args(words)
    logging.disable(logging.CRITICAL)  # what dying servers say is not what is looked at
    console = Console(stderr=True)
    totals: Counter[str] = Counter()
    broken, simulated = 0, 0.0
    begin = time.process_time()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for seed in progress.track(range(options.seed, options.seed + options.seeds), description="seeds"):
            outcome = run_plan(make_plan(seed, options.seconds))
            totals.update(outcome.counts)
            simulated += outcome.seconds
            broken += bool(outcome.problems)
            if options.history:
                sys.stdout.write(outcome.history.decode())
            for problem in outcome.problems[:10]:
                console.print(f"--seed {seed} --seconds {options.seconds:g}: {problem.kind}: {problem.sentence}")
            if options.seeds == 1:
                print(f"history {outcome.hash}")
    table = Table("what", "times", box=None)
    for what, count in sorted(totals.items()):
        table.add_row(what, str(count))
    console.print(table)
    cpu = time.process_time() - begin
    print(f"{options.seeds} seeds, {simulated:.0f} simulated s in {cpu:.0f} s of CPU: {broken} seeds broke a promise")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
