"""The load on another system through its own Python client; run by `peers.py` in an environment that has those.

`peer_client.py redis|nats PORT window|packed|one|read SECONDS WARM_SECONDS MESSAGES` prints one JSON object:
`messages_per_second` and, where single messages are timed, `p50_us`, `p99_us` and `p999_us`.  Every send is
acknowledged.  `window` is 64 in flight: redis-py by 64 tasks, nats-py by what is better of 64 tasks and its
asynchronous publishing; `packed` is redis-py's pipelines of 64, one answer for all of which a program waits.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

SIZE = 1024
WINDOW = 64
READ_AT_ONCE = 256
NAME = "versus"
BODY = bytes(SIZE)

Figures = dict[str, float]


def rate_of(once: Callable[[], int], seconds: float, warm_seconds: float) -> Figures:
    """Calls `once`, which moves some messages and says how many, for that time."""
    until = time.perf_counter() + warm_seconds
    while time.perf_counter() < until:
        once()
    count, times = 0, []
    begin = last = time.perf_counter()
    while last < begin + seconds:
        count += once()
        now = time.perf_counter()
        times.append(now - last)
        last = now
    return figures(count, last - begin, times if count == len(times) else [])


def figures(count: int, seconds: float, times: list[float]) -> Figures:
    """Rate, and quantiles where messages were timed one by one."""
    told = {"messages_per_second": count / seconds}
    times.sort()
    for name, share in (("p50_us", 0.5), ("p99_us", 0.99), ("p999_us", 0.999)):
        if times:
            told[name] = times[min(len(times) - 1, int(len(times) * share))] * 1e6
    return told


def better(first: Figures, second: Figures) -> Figures:
    """The one that moved more."""
    return max(first, second, key=lambda told: told["messages_per_second"])


async def by_tasks(send: Callable[[], Awaitable[object]], seconds: float, warm_seconds: float) -> Figures:
    """64 tasks that send one message after another."""
    begin = time.perf_counter() + warm_seconds
    times: list[float] = []

    async def work() -> None:
        now = time.perf_counter()
        while now < begin + seconds:
            await send()
            before, now = now, time.perf_counter()
            if before >= begin:
                times.append(now - before)

    await asyncio.gather(*(work() for _ in range(WINDOW)))
    return figures(len(times), time.perf_counter() - begin, times)


def run_redis(port: int, what: str, seconds: float, warm_seconds: float, messages: int) -> Figures:
    """redis-py on a Stream."""
    import redis
    import redis.asyncio

    client = redis.Redis(port=port)

    def pipelined(count: int = WINDOW) -> int:
        pipeline = client.pipeline(transaction=False)
        for _ in range(count):
            pipeline.xadd(NAME, {"body": BODY})
        return len(pipeline.execute())

    async def tasks() -> Figures:
        many: Any = redis.asyncio.Redis(port=port, max_connections=WINDOW)
        try:
            return await by_tasks(lambda: many.xadd(NAME, {"body": BODY}), seconds, warm_seconds)
        finally:
            await many.aclose()

    def one() -> int:
        client.xadd(NAME, {"body": BODY})
        return 1

    if what == "window":
        return asyncio.run(tasks())
    if what == "packed":
        return rate_of(pipelined, seconds, warm_seconds)
    if what == "one":
        return rate_of(one, seconds, warm_seconds)
    for _ in range(0, messages, 1000):
        pipelined(1000)
    client.xgroup_create(NAME, "readers", id="0")
    read, begin = 0, time.perf_counter()
    while read < messages:
        ((_, entries),) = client.xreadgroup("readers", "one", {NAME: ">"}, count=READ_AT_ONCE)
        client.xack(NAME, "readers", *(number for number, _ in entries))
        read += len(entries)
    return figures(read, time.perf_counter() - begin, [])


async def run_nats(port: int, what: str, seconds: float, warm_seconds: float, messages: int) -> Figures:
    """nats-py on a JetStream of file storage."""
    import nats

    connection: Any = await nats.connect(f"nats://127.0.0.1:{port}")
    context: Any = connection.jetstream(publish_async_max_pending=WINDOW)
    await context.add_stream(name=NAME, subjects=[NAME], storage="file")

    async def publish() -> None:
        await context.publish(NAME, BODY)

    async def all_at_once(count: int) -> None:
        for _ in range(count):
            await context.publish_async(NAME, BODY, wait_stall=30)
        await context.publish_async_completed()

    try:
        if what == "window":
            await all_at_once(1000)
            count, begin = 0, time.perf_counter()
            while time.perf_counter() < begin + seconds:
                await all_at_once(5000)
                count += 5000
            asynchronous = figures(count, time.perf_counter() - begin, [])
            return better(asynchronous, await by_tasks(publish, seconds, warm_seconds))
        if what == "one":
            until = time.perf_counter() + warm_seconds
            while time.perf_counter() < until:
                await publish()
            times = []
            begin = now = time.perf_counter()
            while now < begin + seconds:
                await publish()
                before, now = now, time.perf_counter()
                times.append(now - before)
            return figures(len(times), now - begin, times)
        await all_at_once(messages)
        readers = await context.pull_subscribe(NAME, "readers")
        read, begin = 0, time.perf_counter()
        while read < messages:
            for message in await readers.fetch(READ_AT_ONCE):
                await message.ack()
                read += 1
        await connection.flush()
        return figures(read, time.perf_counter() - begin, [])
    finally:
        await connection.close()


def main(words: list[str]) -> None:
    """Run one measurement and print it."""
    system, port, what, seconds, warm_seconds, messages = words
    rest = (int(port), what, float(seconds), float(warm_seconds), int(messages))
    print(json.dumps(run_redis(*rest) if system == "redis" else asyncio.run(run_nats(*rest))))


if __name__ == "__main__":
    main(sys.argv[1:])
