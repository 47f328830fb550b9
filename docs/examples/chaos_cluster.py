"""A program under test, and the broker that is killed, cut off and slowed down under it."""

import sys

import trio

from trio_rmq.client import Message, Producer
from trio_rmq.errors import SendError
from trio_rmq.testing.chaos.cluster import Cluster


async def main(folder: str) -> None:
    async with Cluster(folder, settings={"flushDiskType": "SYNC_FLUSH"}) as cluster:
        broker = cluster.nodes["broker-a"]
        async with Producer(name_servers=cluster.name_servers) as producer:
            await producer.send(Message("Orders", b"first"))
            await broker.kill()
            await broker.start()
            print("killed:", (await producer.send(Message("Orders", b"second"))).status.name)

            edge = cluster.edge("others", "broker-a")
            edge.change(cut=True)
            try:
                await producer.send(Message("Orders", b"third"))
            except SendError:
                print("cut off: not acknowledged")
            edge.heal()

            slow = broker.order(("fdatasync",), "delay", seconds=0.1)
            print("slow disk:", (await producer.send(Message("Orders", b"fourth"))).status.name)
            broker.withdraw(slow)
            print("syncs that were slow:", sum(deed.action == "delay" for deed in broker.deeds()) > 0)


trio.run(main, sys.argv[1])
