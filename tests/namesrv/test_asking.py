"""What clients and tools are told: routes, lists, permissions, the key-value table; and what bad input gets."""

from __future__ import annotations

import zlib
from typing import Any

import pytest
import trio
import trio.testing

from tests.namesrv.asking import V4_9, askers, name_server_in, topic
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.testing.world import open_world
from trio_rmq.wire import headers
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.routes import KVTable, TopicRouteData, decode_cluster_info, decode_kv_table, encode_route
from trio_rmq.wire.routes import QueueData as Queues
from trio_rmq.wire.sysflag import TOPIC_UNIT, TOPIC_UNIT_SUBSCRIPTION

pytestmark = pytest.mark.trio
ORDERS = "ORDER_TOPIC_CONFIG"


async def test_a_topic_that_is_nowhere(autojump_clock: trio.testing.MockClock) -> None:
    async with open_world() as world, name_server_in(world), askers(world, 1) as [client]:
        answer = await client.ask(
            RequestCode.GET_ROUTEINFO_BY_TOPIC, headers.GetRouteInfoRequestHeader(topic="Nowhere")
        )
        assert answer.code == ResponseCode.TOPIC_NOT_EXIST
        assert answer.remark == "No topic route info in name server for the topic: Nowhere"


async def test_old_clients_get_fastjsons_keys(autojump_clock: trio.testing.MockClock) -> None:
    async with open_world() as world, name_server_in(world), askers(world, 1) as [client]:
        await client.register([topic("T")])
        header = headers.GetRouteInfoRequestHeader(topic="T")
        strict = headers.GetRouteInfoRequestHeader(topic="T", accept_standard_json_only=True)
        old = await client.ask(RequestCode.GET_ROUTEINFO_BY_TOPIC, header, version=393)
        new = await client.ask(RequestCode.GET_ROUTEINFO_BY_TOPIC, strict, version=V4_9)
        assert b"{0:" in old.body
        assert b'{"0":' in new.body


async def test_lists(autojump_clock: trio.testing.MockClock) -> None:
    async with open_world() as world, name_server_in(world), askers(world, 2) as [first, second]:
        await first.register([topic("T"), topic("Unit", flag=TOPIC_UNIT)])
        both = TOPIC_UNIT | TOPIC_UNIT_SUBSCRIPTION
        await second.register(
            [topic("T"), topic("Sub", flag=TOPIC_UNIT_SUBSCRIPTION), topic("Both", flag=both)],
            name="broker-b",
            address="10.0.1.2:10911",
            cluster="Other",
        )
        assert await first.topics(RequestCode.GET_ALL_TOPIC_LIST_FROM_NAMESERVER) == ["Both", "Sub", "T", "Unit"]
        of_other = headers.GetTopicsByClusterRequestHeader(cluster="Other")
        assert await first.topics(RequestCode.GET_TOPICS_BY_CLUSTER, of_other) == ["Both", "Sub", "T"]
        nowhere = headers.GetTopicsByClusterRequestHeader(cluster="Nowhere")
        assert await first.topics(RequestCode.GET_TOPICS_BY_CLUSTER, nowhere) == []
        system = await first.topics(RequestCode.GET_SYSTEM_TOPIC_LIST_FROM_NS)
        assert system == ["DefaultCluster", "Other", "broker-a", "broker-b"]
        assert await first.topics(RequestCode.GET_UNIT_TOPIC_LIST) == ["Both", "Unit"]
        assert await first.topics(RequestCode.GET_HAS_UNIT_SUB_TOPIC_LIST) == ["Both", "Sub"]
        assert await first.topics(RequestCode.GET_HAS_UNIT_SUB_UNUNIT_TOPIC_LIST) == ["Sub"]
        info = decode_cluster_info((await first.ask(RequestCode.GET_BROKER_CLUSTER_INFO)).body)
        assert info.cluster_addr_table == {"DefaultCluster": ["broker-a"], "Other": ["broker-b"]}
        assert info.broker_addr_table["broker-b"].broker_addrs == {0: "10.0.1.2:10911"}


async def test_a_deleted_topic(autojump_clock: trio.testing.MockClock) -> None:
    async with open_world() as world, name_server_in(world), askers(world, 2) as [first, second]:
        await first.register([topic("T"), topic("U")])
        await second.register([topic("T"), topic("U")], name="broker-b", address="10.0.1.2:10911", cluster="Other")
        await first.ask(
            RequestCode.DELETE_TOPIC_IN_NAMESRV,
            headers.DeleteTopicFromNamesrvRequestHeader(topic="T", cluster_name="Other"),
        )
        assert set(await first.queues("T")) == {"broker-a"}
        await first.ask(RequestCode.DELETE_TOPIC_IN_NAMESRV, headers.DeleteTopicFromNamesrvRequestHeader(topic="U"))
        assert await first.route("U") is None
        await first.register([topic("T"), topic("U")], version=1)
        assert await first.route("U") is None, "the same version says nothing new"
        await first.register([topic("T"), topic("U")], version=2)
        assert set(await first.queues("U")) == {"broker-a"}


async def test_queues_added_by_hand(autojump_clock: trio.testing.MockClock) -> None:
    async with open_world() as world, name_server_in(world), askers(world, 1) as [client]:
        await client.register([topic("T")])
        route = TopicRouteData(
            queue_datas=[
                Queues(broker_name="broker-a", write_queue_nums=3, read_queue_nums=3, perm=6),
                Queues(broker_name="unknown", write_queue_nums=3, read_queue_nums=3, perm=6),
            ]
        )
        header = headers.RegisterTopicRequestHeader(topic="Hand")
        await client.ask(RequestCode.REGISTER_TOPIC_IN_NAMESRV, header, encode_route(route, standard_json=True))
        assert await client.queues("Hand") == {"broker-a": (3, 6)}


async def test_write_permission(autojump_clock: trio.testing.MockClock) -> None:
    async with open_world() as world, name_server_in(world), askers(world, 1) as [client]:
        await client.register([topic("T"), topic("Read", perm=4)])
        wipe = headers.WipeWritePermOfBrokerRequestHeader(broker_name="broker-a")
        answer = await client.ask(RequestCode.WIPE_WRITE_PERM_OF_BROKER, wipe)
        assert answer.ext_fields() == {"wipeTopicCount": "2"}
        assert await client.queues("T") == {"broker-a": (4, 4)}
        await client.register([topic("T"), topic("Read", perm=4)])
        assert await client.queues("T") == {"broker-a": (4, 4)}, "an unchanged registration leaves it"
        add = headers.AddWritePermOfBrokerRequestHeader(broker_name="broker-a")
        answer = await client.ask(RequestCode.ADD_WRITE_PERM_OF_BROKER, add)
        assert answer.ext_fields() == {"addTopicCount": "2"}
        assert await client.queues("T") == {"broker-a": (4, 6)}
        assert await client.queues("Read") == {"broker-a": (4, 6)}, "the write bit is added, nothing else"
        unknown = headers.WipeWritePermOfBrokerRequestHeader(broker_name="nobody")
        answer = await client.ask(RequestCode.WIPE_WRITE_PERM_OF_BROKER, unknown)
        assert answer.ext_fields() == {"wipeTopicCount": "0"}


class TestKeyValues:
    async def test_put_get_list_delete(self, autojump_clock: trio.testing.MockClock) -> None:
        async with open_world() as world, name_server_in(world), askers(world, 1) as [tool]:
            one = headers.GetKVConfigRequestHeader(namespace="N", key="k")
            assert (await tool.ask(RequestCode.GET_KV_CONFIG, one)).code == ResponseCode.QUERY_NOT_FOUND
            for key, value in (("k", "v"), ("l", "w"), ("k", "x")):
                header = headers.PutKVConfigRequestHeader(namespace="N", key=key, value=value)
                assert (await tool.ask(RequestCode.PUT_KV_CONFIG, header)).code == 0
            assert (await tool.ask(RequestCode.GET_KV_CONFIG, one)).ext_fields() == {"value": "x"}
            everything = headers.GetKVListByNamespaceRequestHeader(namespace="N")
            answer = await tool.ask(RequestCode.GET_KVLIST_BY_NAMESPACE, everything)
            assert decode_kv_table(answer.body) == KVTable(table={"k": "x", "l": "w"})
            for _ in range(2):
                header2 = headers.DeleteKVConfigRequestHeader(namespace="N", key="k")
                assert (await tool.ask(RequestCode.DELETE_KV_CONFIG, header2)).code == 0
            assert (await tool.ask(RequestCode.GET_KV_CONFIG, one)).code == ResponseCode.QUERY_NOT_FOUND
            nothing = headers.GetKVListByNamespaceRequestHeader(namespace="M")
            answer = await tool.ask(RequestCode.GET_KVLIST_BY_NAMESPACE, nothing)
            assert answer.code == ResponseCode.QUERY_NOT_FOUND

    @pytest.mark.parametrize("killed", [False, True])
    async def test_it_outlives_a_restart(self, killed: bool, autojump_clock: trio.testing.MockClock) -> None:
        disk = FaultyDisk()
        header = headers.PutKVConfigRequestHeader(namespace=ORDERS, key="T", value="broker-a:4")
        async with open_world() as world:
            async with name_server_in(world, disk=disk), askers(world, 1) as [tool]:
                await tool.ask(RequestCode.PUT_KV_CONFIG, header)
                await trio.sleep(1)
                survivor = disk.survivor_of_kill()
            async with name_server_in(world, disk=survivor if killed else disk), askers(world, 1) as [tool]:
                one = headers.GetKVConfigRequestHeader(namespace=ORDERS, key="T")
                assert (await tool.ask(RequestCode.GET_KV_CONFIG, one)).ext_fields() == {"value": "broker-a:4"}

    async def test_a_change_at_the_very_end_is_saved(self, autojump_clock: trio.testing.MockClock) -> None:
        disk = FaultyDisk()
        disk.latency = lambda: 5.0
        header = headers.PutKVConfigRequestHeader(namespace=ORDERS, key="T", value="broker-a:4")
        async with open_world() as world, name_server_in(world, disk=disk), askers(world, 1) as [tool]:
            await tool.ask(RequestCode.PUT_KV_CONFIG, header)
        assert b"broker-a:4" in disk.read_file("namesrv/kvConfig.json")

    async def test_a_full_disk_keeps_the_table_in_memory(
        self, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        disk = FaultyDisk()
        async with open_world() as world, name_server_in(world, disk=disk), askers(world, 1) as [tool]:
            disk.fail_next("rename")
            for key in ("a", "b"):
                header = headers.PutKVConfigRequestHeader(namespace="N", key=key, value="v")
                assert (await tool.ask(RequestCode.PUT_KV_CONFIG, header)).code == 0
                await trio.sleep(1)
            assert "cannot be written" in caplog.text
            assert b'"a"' in disk.read_file("namesrv/kvConfig.json")

    async def test_orders_reach_brokers_and_clients(self, autojump_clock: trio.testing.MockClock) -> None:
        settings: dict[str, Any] = {"order_message_enable": True, "return_order_topic_config_to_broker": True}
        async with open_world() as world, name_server_in(world, **settings), askers(world, 1) as [client]:
            first = await client.register([topic("T")])
            assert first.body == b""
            header = headers.PutKVConfigRequestHeader(namespace=ORDERS, key="T", value="broker-a:4")
            await client.ask(RequestCode.PUT_KV_CONFIG, header)
            second = await client.register([topic("T")])
            assert decode_kv_table(second.body) == KVTable(table={"T": "broker-a:4"})
            route = await client.route("T")
            assert route is not None
            assert route.order_topic_conf == "broker-a:4"


class TestBadInput:
    async def test_each_gets_its_answer_and_nobody_else_notices(self, autojump_clock: trio.testing.MockClock) -> None:
        header = headers.RegisterBrokerRequestHeader(
            broker_name="bad", broker_addr="10.0.1.9:10911", cluster_name="C", ha_server_addr="", broker_id=0
        )
        deflated = headers.RegisterBrokerRequestHeader(
            broker_name="bad",
            broker_addr="10.0.1.9:10911",
            cluster_name="C",
            ha_server_addr="",
            broker_id=0,
            compressed=True,
        )
        wrong_sum = headers.RegisterBrokerRequestHeader(
            broker_name="bad",
            broker_addr="10.0.1.9:10911",
            cluster_name="C",
            ha_server_addr="",
            broker_id=0,
            body_crc32=12345,
        )
        bomb = zlib.compress(bytes(300_000_000), 9)
        negative = b'{"topicConfigSerializeWrapper":{"topicConfigTable":{"T":{"topicName":"T","readQueueNums":-1}}}}'
        bad = [
            (RequestCode.REGISTER_BROKER, None, b"", "brokerName"),
            (RequestCode.REGISTER_BROKER, header, b"{broken", ""),
            (RequestCode.REGISTER_BROKER, header, b'{"topicConfigSerializeWrapper":7}', ""),
            (RequestCode.REGISTER_BROKER, header, negative, "queue counts"),
            (RequestCode.REGISTER_BROKER, deflated, b"no zlib", "zlib"),
            (RequestCode.REGISTER_BROKER, deflated, bomb, "more than"),
            (RequestCode.REGISTER_BROKER, deflated, zlib.compress(b"\xff\xff\xff\xff"), "negative"),
            (RequestCode.REGISTER_BROKER, deflated, zlib.compress(b"\0\0\0\x09abc"), "cut short"),
            (RequestCode.REGISTER_BROKER, wrong_sum, b"{}", "crc32"),
            (RequestCode.GET_ROUTEINFO_BY_TOPIC, None, b"", "topic"),
            (RequestCode.PUT_KV_CONFIG, headers.GetKVConfigRequestHeader(namespace="N", key="k"), b"", "value"),
            (RequestCode.QUERY_DATA_VERSION, None, b"", "broker"),
            (RequestCode.REGISTER_TOPIC_IN_NAMESRV, headers.RegisterTopicRequestHeader(topic="T"), b"{x", ""),
        ]
        async with open_world() as world, name_server_in(world), askers(world, 2) as [good, other]:
            await good.register([topic("T")])
            for code, bad_header, body, word in bad:
                answer = await other.ask(code, bad_header, body)
                assert answer.code == ResponseCode.SYSTEM_ERROR, (code, body[:30])
                assert answer.remark
                assert word in answer.remark, answer.remark
            unknown = await other.ask(4321)
            assert unknown.code == ResponseCode.REQUEST_CODE_NOT_SUPPORTED
            assert await other.queues("T") == {"broker-a": (4, 6)}
            info = decode_cluster_info((await other.ask(RequestCode.GET_BROKER_CLUSTER_INFO)).body)
            assert list(info.broker_addr_table) == ["broker-a"]

    async def test_settings_change_only_in_the_file(self, autojump_clock: trio.testing.MockClock) -> None:
        async with open_world() as world, name_server_in(world), askers(world, 1) as [tool]:
            answer = await tool.ask(RequestCode.UPDATE_NAMESRV_CONFIG, body=b"kvConfigPath=/etc/passwd\n")
            assert answer.code != 0
            shown = await tool.ask(RequestCode.GET_NAMESRV_CONFIG)
            assert b"kvConfigPath=namesrv/kvConfig.json" in shown.body
