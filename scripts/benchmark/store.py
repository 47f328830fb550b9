"""`scripts/bench store`: the store by itself, without a network - appends, syncs, depth and width, restarts, pulls.

Appends stand beside a floor: `pwritev` of ready-made records of the same size, as many a call.  Both are measured in
turns, in CPU seconds of this process, and the median ratio counts.
"""

from __future__ import annotations

import gc
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import trio
import trio.lowlevel

from benchmark.report import Goal, Report
from benchmark.runs import Plan, median_run
from trio_rmq.config import MessageStoreConfig
from trio_rmq.store.message_store import MessageStore, open_message_store
from trio_rmq.store.messages import GetStatus, NewMessage
from trio_rmq.store.page_cache import ColdReadError
from trio_rmq.wire.ids import Host

HOST: Host = (b"\x7f\0\0\1", 10911)
CALL = 32
"""Records of one append call, and of one pull."""

COLD_PULLS = 200
ROUNDS = 7
ROUND_MESSAGES = 32 * 1000
PROPERTIES = "UNIQ_KEY\x01{:032X}\x02CLUSTER\x01DefaultCluster"


def messages_of(count: int, size: int, *, first: int = 0, queues: int = 4) -> list[NewMessage]:
    """`count` messages of `size` body bytes, spread over the queues of a topic."""
    body = b"x" * size
    return [
        NewMessage(
            "Bench0",
            number % queues,
            body,
            PROPERTIES.format(number),
            born_timestamp_ms=1_795_000_000_000,
            born_host=HOST,
        )
        for number in range(first, first + count)
    ]


def config_in(folder: Path, **settings: object) -> MessageStoreConfig:
    """The default configuration of a store in `folder`."""
    values: dict[str, object] = {"store_path_root_dir": str(folder), **settings}
    return MessageStoreConfig(**values)  # type: ignore[arg-type]  # the values are those of the fields


async def _append_round(store: MessageStore, calls: list[list[NewMessage]]) -> float:
    """CPU microseconds a message, of the calls alone."""
    spent = 0.0
    clock = time.thread_time
    for number, call in enumerate(calls):
        begun = clock()
        store.append(call)
        spent += clock() - begun
        if number % 8 == 0:
            await trio.lowlevel.checkpoint()  # the services have their turns
    return spent / (len(calls) * CALL) * 1e6


def _floor_round(handle: int, record: bytes, calls: int, at: int) -> float:
    """CPU microseconds a record, of `pwritev` with ready-made records."""
    records = [record] * CALL
    begun = time.thread_time()
    for _ in range(calls):
        at += os.pwritev(handle, records, at)
    return (time.thread_time() - begun) / (calls * CALL) * 1e6


async def measure_append(report: Report, folder: Path) -> None:
    """The append path at 100 bytes and 1 KB, as a share of the floor; both go on into new pages, as logs do."""
    for size, wanted in ((100, 0.08), (1024, 0.2)):
        home = folder / f"append-{size}"
        async with open_message_store(config_in(home), store_host=HOST) as store:
            calls = [messages_of(CALL, size, first=first) for first in range(0, ROUND_MESSAGES, CALL)]
            record = bytes(store.append(calls[0])[0].size_bytes)
            handle = os.open(home / "floor", os.O_RDWR | os.O_CREAT)
            os.truncate(handle, 1024**3)
            ratios, costs, floors = [], [], []
            at = 0
            for number in range(ROUNDS + 1):
                floor = _floor_round(handle, record, len(calls), at)
                cost = await _append_round(store, calls)
                at += len(record) * ROUND_MESSAGES
                if number:  # the first makes the files' pages and the queues
                    ratios.append(floor / cost)
                    costs.append(cost)
                    floors.append(floor)
            os.close(handle)
        name = (
            f"append of {CALL} x {size} B: of a bare pwritev loop "
            f"({statistics.median(costs):.2f} against {statistics.median(floors):.2f} us a record)"
        )
        report.goals.append(Goal(name, statistics.median(ratios), ">=", wanted))


def _device_sync_ms(folder: Path) -> float:
    """The device's own time for a 4 KiB write and its fdatasync, the median of 50."""
    handle = os.open(folder / "sync", os.O_RDWR | os.O_CREAT)
    os.pwrite(handle, bytes(1024 * 1024), 0)
    os.fsync(handle)
    times = []
    for number in range(50):
        begun = time.perf_counter()
        os.pwrite(handle, bytes(4096), number * 4096)
        os.fdatasync(handle)
        times.append(time.perf_counter() - begun)
    os.close(handle)
    return statistics.median(times) * 1e3


Step = Callable[[str], None]


async def measure_depth(report: Report, folder: Path, depth: int, size: int, say: Step) -> None:
    """Appends, memory, restarts and pulls with `depth` messages stored, of `size` bytes each."""
    home = folder / "depth"
    calls = [messages_of(CALL, size, first=first) for first in range(0, ROUND_MESSAGES, CALL)]
    async with open_message_store(config_in(home), store_host=HOST) as store:
        await _append_round(store, calls)
        resident = _resident_mb()
        for filled in range(2 * ROUND_MESSAGES, depth + ROUND_MESSAGES, ROUND_MESSAGES):
            await _append_round(store, calls)
            say(f"{filled:,} of {depth:,} messages stored")
        growth = _resident_mb() - resident
        async with open_message_store(config_in(folder / "empty"), store_host=HOST) as empty:
            ratios = []
            for number in range(ROUNDS + 1):
                cost = await _append_round(store, calls)
                base = await _append_round(empty, calls)
                if number:  # the first makes the empty one's files and queues
                    ratios.append(cost / base)
        name = f"append with {depth:,} messages of {size} B stored, times an empty store"
        report.goals.append(Goal(name, statistics.median(ratios), "<=", 1.15))
        end = store.max_offset("Bench0", 0)
        ratio = await _pull_ratio(store, end // 2, end - CALL * 600)
        report.goals.append(Goal(f"hot pull of {CALL} from the middle, times one from the end", ratio, "<=", 1.15))
        report.goals.append(Goal("resident MB that the depth added", growth, "<=", 200))
        checkpoint = (home / "checkpoint").read_bytes()
    await _measure_restarts(report, home, checkpoint, say)
    await _measure_cold_pulls(report, home, say)


async def _measure_restarts(report: Report, home: Path, checkpoint: bytes, say: Step) -> None:
    """A start after a stop in order, and one with the mark of a running store and the `checkpoint` it had then."""
    for name, wanted in (("clean start", 2), ("start after a kill", 20)):
        if wanted == 20:
            (home / "abort").touch()
            (home / "checkpoint").write_bytes(checkpoint)
        say(name)
        begun, cpu_begun = time.perf_counter(), time.process_time()
        async with open_message_store(config_in(home), store_host=HOST) as store:
            seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu_begun
            read = store.recovered.records if store.recovered else 0
        name = f"seconds of a {name}, which read {read:,} records ({cpu:.2f} of CPU)"
        report.goals.append(Goal(name, seconds, "<=", wanted))


async def _measure_cold_pulls(report: Report, home: Path, say: Step) -> None:
    """Milliseconds of a pull of which nothing is in the page cache, at places spread over the whole depth."""
    async with open_message_store(config_in(home), store_host=HOST) as store:
        say("cold pulls")
        _drop_from_page_cache(home)
        end = store.max_offset("Bench0", 0)
        times, trips = [], 0
        for number in range(COLD_PULLS):
            begun = time.perf_counter()
            trips += await _pull_cold(store, end * number // COLD_PULLS)
            times.append((time.perf_counter() - begun) * 1e3)
    times.sort()
    name = (
        f"ms of a cold pull of {CALL} anywhere, the median of {COLD_PULLS} (p99 {times[len(times) * 99 // 100]:.2f}; "
        f"{trips / COLD_PULLS:.1f} trips to the disk each)"
    )
    report.goals.append(Goal(name, statistics.median(times), "<=", math.inf))


def _drop_from_page_cache(home: Path) -> None:
    os.sync()  # what is dirty stays
    for path in home.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


async def _pull_ratio(store: MessageStore, middle: int, end: int, pulls: int = 500) -> float:
    """What pulls from `middle` on cost, times those from `end` on, as the broker makes them; the median of rounds."""

    def pull_us(offset: int) -> float:
        begun = time.thread_time()
        for number in range(pulls):
            result = store.get_messages("Bench0", 0, offset + number * CALL, max_count=CALL, wait=False)
            assert result.status is GetStatus.FOUND  # noqa: S101 - a measurement of nothing is none
        return time.thread_time() - begun

    for offset in (middle, end):
        for number in range(pulls):  # a backlog's middle may be on the disk alone
            await _pull_cold(store, offset + number * CALL)
    return statistics.median([pull_us(middle) / pull_us(end) for _ in range(3 * ROUNDS)])


async def _pull_cold(store: MessageStore, offset: int) -> int:
    """Pull what may not be in the page cache; returns how many trips to the disk it took."""
    trips = 0
    while True:
        try:
            store.get_messages("Bench0", 0, offset, max_count=CALL, wait=False)
            return trips
        except ColdReadError as cold:
            trips += 1
            await store.warm(cold)


def _resident_mb() -> float:
    """Anonymous memory of this process, that is, without the page cache's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    return 0.0


def measure_flush(report: Report, folder: Path, seconds: float) -> None:
    """64 senders, each waiting for its answer, under SYNC_FLUSH and ASYNC_FLUSH; and 64 sends on one connection."""
    device_ms = _device_sync_ms(folder)
    for senders, wanted in ((64, 0.5), (1, 0.0)):
        base = Plan("send", "tcp", "ROCKETMQ", 1024, 1, 1, senders, 64, seconds, None, floor=False)
        rows = [median_run(replace(base, settings=(f"flushDiskType={kind}_FLUSH",))) for kind in ("ASYNC", "SYNC")]
        report.rows += rows
        ratio = rows[1].messages_per_second / rows[0].messages_per_second
        name = f"{senders} x {64 // senders} sends, SYNC_FLUSH of ASYNC_FLUSH (the device syncs in {device_ms:.2f} ms)"
        report.goals.append(Goal(name, ratio, ">=", wanted))


def measure_width(report: Report, seconds: float, queues: int) -> None:
    """The server's CPU a send, all its services included, with sends to many queues in turn."""
    base = Plan("send", "tcp", "ROCKETMQ", 20, 1, 1, 1, 64, max(seconds, 5), None, floor=False)
    rows = [median_run(base), median_run(replace(base, queues=queues))]
    report.rows += rows
    cost = rows[1].cpu_us_per_message / rows[0].cpu_us_per_message
    report.goals.append(Goal(f"server CPU a send with {queues:,} queues, times 4 queues", cost, "<=", 1.15))
    growth = rows[1].server_resident_mb - rows[0].server_resident_mb
    report.goals.append(Goal(f"resident MB that {queues:,} queues add", growth, "<=", 200))


PARTS = ("flush", "width", "append", "depth")
"""What `run_store` measures, in this order."""


def run_store(
    report: Report,
    folder: Path,
    *,
    seconds: float,
    depth: int,
    size: int,
    queues: int,
    parts: Sequence[str] = PARTS,
) -> None:
    """The named parts, in a folder that the caller removes."""

    def say(text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r{text}\033[K", end="", file=sys.stderr, flush=True)

    gc.collect()
    gc.freeze()  # as the server does

    async def run() -> None:
        if "append" in parts:
            await measure_append(report, folder)
        if "depth" in parts:
            await measure_depth(report, folder, depth, size, say)

    if "flush" in parts:
        measure_flush(report, folder, seconds)
    if "width" in parts:
        measure_width(report, seconds, queues)
    trio.run(run)
