"""`trio-rmq testing serve`: a broker for the test suites of other languages, which start it as a child process.

It says where it is in one line of JSON on its standard output, and ends with its parent: when its standard input, if
that is a pipe or a socket, comes to its end, or when the parent process is gone - whichever the system tells.  Then, as
on SIGINT and SIGTERM, it ends in order with status 0.  Nothing else is written to standard output, ever.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import stat
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

import trio

from trio_rmq.cli.logs import LEVELS, set_up_logging
from trio_rmq.errors import ConfigError, ListenError, RocketMQError, StoreError

if TYPE_CHECKING:
    from trio_rmq.testing.embedded import EmbeddedBroker

STDIN = 0
READ_BYTES = 4096


class _Parser(argparse.ArgumentParser):
    """argparse whose complaint is a ConfigError."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see {self.prog} --help)")


def run_testing(words: Sequence[str]) -> int:
    """Run `trio-rmq testing` with the words after it; returns the exit status: 2, 3 and 4 as of the other servers."""
    try:
        options = _parser().parse_intermixed_args(words)
        set_up_logging(options.log_level, options.log_file)
        trio.run(_serve, options.folder, options.overrides)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except RocketMQError as error:
        print(f"trio-rmq testing: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 3 if isinstance(error, ListenError) else _failed(error)
    return 0


def _failed(error: RocketMQError) -> int:
    return 4 if isinstance(error, StoreError) else 1


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="trio-rmq testing",
        description="Serve a name server and a broker for one test run, as its child process: they end with it. Where "
        'they are is said in one line of JSON: {"nameServer": "127.0.0.1:...", "broker": "127.0.0.1:..."}.',
    )
    parser.add_argument("command", choices=["serve"], help="serve until standard input ends, or the parent does")
    parser.add_argument("--folder", metavar="DIR", help="keep the store there (default: in memory)")
    parser.add_argument("--log-level", default="WARNING", metavar="LEVEL", help=f"{', '.join(LEVELS)}")
    parser.add_argument("--log-file", metavar="FILE", help="write the log there, not to stderr")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings of the broker")
    return parser


async def _serve(folder: str | None, settings: Sequence[str]) -> None:
    from trio_rmq.testing.embedded import broker  # the whole broker: not for --help, or a word that is none

    parent = os.getppid()
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with broker(*settings, folder=folder) as running, trio.open_nursery() as nursery:
            _say_where(running)

            async def stop_on_signal() -> None:
                await anext(aiter(signals))
                nursery.cancel_scope.cancel()

            async def stop_with_input() -> None:
                await _wait_input_ended()
                nursery.cancel_scope.cancel()

            async def stop_with_parent() -> None:
                await _wait_process_ended(parent)
                nursery.cancel_scope.cancel()

            nursery.start_soon(stop_on_signal)
            nursery.start_soon(stop_with_input)
            nursery.start_soon(stop_with_parent)


def _say_where(running: EmbeddedBroker) -> None:
    print(json.dumps({"nameServer": running.name_server, "broker": running.address}), flush=True)


async def _wait_input_ended() -> None:
    """Return at the end of standard input; never where it is a terminal or a file, which say nothing of the parent."""
    if sys.stdin is None:  # it was closed from the start, and its number may be another file's by now
        await trio.sleep_forever()
    mode = os.fstat(STDIN).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        await trio.sleep_forever()
    while True:
        await trio.lowlevel.wait_readable(STDIN)
        if not os.read(STDIN, READ_BYTES):
            return


async def _wait_process_ended(process: int) -> None:
    """Return when the process ends; never where the system has no file descriptors of processes (Linux from 5.3)."""
    try:
        handle = os.pidfd_open(process)
    except (AttributeError, OSError):
        await trio.sleep_forever()
    try:
        if os.getppid() == process:  # else it ended before it could be watched
            await trio.lowlevel.wait_readable(handle)
    finally:
        os.close(handle)
