"""Whom admin calls go to: name servers in turn, the masters of a cluster, the masters of a topic.

`AdminClient` keeps the connections and addresses, nothing else; what is asked stands in the files beside it as plain
async functions that take one.  Source of the addressing: RocketMQ DefaultMQAdminExtImpl, CommandUtil.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from trio_rmq.client.instance import name_server_list
from trio_rmq.errors import ClientError, RemotingError, ResponseError, RouteNotFoundError
from trio_rmq.remoting.address import address_scheme
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.remoting.tls_context import TlsContext
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.headers import GetRouteInfoRequestHeader
from trio_rmq.wire.routes import MASTER_ID, ClusterInfo, TopicRouteData, decode_cluster_info, decode_route

ASK_SECONDS = 10.0
"""Deadline of one admin request: a broker that writes a table down or asks its clients takes longer than a send."""


class AdminClient:
    """Connections to name servers and brokers for admin calls; an async context manager, ended by leaving it.

    `name_servers` as for producers (`host:port;...`, a sequence, an address server, or NAMESRV_ADDR); over a `ws://`
    one brokers are reached by WebSocket too.  ClientError without any.  Cancelling a call leaves nothing behind but
    what the server has already done.
    """

    def __init__(
        self,
        *,
        name_servers: str | Sequence[str] | None = None,
        seconds: float = ASK_SECONDS,
        ssl_context: TlsContext | None = None,
        use_tls: bool = False,
    ) -> None:
        self._name_servers = name_server_list(name_servers)
        self.remoting = RemotingClient(ssl_context=ssl_context, use_tls=use_tls)
        self._seconds = seconds
        self._preferred = 0

    async def __aenter__(self) -> AdminClient:
        await self.remoting.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.remoting.__aexit__(kind, error, trace)

    async def ask(self, address: str, command: Command) -> Command:
        """One request to one server; ResponseError for any answer but success, RemotingError for none."""
        answer = await self.remoting.request(address, command, self._seconds)
        if answer.code != ResponseCode.SUCCESS:
            raise ResponseError(answer.code, answer.remark, address=address)
        return answer

    async def ask_name_server(self, command: Command) -> Command:
        """One request to the first name server that answers, the last good one first.

        ResponseError for an answer other than success, which is not tried elsewhere; RemotingError when all are away.
        """
        failure: RemotingError | None = None
        servers = await self._name_servers.current()
        first = self._preferred
        for turn in range(len(servers)):
            number = (first + turn) % len(servers)
            try:
                answer = await self.ask(servers[number], command)
            except ResponseError:
                self._preferred = number
                raise
            except RemotingError as error:
                failure = error
            else:
                self._preferred = number
                return answer
        assert failure is not None  # noqa: S101 - there is at least one name server
        raise failure

    async def ask_every_name_server(self, command: Command) -> list[Command]:
        """The same request to each name server, as they do not tell one another; the first failure ends it."""
        return [await self.ask(server, command) for server in await self._name_servers.current()]

    def reachable(self, address: str) -> str:
        """A broker's address as told by a name server, which was asked before, as this client reaches it."""
        servers = self._name_servers.addresses
        return address_scheme(servers[self._preferred % len(servers)]) + address

    async def cluster_info(self) -> ClusterInfo:
        """Every cluster and broker that a name server knows; addresses as brokers tell them."""
        answer = await self.ask_name_server(Command(RequestCode.GET_BROKER_CLUSTER_INFO))
        return decode_cluster_info(answer.body)

    async def masters(self, cluster: str | None = None) -> dict[str, str]:
        """Reachable addresses of masters by broker name, of one cluster or of all; ClientError when there are none."""
        info = await self.cluster_info()
        if cluster is None:
            names = sorted(info.broker_addr_table)
        else:
            names = sorted(info.cluster_addr_table.get(cluster, []))
            if not names:
                known = ", ".join(sorted(info.cluster_addr_table)) or "none"
                raise ClientError(f"no name server knows a cluster {cluster}; known: {known}")
        found = {
            name: self.reachable(info.broker_addr_table[name].broker_addrs[MASTER_ID])
            for name in names
            if name in info.broker_addr_table and MASTER_ID in info.broker_addr_table[name].broker_addrs
        }
        if not found:
            raise ClientError(
                "no master broker is registered at the name servers: start one, or ask other name servers"
            )
        return found

    async def route(self, topic: str) -> TopicRouteData:
        """A topic's queues and brokers; RouteNotFoundError when no name server knows it."""
        header = GetRouteInfoRequestHeader(topic=topic, accept_standard_json_only=True)
        try:
            answer = await self.ask_name_server(Command(RequestCode.GET_ROUTEINFO_BY_TOPIC, header=header))
        except ResponseError as error:
            if error.response_code != ResponseCode.TOPIC_NOT_EXIST:
                raise
            raise RouteNotFoundError(
                f"no name server of {self._name_servers} knows the topic {topic}: create it"
            ) from None
        return decode_route(answer.body)

    async def topic_masters(self, topic: str) -> dict[str, str]:
        """Reachable addresses of the masters that have the topic, by broker name; errors as of `route`."""
        route = await self.route(topic)
        found = {
            broker.broker_name: self.reachable(broker.broker_addrs[MASTER_ID])
            for broker in route.broker_datas
            if MASTER_ID in broker.broker_addrs
        }
        if not found:
            raise RouteNotFoundError(f"no master serves the topic {topic} now")
        return found
