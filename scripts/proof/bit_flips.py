"""`scripts/bit-flips`: single bits of a stored log, flipped one at a time under `store verify`.

Positions are random over all bytes of the log's files.  Prints how many flips of which field were named, and which the
table in docs/store.md excuses; exit status 1 when one is neither.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from random import Random

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from trio_rmq.testing.bit_flips import Flips, sample_store


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; 0, or 1 when a flip that must be seen was not."""
    parser = argparse.ArgumentParser(prog="bit-flips", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the store and of the positions (default: 0)")
    parser.add_argument("--flips", type=int, default=2000, help="how many (default: 2000)")
    parser.add_argument("--records", type=int, default=60, help="records in the store (default: 60)")
    options = parser.parse_args(words)
    flips = Flips(sample_store(options.seed, options.records))
    rng = Random(options.seed)
    damaged: Counter[str] = Counter()
    noted: Counter[str] = Counter()
    excused: Counter[str] = Counter()
    unseen: Counter[str] = Counter()
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for _ in progress.track(range(options.flips), description="flips"):
            offset, bit = rng.randrange(len(flips.content)), rng.randrange(8)
            field = flips.field_at(offset).partition("[")[0].partition(":")[0]
            found = flips.flip(offset, bit)
            if any(finding.damage for finding in found):
                damaged[field] += 1
            elif found:
                noted[field] += 1
            elif flips.uncovered(offset, bit) is not None:
                excused[field] += 1
            else:
                unseen[field] += 1
                print(f"nobody saw bit {bit} at {offset}: {flips.field_at(offset)}", file=sys.stderr)
    table = Table("field", "named", "as a note", "nothing tells", "missed", box=None)
    for field in sorted({*damaged, *noted, *excused, *unseen}):
        counts = (damaged[field], noted[field], excused[field], unseen[field])
        table.add_row(field, *(str(count or "") for count in counts))
    table.add_row("all", *(str(counter.total()) for counter in (damaged, noted, excused, unseen)))
    Console(width=100).print(table)
    print(
        f"{options.flips} flips in {len(flips.content)} bytes of {len(flips.records)} records: {unseen.total()} missed"
    )
    return 1 if unseen else 0


if __name__ == "__main__":
    sys.exit(main())
