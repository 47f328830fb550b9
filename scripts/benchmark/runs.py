"""What one run does, and doing it: a fresh server, its load, its floor, its figures."""

from __future__ import annotations

from dataclasses import dataclass, replace

import trio

from benchmark.frames import PULL_COUNT, Units, encode_units, pull_command, send_command
from benchmark.load import BenchmarkError, Connection, Loaded, run_load
from benchmark.report import Row, percentile
from benchmark.servers import MeasuredServer, floor_server, our_server
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.wire.codes import RequestCode
from trio_rmq.wire.command import Command, SerializeType
from trio_rmq.wire.headers import CreateTopicRequestHeader

TOPIC = "Benchmark"
QUEUES = 4
TOPIC_QUEUES_MAX = 10_000
UNITS_DISTINCT_BYTES = 16 * 1024 * 1024
"""How much is encoded beforehand; it is sent round and round."""


@dataclass(frozen=True)
class Plan:
    """What one run does."""

    kind: str
    transport: str
    headers: str
    size: int
    batch: int
    per_message: int
    clients: int
    in_flight: int
    seconds: float
    messages: int | None
    floor: bool
    queues: int = QUEUES
    settings: tuple[str, ...] = ()

    @property
    def serialize_type(self) -> SerializeType:
        """Header encoding of the requests."""
        return SerializeType.CBOR if self.transport == "ws" else SerializeType[self.headers]

    @property
    def name(self) -> str:
        """As in the table's first column."""
        encoding = "CBOR" if self.transport == "ws" else self.headers
        what = f"{self.kind} {self.size} B {self.transport} {encoding}"
        if self.kind == "pull":
            what += f" of {PULL_COUNT}"
        if self.batch > 1:
            what += f" batch {self.batch}"
        if self.transport == "ws":
            what += f", {self.per_message} a message"
        if self.queues != QUEUES:
            what += f", {self.queues:,} queues"
        if self.settings:
            what += f", {' '.join(self.settings)}"
        return f"{what}, {self.clients} x {max(1, self.in_flight // self.clients)}"


def run(plan: Plan) -> Row:
    """One plan on a fresh server, with its floor."""
    with our_server(*plan.settings) as server:
        if plan.queues != QUEUES:
            trio.run(create_topics, server.address, plan.queues)
        if plan.kind == "pull":
            count = fill_queue(server, plan)
            units = pull_units(plan, count)
        else:
            units = send_units(plan)
        answer = warm_topic(server, plan, units)
        loaded, cpu = load_server(server, plan, units)
        resident_mb = server.resident_mb()
    floor_us = None
    if plan.floor:
        with floor_server(answer) as floor:
            floor_loaded, floor_cpu = load_server(floor, plan, units)
        floor_us = floor_cpu / floor_loaded.messages * 1e6
    return _row(plan, units, loaded, cpu, resident_mb, floor_us)


def _row(plan: Plan, units: Units, loaded: Loaded, cpu: float, resident_mb: float, floor_us: float | None) -> Row:
    cpu_us = cpu / loaded.messages * 1e6
    moved = loaded.messages * plan.size
    return Row(
        name=plan.name,
        messages_per_second=loaded.messages / loaded.seconds,
        megabytes_per_second=moved / loaded.seconds / 1e6,
        latency_p50_us=percentile(loaded.latencies, 0.5) * 1e6,
        latency_p99_us=percentile(loaded.latencies, 0.99) * 1e6,
        latency_max_us=max(loaded.latencies, default=0.0) * 1e6,
        cpu_us_per_message=cpu_us,
        server_resident_mb=resident_mb,
        floor_cpu_us_per_message=floor_us,
        ratio_to_floor=None if floor_us is None else floor_us / cpu_us,
    )


def load_server(server: MeasuredServer, plan: Plan, units: Units) -> tuple[Loaded, float]:
    """Run the plan's load against a running server: what it moved, and the CPU seconds the server took."""
    total = None if plan.messages is None else max(1, plan.messages // (units.answers * units.messages))
    return run_load(
        server.address,
        units,
        clients=plan.clients,
        in_flight=max(1, plan.in_flight // units.answers),
        websocket=plan.transport == "ws",
        seconds=plan.seconds,
        server_cpu=server.cpu_seconds,
        units_total=total,
    )


def send_units(plan: Plan) -> Units:
    """Sends to the plan's queues in turn."""
    count = max(64, min(20_000, UNITS_DISTINCT_BYTES // (plan.size * plan.batch + 400)) // plan.per_message)
    if plan.queues != QUEUES:
        count = plan.queues  # each is sent to in turn

    def command_of(number: int) -> Command:
        topic, queue_id = divmod(number % plan.queues, TOPIC_QUEUES_MAX)
        name = f"{TOPIC}{topic or ''}"
        return send_command(name, queue_id, number, plan.size, plan.batch, plan.serialize_type)

    return encode_units(
        command_of, count, websocket=plan.transport == "ws", per_unit=plan.per_message, messages=plan.batch
    )


def pull_units(plan: Plan, messages: int) -> Units:
    """Pulls of queue 0, which holds so many messages, from its first to its last and again."""
    pulls = messages // PULL_COUNT

    def command_of(number: int) -> Command:
        return pull_command(TOPIC, 0, number % pulls * PULL_COUNT, number, plan.serialize_type)

    return encode_units(
        command_of,
        max(1, pulls // plan.per_message),
        websocket=plan.transport == "ws",
        per_unit=plan.per_message,
        messages=PULL_COUNT,
    )


def fill_queue(server: MeasuredServer, plan: Plan) -> int:
    """Put messages for the pulls into queue 0; returns how many."""
    count = max(PULL_COUNT * 64, min(64_000, UNITS_DISTINCT_BYTES * 2 // (plan.size + 200))) // PULL_COUNT * PULL_COUNT
    units = encode_units(
        lambda number: send_command(TOPIC, 0, number, plan.size, 1, SerializeType.JSON),
        count,
        websocket=False,
        per_unit=1,
        messages=1,
    )
    first = replace(units, starts=units.starts[:2])
    run_load(
        server.address, first, clients=1, in_flight=1, websocket=False, seconds=0, server_cpu=lambda: 0.0, units_total=1
    )
    rest = replace(units, starts=units.starts[1:])
    run_load(
        server.address, rest, clients=1, in_flight=256, websocket=False, seconds=0, server_cpu=lambda: 0.0,
        units_total=count - 1,
    )  # fmt: skip
    return count


def warm_topic(server: MeasuredServer, plan: Plan, units: Units) -> bytes:
    """One unit by itself: creates the topic, and shows that the server answers it; returns the answer's bytes."""
    connection = Connection(server.address, units, 0, 1, websocket=plan.transport == "ws")
    with connection.socket:
        connection.start()
        while connection.waiting:
            connection.receive(Loaded().latencies, more=False)
        connection.check()
        return connection.last_answer


def median_run(plan: Plan, rounds: int = 3) -> Row:
    """The run whose ratio (or rate) is the median of `rounds`."""
    rows = [run(plan) for _ in range(rounds)]
    rows.sort(key=lambda row: row.ratio_to_floor if row.ratio_to_floor is not None else row.messages_per_second)
    return rows[rounds // 2]


async def create_topics(address: str, queues: int) -> None:
    """Topics with so many queues in all, as `send_units` sends to them."""
    async with RemotingClient() as client:
        for number in range(-(-queues // TOPIC_QUEUES_MAX)):
            header = CreateTopicRequestHeader(
                topic=f"{TOPIC}{number or ''}",
                default_topic="TBW102",
                read_queue_nums=TOPIC_QUEUES_MAX,
                write_queue_nums=TOPIC_QUEUES_MAX,
                perm=6,
                topic_filter_type="SINGLE_TAG",
                order=False,
            )
            answer = await client.request(address, Command(RequestCode.UPDATE_AND_CREATE_TOPIC, header), 30)
            if answer.code:
                raise BenchmarkError(f"no topic of {TOPIC_QUEUES_MAX} queues: {answer.remark}")
