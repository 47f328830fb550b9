"""A producer's presence at brokers: the heartbeats by which they know whom to call back, and the goodbye.

A broker calls members of a producer group back for a transaction's outcome or a reply's delivery, so each one that a
route names is told at once, all again every 30 seconds, and one whose connection was lost as soon as it is back.
Source: RocketMQ MQClientInstance.sendHeartbeatToAllBroker, unregisterClient.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import anyio

from trio_rmq.client import group_calls
from trio_rmq.client.route_cache import Route, RouteCache
from trio_rmq.errors import RemotingError, ResponseError
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.remoting.connection import Connection
from trio_rmq.wire.heartbeat import HeartbeatData, ProducerData

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 30.0
"""Between heartbeats to one broker (heartbeatBrokerInterval)."""


async def side_by_side(calls: Sequence[Callable[[], Coroutine[Any, Any, None]]]) -> None:
    """Make these calls, none of which raises, at once; a single one, as most have a single broker, without a task."""
    if len(calls) == 1:
        await calls[0]()
        return
    async with anyio.create_task_group() as group:
        for call in calls:
            group.start_soon(call)


class HeartbeatRound:
    """Tells brokers of a client, all at once; one that does not answer is said in the log once until it does.

    So is what our brokers say of a group whose members subscribe differently.
    """

    def __init__(self, remoting: RemotingClient, owner: str) -> None:
        self._remoting = remoting
        self._owner = owner
        self._silent: set[str] = set()
        self._problems: dict[str, str] = {}

    async def tell(self, addresses: Collection[str], data: HeartbeatData) -> None:
        """One heartbeat to each address; returns when each has answered or failed."""
        await side_by_side([partial(self.tell_one, address, data) for address in sorted(addresses)])

    async def tell_one(self, address: str, data: HeartbeatData) -> None:
        """One heartbeat to one address."""
        try:
            problem = await group_calls.send_heartbeat(self._remoting, address, data)
        except (RemotingError, ResponseError) as error:
            level = logging.DEBUG if address in self._silent else logging.WARNING
            self._silent.add(address)
            logger.log(level, "%s: heartbeat to %s failed: %s", self._owner, address, error)
        else:
            self._silent.discard(address)
            if problem != self._problems.get(address, ""):
                self._problems[address] = problem
                if problem:
                    logger.warning("%s: the broker %s says that %s", self._owner, address, problem)


class ProducerPresence:
    """One producer's presence in `group`; its `learned` and `lost` are to be called by route cache and remoting."""

    def __init__(self, remoting: RemotingClient, group: str, client_id: str) -> None:
        self._remoting = remoting
        self._group = group
        self._client_id = client_id
        self._heartbeats = HeartbeatRound(remoting, f"producer group {group}")
        self._data = HeartbeatData(client_id=client_id, producer_data_set=[ProducerData(group_name=group)])
        self._told: dict[str, anyio.Event] = {}
        """Who is being told since its connection was made; set when it has answered or failed."""
        self._news = anyio.Event()

    def learned(self, route: Route) -> None:
        """A route is known: its brokers are told soon."""
        if not route.masters() <= self._told.keys():
            self._news.set()

    def lost(self, connection: Connection) -> None:
        """A connection ended: the broker has forgotten this client."""
        if self._told.pop(connection.address, None) is not None:
            self._news.set()

    async def run(self, routes: RouteCache) -> None:
        """Keep all brokers of `routes` told; until cancelled."""
        next_round = anyio.current_time() + HEARTBEAT_SECONDS
        while True:
            with anyio.CancelScope(deadline=next_round):
                await self._news.wait()
            self._news = anyio.Event()
            due = routes.broker_addresses()
            if anyio.current_time() >= next_round:
                next_round = anyio.current_time() + HEARTBEAT_SECONDS
            else:
                due -= self._told.keys()
            await self._tell(due)

    async def introduce(self, addresses: Collection[str]) -> None:
        """Return when each of the brokers has been told, or could not be, since its connection was made."""
        await self._tell([address for address in addresses if address not in self._told])
        for event in [self._told[address] for address in addresses if address in self._told]:
            await event.wait()

    async def _tell(self, addresses: Collection[str]) -> None:
        if addresses:
            told = [(address, self._told.setdefault(address, anyio.Event())) for address in sorted(addresses)]
            await side_by_side([partial(self._tell_one, address, ended) for address, ended in told])

    async def _tell_one(self, address: str, ended: anyio.Event) -> None:
        try:
            await self._heartbeats.tell_one(address, self._data)
        finally:
            ended.set()

    async def say_goodbye(self) -> None:
        """Leave the group at every broker that is connected; nothing is raised."""
        open_addresses = set(self._remoting.open_addresses())
        leaving = sorted(self._told.keys() & open_addresses)
        await side_by_side([partial(self._leave, address) for address in leaving])

    async def _leave(self, address: str) -> None:
        with suppress(RemotingError, ResponseError):
            await group_calls.unregister(self._remoting, address, self._client_id, producer_group=self._group)
