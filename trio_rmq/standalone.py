"""Name server and broker in one process, for one machine: the whole system as one nursery.

The broker is nested inside the name server, so that it can say goodbye at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import trio

from trio_rmq.broker.loop_turns import LoopTurns
from trio_rmq.broker.server import BrokerReady, serve_broker
from trio_rmq.config import BrokerConfig, MessageStoreConfig, NamesrvConfig, RemotingConfig
from trio_rmq.namesrv.server import NameServerReady, serve_name_server
from trio_rmq.remoting.hooks import NO_HOOKS, ServerHooks
from trio_rmq.remoting.local_address import LOOPBACK, WILDCARDS
from trio_rmq.store.disk import Disk
from trio_rmq.store.message_store import MessageStore
from trio_rmq.store.recovery import Progress
from trio_rmq.supervision import lone_errors, serving_while


@dataclass(frozen=True)
class StandaloneReady:
    """What a started standalone says: both addresses, "host:port", as clients use them; the store as in BrokerReady."""

    namesrv_address: str
    broker_address: str
    store: MessageStore


def reachable_here(address: str) -> str:
    """Where this machine's own programs reach what listens on `address`: loopback for a wildcard."""
    host, _, port = address.rpartition(":")
    return f"{LOOPBACK if host.strip('[]') in WILDCARDS else host}:{port}"


async def serve_standalone(
    namesrv: NamesrvConfig,
    broker: BrokerConfig,
    store: MessageStoreConfig,
    *,
    remoting: RemotingConfig | None = None,
    disk: Disk | None = None,
    progress: Progress | None = None,
    hooks: ServerHooks = NO_HOOKS,
    turns: LoopTurns | None = None,
    task_status: trio.TaskStatus[StandaloneReady] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve both until cancelled; `task_status` gets a StandaloneReady when the first send would be accepted.

    Ports 0 take free ones; `progress`, `hooks` and `turns` are as in `serve_broker`.
    Raises what `serve_name_server` and `serve_broker` raise.
    """

    async def serve_names(*, task_status: trio.TaskStatus[NameServerReady]) -> None:
        await serve_name_server(namesrv, remoting=remoting, disk=disk, task_status=task_status)

    name_server: NameServerReady
    with lone_errors():
        async with serving_while(serve_names) as name_server:
            own_address = reachable_here(name_server.address)
            others = [address for address in broker.name_servers() if address != own_address]
            broker = msgspec.structs.replace(broker, namesrv_addr=";".join([own_address, *others]))

            async def serve_one(*, task_status: trio.TaskStatus[BrokerReady]) -> None:
                await serve_broker(
                    broker,
                    store,
                    remoting=remoting,
                    disk=disk,
                    progress=progress,
                    hooks=hooks,
                    turns=turns,
                    task_status=task_status,
                )

            async with trio.open_nursery() as brokers:
                ready: BrokerReady = await brokers.start(serve_one)
                task_status.started(StandaloneReady(own_address, ready.address, ready.store))
