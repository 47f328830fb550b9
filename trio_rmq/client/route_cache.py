"""What this client knows of topics' places: asked of any of several name servers, kept, refreshed.

Invariants: a route once learned stays until a newer one replaces it, so clients go on while all name servers are away
(said once); one question per topic is under way at a time.  Addresses learned over a `ws://` name server are reached
by `ws://` too.  Source: RocketMQ MQClientInstance, TopicPublishInfo.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import anyio

from trio_rmq.errors import ProtocolError, RemotingError, RouteNotFoundError
from trio_rmq.remoting.address import address_scheme
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.remoting.name_server_list import NameServerList
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.groups import MessageQueue
from trio_rmq.wire.headers import GetRouteInfoRequestHeader
from trio_rmq.wire.routes import MASTER_ID, TopicRouteData, decode_route
from trio_rmq.wire.sysflag import PERMISSION_READ, PERMISSION_WRITE

logger = logging.getLogger(__name__)

TEMPLATE_TOPIC = "TBW102"
"""Registered by brokers that make topics on first send."""
TEMPLATE_QUEUES = 4
"""Queues that a first send asks for (defaultTopicQueueNums)."""
REFRESH_SECONDS = 30.0
"""Age at which a route is asked for anew."""
TEMPLATE_SECONDS = 1.0
"""The same for the route of a topic that nobody knew yet: its first send makes it, at one of the brokers."""
ASK_SECONDS = 3.0
"""Deadline of one question to the only name server."""
ASK_SHARED_SECONDS = 1.2
"""The same to one of several: two that say nothing leave time to send, which takes 3 seconds at most."""


@dataclass(frozen=True, slots=True)
class Route:
    """A topic's queues that can be written and read, and the brokers' addresses by id."""

    topic: str
    write_queues: tuple[MessageQueue, ...]
    read_queues: tuple[MessageQueue, ...]
    brokers: dict[str, dict[int, str]]
    learned_at: float
    told_by: str = ""
    """The name server it came from."""
    from_template: bool = False
    """Whether it is what a first send would make of the topic, which does not exist yet."""
    clusters: frozenset[str] = frozenset()
    """Of its brokers."""

    def master(self, broker_name: str) -> str | None:
        """The address of a broker's master."""
        return self.brokers.get(broker_name, {}).get(MASTER_ID)

    def masters(self) -> set[str]:
        """The addresses of all brokers' masters."""
        return {addresses[MASTER_ID] for addresses in self.brokers.values() if MASTER_ID in addresses}


def make_route(
    topic: str, data: TopicRouteData, *, prefix: str, template_queues: int | None, now: float, told_by: str = ""
) -> Route:
    """The queues in route data; of a template route each broker gives at most `template_queues`."""
    brokers = {
        broker.broker_name: {number: prefix + address for number, address in broker.broker_addrs.items()}
        for broker in data.broker_datas
    }
    writable: list[MessageQueue] = []
    readable: list[MessageQueue] = []
    ordered = dict(part.split(":", 1) for part in (data.order_topic_conf or "").split(";") if ":" in part)
    for queues in sorted(data.queue_datas, key=lambda item: item.broker_name):
        name = queues.broker_name
        if name not in brokers:
            continue
        count = queues.write_queue_nums if template_queues is None else min(template_queues, queues.write_queue_nums)
        if ordered:
            count = int(ordered[name]) if ordered.get(name, "").isdigit() else 0
        if queues.perm & PERMISSION_WRITE and MASTER_ID in brokers[name]:
            writable += [MessageQueue(topic=topic, broker_name=name, queue_id=i) for i in range(count)]
        if queues.perm & PERMISSION_READ and template_queues is None:
            readable += [MessageQueue(topic=topic, broker_name=name, queue_id=i) for i in range(queues.read_queue_nums)]
    clusters = frozenset(broker.cluster for broker in data.broker_datas if broker.cluster)
    return Route(topic, tuple(writable), tuple(readable), brokers, now, told_by, template_queues is not None, clusters)


class RouteCache:
    """Routes of one client; `name_servers` are tried in turn, the last good one first.

    `on_learned(route)` is called, without waiting, for each route that a name server told.
    """

    def __init__(
        self,
        remoting: RemotingClient,
        name_servers: NameServerList,
        *,
        on_learned: Callable[[Route], None] | None = None,
    ) -> None:
        self._remoting = remoting
        self.name_servers = name_servers
        self._preferred = 0
        self._routes: dict[str, Route] = {}
        self._asking: dict[str, anyio.Event] = {}
        self._all_dead = False
        self._on_learned = on_learned
        self._refreshed_in_background = False
        self._wanted: set[str] = set()
        self._refresh_now = anyio.Event()

    def cached(self, topic: str, now: float) -> Route | None:
        """The route that can be used to write without asking: fresh at `now`, or kept so by `run_refresh`."""
        known = self._routes.get(topic)
        if known is None or (self._refreshed_in_background and not known.from_template):
            return known
        return None if self._is_old(known, now) else known

    def settled(self, topic: str) -> Route | None:
        """The route that `run_refresh` keeps fresh; other threads may ask for it."""
        known = self._routes.get(topic)
        return None if known is None or known.from_template or not self._refreshed_in_background else known

    def fresh(self, topic: str, now: float) -> Route | None:
        """The route that can be used to read without asking, at anyio's time `now`."""
        known = self._routes.get(topic)
        return None if known is None or known.from_template or self._is_old(known, now) else known

    def refresh_soon(self, topic: str) -> None:
        """Have `run_refresh` ask for the topic now: something about its route was wrong."""
        if self._refreshed_in_background:
            self._wanted.add(topic)
            self._refresh_now.set()

    async def run_refresh(self) -> None:
        """Keep all routes fresh, so that nobody waits for name servers who has a route; until cancelled."""
        self._refreshed_in_background = True
        try:
            while True:
                with anyio.move_on_after(REFRESH_SECONDS):
                    await self._refresh_now.wait()
                self._refresh_now = anyio.Event()
                await self.name_servers.refresh_if_due()
                wanted, self._wanted = sorted(self._wanted), set()
                for topic in wanted or sorted(self._routes):
                    known = self._routes.get(topic)
                    with suppress(RemotingError, RouteNotFoundError):
                        await self.refresh(topic, may_create=known is not None and known.from_template)
        finally:
            self._refreshed_in_background = False

    def _is_old(self, known: Route, now: float) -> bool:
        age = now - known.learned_at
        return age >= (TEMPLATE_SECONDS if known.from_template else REFRESH_SECONDS)

    async def route(self, topic: str, *, may_create: bool = False) -> Route:
        """The topic's route, from the cache while it is fresh.

        `may_create` takes the template's route for a topic nobody knows.  RouteNotFoundError without a route,
        RemotingError when no name server answers and nothing is known.
        """
        known = self._routes.get(topic)
        if (
            known is not None
            and (may_create or not known.from_template)
            and not self._is_old(known, anyio.current_time())
        ):
            return known
        return await self.refresh(topic, may_create=may_create)

    async def refresh(self, topic: str, *, may_create: bool = False) -> Route:
        """Ask now; while no name server answers, what is known stays good."""
        while (under_way := self._asking.get(topic)) is not None:
            await under_way.wait()
            known = self._routes.get(topic)
            if known is not None and (may_create or not known.from_template):
                return known
        done = self._asking[topic] = anyio.Event()
        try:
            route = await self._ask(topic, may_create=may_create)
        except RemotingError as error:
            known = self._routes.get(topic)
            if known is None or (known.from_template and not may_create):
                raise
            if not self._all_dead:
                self._all_dead = True
                logger.warning("no name server answers (%s); going on with the routes known", error)
            return known
        except RouteNotFoundError:
            self._routes.pop(topic, None)
            raise
        finally:
            del self._asking[topic]
            done.set()
        if self._all_dead:
            self._all_dead = False
            logger.warning("a name server answers again")
        if route.read_queues or route.write_queues:
            self._routes[topic] = route
        if self._on_learned is not None:
            self._on_learned(route)
        return route

    def known(self) -> list[Route]:
        """All routes in the cache."""
        return list(self._routes.values())

    def broker_addresses(self) -> set[str]:
        """Addresses of all masters known."""
        found = (addresses.get(MASTER_ID) for route in self._routes.values() for addresses in route.brokers.values())
        return {address for address in found if address is not None}

    async def _ask(self, topic: str, *, may_create: bool) -> Route:
        for asked, template_queues in ((topic, None), (TEMPLATE_TOPIC, TEMPLATE_QUEUES)):
            if asked == topic or may_create:
                data, server = await self._ask_name_servers(asked)
                if data is not None:
                    prefix = address_scheme(server)
                    return make_route(
                        topic, data, prefix=prefix, template_queues=template_queues, now=anyio.current_time(),
                        told_by=server,
                    )  # fmt: skip
        raise RouteNotFoundError(
            f"no name server of {self.name_servers} knows the topic {topic}: create it"
            + (", or let a broker do so (autoCreateTopicEnable)" if may_create else "")
        )

    async def _ask_name_servers(self, topic: str) -> tuple[TopicRouteData | None, str]:
        """The route data, None when the name servers have none, and who said so; RemotingError: all are dead."""
        failure: RemotingError | None = None
        servers = await self.name_servers.current(may_refresh=not self._refreshed_in_background)
        seconds = ASK_SECONDS if len(servers) == 1 else ASK_SHARED_SECONDS
        first = self._preferred
        for turn in range(len(servers)):
            number = (first + turn) % len(servers)
            server = servers[number]
            # Should whoever asks lose patience with this one, the next question goes to the next one.
            self._preferred = (number + 1) % len(servers)
            header = GetRouteInfoRequestHeader(topic=topic, accept_standard_json_only=True)
            try:
                answer = await self._remoting.request(
                    server, Command(RequestCode.GET_ROUTEINFO_BY_TOPIC, header=header), seconds
                )
                if answer.code == ResponseCode.SUCCESS:
                    data = decode_route(answer.body)
                    self._preferred = number
                    return data, server
                if answer.code == ResponseCode.TOPIC_NOT_EXIST:
                    self._preferred = number
                    return None, server
                failure = RemotingError(f"{server} answered {answer.code}: {answer.remark}", address=server)
            except RemotingError as error:
                failure = error
            except ProtocolError as error:
                failure = RemotingError(f"{server} sent a route that cannot be read: {error}", address=server)
        assert failure is not None  # noqa: S101 - there is at least one name server
        raise failure
