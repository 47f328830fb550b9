"""Tells every name server what this broker has: at start, every period, and at once when a topic changes.

Each name server has its own task and deadlines: one that is gone delays nobody.  A change registers only the topics
that changed, several together when they come together; over a new connection, which may lead to a name server that
began anew, the whole table goes first.  A failure is said once, and once more when it is over.  At the end the broker
says goodbye.  Source: RocketMQ BrokerOuterAPI, BrokerController (4.9); bodies are plain JSON: every version reads it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

import msgspec
import trio

from trio_rmq.broker.topics import TopicTable
from trio_rmq.config import BrokerConfig
from trio_rmq.errors import ProtocolError, RemotingError, ResponseError
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.remoting.connection import Connection
from trio_rmq.remoting.name_server_list import REFRESH_SECONDS, NameServerList
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.hashing import body_crc
from trio_rmq.wire.headers import (
    QueryDataVersionRequestHeader,
    QueryDataVersionResponseHeader,
    RegisterBrokerRequestHeader,
    UnRegisterBrokerRequestHeader,
)
from trio_rmq.wire.registration import RegisterBrokerBody, encode_register_body
from trio_rmq.wire.routes import decode_kv_table
from trio_rmq.wire.sysflag import PERMISSION_DEFAULT
from trio_rmq.wire.topics import TopicConfig, encode_data_version

logger = logging.getLogger(__name__)

GOODBYE_SECONDS = 3.0
"""Longest time that unregistering may take at the end, over all name servers."""
FIRST_LIST_SECONDS = 10.0
"""Between two questions to an address server that has not named any name server yet."""


@dataclass(frozen=True, slots=True)
class Advertised:
    """How this broker is reached: `address` by clients, `ha_address` by slaves, both "host:port"."""

    address: str
    ha_address: str


class Registration:
    """Keeps the name servers told; `run` is its task, with one task for each name server.

    Where an address server names them, its list is fetched again as it grows old: who is new on it is told everything,
    who is no longer on it hears goodbye.
    """

    def __init__(self, config: BrokerConfig, topics: TopicTable, remoting: RemotingClient, own: Advertised) -> None:
        self._name_servers = NameServerList(config.name_servers())
        self._make = partial(_NameServer, config=config, topics=topics, remoting=remoting, own=own)
        self._servers = {address: self._make(address) for address in self._name_servers.addresses}

    def topic_changed(self, name: str) -> None:
        """A topic is not what the name servers know."""
        for server in self._servers.values():
            server.topic_changed(name)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Register for ever; started when each name server answered or failed once.  Cancelled, it says goodbye."""
        try:
            await self._name_servers.refresh()
            self._servers |= {address: self._make(address) for address in self._name_servers.addresses}
            async with trio.open_nursery() as nursery:
                await _side_by_side([partial(server.register, None) for server in self._servers.values()])
                task_status.started()
                for server in self._servers.values():
                    nursery.start_soon(server.keep_told)
                if self._name_servers.is_fetched:
                    await self._follow_list(nursery)
                await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + GOODBYE_SECONDS):
                await _side_by_side([server.unregister for server in self._servers.values()])

    async def _follow_list(self, nursery: trio.Nursery) -> None:
        """Fetch the list for ever, and begin and end with name servers as they come and go on it."""
        while True:
            await trio.sleep(REFRESH_SECONDS if self._servers else FIRST_LIST_SECONDS)
            await self._name_servers.refresh()
            listed = self._name_servers.addresses
            for address in [address for address in listed if address not in self._servers]:
                server = self._servers[address] = self._make(address)
                nursery.start_soon(server.join)
            for address in [address for address in self._servers if address not in listed]:
                nursery.start_soon(self._servers.pop(address).leave)


async def _side_by_side(calls: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """Make all calls at once; a single one, as with a single name server, without a task."""
    if len(calls) == 1:
        await calls[0]()
        return
    async with trio.open_nursery() as nursery:
        for call in calls:
            nursery.start_soon(call)


class _NameServer:
    """What one name server was told, and what it is still to be told."""

    def __init__(
        self, address: str, config: BrokerConfig, topics: TopicTable, remoting: RemotingClient, own: Advertised
    ) -> None:
        self._address = address
        self._config = config
        self._topics = topics
        self._remoting = remoting
        self._own = own
        self._timeout_seconds = config.register_broker_timeout_mills / 1000
        self._changed: dict[str, None] = {}
        self._wake = trio.Event()
        self._failing = False
        self._told = trio.CancelScope()
        self._told_whole: Connection | None = None
        """The connection over which the whole table went: over another one it may be a name server without it."""

    async def join(self) -> None:
        """`register` and `keep_told`, for one that came later."""
        with self._told:
            await self.register(None)
            await self._keep_told()

    async def leave(self) -> None:
        """End `join` or `keep_told`, and say goodbye within GOODBYE_SECONDS."""
        self._told.cancel()
        with trio.move_on_after(GOODBYE_SECONDS):
            await self.unregister()

    def topic_changed(self, name: str) -> None:
        """This topic is to be registered soon."""
        self._changed[name] = None
        self._wake.set()

    async def keep_told(self) -> None:
        """Register what changed at once, and the whole table every period, until `leave`."""
        with self._told:
            await self._keep_told()

    async def _keep_told(self) -> None:
        period_seconds = self._config.register_name_server_period / 1000
        next_whole = trio.current_time() + period_seconds
        while True:
            with trio.move_on_at(next_whole):
                await self._wake.wait()
            changed, self._changed, self._wake = list(self._changed), {}, trio.Event()
            if trio.current_time() >= next_whole:
                await self.register(None)
                next_whole = trio.current_time() + period_seconds
            elif changed := [name for name in changed if self._topics.get(name) is not None]:
                await self.register(changed)

    async def register(self, changed: list[str] | None) -> None:
        """Register the whole table, or only topics that `changed`; a failure is logged, once."""
        try:
            with trio.fail_after(self._timeout_seconds):
                connection = await self._remoting.connection(self._address)
            if connection is not self._told_whole:
                changed = None
            if changed is not None or self._config.force_register or await self._is_news(connection):
                await self._register_over(connection, changed)
            self._told_whole = connection
        except (RemotingError, ResponseError, ProtocolError, trio.TooSlowError) as error:
            if not self._failing:
                self._failing = True
                reason = str(error) or f"no connection within {self._timeout_seconds:g} s"
                logger.warning(
                    "cannot register at name server %s: %s; trying again every period", self._address, reason
                )
            return
        if self._failing:
            self._failing = False
            logger.info("registered at name server %s again", self._address)

    async def _is_news(self, connection: Connection) -> bool:
        header = QueryDataVersionRequestHeader(
            broker_name=self._config.broker_name,
            broker_addr=self._own.address,
            cluster_name=self._config.broker_cluster_name,
            broker_id=self._config.broker_id,
        )
        request = Command(
            RequestCode.QUERY_DATA_VERSION, header=header, body=encode_data_version(self._topics.data_version)
        )
        answer = await connection.request(request, self._timeout_seconds)
        if answer.code != ResponseCode.SUCCESS:
            return True
        return bool(answer.decode_header(QueryDataVersionResponseHeader).changed)

    async def _register_over(self, connection: Connection, changed: list[str] | None) -> None:
        wrapper = self._topics.wrapper(changed)
        wrapper.topic_config_table = {
            name: self._as_seen_outside(topic) for name, topic in wrapper.topic_config_table.items()
        }
        body = encode_register_body(RegisterBrokerBody(topic_config_serialize_wrapper=wrapper))
        header = RegisterBrokerRequestHeader(
            broker_name=self._config.broker_name,
            broker_addr=self._own.address,
            cluster_name=self._config.broker_cluster_name,
            ha_server_addr=self._own.ha_address,
            broker_id=self._config.broker_id,
            compressed=False,
            body_crc32=body_crc(body),
        )
        request = Command(RequestCode.REGISTER_BROKER, header=header, body=body)
        answer = await connection.request(request, self._timeout_seconds)
        if answer.code != ResponseCode.SUCCESS:
            raise ResponseError(answer.code, answer.remark, address=self._address)
        if answer.body:
            self._topics.apply_order_table(decode_kv_table(answer.body).table)

    def _as_seen_outside(self, topic: TopicConfig) -> TopicConfig:
        """A topic is no more readable or writable than the broker itself."""
        permission = self._config.broker_permission
        if permission & PERMISSION_DEFAULT == PERMISSION_DEFAULT:
            return topic
        return msgspec.structs.replace(topic, perm=topic.perm & permission)

    async def unregister(self) -> None:
        """Say goodbye, unless the name server was not to be had at last."""
        if self._failing:
            return
        header = UnRegisterBrokerRequestHeader(
            broker_name=self._config.broker_name,
            broker_addr=self._own.address,
            cluster_name=self._config.broker_cluster_name,
            broker_id=self._config.broker_id,
        )
        request = Command(RequestCode.UNREGISTER_BROKER, header=header)
        try:
            await self._remoting.request(self._address, request, GOODBYE_SECONDS)
        except RemotingError as error:
            logger.info("could not say goodbye to name server %s: %s", self._address, error)
