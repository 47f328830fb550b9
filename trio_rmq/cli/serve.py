"""`trio-rmq namesrv`, `broker` and `standalone`: read settings, serve until a signal, end with a sentence.

Exit status: 0 stopped by SIGINT or SIGTERM, in order; 1 a defect, with its traceback; 2 a configuration that cannot be
used; 3 an address that cannot be listened on; 4 a store that cannot be opened or failed; 128 + n a second signal n.
With `--brokers N` the status of a broker that ended all (`supervisor.py`).
"""

from __future__ import annotations

import argparse
import gc
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol

import trio

from trio_rmq.cli.host import (
    default_name_servers,
    exit_now,
    host_name,
    input_ended,
    keep_freed_memory,
    notify_systemd,
    own_command,
    seconds_since_start,
    thread_cpu_seconds,
    wall_seconds,
)
from trio_rmq.cli.logs import LEVELS, set_up_logging
from trio_rmq.cli.recovery_progress import RecoveryProgress
from trio_rmq.config import (
    BrokerSettings,
    NamesrvConfig,
    load_broker_settings,
    load_namesrv_settings,
    load_standalone_settings,
)
from trio_rmq.errors import BrokerEndedError, ConfigError, ListenError, RocketMQError, StoreError
from trio_rmq.store.disk import Disk

logger = logging.getLogger("trio_rmq")

COLLECT_AFTER = (700, 5, 2)
"""Python's own are (700, 10, 10).  A middle collection then walks over some 4,000 new objects, a full one over some
13,000: about 5 ms."""
FULL = 2
"""The generation of a full collection."""
LASTING_OBJECTS = 5_000
"""From so many survivors of a full collection on there was growth, and what grew is taken for lasting."""

Announce = Callable[[Any], Iterable[str]]
"""Given what the server said when it was ready, the lines to print."""


class Serve(Protocol):
    """A server with its settings filled in: runs until cancelled, and says when it is ready."""

    def __call__(self, *, task_status: trio.TaskStatus[Any]) -> Awaitable[None]: ...


class _Server(NamedTuple):
    """What a command runs, what it prints then, and what else runs from then on."""

    serve: Serve
    announce: Announce
    once_ready: Callable[[], Awaitable[None]] | None = None


class _Parser(argparse.ArgumentParser):
    """argparse whose complaint is a ConfigError, so that all bad settings end alike."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see {self.prog} --help)")


def run_server(command: str, words: Sequence[str], *, disk: Disk | None = None) -> int:
    """Run the server `command` with the words after it on the command line; returns the exit status.

    `disk` stands for the real one where somebody wants faults in it.
    """
    try:
        options = _parser(command).parse_intermixed_args(words)
        supervised = getattr(options, "supervised", "")
        set_up_logging(options.log_level, options.log_file, supervised)
        keep_freed_memory()
        server = {"namesrv": _namesrv, "broker": _broker, "standalone": _standalone}[command](options, disk)
        trio.run(_run_until_signal, server, bool(supervised))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BaseExceptionGroup as group:
        return _say(_first_error(group), command)
    except RocketMQError as error:
        return _say(error, command)
    return 0


def _parser(command: str) -> argparse.ArgumentParser:
    about = {
        "namesrv": "Run a name server: it tells clients which brokers have a topic's queues.",
        "broker": "Run a broker: it stores messages and serves producers and consumers.",
        "standalone": "Run a name server and a broker in one process, for this machine unless told otherwise.",
    }[command]
    parser = _Parser(prog=f"trio-rmq {command}", description=about)
    parser.add_argument(
        "-c", "--config", metavar="FILE", help="settings, key=value a line as RocketMQ's servers read them"
    )
    if command == "broker":
        parser.add_argument(
            "-n", "--namesrv", metavar="ADDRS", default="",
            help="name servers, host:port separated by ';' (default: the file's namesrvAddr, else $NAMESRV_ADDR)",
        )  # fmt: skip
        parser.add_argument(
            "--supervised", metavar="NAME", default="",
            help="for who runs several: end in order when standard input ends, and put NAME into each log line",
        )  # fmt: skip
    if command == "standalone":
        parser.add_argument("--store", metavar="DIR", help="folder that keeps everything (default: ./store)")
        parser.add_argument("--port", type=int, metavar="N", help="port of the broker (default: 10911)")
        parser.add_argument("--namesrv-port", type=int, metavar="N", help="port of the name server (default: 9876)")
        parser.add_argument(
            "--brokers", type=int, metavar="N", default=1,
            help="so many broker processes, for as many cores: broker-a, broker-b, ... on ports ten apart (default: 1)",
        )  # fmt: skip
    parser.add_argument("--log-level", default="INFO", metavar="LEVEL", help=f"{', '.join(LEVELS)} (default: INFO)")
    parser.add_argument("--log-file", metavar="FILE", help="write the log there, not to stderr")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings that win over the file's")
    return parser


def _namesrv(options: argparse.Namespace, disk: Disk | None) -> _Server:
    from trio_rmq.namesrv.server import serve_name_server

    settings = load_namesrv_settings(options.config, options.overrides)

    async def serve(*, task_status: trio.TaskStatus[Any]) -> None:
        await serve_name_server(settings.namesrv, remoting=settings.remoting, disk=disk, task_status=task_status)

    return _Server(serve, lambda ready: [f"name server  {ready.address}"])


def _broker(options: argparse.Namespace, disk: Disk | None) -> _Server:
    from trio_rmq.broker.loop_turns import LoopTurns
    from trio_rmq.broker.server import serve_broker

    turns = LoopTurns(wall_seconds, thread_cpu_seconds)
    overrides = list(options.overrides)
    if options.namesrv:
        overrides.insert(0, f"namesrvAddr={options.namesrv}")
    settings = load_broker_settings(options.config, overrides, host_name=host_name())
    if not settings.broker.namesrv_addr:
        settings.broker.namesrv_addr = default_name_servers()

    async def serve(*, task_status: trio.TaskStatus[Any]) -> None:
        with RecoveryProgress() as progress:
            await serve_broker(
                settings.broker,
                settings.store,
                remoting=settings.remoting,
                disk=disk,
                progress=progress,
                turns=turns,
                task_status=task_status,
            )

    def announce(ready: Any) -> Iterable[str]:
        names = ", ".join(settings.broker.name_servers())
        yield f"broker       {ready.address}  ({settings.broker.broker_name})"
        yield f"store        {settings.store.store_path_root_dir}"
        yield f"registers at {names or 'no name server: set namesrvAddr, -n or NAMESRV_ADDR'}"

    return _Server(serve, announce, turns.run)


def _standalone(options: argparse.Namespace, disk: Disk | None) -> _Server:
    namesrv, settings = _standalone_settings(options)
    if options.brokers != 1:
        return _several(options, namesrv, settings)
    from trio_rmq.broker.loop_turns import LoopTurns
    from trio_rmq.standalone import serve_standalone

    turns = LoopTurns(wall_seconds, thread_cpu_seconds)
    _check_single(settings.store.store_path_root_dir)

    async def serve(*, task_status: trio.TaskStatus[Any]) -> None:
        with RecoveryProgress() as progress:
            await serve_standalone(
                namesrv,
                settings.broker,
                settings.store,
                remoting=settings.remoting,
                disk=disk,
                progress=progress,
                turns=turns,
                task_status=task_status,
            )

    def announce(ready: Any) -> Iterable[str]:
        yield f"name server  {ready.namesrv_address}"
        yield f"broker       {ready.broker_address}  (TCP and ws://)"
        yield f"store        {settings.store.store_path_root_dir}"
        yield "try next     " + next_command(ready.namesrv_address)

    return _Server(serve, announce, turns.run)


def _standalone_settings(options: argparse.Namespace) -> tuple[NamesrvConfig, BrokerSettings]:
    chosen = {}
    if options.store is not None:
        chosen = {"storePathRootDir": options.store, "kvConfigPath": f"{options.store}/namesrv/kvConfig.json"}
    if options.port is not None:
        chosen["listenPort"] = str(options.port)
    overrides = [f"{key}={value}" for key, value in chosen.items()] + list(options.overrides)
    namesrv, settings = load_standalone_settings(options.config, overrides)
    if options.namesrv_port is not None:
        if not 0 <= options.namesrv_port <= 65535:
            raise ConfigError(f"--namesrv-port {options.namesrv_port}: the value must be from 0 to 65535")
        namesrv.listen_port = options.namesrv_port
    return namesrv, settings


def _check_single(root: str) -> None:
    """ConfigError when the folder was kept by several brokers, whose messages a single one would not find."""
    if next(Path(root).glob("*-a/commitlog"), None) is not None:
        raise ConfigError(f"{root} holds the stores of several brokers: start with --brokers N, or take another folder")


def _several(options: argparse.Namespace, namesrv: NamesrvConfig, settings: BrokerSettings) -> _Server:
    from trio_rmq.cli.supervisor import broker_places, serve_brokers

    places = broker_places(options.brokers, settings)
    remoting, broker = settings.remoting, settings.broker

    def words(name_server: str) -> list[str]:
        """Of `trio-rmq broker`, for each: the same file and overrides, and what a standalone's defaults are."""
        given = ["--config", options.config] if options.config else []
        given += ["--log-level", options.log_level, *(["--log-file", options.log_file] if options.log_file else [])]
        names = ";".join([name_server, *(name for name in broker.name_servers() if name != name_server)])
        addresses = [f"bindAddress={remoting.bind_address}"]
        addresses += [f"brokerIP1={broker.broker_ip1}"] if broker.broker_ip1 else []
        return [*given, *options.overrides, *addresses, f"namesrvAddr={names}"]

    async def serve(*, task_status: trio.TaskStatus[Any]) -> None:
        await serve_brokers(namesrv, remoting, places, words, task_status=task_status)

    def announce(ready: Any) -> Iterable[str]:
        host = broker.broker_ip1 or remoting.bind_address
        yield f"name server  {ready.namesrv_address}"
        for place in places:
            process = ready.process_ids[place.name]
            yield f"{place.name:<12} {host}:{place.port}  (TCP and ws://; process {process}, store {place.store})"
        yield "try next     " + next_command(ready.namesrv_address)

    return _Server(serve, announce)


def next_command(namesrv_address: str) -> str:
    """A command that works as it stands in another terminal, against the name server just started."""
    host, _, port = namesrv_address.rpartition(":")
    if host in ("0.0.0.0", "[::]"):  # noqa: S104 - compared, not bound
        host = "127.0.0.1"
    server = "" if (host, port) == ("127.0.0.1", "9876") else f" -n {host}:{port}"
    command = own_command()
    return f"{command} send{server} Greetings hello && {command} receive{server} Greetings --until-end"


async def _run_until_signal(server: _Server, supervised: bool) -> None:
    """Serve; the first SIGINT or SIGTERM cancels the server, which ends in order; a second ends the process.

    `supervised`: the end of standard input counts as a SIGTERM, since nobody else is left to send one.
    """
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as watching:
            serving = trio.CancelScope()

            def stop(number: int, why: str) -> None:
                if serving.cancel_called:
                    exit_now(128 + number)
                logger.info("stopping on %s", why)
                notify_systemd("STOPPING=1")
                serving.cancel()

            async def watch() -> None:
                async for number in signals:
                    stop(number, signal.Signals(number).name)

            async def watch_input() -> None:
                await input_ended()
                stop(signal.SIGTERM, "the end of its supervisor")

            watching.start_soon(watch)
            if supervised:
                watching.start_soon(watch_input)
            with serving:
                async with trio.open_nursery() as nursery:
                    ready = await nursery.start(server.serve)
                    notify_systemd("READY=1")
                    _collect_garbage_from_now()
                    _print_ready(server.announce(ready))
                    if server.once_ready is not None:
                        nursery.start_soon(server.once_ready)
                    await trio.to_thread.run_sync(_load_websocket, abandon_on_cancel=True)
            logger.info("stopped")
            watching.cancel_scope.cancel()


def _load_websocket() -> None:
    """What a start does without, so that the first WebSocket connection need not make the others wait."""
    import trio_rmq.remoting.websocket  # noqa: F401 - imported, not used


def _collect_garbage_from_now() -> None:
    """End what `main` began; what exists by now stays for the life of the process, so it is never looked at."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
    gc.callbacks.append(_keep_what_lasts)
    gc.enable()


def _keep_what_lasts(phase: str, facts: dict[str, int]) -> None:
    """After a full collection of many objects: leave out for ever what survived it, so that the next is no longer.

    Without this, every quarter more connections cost a walk over all of them, a turn of the loop of 100 ms and more at
    ten thousand.  What was left out is freed as ever when nobody refers to it; only a cycle of such objects would stay,
    and sessions are none.  Few survivors are not left out, so that steady traffic never is.
    """
    if phase == "stop" and facts["generation"] == FULL and len(gc.get_objects(FULL)) >= LASTING_OBJECTS:
        gc.freeze()


def _print_ready(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)
    age = seconds_since_start()
    print("ready" if age is None else f"ready        {age:.2f} s after the process began", flush=True)


def _first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that a person should hear of: ours before others, out of all nesting."""
    leaves: list[BaseException] = []
    stack: list[BaseException] = [group]
    while stack:
        error = stack.pop()
        if isinstance(error, BaseExceptionGroup):
            stack.extend(reversed(error.exceptions))
        else:
            leaves.append(error)
    defects = [error for error in leaves if not isinstance(error, RocketMQError)]
    if defects:
        raise group
    return leaves[0]


def _say(error: BaseException, command: str) -> int:
    print(f"trio-rmq {command}: {error}", file=sys.stderr)
    if isinstance(error, BrokerEndedError):
        return error.status
    if isinstance(error, ConfigError):
        return 2
    if isinstance(error, ListenError):
        return 3
    return 4 if isinstance(error, StoreError) else 1
