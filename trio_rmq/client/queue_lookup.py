"""Finds the queues of a topic by asking name servers, for readers and writers that choose queues themselves.

Unlike the route cache it keeps nothing: each look is a fresh question, which is what a caller wants that has just lost
a broker.  The transport goes along: a name server given as `ws://host:port` leads to brokers over WebSocket.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trio_rmq.errors import RemotingError, ResponseError, RouteNotFoundError
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.headers import GetRouteInfoRequestHeader
from trio_rmq.wire.routes import MASTER_ID, TopicRouteData, decode_route
from trio_rmq.wire.sysflag import PERMISSION_READ, PERMISSION_WRITE

TEMPLATE_TOPIC = "TBW102"
"""Registered by brokers that create topics on the first send: its route stands for that of a topic nobody knows."""

DEFAULT_QUEUES = 4
"""Queues that a producer asks for when its send creates the topic (defaultTopicQueueNums of clients)."""


@dataclass(frozen=True, slots=True, order=True)
class QueueAddress:
    """A queue and the address of its master."""

    broker_name: str
    queue_id: int
    address: str


async def queues_to_write(client: RemotingClient, name_servers: Sequence[str], topic: str) -> list[QueueAddress]:
    """The queues a producer may send to, in order; for a topic nobody knows those it will get when it is created.

    RouteNotFoundError when there are none; RemotingError when no name server answers.
    """
    try:
        return await _queues(client, name_servers, topic, PERMISSION_WRITE, None)
    except RouteNotFoundError:
        try:
            return await _queues(client, name_servers, TEMPLATE_TOPIC, PERMISSION_WRITE, DEFAULT_QUEUES)
        except RouteNotFoundError:
            raise RouteNotFoundError(
                f"no broker has the topic {topic} for writing, nor creates topics by itself; "
                "start a broker with autoCreateTopicEnable=true or create the topic"
            ) from None


async def queues_to_read(client: RemotingClient, name_servers: Sequence[str], topic: str) -> list[QueueAddress]:
    """The queues a consumer may read, in order; errors as of `queues_to_write`."""
    return await _queues(client, name_servers, topic, PERMISSION_READ, None)


async def _queues(
    client: RemotingClient, name_servers: Sequence[str], topic: str, permission: int, at_most: int | None
) -> list[QueueAddress]:
    route, prefix = await _route(client, name_servers, topic)
    masters = {broker.broker_name: broker.broker_addrs.get(MASTER_ID) for broker in route.broker_datas}
    found: list[QueueAddress] = []
    for data in route.queue_datas:
        address = masters.get(data.broker_name)
        if address is None or not data.perm & permission:
            continue
        count = data.write_queue_nums if permission == PERMISSION_WRITE else data.read_queue_nums
        ids = range(count if at_most is None else min(at_most, count))
        found += [QueueAddress(data.broker_name, queue_id, prefix + address) for queue_id in ids]
    if not found:
        raise RouteNotFoundError(f"no broker serves a queue of the topic {topic} now")
    return sorted(found)


async def _route(client: RemotingClient, name_servers: Sequence[str], topic: str) -> tuple[TopicRouteData, str]:
    """The route as the first name server that answers tells it, and what to put before a broker's address."""
    failure: RemotingError | ResponseError | None = None
    for name_server in name_servers:
        header = GetRouteInfoRequestHeader(topic=topic, accept_standard_json_only=True)
        try:
            answer = await client.request(name_server, Command(RequestCode.GET_ROUTEINFO_BY_TOPIC, header=header))
        except RemotingError as error:
            failure = error
            continue
        if answer.code == ResponseCode.TOPIC_NOT_EXIST:
            raise RouteNotFoundError(f"the name server {name_server} knows no topic {topic}")
        if answer.code != ResponseCode.SUCCESS:
            failure = ResponseError(answer.code, answer.remark, address=name_server)
            continue
        return decode_route(answer.body), "ws://" if name_server.startswith("ws://") else ""
    raise failure or RouteNotFoundError("no name server is given; set NAMESRV_ADDR or name one")
