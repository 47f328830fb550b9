"""A process that is our production server on a disk and a clock which obey orders.

    python -m trio_rmq.testing.chaos.node ORDERS JOURNAL namesrv|broker|standalone WORDS...

ORDERS is a file of `orders`; JOURNAL a folder of `unsynced`, or `-` for none.  Everything else - command line, signals,
exit status - is the server's own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from trio_rmq.cli.serve import run_server
from trio_rmq.clock import use_wall_clock
from trio_rmq.testing.chaos.chaos_disk import ChaosDisk
from trio_rmq.testing.chaos.orders import Told
from trio_rmq.testing.chaos.unsynced import Journal


def main(words: Sequence[str]) -> int:
    """Run the server; its exit status."""
    orders, journal, command, *rest = words
    told = Told(orders)
    if told.orders.mutants:
        from trio_rmq.testing.chaos.mutants import plant

        plant(told.orders.mutants, rest)
    disk = ChaosDisk(told, None if journal == "-" else Journal(journal))

    def stepped_ms() -> int:
        return time.time_ns() // 1_000_000 + told.orders.wall_offset_ms

    with use_wall_clock(stepped_ms):
        return run_server(command, rest, disk=disk)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
