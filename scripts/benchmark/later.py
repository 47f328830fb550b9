"""Transactions beside plain sends; timers: memory while they wait, a burst that is due together, lateness.

A transaction is a half message and its commit, both acknowledged; what is compared is the server's CPU, which bounds
how many it can take.
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from benchmark.load import run_load
from benchmark.report import Goal, Report
from benchmark.runs import Plan, send_units
from benchmark.servers import MeasuredServer, our_server
from benchmark.waiting import (
    IN_FLIGHT,
    SIZE_BYTES,
    Waiting,
    ask_all,
    measure_burst,
    measure_lateness,
    measure_send_rate,
    send_header,
    send_many,
)
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.wire.codes import RequestCode
from trio_rmq.wire.command import Command, SerializeType
from trio_rmq.wire.headers import EndTransactionRequestHeader, SendMessageResponseHeader
from trio_rmq.wire.properties import parse_properties
from trio_rmq.wire.sysflag import TRANSACTION_COMMIT, TRANSACTION_PREPARED

TRANSACTIONS = 20_000


def run_later(report: Report, *, pending: int, seconds: float) -> None:
    """All of it; `pending` is how many timers wait for the figure of memory."""
    _transactions(report)
    measure_burst(report, _TIMERS, measure_send_rate(seconds))
    measure_lateness(report, _TIMERS, "an idle broker", 50.0)
    measure_lateness(report, _TIMERS, "the send benchmark running", 1000.0, _sending)
    _memory(report, pending)


_TIMERS = Waiting(
    "timers",
    lambda due_ms: f"\x02TIMER_DELIVER_MS\x01{due_ms}",
    lambda record: int(parse_properties(record.properties)["TIMER_DELIVER_MS"]),
)


def _transactions(report: Report) -> None:
    """Server CPU of a half message and its commit, beside that of two plain sends, alternated."""
    plain: list[float] = []
    both: list[float] = []
    with our_server() as server:
        for _ in range(4):
            for figures, send in ((plain, _send_plain), (both, _send_and_commit)):
                cpu = server.cpu_seconds()
                trio.run(send, server.address)
                figures.append((server.cpu_seconds() - cpu) / TRANSACTIONS * 1e6)
    plain_us, both_us = statistics.median(plain[1:]), statistics.median(both[1:])
    report.goals.append(
        Goal(
            f"a half message and its commit ({both_us:.1f} us) take as many CPU as two sends ({2 * plain_us:.1f} us), "
            "times",
            2 * plain_us / both_us, ">=", 0.4,
        )
    )  # fmt: skip


async def _send_plain(address: str) -> None:
    await send_many(address, TRANSACTIONS, lambda number: "", SIZE_BYTES)


async def _send_and_commit(address: str) -> None:
    body = bytes(SIZE_BYTES)
    properties = "\x02TRAN_MSG\x01true\x02PGROUP\x01bench"
    async with RemotingClient(serialize_type=SerializeType.ROCKETMQ) as client:
        for begin in range(0, TRANSACTIONS, IN_FLIGHT):
            halves = [
                Command(RequestCode.SEND_MESSAGE_V2, send_header(number, properties, TRANSACTION_PREPARED), body=body)
                for number in range(begin, min(begin + IN_FLIGHT, TRANSACTIONS))
            ]
            await ask_all(client, address, [_commit(answer) for answer in await ask_all(client, address, halves)])


def _commit(answer: Command) -> Command:
    """The end of the transaction whose half message was answered so."""
    header = answer.decode_header(SendMessageResponseHeader)
    return Command(
        RequestCode.END_TRANSACTION,
        EndTransactionRequestHeader(
            producer_group="bench",
            tran_state_table_offset=header.queue_offset,
            commit_log_offset=int(header.msg_id[-16:], 16),
            commit_or_rollback=TRANSACTION_COMMIT,
            msg_id="x",
        ),
    )


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

    await send_many(address, count, properties, 100)
