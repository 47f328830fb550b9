"""A whole broker on a simulated machine, and a client that speaks single commands to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

import msgspec
import trio

from trio_rmq.broker.server import BrokerReady, serve_broker
from trio_rmq.config import BrokerConfig
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.remoting.connection import Connection
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.testing.stores import small_config
from trio_rmq.testing.world import World, open_world
from trio_rmq.wire import headers
from trio_rmq.wire.codes import RequestCode
from trio_rmq.wire.command import FLAG_ONEWAY, Command
from trio_rmq.wire.heartbeat import ConsumerData, HeartbeatData, ProducerData, build_subscription
from trio_rmq.wire.properties import parse_properties
from trio_rmq.wire.record import StoredMessage, decode_records

HeaderT = TypeVar("HeaderT", bound=msgspec.Struct)

NAME_SERVER, BROKER, CLIENT = "10.0.0.1", "10.0.0.2", "10.0.0.3"
BROKER_NAME = "broker-a"


def send_header(topic: str = "T", **fields: object) -> headers.SendMessageRequestHeaderV2:
    """The header of a send as Java's client writes it; `fields` are fields of SendMessageRequestHeaderV2."""
    values: dict[str, object] = {
        "producer_group": "pg",
        "topic": topic,
        "default_topic": "TBW102",
        "default_topic_queue_nums": 4,
        "queue_id": 0,
        "sys_flag": 0,
        "born_timestamp": 1_700_000_000_000,
        "flag": 0,
        "properties": "UNIQ_KEY\x01AA\x02WAIT\x01true",
        "reconsume_times": 0,
        "unit_mode": False,
        "batch": False,
        **fields,
    }
    return headers.SendMessageRequestHeaderV2(**values)  # type: ignore[arg-type]  # the values are those of the fields


def pull_header(topic: str = "T", **fields: object) -> headers.PullMessageRequestHeader:
    """The header of a pull that brings its own subscription; `fields` are fields of PullMessageRequestHeader."""
    values: dict[str, object] = {
        "consumer_group": "cg",
        "topic": topic,
        "queue_id": 0,
        "queue_offset": 0,
        "max_msg_nums": 32,
        "sys_flag": 4,
        "commit_offset": 0,
        "suspend_timeout_millis": 15_000,
        "subscription": "*",
        "sub_version": 0,
        **fields,
    }
    return headers.PullMessageRequestHeader(**values)  # type: ignore[arg-type]  # the values are those of the fields


class Client:
    """One client on one connection."""

    def __init__(self, remoting: RemotingClient, address: str) -> None:
        self.remoting = remoting
        self.address = address
        self.notified: list[str] = []
        """Groups named by NOTIFY_CONSUMER_IDS_CHANGED, in order."""
        remoting.register(RequestCode.NOTIFY_CONSUMER_IDS_CHANGED, self._notified)

    async def _notified(self, connection: Connection, command: Command) -> None:
        header = command.decode_header(headers.NotifyConsumerIdsChangedRequestHeader)
        self.notified.append(header.consumer_group)

    async def ask(
        self, code: int, header: msgspec.Struct | None = None, body: bytes = b"", *, seconds: float = 100.0
    ) -> Command:
        """The broker's response."""
        return await self.remoting.request(self.address, Command(code, header, body=body), seconds)

    async def tell(self, code: int, header: msgspec.Struct | None = None, body: bytes = b"") -> None:
        """Send one-way."""
        await self.remoting.request_oneway(self.address, Command(code, header, body=body, flag=FLAG_ONEWAY))

    async def ask_many(self, commands: Sequence[Command], *, seconds: float = 100.0) -> list[Command]:
        """The responses to commands that leave in one write."""
        answers = await self.remoting.request_many(self.address, commands, seconds)
        return [answer for answer in answers if isinstance(answer, Command)]

    async def send(self, body: bytes = b"hello", topic: str = "T", **fields: object) -> Command:
        """Send one message by V2."""
        return await self.ask(RequestCode.SEND_MESSAGE_V2, send_header(topic, **fields), body)

    async def pull(self, topic: str = "T", **fields: object) -> Command:
        """Pull with a subscription in the request."""
        return await self.ask(RequestCode.PULL_MESSAGE, pull_header(topic, **fields))

    async def stored(self, topic: str = "T", queue_id: int = 0) -> list[StoredMessage]:
        """All messages of a queue, as a pull gives them."""
        return decode_records((await self.pull(topic, queue_id=queue_id)).body)

    async def properties(self, topic: str = "T", queue_id: int = 0) -> list[dict[str, str]]:
        """The stored properties of all messages of a queue."""
        return [parse_properties(message.properties) for message in await self.stored(topic, queue_id)]

    async def create_topic(self, name: str = "T", queues: int = 1, permission: int = 6) -> None:
        """Make a topic as tools do."""
        header = headers.CreateTopicRequestHeader(
            topic=name,
            default_topic="TBW102",
            read_queue_nums=queues,
            write_queue_nums=queues,
            perm=permission,
            topic_filter_type="SINGLE_TAG",
            order=False,
        )
        assert (await self.ask(RequestCode.UPDATE_AND_CREATE_TOPIC, header)).code == 0

    async def beat(
        self, client_id: str, group: str | None = "cg", *, producers: Sequence[str] = (), **fields: object
    ) -> Command:
        """A heartbeat; `topics` (text by topic), `version` and fields of ConsumerData say what it subscribes to."""
        topics = fields.pop("topics", {"T": "*"})
        version = fields.pop("version", 1)
        assert isinstance(topics, dict)
        assert isinstance(version, int)
        subscriptions = [build_subscription(topic, text) for topic, text in topics.items()]
        for data in subscriptions:
            data.sub_version = version
        consumers = []
        if group is not None:
            values: dict[str, object] = {"group_name": group, "subscription_data_set": subscriptions, **fields}
            consumers.append(ConsumerData(**values))  # type: ignore[arg-type]  # the values are those of the fields
        beat = HeartbeatData(
            client_id=client_id,
            consumer_data_set=consumers,
            producer_data_set=[ProducerData(group_name=name) for name in producers],
        )
        return await self.ask(RequestCode.HEART_BEAT, body=msgspec.json.encode(beat))


class Running:
    """A running broker; `client()` connects to it."""

    def __init__(self, world: World, ready: BrokerReady, disk: FaultyDisk, scope: trio.CancelScope) -> None:
        self.world = world
        self.ready = ready
        self.disk = disk
        self._scope = scope

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """A client with a connection of its own."""
        with self.world.node(CLIENT):
            async with RemotingClient() as remoting:
                yield Client(remoting, self.ready.address)

    def stop(self) -> None:
        """Stop the broker in order."""
        self._scope.cancel()


def broker_config(**settings: object) -> BrokerConfig:
    """A broker on the simulated machine BROKER; `settings` are fields of BrokerConfig."""
    values: dict[str, object] = {
        "broker_ip1": BROKER,
        "broker_name": BROKER_NAME,
        "fast_port_enable": False,
        **settings,
    }
    return BrokerConfig(**values)  # type: ignore[arg-type]  # the values are those of the fields


@asynccontextmanager
async def broker_in(
    world: World,
    wall_offset_ms: Callable[[], int] = lambda: 0,
    /,
    *,
    disk: FaultyDisk | None = None,
    store: dict[str, object] | None = None,
    **settings: object,
) -> AsyncIterator[Running]:
    """A broker in a world for the block; stopped in order at its end.  Its wall clock is off by `wall_offset_ms()`."""
    disk = disk or FaultyDisk()
    async with trio.open_nursery() as nursery:
        with world.node(BROKER, wall_offset_ms=wall_offset_ms):
            ready: BrokerReady = await nursery.start(
                partial(serve_broker, broker_config(**settings), small_config("store", **(store or {})), disk=disk)
            )
        yield Running(world, ready, disk, nursery.cancel_scope)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def one_broker(
    *, disk: FaultyDisk | None = None, store: dict[str, object] | None = None, **settings: object
) -> AsyncIterator[tuple[Running, Client]]:
    """A world with one broker and one client; for tests on virtual time (`autojump_clock`)."""
    async with (
        open_world() as world,
        broker_in(world, disk=disk, store=store, **settings) as running,
        running.client() as client,
    ):
        yield running, client
