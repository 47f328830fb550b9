"""A name server, brokers and an admin client on simulated machines, for tests on virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import trio

from tests.broker.running import CLIENT, NAME_SERVER, Client, broker_config
from trio_rmq.admin.client import AdminClient
from trio_rmq.broker.server import BrokerReady, serve_broker
from trio_rmq.config import NamesrvConfig
from trio_rmq.namesrv.server import serve_name_server
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.testing.stores import small_config
from trio_rmq.testing.world import World, open_world

NAME_SERVERS = f"{NAME_SERVER}:9876"


class Cluster:
    """The running cluster; `addresses` are the brokers' by name."""

    def __init__(self, world: World, addresses: dict[str, str], admin: AdminClient) -> None:
        self.world = world
        self.addresses = addresses
        self.admin = admin

    @asynccontextmanager
    async def client(self, broker_name: str = "broker-a", node: str = CLIENT) -> AsyncIterator[Client]:
        """A client of one broker, with a connection of its own, on the machine `node`."""
        with self.world.node(node):
            async with RemotingClient() as remoting:
                yield Client(remoting, self.addresses[broker_name])


@asynccontextmanager
async def cluster_of(*broker_names: str, **settings: object) -> AsyncIterator[Cluster]:
    """One cluster (DefaultCluster) with a name server and these brokers; `settings` are fields of BrokerConfig."""
    async with open_world() as world, trio.open_nursery() as nursery:
        with world.node(NAME_SERVER):
            await nursery.start(partial(serve_name_server, NamesrvConfig(kv_config_path="kv.json"), disk=FaultyDisk()))
        addresses = {}
        for number, name in enumerate(broker_names, 10):
            host = f"10.0.1.{number}"
            config = broker_config(broker_name=name, broker_ip1=host, namesrv_addr=NAME_SERVERS, **settings)
            with world.node(host):
                ready: BrokerReady = await nursery.start(
                    partial(serve_broker, config, small_config("store"), disk=FaultyDisk())
                )
            addresses[name] = ready.address
        with world.node(CLIENT):
            async with AdminClient(name_servers=NAME_SERVERS) as admin:
                yield Cluster(world, addresses, admin)
        nursery.cancel_scope.cancel()
