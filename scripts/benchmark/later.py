"""Transactions beside plain sends; timers: memory while they wait, a burst that is due together, lateness.

A transaction is a half message and its commit, both acknowledged; what is compared is the server's CPU, which bounds
how many it can take.
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import trio

from benchmark.load import BenchmarkError, run_load
from benchmark.report import Goal, Report
from benchmark.runs import TOPIC, Plan, send_units
from benchmark.servers import MeasuredServer, our_server
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.wire.codes import RequestCode
from trio_rmq.wire.command import Command, SerializeType
from trio_rmq.wire.headers import (
    EndTransactionRequestHeader,
    GetMaxOffsetRequestHeader,
    GetMaxOffsetResponseHeader,
    PullMessageRequestHeader,
    SendMessageRequestHeaderV2,
    SendMessageResponseHeader,
)
from trio_rmq.wire.properties import parse_properties
from trio_rmq.wire.record import decode_records
from trio_rmq.wire.sysflag import TRANSACTION_COMMIT

IN_FLIGHT = 64
SIZE_BYTES = 1024
TRANSACTIONS = 20_000
BURST = 100_000
FILL_SECONDS = 60
"""From the first of the burst being sent to its time."""


def run_later(report: Report, *, pending: int, seconds: float) -> None:
    """All of it; `pending` is how many timers wait for the figure of memory."""
    _transactions(report)
    rate = _send_rate(seconds)
    _burst(report, rate)
    _lateness(report, "an idle broker", 50.0, lambda server: _nothing())
    _lateness(report, "the send benchmark running", 1000.0, _sending)
    _memory(report, pending)


def _header(number: int, properties: str, sys_flag: int = 0) -> SendMessageRequestHeaderV2:
    return SendMessageRequestHeaderV2(
        producer_group="bench",
        topic=TOPIC,
        default_topic="TBW102",
        default_topic_queue_nums=4,
        queue_id=0,
        sys_flag=sys_flag,
        born_timestamp=1_700_000_000_000,
        flag=0,
        properties=f"UNIQ_KEY\x01{number:032X}{properties}",
        reconsume_times=0,
        unit_mode=False,
        batch=False,
    )


async def _ask(client: RemotingClient, address: str, commands: list[Command]) -> list[Command]:
    answers = [answer for answer in await client.request_many(address, commands, 30) if isinstance(answer, Command)]
    bad = next((answer for answer in answers if answer.code), None)
    if bad is not None or len(answers) != len(commands):
        raise BenchmarkError(f"a request was not answered well: {bad}")
    return answers


async def _send(address: str, count: int, properties: Callable[[int], str], size: int, *, commit: bool = False) -> None:
    """`count` messages, 64 at a time; with `commit` each is a half message, and then committed."""
    body = bytes(size)
    flag = 4 if commit else 0
    async with RemotingClient(serialize_type=SerializeType.ROCKETMQ) as client:
        for begin in range(0, count, IN_FLIGHT):
            commands = [
                Command(RequestCode.SEND_MESSAGE_V2, _header(number, properties(number), flag), body=body)
                for number in range(begin, min(begin + IN_FLIGHT, count))
            ]
            answers = await _ask(client, address, commands)
            if commit:
                ends = []
                for answer in answers:
                    header = answer.decode_header(SendMessageResponseHeader)
                    ends.append(
                        Command(
                            RequestCode.END_TRANSACTION,
                            EndTransactionRequestHeader(
                                producer_group="bench",
                                tran_state_table_offset=header.queue_offset,
                                commit_log_offset=int(header.msg_id[-16:], 16),
                                commit_or_rollback=TRANSACTION_COMMIT,
                                msg_id="x",
                            ),
                        )
                    )
                await _ask(client, address, ends)


def _transactions(report: Report) -> None:
    """Server CPU of a half message and its commit, beside that of two plain sends, alternated."""
    plain: list[float] = []
    both: list[float] = []
    with our_server() as server:
        for _ in range(4):
            for figures, properties, commit in (
                (plain, "", False), (both, "\x02TRAN_MSG\x01true\x02PGROUP\x01bench", True),
            ):  # fmt: skip
                cpu = server.cpu_seconds()
                trio.run(_commit_some, server.address, properties, commit)
                figures.append((server.cpu_seconds() - cpu) / TRANSACTIONS * 1e6)
    plain_us, both_us = statistics.median(plain[1:]), statistics.median(both[1:])
    report.goals.append(
        Goal(
            f"a half message and its commit ({both_us:.1f} us) take as many CPU as two sends ({2 * plain_us:.1f} us), "
            "times",
            2 * plain_us / both_us, ">=", 0.4,
        )
    )  # fmt: skip


async def _commit_some(address: str, properties: str, commit: bool) -> None:
    await _send(address, TRANSACTIONS, lambda number: properties, SIZE_BYTES, commit=commit)


def _send_rate(seconds: float) -> float:
    plan = Plan("send", "tcp", "JSON", SIZE_BYTES, 1, 1, 1, IN_FLIGHT, seconds, None, floor=False)
    with our_server() as server:
        loaded, _ = run_load(
            server.address, send_units(plan), clients=1, in_flight=IN_FLIGHT, websocket=False, seconds=seconds,
            server_cpu=server.cpu_seconds,
        )  # fmt: skip
    return loaded.messages / loaded.seconds


async def _max_offset(client: RemotingClient, address: str) -> int:
    command = Command(RequestCode.GET_MAX_OFFSET, GetMaxOffsetRequestHeader(topic=TOPIC, queue_id=0))
    answer = await client.request(address, command, 30)
    return answer.decode_header(GetMaxOffsetResponseHeader).offset


def _burst(report: Report, send_rate: float) -> None:
    """So many timers within one second: how fast they leave."""
    with our_server() as server:
        due_ms = int(time.time() * 1000) + FILL_SECONDS * 1000
        trio.run(_fill_burst, server.address, due_ms)
        if time.time() * 1000 > due_ms:
            raise BenchmarkError("the burst was due before it was sent whole: the machine is too busy")
        cpu = server.cpu_seconds()
        seconds = trio.run(_wait_burst, server.address, due_ms)
        cpu_us = (server.cpu_seconds() - cpu) / BURST * 1e6
    rate = BURST / seconds
    report.goals.append(
        Goal(f"{BURST:,} timers of one second leave at {rate:,.0f}/s ({cpu_us:.1f} us), of the rate of sends",
             rate / send_rate, ">=", 0.3)
    )  # fmt: skip


async def _fill_burst(address: str, due_ms: int) -> None:
    await _send(address, BURST, lambda number: f"\x02TIMER_DELIVER_MS\x01{due_ms + number % 1000}", SIZE_BYTES)


async def _wait_burst(address: str, due_ms: int) -> float:
    async with RemotingClient() as client:
        await trio.sleep(due_ms / 1000 - time.time())
        begun = time.perf_counter()
        while await _max_offset(client, address) < BURST:  # noqa: ASYNC110 - it is another process that counts
            await trio.sleep(0.01)
        return time.perf_counter() - begun


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _sending(server: MeasuredServer) -> Iterator[None]:
    plan = Plan("send", "tcp", "JSON", SIZE_BYTES, 1, 1, 1, IN_FLIGHT, 12, None, floor=False)
    units = send_units(plan)
    thread = threading.Thread(
        target=run_load, args=(server.address, units),
        kwargs={
            "clients": 1, "in_flight": IN_FLIGHT, "websocket": False, "seconds": 10.0,
            "server_cpu": server.cpu_seconds,
        },
    )  # fmt: skip
    thread.start()
    yield
    thread.join()


def _lateness(
    report: Report, how: str, wanted_ms: float, load: Callable[[MeasuredServer], AbstractContextManager[None]]
) -> None:
    """How late 500 timers come, by the store time of their delivered copies."""
    with our_server() as server, load(server):
        late = trio.run(_time_some, server.address)
    late.sort()
    report.goals.append(
        Goal(f"lateness of timers with {how}: p50 {late[len(late) // 2]} ms, most {late[-1]} ms; p99 in ms",
             late[len(late) * 99 // 100], "<=", wanted_ms)
    )  # fmt: skip
    if late[0] < 0:
        raise BenchmarkError(f"a timer came {-late[0]} ms early")


async def _time_some(address: str) -> list[int]:
    rng = random.Random(1)
    begun_ms = int(time.time() * 1000)
    dues = [begun_ms + 1000 + rng.randrange(8000) for _ in range(500)]
    name = "Lateness"
    async with RemotingClient() as client:
        for number, due_ms in enumerate(dues):
            header = _header(number, f"\x02TIMER_DELIVER_MS\x01{due_ms}")
            header.topic = name
            await _ask(client, address, [Command(RequestCode.SEND_MESSAGE_V2, header, body=b"x")])
        await trio.sleep(10)
        late: list[int] = []
        while len(late) < len(dues):
            pull = PullMessageRequestHeader(
                consumer_group="bench", topic=name, queue_id=0, queue_offset=len(late), max_msg_nums=32, sys_flag=4,
                commit_offset=0, suspend_timeout_millis=0, subscription="*", sub_version=0, expression_type="TAG",
            )  # fmt: skip
            answer = await client.request(address, Command(RequestCode.PULL_MESSAGE, pull), 30)
            for record in decode_records(answer.body):
                due_ms = int(parse_properties(record.properties)["TIMER_DELIVER_MS"])
                late.append(record.store_timestamp_ms - due_ms)
    return late


def _memory(report: Report, pending: int) -> None:
    """What waiting timers add to the server's memory, spread over three days."""
    with our_server() as server:
        trio.run(_fill_pending, server.address, 10_000)  # what is there but once
        before = server.resident_mb()
        trio.run(_fill_pending, server.address, pending)
        after = server.resident_mb()
    report.goals.append(
        Goal(f"{pending:,} timers that wait: memory in MB, from {before:.0f} to {after:.0f}",
             after - before, "<=", 200)
    )  # fmt: skip


async def _fill_pending(address: str, count: int) -> None:
    rng = random.Random(count)
    now_ms = int(time.time() * 1000)
    three_days_ms = 3 * 86_400_000 - 3_600_000

    def properties(number: int) -> str:
        return f"\x02TIMER_DELIVER_MS\x01{now_ms + 3_600_000 + rng.randrange(three_days_ms - 3_600_000)}"

    await _send(address, count, properties, 100)
