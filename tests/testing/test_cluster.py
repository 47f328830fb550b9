"""A name server, a broker and clients, each on its own simulated machine and disk: they work, and they repeat."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from functools import partial
from hashlib import sha256

import trio

from trio_rmq.broker.server import serve_broker
from trio_rmq.client.queue_reader import QueueReader
from trio_rmq.client.queue_writer import QueueWriter
from trio_rmq.clock import wall_ms
from trio_rmq.config import BrokerConfig, NamesrvConfig
from trio_rmq.namesrv.server import serve_name_server
from trio_rmq.randomness import rng
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.testing.stores import small_config
from trio_rmq.testing.virtual_network import Link
from trio_rmq.testing.world import World, simulate
from trio_rmq.wire.ids import UniqueIdGenerator

NAME_SERVER, BROKER, CLIENT = "10.0.0.1", "10.0.0.2", "10.0.0.3"
LINK = Link(latency_seconds=0.002, jitter_seconds=0.01, split_chance=0.2)


def history(seed: int, *, outage: bool) -> str:
    """Send 60 messages and read them back, maybe through a cut and a reset; a hash of all packets and all results."""
    events: list[str] = []

    async def main(world: World) -> None:
        world.network.on_packet = lambda *packet: events.append(repr(packet))

        async def bodies() -> AsyncIterator[Sequence[bytes]]:
            for first in range(0, 60, 10):
                yield [f"message {number}".encode() for number in range(first, first + 10)]
                await trio.sleep(rng().random())

        async def client() -> None:
            ids = UniqueIdGenerator(b"\x0a\0\0\3", 1, rng().getrandbits(31))
            async with RemotingClient() as remoting:
                writer = QueueWriter(
                    remoting,
                    [f"{NAME_SERVER}:9876"],
                    "Simulated",
                    next_unique_id=lambda: ids.next_id(wall_ms()),
                    wall_ms=wall_ms,
                    queue_id=0,
                )
                await writer.write(bodies())
                reader = QueueReader(remoting, [f"{NAME_SERVER}:9876"], "Simulated", queue_id=0, until_end=True)
                found: list[tuple[str | None, bytes]] = []
                async with reader.open_batches() as batches:
                    async for batch in batches:
                        found += [(message.unique_key, message.body) for message in batch.messages]
            events.append(repr((trio.current_time(), wall_ms(), found)))
            assert list(dict(found).values()) == [f"message {number}".encode() for number in range(60)]

        async def trouble() -> None:
            await trio.sleep(1.0)
            world.network.cut(CLIENT, BROKER, one_way=True)
            await trio.sleep(2.0)
            world.network.reset(CLIENT, BROKER)
            world.network.heal(CLIENT, BROKER, one_way=True)

        async with trio.open_nursery() as servers:
            with world.node(NAME_SERVER):
                names = NamesrvConfig(kv_config_path="kv.json")
                await servers.start(partial(serve_name_server, names, disk=FaultyDisk()))
            with world.node(BROKER, wall_offset_ms=lambda: 250):
                broker = BrokerConfig(broker_ip1=BROKER, broker_name="b", namesrv_addr=f"{NAME_SERVER}:9876")
                disk_rng = rng()
                disk = FaultyDisk(latency=lambda: disk_rng.random() / 50)
                await servers.start(partial(serve_broker, broker, small_config("store"), disk=disk))
            async with trio.open_nursery() as clients:
                if outage:
                    clients.start_soon(trouble)
                with world.node(CLIENT):
                    clients.start_soon(client)
            events.extend(disk.trace)
            servers.cancel_scope.cancel()

    simulate(main, seed=seed, link=LINK)
    return sha256("\n".join(events).encode()).hexdigest()


def test_a_cluster_works_on_simulated_machines() -> None:
    assert history(1, outage=False) == history(1, outage=False)


def test_a_cluster_rides_out_an_outage() -> None:
    first = history(2, outage=True)
    assert history(2, outage=True) == first
    assert history(3, outage=True) != first
