"""`standalone --brokers N`: one name server here, and N broker processes of this same command, so that N cores work.

A broker is one event loop and so uses one core; several brokers under one name server use several, and clients spread
over them by their routes.  Each has its name (`broker-a`, `broker-b`, ...), its folder in the store's, and its port
(ten apart); all other settings they share.

What happens when a process ends:
- A broker that was ready and is killed, or ends otherwise, is started again after a second; the pause doubles up to 30
  seconds and begins anew once the broker served for a minute.  The others go on meanwhile.
- A broker whose store failed (exit status 4), and one that ends before it is ready, would fail again: everything ends
  in order, with its exit status.
- SIGINT or SIGTERM here ends the brokers in order, then the name server.  A second one ends this process at once, and
  with it the brokers.  If this process is killed, the brokers end in order: each has a pipe from here as its standard
  input and ends when that does.  They have a process group of their own, so that a terminal's Ctrl-C is told once.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import string
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import trio

from trio_rmq.config import BrokerSettings, NamesrvConfig, RemotingConfig
from trio_rmq.errors import BrokerEndedError, ConfigError
from trio_rmq.namesrv.server import NameServerReady, serve_name_server
from trio_rmq.randomness import rng
from trio_rmq.standalone import reachable_here
from trio_rmq.supervision import lone_errors, serving_while

logger = logging.getLogger("trio_rmq")

BROKERS_MAX = len(string.ascii_lowercase)
"""A letter each."""
PORT_DISTANCE = 10
"""Each broker takes its port, the fast port two below and, announced only, the one above."""
PAUSE_FIRST_SECONDS = 1.0
PAUSE_MAX_SECONDS = 30.0
SERVED_SECONDS = 60.0
"""A broker that was ready for so long starts again after the first pause."""
STORE_FAILED_STATUS = 4
_NOTICE_BYTES = 4096


@dataclass(frozen=True)
class BrokerPlace:
    """One broker: its name, where it listens, its folder, and the settings that only it has."""

    name: str
    port: int
    store: str

    @property
    def settings(self) -> list[str]:
        """As words of a command line."""
        return [f"brokerName={self.name}", f"listenPort={self.port}", f"storePathRootDir={self.store}"]


def broker_places(count: int, settings: BrokerSettings) -> list[BrokerPlace]:
    """Where `count` brokers go; ConfigError when there is no room for them, or the folder is laid out otherwise."""
    if not 2 <= count <= BROKERS_MAX:
        raise ConfigError(f"--brokers {count}: the value must be from 1 to {BROKERS_MAX}")
    store, first_port = settings.store, settings.broker.listen_port
    if store.store_path_commit_log:
        raise ConfigError("storePathCommitLog names one folder, and --brokers needs one each: leave it out")
    if not first_port:
        raise ConfigError("--brokers needs to know its ports: listenPort must not be 0")
    last_port = first_port + PORT_DISTANCE * (count - 1)
    if last_port > 65535:
        raise ConfigError(f"--brokers {count} from port {first_port} would need port {last_port}: take a lower port")
    root = Path(store.store_path_root_dir)
    if (root / "commitlog").exists():
        raise ConfigError(
            f"{root} holds the store of a single broker: move what is in it to {root}/broker-a, or take another folder"
        )
    base = settings.broker.broker_name.removesuffix("-a")
    names = [f"{base}-{letter}" for letter in string.ascii_lowercase[:count]]
    for left in sorted(root.glob(f"{base}-?/commitlog")):
        if left.parent.name not in names:
            logger.warning("%s holds messages that no broker serves: raise --brokers", left.parent)
    return [
        BrokerPlace(name, first_port + PORT_DISTANCE * number, str(root / name)) for number, name in enumerate(names)
    ]


@dataclass(frozen=True)
class SeveralReady:
    """What a started supervisor says: the name server's address as clients use it, and the process of each broker."""

    namesrv_address: str
    process_ids: dict[str, int]


async def serve_brokers(
    namesrv: NamesrvConfig,
    remoting: RemotingConfig,
    places: Sequence[BrokerPlace],
    words: Callable[[str], Sequence[str]],
    *,
    task_status: trio.TaskStatus[SeveralReady],
) -> None:
    """Serve until cancelled; `words(name_server)` are the words of `trio-rmq broker` that all share.

    Raises BrokerEndedError when a broker ended that is not to be started again, and what `serve_name_server` raises.
    """

    async def serve_names(*, task_status: trio.TaskStatus[NameServerReady]) -> None:
        await serve_name_server(namesrv, remoting=remoting, task_status=task_status)

    name_server: NameServerReady
    with lone_errors():
        async with serving_while(serve_names) as name_server:
            address = reachable_here(name_server.address)
            brokers = [_BrokerProcess(place, [*words(address), *place.settings]) for place in places]
            async with trio.open_nursery() as nursery:
                for broker in brokers:
                    nursery.start_soon(broker.run)
                process_ids = {broker.name: await broker.wait_first_ready() for broker in brokers}
                task_status.started(SeveralReady(address, process_ids))


class _BrokerProcess:
    """Keeps one broker's process running."""

    def __init__(self, place: BrokerPlace, words: Sequence[str]) -> None:
        self.name = place.name
        self._command = [sys.executable, "-m", "trio_rmq.cli.main", "broker", "--supervised", place.name, *words]
        self._process_id = 0
        self._ready_at = -math.inf
        self._first_ready = trio.Event()

    async def wait_first_ready(self) -> int:
        """Return once it is ready, with its process id."""
        await self._first_ready.wait()
        return self._process_id

    async def run(self) -> None:
        """Start it, and start it again, until cancelled or until it ends as it would again."""
        pause = PAUSE_FIRST_SECONDS
        while True:
            began = trio.current_time()
            status = await self._run_once()
            if self._ready_at < began:
                raise BrokerEndedError(f"{self.name} ended {_how(status)} before it was ready", _exit_status(status))
            if status == STORE_FAILED_STATUS:
                raise BrokerEndedError(f"the store of {self.name} failed", status)
            if trio.current_time() - self._ready_at >= SERVED_SECONDS:
                pause = PAUSE_FIRST_SECONDS
            logger.error("%s ended %s; it is started again in %.0f s", self.name, _how(status), pause)
            await trio.sleep(pause)
            pause = min(pause * 2, PAUSE_MAX_SECONDS)

    async def _run_once(self) -> int:
        """Run the process to its end, and return its status as `subprocess` tells it (-n for signal n)."""
        with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_DGRAM) as notices:
            name = f"trio-rmq-{rng().getrandbits(64):016x}"  # a name that is no file, nor to be guessed
            await notices.bind(f"\0{name}")
            async with trio.open_nursery() as nursery:
                process: trio.Process = await nursery.start(
                    partial(
                        _run_process,
                        self._command,
                        env={**os.environ, "NOTIFY_SOCKET": f"@{name}"},
                    )
                )
                self._process_id = process.pid
                nursery.start_soon(self._note_ready, notices)
                status = await process.wait()
                nursery.cancel_scope.cancel()
        return status

    async def _note_ready(self, notices: trio.socket.SocketType) -> None:
        while b"READY=1" not in await notices.recv(_NOTICE_BYTES):
            pass
        self._ready_at = trio.current_time()
        if self._first_ready.is_set():
            logger.info("%s is ready again as process %d", self.name, self._process_id)
        self._first_ready.set()


_run_process: Callable[..., Awaitable[Any]] = partial(
    trio.run_process,
    stdin=subprocess.PIPE,
    stdout=subprocess.DEVNULL,
    check=False,
    process_group=0,
    deliver_cancel=lambda process: _terminate(process),
)
"""Runs a broker; cancelled, it asks it to end in order and waits for that."""


async def _terminate(process: trio.Process) -> None:
    process.terminate()


def _how(status: int) -> str:
    return f"on {signal.Signals(-status).name}" if status < 0 else f"with status {status}"


def _exit_status(status: int) -> int:
    """As a shell tells it; an end in order before it was ready is nothing to tell as success."""
    return 128 - status if status < 0 else status or 1
