"""Brokers come, change, fall silent and go."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.namesrv.asking import ADDRESS, V4_9, Asker, askers, name_server_in, topic
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.testing.world import open_world
from trio_rmq.wire import headers
from trio_rmq.wire.codes import RequestCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.routes import decode_cluster_info
from trio_rmq.wire.topics import DataVersion, decode_data_version, encode_data_version

pytestmark = pytest.mark.trio
V3_0, V5_3 = 36, 470


@pytest.mark.parametrize(
    ("compressed", "version"), [(False, V3_0), (False, V4_9), (True, V4_9), (False, V5_3), (True, V5_3)]
)
async def test_every_form_of_a_registration(
    compressed: bool, version: int, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_world() as world, name_server_in(world), askers(world, 1) as [broker]:
        answer = await broker.register([topic("T"), topic("U", perm=4)], compressed=compressed, command_version=version)
        assert answer.code == 0, answer.remark
        assert await broker.queues("T") == {"broker-a": (4, 6)}
        assert await broker.queues("U") == {"broker-a": (4, 4)}


async def test_queue_data_changes_with_the_data_version_only(autojump_clock: trio.testing.MockClock) -> None:
    async with open_world() as world, name_server_in(world), askers(world, 1) as [broker]:
        await broker.register([topic("T", queues=4)], version=1)
        await broker.register([topic("T", queues=8)], version=1)
        assert await broker.queues("T") == {"broker-a": (4, 6)}
        await broker.register([topic("T", queues=8)], version=2)
        assert await broker.queues("T") == {"broker-a": (8, 6)}


async def test_an_incremental_registration_takes_nothing_away(autojump_clock: trio.testing.MockClock) -> None:
    async with open_world() as world, name_server_in(world), askers(world, 1) as [broker]:
        await broker.register([topic("T"), topic("U")], version=1)
        await broker.register([topic("V", queues=2)], version=2)
        lists = await broker.topics(RequestCode.GET_ALL_TOPIC_LIST_FROM_NAMESERVER)
        assert lists == ["T", "U", "V"]
        assert await broker.queues("V") == {"broker-a": (2, 6)}


async def test_a_slave_learns_its_master_and_brings_no_queues(autojump_clock: trio.testing.MockClock) -> None:
    async with open_world() as world, name_server_in(world), askers(world, 2) as [master, slave]:
        early = await slave.register([topic("T", queues=9)], address="10.0.1.2:10911", broker_id=1)
        assert early.ext_fields() == {}
        await master.register([topic("T")])
        answer = await slave.register([topic("T", queues=9)], address="10.0.1.2:10911", broker_id=1, version=5)
        assert answer.ext_fields() == {"haServerAddr": "10.0.1.1:10912", "masterAddr": "10.0.1.1:10911"}
        route = await slave.route("T")
        assert route is not None
        assert route.broker_datas[0].broker_addrs == {0: "10.0.1.1:10911", 1: "10.0.1.2:10911"}
        assert await slave.queues("T") == {"broker-a": (4, 6)}


async def test_a_slave_that_became_master_has_one_place(autojump_clock: trio.testing.MockClock) -> None:
    async with open_world() as world, name_server_in(world), askers(world, 1) as [broker]:
        await broker.register([], address="10.0.1.2:10911", broker_id=1)
        await broker.register([topic("T")], address="10.0.1.2:10911", broker_id=0)
        route = await broker.route("T")
        assert route is not None
        assert route.broker_datas[0].broker_addrs == {0: "10.0.1.2:10911"}


async def test_a_broker_that_moved_leaves_no_old_address(autojump_clock: trio.testing.MockClock) -> None:
    async with open_world() as world, name_server_in(world), askers(world, 2) as [old, new]:
        await old.register([topic("T")], filter_servers=["f1"])
        await new.register([topic("T")], address="10.0.1.9:10911", version=2)
        route = await new.route("T")
        assert route is not None
        assert route.broker_datas[0].broker_addrs == {0: "10.0.1.9:10911"}
        assert route.filter_server_table == {}


async def test_filter_servers_travel_with_the_route(autojump_clock: trio.testing.MockClock) -> None:
    async with open_world() as world, name_server_in(world), askers(world, 1) as [broker]:
        await broker.register([topic("T")], filter_servers=["10.0.1.1:20000", "10.0.1.1:20001"])
        route = await broker.route("T")
        assert route is not None
        assert route.filter_server_table == {"10.0.1.1:10911": ["10.0.1.1:20000", "10.0.1.1:20001"]}
        await broker.register([topic("T")])
        route = await broker.route("T")
        assert route is not None
        assert route.filter_server_table == {}


async def test_the_data_version_is_asked_before_a_registration(autojump_clock: trio.testing.MockClock) -> None:
    async def changed(broker: Asker, version: int) -> tuple[str, bytes]:
        header = headers.QueryDataVersionRequestHeader(
            broker_name="broker-a", broker_addr="10.0.1.1:10911", cluster_name="DefaultCluster", broker_id=0
        )
        data = encode_data_version(DataVersion(counter=version, timestamp=1000 + version))
        answer = await broker.ask(RequestCode.QUERY_DATA_VERSION, header, data)
        assert answer.code == 0
        return answer.ext_fields()["changed"], bytes(answer.body)

    async with open_world() as world, name_server_in(world), askers(world, 1) as [broker]:
        assert await changed(broker, 3) == ("true", b"")
        await broker.register([topic("T")], version=3)
        state, body = await changed(broker, 3)
        assert state == "false"
        assert decode_data_version(body).counter == 3
        assert (await changed(broker, 4))[0] == "true"
        for _ in range(10):  # an unchanged version counts as a sign of life
            await trio.sleep(60)
            assert (await changed(broker, 3))[0] == "false"
        assert await broker.queues("T") == {"broker-a": (4, 6)}


async def test_goodbye(autojump_clock: trio.testing.MockClock) -> None:
    def goodbye(address: str) -> headers.UnRegisterBrokerRequestHeader:
        return headers.UnRegisterBrokerRequestHeader(
            broker_name="broker-a", broker_addr=address, cluster_name="DefaultCluster", broker_id=0
        )

    async with open_world() as world, name_server_in(world), askers(world, 2) as [first, second]:
        await first.register([topic("T")])
        await second.register([topic("T"), topic("U")], name="broker-b", address="10.0.1.2:10911")
        stale = await first.ask(RequestCode.UNREGISTER_BROKER, goodbye("10.0.1.77:10911"))
        assert stale.code == 0
        assert set(await first.queues("T")) == {"broker-a", "broker-b"}, "another address's goodbye is nobody's"
        await first.ask(RequestCode.UNREGISTER_BROKER, goodbye("10.0.1.1:10911"))
        assert set(await first.queues("T")) == {"broker-b"}
        await second.ask(
            RequestCode.UNREGISTER_BROKER,
            headers.UnRegisterBrokerRequestHeader(
                broker_name="broker-b", broker_addr="10.0.1.2:10911", cluster_name="DefaultCluster", broker_id=0
            ),
        )
        assert await first.route("U") is None
        info = decode_cluster_info((await first.ask(RequestCode.GET_BROKER_CLUSTER_INFO)).body)
        assert (info.broker_addr_table, info.cluster_addr_table) == ({}, {})


async def test_a_closed_connection_takes_its_broker_away(autojump_clock: trio.testing.MockClock) -> None:
    async with open_world() as world, name_server_in(world), askers(world, 1) as [other]:
        await other.register([topic("T")], name="broker-b", address="10.0.1.2:10911")
        with world.node("10.0.1.1"):
            async with RemotingClient() as client:
                await Asker(client).register([topic("T")])
                assert set(await other.queues("T")) == {"broker-a", "broker-b"}
        await trio.sleep(1)
        assert set(await other.queues("T")) == {"broker-b"}


async def test_two_silent_minutes_take_a_broker_away(autojump_clock: trio.testing.MockClock) -> None:
    async with open_world() as world, name_server_in(world), askers(world, 3) as [silent, beating, tool]:
        await silent.register([topic("T")])
        await beating.register([topic("T")], name="broker-b", address="10.0.1.2:10911")
        heartbeat = headers.BrokerHeartbeatRequestHeader(
            cluster_name="DefaultCluster", broker_addr="10.0.1.2:10911", broker_name="broker-b"
        )
        # The silent one keeps its connection open by asking for routes: that is no sign of a broker's life.
        for second in range(0, 115, 5):
            assert set(await silent.queues("T")) == {"broker-a", "broker-b"}, second
            assert (await beating.ask(RequestCode.BROKER_HEARTBEAT, heartbeat)).code == 0
            await trio.sleep(5)
        for _ in range(5):
            await beating.ask(RequestCode.BROKER_HEARTBEAT, heartbeat)
            await silent.route("T")
            await trio.sleep(5)
        assert set(await tool.queues("T")) == {"broker-b"}


async def test_a_broker_may_ask_for_a_shorter_time(autojump_clock: trio.testing.MockClock) -> None:
    async with open_world() as world, name_server_in(world), askers(world, 2) as [broker, tool]:
        await broker.register([topic("T")], heartbeat_timeout_ms=3000)
        await trio.sleep(2.5)
        assert await tool.queues("T")
        await trio.sleep(6)
        assert await tool.queues("T") == {}


async def test_name_servers_side_by_side_know_what_they_were_told(autojump_clock: trio.testing.MockClock) -> None:
    second = "10.0.0.2"
    async with (
        open_world() as world,
        name_server_in(world),
        name_server_in(world, node=second),
        askers(world, 1) as [broker],
    ):
        await broker.register([topic("T")])
        request = Command(RequestCode.GET_ROUTEINFO_BY_TOPIC, headers.GetRouteInfoRequestHeader(topic="T"))
        assert (await broker.client.request(f"{second}:9876", request, 10)).code == 17
        again = Command(RequestCode.GET_ROUTEINFO_BY_TOPIC, headers.GetRouteInfoRequestHeader(topic="T"))
        assert (await broker.client.request(ADDRESS, again, 10)).code == 0
