"""Tells every name server what this broker has: at start, every period, and at once when a topic changes.

Each name server is asked on its own, with its own deadline: one that is gone delays nobody.  A change registers only
the topics that changed; several changes that come together go together.  A failure is said once, and once more when it
is over.  At the end the broker says goodbye.  Source: RocketMQ BrokerOuterAPI, BrokerController (4.9); bodies are plain
JSON, which every version reads.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import msgspec
import trio

from trio_rmq.broker.topics import TopicTable
from trio_rmq.config import BrokerConfig
from trio_rmq.errors import ProtocolError, RemotingError, ResponseError
from trio_rmq.remoting.client import RemotingClient
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


@dataclass(frozen=True, slots=True)
class Advertised:
    """How this broker is reached: `address` by clients, `ha_address` by slaves, both "host:port"."""

    address: str
    ha_address: str


class Registration:
    """Keeps the name servers told; `run` is its one task."""

    def __init__(self, config: BrokerConfig, topics: TopicTable, remoting: RemotingClient, own: Advertised) -> None:
        self._config = config
        self._topics = topics
        self._remoting = remoting
        self._own = own
        self._servers = config.name_servers()
        self._timeout_seconds = config.register_broker_timeout_mills / 1000
        self._changed: dict[str, None] = {}
        self._wake = trio.Event()
        self._failing: set[str] = set()

    def topic_changed(self, name: str) -> None:
        """A topic is not what the name servers know."""
        self._changed[name] = None
        self._wake.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Register for ever; started when each name server answered or failed once.  Cancelled, it says goodbye."""
        try:
            await self._register_everywhere(None)
            task_status.started()
            while True:
                with trio.move_on_after(self._config.register_name_server_period / 1000):
                    await self._wake.wait()
                changed, self._changed, self._wake = self._changed, {}, trio.Event()
                await self._register_everywhere(list(changed) or None)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + GOODBYE_SECONDS):
                await self._unregister_everywhere()

    async def _register_everywhere(self, changed: list[str] | None) -> None:
        """One round: the whole table, or only the topics that changed."""
        if changed is not None and not any(self._topics.get(name) for name in changed):
            return
        async with trio.open_nursery() as nursery:
            for server in self._servers:
                nursery.start_soon(self._register, server, changed)

    async def _register(self, server: str, changed: list[str] | None) -> None:
        try:
            if changed is None and not self._config.force_register and not await self._is_news(server):
                return
            await self._register_at(server, changed)
        except (RemotingError, ResponseError, ProtocolError) as error:
            if server not in self._failing:
                self._failing.add(server)
                logger.warning("cannot register at name server %s: %s; trying again every period", server, error)
            return
        if server in self._failing:
            self._failing.discard(server)
            logger.info("registered at name server %s again", server)

    async def _is_news(self, server: str) -> bool:
        header = QueryDataVersionRequestHeader(
            broker_name=self._config.broker_name,
            broker_addr=self._own.address,
            cluster_name=self._config.broker_cluster_name,
            broker_id=self._config.broker_id,
        )
        request = Command(
            RequestCode.QUERY_DATA_VERSION, header=header, body=encode_data_version(self._topics.data_version)
        )
        answer = await self._remoting.request(server, request, self._timeout_seconds)
        if answer.code != ResponseCode.SUCCESS:
            return True
        return bool(answer.decode_header(QueryDataVersionResponseHeader).changed)

    async def _register_at(self, server: str, changed: list[str] | None) -> None:
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
        answer = await self._remoting.request(server, request, self._timeout_seconds)
        if answer.code != ResponseCode.SUCCESS:
            raise ResponseError(answer.code, answer.remark, address=server)
        if answer.body:
            self._topics.apply_order_table(decode_kv_table(answer.body).table)

    def _as_seen_outside(self, topic: TopicConfig) -> TopicConfig:
        """A topic is no more readable or writable than the broker itself."""
        permission = self._config.broker_permission
        if permission & PERMISSION_DEFAULT == PERMISSION_DEFAULT:
            return topic
        return msgspec.structs.replace(topic, perm=topic.perm & permission)

    async def _unregister_everywhere(self) -> None:
        async with trio.open_nursery() as nursery:
            for server in self._servers:
                if server not in self._failing:
                    nursery.start_soon(self._unregister, server)

    async def _unregister(self, server: str) -> None:
        header = UnRegisterBrokerRequestHeader(
            broker_name=self._config.broker_name,
            broker_addr=self._own.address,
            cluster_name=self._config.broker_cluster_name,
            broker_id=self._config.broker_id,
        )
        try:
            await self._remoting.request(server, Command(RequestCode.UNREGISTER_BROKER, header=header), GOODBYE_SECONDS)
        except RemotingError as error:
            logger.info("could not say goodbye to name server %s: %s", server, error)
