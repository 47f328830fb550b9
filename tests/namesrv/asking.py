"""A whole name server on a simulated machine, and brokers and tools that ask it, each on a connection of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import msgspec
import trio

from trio_rmq.config import NamesrvConfig
from trio_rmq.namesrv.server import NameServerReady, serve_name_server
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.testing.world import World
from trio_rmq.wire import headers
from trio_rmq.wire.codes import RequestCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.registration import RegisterBrokerBody, encode_register_body
from trio_rmq.wire.routes import TopicRouteData, decode_route, decode_topic_list
from trio_rmq.wire.topics import DataVersion, TopicConfig, TopicConfigSerializeWrapper

NAME_SERVER = "10.0.0.1"
ADDRESS = f"{NAME_SERVER}:9876"
V4_9 = 401


def topic(name: str, *, queues: int = 4, perm: int = 6, flag: int = 0) -> TopicConfig:
    """One topic of a registration."""
    return TopicConfig(topic_name=name, read_queue_nums=queues, write_queue_nums=queues, perm=perm, topic_sys_flag=flag)


class Asker:
    """One program on one connection."""

    def __init__(self, client: RemotingClient) -> None:
        self.client = client

    async def ask(
        self, code: int, header: msgspec.Struct | None = None, body: bytes = b"", *, version: int = V4_9
    ) -> Command:
        """The answer to one request of a program of that version."""
        return await self.client.request(ADDRESS, Command(code, header, body=body, version=version), 10)

    async def register(
        self,
        topics: Iterable[TopicConfig],
        *,
        name: str = "broker-a",
        address: str = "10.0.1.1:10911",
        broker_id: int = 0,
        cluster: str = "DefaultCluster",
        version: int = 1,
        filter_servers: Iterable[str] = (),
        compressed: bool = False,
        command_version: int = V4_9,
        heartbeat_timeout_ms: int | None = None,
    ) -> Command:
        """Register a broker, as its programs do."""
        header = headers.RegisterBrokerRequestHeader(
            broker_name=name,
            broker_addr=address,
            cluster_name=cluster,
            ha_server_addr=address.replace("10911", "10912"),
            broker_id=broker_id,
            compressed=compressed,
            heartbeat_timeout_millis=heartbeat_timeout_ms,
        )
        wrapper = TopicConfigSerializeWrapper(
            data_version=DataVersion(counter=version, timestamp=1000 + version),
            topic_config_table={config.topic_name: config for config in topics},
        )
        body = RegisterBrokerBody(filter_server_list=[*filter_servers], topic_config_serialize_wrapper=wrapper)
        data = encode_register_body(body, compressed=compressed, version=command_version)
        return await self.ask(RequestCode.REGISTER_BROKER, header, data, version=command_version)

    async def route(self, name: str) -> TopicRouteData | None:
        """Where a topic is; None when it is nowhere."""
        answer = await self.ask(
            RequestCode.GET_ROUTEINFO_BY_TOPIC, headers.GetRouteInfoRequestHeader(topic=name), version=V4_9
        )
        return decode_route(answer.body) if answer.code == 0 else None

    async def queues(self, name: str) -> dict[str, tuple[int, int]]:
        """(write queues, permission) of a topic by broker."""
        route = await self.route(name)
        return (
            {}
            if route is None
            else {data.broker_name: (data.write_queue_nums, data.perm) for data in route.queue_datas}
        )

    async def topics(self, code: int, header: msgspec.Struct | None = None) -> list[str]:
        """A list of topics, sorted."""
        answer = await self.ask(code, header)
        assert answer.code == 0, answer.remark
        return sorted(decode_topic_list(answer.body).topic_list)


@asynccontextmanager
async def name_server_in(
    world: World, *, disk: FaultyDisk | None = None, node: str = NAME_SERVER, **settings: object
) -> AsyncIterator[trio.CancelScope]:
    """A name server for the block; the scope ends it earlier."""
    values: dict[str, object] = {"kv_config_path": "namesrv/kvConfig.json", **settings}
    config = NamesrvConfig(**values)  # type: ignore[arg-type]  # the values are those of the fields
    async with trio.open_nursery() as nursery:
        with world.node(node):
            ready: NameServerReady = await nursery.start(partial(serve_name_server, config, disk=disk or FaultyDisk()))
            assert ready.address == "0.0.0.0:9876"
        yield nursery.cancel_scope
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def askers(world: World, count: int) -> AsyncIterator[list[Asker]]:
    """So many programs, each on a machine of its own."""
    async with AsyncExitStack() as stack:
        found = []
        for number in range(count):
            with world.node(f"10.0.9.{number + 1}"):
                found.append(Asker(await stack.enter_async_context(RemotingClient())))
        yield found
