"""The command `trio-rmq`: chooses by its first word which half of the command line to load.

The servers (`namesrv`, `broker`, `standalone`) are parsed with argparse: a server must be ready a blink after its
process starts and stay small while idle, and typer with rich costs about 0.1 s and 10 MB before it has done anything.
`testing` is a room of its own, which has the words after it.
All other commands, and the help that lists every one, are typer's.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence

SERVERS = ("namesrv", "broker", "standalone")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in SERVERS:
        # Importing makes objects that stay: collecting garbage meanwhile is a tenth of the start. `serve` ends this.
        gc.disable()
        from trio_rmq.cli.serve import run_server

        sys.exit(run_server(words[0], words[1:]))
    if words and words[0] == "testing":
        from trio_rmq.testing.serving import run_testing

        sys.exit(run_testing(words[1:]))
    from trio_rmq.cli.app import run_app

    sys.exit(run_app(words))


if __name__ == "__main__":
    main()
