"""A member of a consumer group on our client, for as long as its standard input is open.

    our_member.py NAMESRV TOPIC GROUP concurrent|orderly [trio|asyncio]

It says READY, then "GOT microseconds queue offset body" for each message.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import anyio
import anyio.to_thread

from trio_rmq.client import PushConsumer, ReceivedMessage


async def listen(messages: Sequence[ReceivedMessage]) -> None:
    for message in messages:
        at = time.time_ns() // 1000
        print(f"GOT {at} {message.queue.queue_id} {message.queue_offset} {message.body.decode()}", flush=True)


async def main(namesrv: str, topic: str, group: str, how: str) -> None:
    async with PushConsumer(group, name_servers=namesrv, orderly=how == "orderly") as consumer:
        await consumer.subscribe(topic, listen)
        print("READY", flush=True)
        await anyio.to_thread.run_sync(sys.stdin.read)


if __name__ == "__main__":
    _, namesrv, topic, group, how, *backend = sys.argv
    anyio.run(main, namesrv, topic, group, how, backend=backend[0] if backend else "trio")
