"""Name servers on simulated machines: one that notes what it is told, and the real one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import trio

from tests.broker.running import NAME_SERVER
from trio_rmq.config import NamesrvConfig
from trio_rmq.namesrv.server import serve_name_server
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.remoting.handlers import HandlerTable, Later
from trio_rmq.remoting.listener import serve_remoting
from trio_rmq.remoting.session import Session
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.testing.world import World
from trio_rmq.wire import headers
from trio_rmq.wire.codes import RequestCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.registration import RegisterBrokerBody, decode_register_body
from trio_rmq.wire.routes import KVTable, TopicRouteData, decode_route, encode_kv_table

PORT = 9876
SECOND_NAME_SERVER = "10.0.0.9"
BOTH = f"{NAME_SERVER}:{PORT};{SECOND_NAME_SERVER}:{PORT}"


@dataclass
class Told:
    """One request of a broker: when, and what."""

    at_seconds: float
    code: int
    request: Command
    body: RegisterBrokerBody | None = None

    @property
    def topics(self) -> list[str]:
        """The names of the topics it registers."""
        assert self.body is not None
        return sorted(self.body.topic_config_serialize_wrapper.topic_config_table)

    @property
    def header(self) -> headers.RegisterBrokerRequestHeader:
        """The header of a registration."""
        return self.request.decode_header(headers.RegisterBrokerRequestHeader)


@dataclass
class Notebook:
    """A name server's handlers that write down what they are told, and answer as they are set to."""

    told: list[Told] = field(default_factory=list)
    code: int = 0
    remark: str | None = None
    order_table: dict[str, str] = field(default_factory=dict)
    changed: bool = True
    silent: bool = False
    """Takes requests and answers none."""

    def table(self) -> HandlerTable:
        """The handlers."""
        table = HandlerTable()
        table.register(RequestCode.REGISTER_BROKER, self._register)
        table.register(RequestCode.UNREGISTER_BROKER, self._note)
        table.register(RequestCode.QUERY_DATA_VERSION, self._version)
        return table

    def of(self, code: int) -> list[Told]:
        """What came with one code."""
        return [told for told in self.told if told.code == code]

    @property
    def registrations(self) -> list[Told]:
        """The registrations, in order."""
        return self.of(RequestCode.REGISTER_BROKER)

    @property
    def times(self) -> list[float]:
        """When the registrations came, in seconds."""
        return [round(told.at_seconds, 1) for told in self.registrations]

    def _note(self, session: Session, request: Command) -> Command | Later:
        self.told.append(Told(trio.current_time(), request.code, request))
        if self.silent:
            return Later(trio.sleep_forever)
        return request.reply(self.code, remark=self.remark)

    def _register(self, session: Session, request: Command) -> Command | Later:
        reply = self._note(session, request)
        self.told[-1].body = decode_register_body(request.body)
        if isinstance(reply, Command) and self.order_table:
            reply.body = encode_kv_table(KVTable(table=self.order_table))
        return reply

    def _version(self, session: Session, request: Command) -> Command | Later:
        reply = self._note(session, request)
        if isinstance(reply, Command):
            reply.header = headers.QueryDataVersionResponseHeader(changed=self.changed)
        return reply


@asynccontextmanager
async def name_server(
    world: World, notebook: Notebook | None = None, node: str = NAME_SERVER
) -> AsyncIterator[trio.CancelScope]:
    """A name server on `node` for the block: the real one, or one that only takes notes.  The scope ends it earlier."""

    async def serve(*, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as server:
                if notebook is None:
                    config = NamesrvConfig(kv_config_path="kv.json", listen_port=PORT)
                    await server.start(partial(serve_name_server, config, disk=FaultyDisk()))
                else:
                    await server.start(partial(serve_remoting, [f"0.0.0.0:{PORT}"], notebook.table()))
                task_status.started(scope)

    async with trio.open_nursery() as nursery:
        with world.node(node):
            scope: trio.CancelScope = await nursery.start(serve)
        yield scope
        scope.cancel()


async def route_of(world: World, topic: str, node: str = NAME_SERVER) -> TopicRouteData | None:
    """What a client is told by the real name server on `node`."""
    with world.node("10.0.0.77"):
        async with RemotingClient() as client:
            header = headers.GetRouteInfoRequestHeader(topic=topic)
            request = Command(RequestCode.GET_ROUTEINFO_BY_TOPIC, header)
            answer = await client.request(f"{node}:{PORT}", request, 10.0)
    return decode_route(answer.body) if answer.code == 0 else None


def queues(route: TopicRouteData | None) -> Sequence[tuple[str, int, int]]:
    """(broker, write queues, permission) of a route."""
    return [] if route is None else [(data.broker_name, data.write_queue_nums, data.perm) for data in route.queue_datas]
