"""A standalone: name server and broker in one process, on simulated machines."""

from __future__ import annotations

from functools import partial

import msgspec
import pytest
import trio
import trio.testing

from tests.broker.running import BROKER, CLIENT, Client, broker_config
from trio_rmq.config import NamesrvConfig
from trio_rmq.errors import StoreError
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.standalone import StandaloneReady, serve_standalone
from trio_rmq.supervision import lone_errors
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.testing.stores import small_config
from trio_rmq.testing.world import open_world
from trio_rmq.wire import headers
from trio_rmq.wire.codes import RequestCode
from trio_rmq.wire.command import Command

pytestmark = pytest.mark.trio
NAMES = NamesrvConfig(kv_config_path="namesrv/kvConfig.json")


async def test_its_broker_is_routed_to_as_soon_as_it_is_ready(autojump_clock: trio.testing.MockClock) -> None:
    disk = FaultyDisk()
    async with open_world() as world, trio.open_nursery() as nursery:
        with world.node(BROKER):
            ready: StandaloneReady = await nursery.start(
                partial(serve_standalone, NAMES, broker_config(), small_config("store"), disk=disk)
            )
        assert (ready.namesrv_address, ready.broker_address) == ("127.0.0.1:9876", f"{BROKER}:10911")
        with world.node(CLIENT):
            async with RemotingClient() as remoting:
                route = await remoting.request(
                    f"{BROKER}:9876",
                    Command(RequestCode.GET_ROUTEINFO_BY_TOPIC, headers.GetRouteInfoRequestHeader(topic="TBW102")),
                )
                assert route.code == 0
                table = msgspec.json.decode(route.body.replace(b"{0:", b'{"0":'))
                assert table["brokerDatas"][0]["brokerAddrs"] == {"0": ready.broker_address}
                answer = await Client(remoting, ready.broker_address).send(b"first")
                assert answer.code == 0, answer.remark
        nursery.cancel_scope.cancel()
    assert not disk.exists("store/abort"), "stopped in order"


async def test_a_broker_that_cannot_start_ends_its_name_server(autojump_clock: trio.testing.MockClock) -> None:
    disk = FaultyDisk()
    disk.make_directories("store/commitlog")
    disk.write_file("store/commitlog/notes.txt", b"not ours")
    async with open_world() as world:
        with world.node(BROKER), lone_errors(), pytest.raises(StoreError, match=r"notes\.txt"):
            await serve_standalone(NAMES, broker_config(), small_config("store"), disk=disk)
        with world.node(BROKER):  # its ports are free again
            disk.unlink("store/commitlog/notes.txt")
            with trio.move_on_after(1) as scope:
                await serve_standalone(NAMES, broker_config(), small_config("store"), disk=disk)
            assert scope.cancelled_caught


async def test_it_registers_with_other_name_servers_too(autojump_clock: trio.testing.MockClock) -> None:
    disk = FaultyDisk()
    config = broker_config(namesrv_addr="10.0.0.9:9876;127.0.0.1:9876")
    async with open_world() as world, trio.open_nursery() as nursery:
        with world.node(BROKER):
            begun = trio.current_time()
            await nursery.start(partial(serve_standalone, NAMES, config, small_config("store"), disk=disk))
            assert trio.current_time() - begun < 10, "one that is off the network costs one time-out"
        with world.node(CLIENT):
            async with RemotingClient() as remoting:
                clusters = await remoting.request(f"{BROKER}:9876", Command(RequestCode.GET_BROKER_CLUSTER_INFO))
                assert b"broker-a" in clusters.body
        nursery.cancel_scope.cancel()
