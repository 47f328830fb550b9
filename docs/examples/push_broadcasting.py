"""Two members of a group that both get everything: push_broadcasting.py NAME_SERVER TOPIC GROUP COUNT FOLDER."""

import sys
from collections.abc import Sequence
from pathlib import Path

import trio

from trio_rmq.client import LocalOffsetStore, PushConsumer, ReceivedMessage


async def member(name: str, name_server: str, topic: str, group: str, count: int, folder: Path) -> None:
    enough = trio.Event()

    async def listen(messages: Sequence[ReceivedMessage]) -> None:
        nonlocal count
        for message in messages:
            print(name, message.body.decode())
            count -= 1
            if count == 0:
                enough.set()

    offsets = LocalOffsetStore(folder / f"{name}.json")  # the next start goes on from there
    async with PushConsumer(group, name_servers=name_server, broadcasting=True, offset_store=offsets) as consumer:
        await consumer.subscribe(topic, listen)
        await enough.wait()


async def main(name_server: str, topic: str, group: str, count: int, folder: Path) -> None:
    async with trio.open_nursery() as members:
        for name in ("first", "second"):
            members.start_soon(member, name, name_server, topic, group, count, folder)


if __name__ == "__main__":
    _, name_server, topic, group, count, folder = sys.argv
    trio.run(main, name_server, topic, group, int(count), Path(folder))
