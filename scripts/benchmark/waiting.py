"""Messages that wait for their time, timers and delay levels alike: a burst due together, and how late each leaves.

How late a message leaves is told by the store time of its delivered copy, so that no consumer stands in between.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import trio

from benchmark.load import BenchmarkError, run_load
from benchmark.report import Goal, Report
from benchmark.runs import TOPIC, Plan, send_units
from benchmark.servers import MeasuredServer, our_server
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.wire.codes import RequestCode
from trio_rmq.wire.command import Command, SerializeType
from trio_rmq.wire.headers import (
    GetMaxOffsetRequestHeader,
    GetMaxOffsetResponseHeader,
    PullMessageRequestHeader,
    SendMessageRequestHeaderV2,
)
from trio_rmq.wire.record import StoredMessage, decode_records

IN_FLIGHT = 64
SIZE_BYTES = 1024
BURST = 100_000
FILL_SECONDS = 60
"""From the first of the burst being sent to its time."""
LATENESS_MESSAGES = 500
LATENESS_SECONDS = 8
"""Those messages are due within so many seconds, the first after one."""


@dataclass(frozen=True)
class Waiting:
    """One way to send a message for later.

    `properties` makes what asks for delivery at about a time, ms since 1970, when sent now; `due_ms` tells
    from a delivered copy when it was due; `settings` are the server's.
    """

    name: str
    properties: Callable[[int], str]
    due_ms: Callable[[StoredMessage], int]
    settings: tuple[str, ...] = ()


def send_header(number: int, properties: str, sys_flag: int = 0, topic: str = TOPIC) -> SendMessageRequestHeaderV2:
    """The header of message `number`, born now; `properties` begin with their separator."""
    return SendMessageRequestHeaderV2(
        producer_group="bench",
        topic=topic,
        default_topic="TBW102",
        default_topic_queue_nums=4,
        queue_id=0,
        sys_flag=sys_flag,
        born_timestamp=int(time.time() * 1000),
        flag=0,
        properties=f"UNIQ_KEY\x01{number:032X}{properties}",
        reconsume_times=0,
        unit_mode=False,
        batch=False,
    )


async def ask_all(client: RemotingClient, address: str, commands: list[Command]) -> list[Command]:
    """The answers, in order; BenchmarkError unless all are successes."""
    answers = [answer for answer in await client.request_many(address, commands, 30) if isinstance(answer, Command)]
    bad = next((answer for answer in answers if answer.code), None)
    if bad is not None or len(answers) != len(commands):
        raise BenchmarkError(f"a request was not answered well: {bad}")
    return answers


async def send_many(address: str, count: int, properties: Callable[[int], str], size: int) -> None:
    """`count` messages, 64 at a time; `properties` makes those of message number so and so."""
    body = bytes(size)
    async with RemotingClient(serialize_type=SerializeType.ROCKETMQ) as client:
        for begin in range(0, count, IN_FLIGHT):
            commands = [
                Command(RequestCode.SEND_MESSAGE_V2, send_header(number, properties(number)), body=body)
                for number in range(begin, min(begin + IN_FLIGHT, count))
            ]
            await ask_all(client, address, commands)


def measure_send_rate(seconds: float) -> float:
    """Messages a second of `scripts/bench send`: 1 KB, 64 in flight."""
    plan = Plan("send", "tcp", "JSON", SIZE_BYTES, 1, 1, 1, IN_FLIGHT, seconds, None, floor=False)
    with our_server() as server:
        loaded, _ = run_load(
            server.address, send_units(plan), clients=1, in_flight=IN_FLIGHT, websocket=False, seconds=seconds,
            server_cpu=server.cpu_seconds,
        )  # fmt: skip
    return loaded.messages / loaded.seconds


def measure_burst(report: Report, waiting: Waiting, send_rate: float) -> None:
    """So many messages due within one second: how fast they leave, from the first one's time on."""
    with our_server(*waiting.settings) as server:
        due_ms = int(time.time() * 1000) + FILL_SECONDS * 1000
        trio.run(_fill_burst, server.address, waiting, due_ms)
        if time.time() * 1000 > due_ms:
            raise BenchmarkError("the burst was due before it was sent whole: the machine is too busy")
        cpu = server.cpu_seconds()
        seconds = trio.run(_wait_burst, server.address, due_ms)
        cpu_us = (server.cpu_seconds() - cpu) / BURST * 1e6
    rate = BURST / seconds
    report.goals.append(
        Goal(f"{BURST:,} {waiting.name} of one second leave at {rate:,.0f}/s ({cpu_us:.1f} us), of the rate of sends",
             rate / send_rate, ">=", 0.3)
    )  # fmt: skip


async def _fill_burst(address: str, waiting: Waiting, due_ms: int) -> None:
    await send_many(address, BURST, lambda number: waiting.properties(due_ms + number % 1000), SIZE_BYTES)


async def _wait_burst(address: str, due_ms: int) -> float:
    header = GetMaxOffsetRequestHeader(topic=TOPIC, queue_id=0)
    async with RemotingClient() as client:
        await trio.sleep(due_ms / 1000 - time.time())
        begun, left = time.perf_counter(), 0
        while left < BURST:  # it is another process that counts
            [answer] = await ask_all(client, address, [Command(RequestCode.GET_MAX_OFFSET, header)])
            left = answer.decode_header(GetMaxOffsetResponseHeader).offset
            await trio.sleep(0.01)
        return time.perf_counter() - begun


@contextmanager
def idle(server: MeasuredServer) -> Iterator[None]:
    """No load beside what is measured."""
    yield


def measure_lateness(
    report: Report,
    waiting: Waiting,
    how: str,
    wanted_ms: float,
    load: Callable[[MeasuredServer], AbstractContextManager[None]] = idle,
) -> None:
    """How late 500 messages leave while `load` is on; BenchmarkError when one leaves early."""
    with our_server(*waiting.settings) as server, load(server):
        late = sorted(trio.run(_time_some, server.address, waiting))
    report.goals.append(
        Goal(f"lateness of {waiting.name} with {how}: p50 {late[len(late) // 2]} ms, most {late[-1]} ms; p99 in ms",
             late[len(late) * 99 // 100], "<=", wanted_ms)
    )  # fmt: skip
    if late[0] < 0:
        raise BenchmarkError(f"one of the {waiting.name} came {-late[0]} ms early")


async def _time_some(address: str, waiting: Waiting) -> list[int]:
    rng = random.Random(1)
    begun_ms = int(time.time() * 1000)
    dues = [begun_ms + 1000 + rng.randrange(LATENESS_SECONDS * 1000) for _ in range(LATENESS_MESSAGES)]
    name = "Lateness"
    async with RemotingClient() as client:
        for number, due_ms in enumerate(dues):
            header = send_header(number, waiting.properties(due_ms), topic=name)
            await ask_all(client, address, [Command(RequestCode.SEND_MESSAGE_V2, header, body=b"x")])
        await trio.sleep(LATENESS_SECONDS + 2)
        late: list[int] = []
        while len(late) < len(dues):
            pull = PullMessageRequestHeader(
                consumer_group="bench", topic=name, queue_id=0, queue_offset=len(late), max_msg_nums=32, sys_flag=4,
                commit_offset=0, suspend_timeout_millis=0, subscription="*", sub_version=0, expression_type="TAG",
            )  # fmt: skip
            answer = await client.request(address, Command(RequestCode.PULL_MESSAGE, pull), 30)
            late += [record.store_timestamp_ms - waiting.due_ms(record) for record in decode_records(answer.body)]
    return late
