"""Writing to one queue and reading it back while the server is killed and started again, on a virtual network.

The server is a small one of the test's own: it keeps records in a list that outlives it, as a store does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing

from trio_rmq.client.compression import plain_body
from trio_rmq.client.queue_reader import QueueReader
from trio_rmq.client.queue_writer import QueueWriter, WriteStatistics
from trio_rmq.errors import ClientError, ConnectError, RequestError, RouteNotFoundError, SendError
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.remoting.handlers import HandlerTable
from trio_rmq.remoting.listener import serve_remoting
from trio_rmq.remoting.session import Session
from trio_rmq.testing.world import World, simulate
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.headers import (
    GetMinOffsetResponseHeader,
    GetRouteInfoRequestHeader,
    PullMessageRequestHeader,
    PullMessageResponseHeader,
    SendMessageRequestHeaderV2,
    SendMessageResponseHeader,
    UpdateConsumerOffsetRequestHeader,
)
from trio_rmq.wire.ids import pack_host
from trio_rmq.wire.record import encode_record, encode_topic
from trio_rmq.wire.routes import BrokerData, QueueData, TopicRouteData, encode_route

SERVER, CLIENT = "10.0.0.1", "10.0.0.2"
ADDRESS = f"{SERVER}:9876"
HOST = pack_host(SERVER, 9876)


@dataclass
class TestBroker:
    """Name server and broker; `stored` and `commits` outlive a kill."""

    __test__ = False

    topics: set[str] = field(default_factory=lambda: {"T", "TBW102"})
    stored: dict[int, list[bytes]] = field(default_factory=dict)
    bodies: list[bytes] = field(default_factory=list)
    commits: dict[tuple[str, int], int] = field(default_factory=dict)
    refuse: dict[bytes, ResponseCode] = field(default_factory=dict)
    kill_after: list[int] = field(default_factory=list)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    def table(self) -> HandlerTable:
        table = HandlerTable()
        table.register(RequestCode.GET_ROUTEINFO_BY_TOPIC, self.route)
        table.register(RequestCode.SEND_MESSAGE_V2, self.send)
        table.register(RequestCode.PULL_MESSAGE, self.pull)
        table.register(RequestCode.GET_MIN_OFFSET, lambda _, c: c.reply(header=GetMinOffsetResponseHeader(offset=0)))
        table.register(RequestCode.UPDATE_CONSUMER_OFFSET, self.commit)
        return table

    def route(self, session: Session, command: Command) -> Command:
        topic = command.decode_header(GetRouteInfoRequestHeader).topic
        if topic not in self.topics:
            raise RequestError(ResponseCode.TOPIC_NOT_EXIST, "no route")
        route = TopicRouteData(
            broker_datas=[BrokerData(broker_name="a", cluster="C", broker_addrs={0: ADDRESS})],
            queue_datas=[QueueData(broker_name="a", read_queue_nums=8, write_queue_nums=8, perm=6)],
        )
        return command.reply(body=encode_route(route, standard_json=True))

    def send(self, session: Session, command: Command) -> Command:
        header = command.decode_header(SendMessageRequestHeaderV2)
        code = self.refuse.pop(bytes(command.body), None)
        if code is not None:
            raise RequestError(code, "refused by the test")
        queue = self.stored.setdefault(header.queue_id, [])
        topic_field, magic = encode_topic(header.topic)
        record = encode_record(
            topic_field=topic_field, magic=magic, queue_id=header.queue_id, flag=0, sys_flag=0,
            queue_offset=len(queue), physical_offset=0, born_timestamp_ms=header.born_timestamp, born_host=HOST,
            store_timestamp_ms=0, store_host=HOST, reconsume_times=0, prepared_transaction_offset=0,
            body=command.body, properties=(header.properties or "").encode(),
        )  # fmt: skip
        queue.append(bytes(record))
        self.bodies.append(bytes(command.body))
        if self.kill_after and len(self.bodies) >= self.kill_after[0]:
            del self.kill_after[0]
            self.scope.cancel()
        reply = SendMessageResponseHeader(msg_id="", queue_id=header.queue_id, queue_offset=len(queue) - 1)
        return command.reply(header=reply)

    def pull(self, session: Session, command: Command) -> Command:
        header = command.decode_header(PullMessageRequestHeader)
        queue = self.stored.get(header.queue_id, [])
        found = queue[header.queue_offset : header.queue_offset + header.max_msg_nums]
        reply = PullMessageResponseHeader(
            suggest_which_broker_id=0,
            next_begin_offset=header.queue_offset + len(found),
            min_offset=0,
            max_offset=len(queue),
        )
        code = ResponseCode.SUCCESS if found else ResponseCode.PULL_NOT_FOUND
        return command.reply(code, header=reply, body=b"".join(found))

    def commit(self, session: Session, command: Command) -> Command:
        header = command.decode_header(UpdateConsumerOffsetRequestHeader)
        self.commits[header.consumer_group, header.queue_id] = header.commit_offset
        return command.reply()

    async def live(self, world: World, *, pause_seconds: float = 2.0) -> None:
        """Serve; killed, be away for a while and serve again."""
        while True:
            with world.node(SERVER):
                with trio.CancelScope() as self.scope:
                    await serve_remoting([ADDRESS], self.table())
                world.network.kill_process(SERVER)
            await trio.sleep(pause_seconds)


async def given_bodies(bodies: Sequence[bytes], at_once: int = 50) -> AsyncIterator[Sequence[bytes]]:
    for begin in range(0, len(bodies), at_once):
        yield bodies[begin : begin + at_once]


def writer_for(client: RemotingClient, topic: str = "T", **options: object) -> QueueWriter:
    numbers = iter(range(1_000_000))
    return QueueWriter(
        client, [ADDRESS], topic, next_unique_id=lambda: f"{next(numbers):032X}", wall_ms=lambda: 0, **options  # type: ignore[arg-type] # options are given by name
    )  # fmt: skip


def write(broker: TestBroker, bodies: Sequence[bytes], topic: str = "T", **options: object) -> WriteStatistics:
    """Write `bodies` in a world of its own; errors come out as they are."""
    outcome: list[WriteStatistics | Exception] = []

    async def main(world: World) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(broker.live, world)
            await trio.testing.wait_all_tasks_blocked()
            with world.node(CLIENT):
                async with RemotingClient() as client:
                    try:
                        outcome.append(await writer_for(client, topic, **options).write(given_bodies(bodies)))
                    except (ClientError, ConnectError) as error:
                        outcome.append(error)
            nursery.cancel_scope.cancel()

    simulate(main)
    (result,) = outcome
    if isinstance(result, Exception):
        raise result
    return result


def read(broker: TestBroker, **options: object) -> list[bytes]:
    """All bodies of queue 3, doubles left out."""
    found: dict[str, bytes] = {}

    async def main(world: World) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(broker.live, world)
            await trio.testing.wait_all_tasks_blocked()
            with world.node(CLIENT):
                async with RemotingClient() as client:
                    reader = QueueReader(
                        client, [ADDRESS], "T", queue_id=3, until_end=True, group="G", **options  # type: ignore[arg-type] # options are given by name
                    )  # fmt: skip
                    async with reader.open_batches() as batches:
                        async for batch in batches:
                            for message in batch.messages:
                                found.setdefault(message.unique_key or "", plain_body(message))
                            await reader.commit(batch.queue, batch.next_offset)
            nursery.cancel_scope.cancel()

    simulate(main)
    return list(found.values())


BODIES = [b"%05d" % number for number in range(2000)]


def test_writes_in_order_and_reads_back() -> None:
    broker = TestBroker()
    statistics = write(broker, BODIES, queue_id=3)
    assert (statistics.messages, statistics.body_bytes, statistics.resent) == (2000, 10_000, 0)
    assert broker.bodies == BODIES
    assert read(broker) == BODIES
    assert broker.commits == {("G", 3): 2000}


@pytest.mark.parametrize("kill_after", [[1], [700], [700, 701, 1500], [1999], [2000]])
def test_a_kill_on_the_way_loses_nothing_and_keeps_the_order(kill_after: list[int]) -> None:
    broker = TestBroker(kill_after=list(kill_after))
    statistics = write(broker, BODIES, queue_id=3)
    assert statistics.messages == 2000
    assert statistics.resent > 0
    assert statistics.out_of_order == 0
    assert not broker.kill_after
    assert len(broker.bodies) > 2000, "the kill comes before the reply, so something must be there twice"
    assert read(broker) == BODIES


def test_a_kill_while_reading_is_waited_out() -> None:
    broker = TestBroker()
    write(broker, BODIES, queue_id=3)
    pulls = 0
    pull = broker.pull

    def kill_at_third(session: Session, command: Command) -> Command:
        nonlocal pulls
        pulls += 1
        if pulls == 3:
            broker.scope.cancel()
        return pull(session, command)

    broker.pull = kill_at_third  # type: ignore[method-assign] # the test's own broker
    assert read(broker) == BODIES


def test_all_queues_are_used_without_a_choice() -> None:
    broker = TestBroker()
    write(broker, BODIES[:100])
    assert sorted(broker.stored) == list(range(8))
    assert {len(records) for records in broker.stored.values()} == {12, 13}


def test_a_topic_nobody_knows_goes_by_the_template() -> None:
    broker = TestBroker()
    write(broker, BODIES[:100], "New")
    assert sorted(broker.stored) == [0, 1, 2, 3], "a producer asks for four queues"


def test_no_topic_and_no_template_is_said_at_once() -> None:
    with pytest.raises(RouteNotFoundError, match="autoCreateTopicEnable"):
        write(TestBroker(topics=set()), BODIES[:1], "New")


def test_a_queue_that_is_not_there_is_said_at_once() -> None:
    with pytest.raises(ClientError, match="no such queue"):
        write(TestBroker(), BODIES[:1], queue_id=8)


def test_a_refusal_for_good_ends_the_write() -> None:
    broker = TestBroker(refuse={BODIES[70]: ResponseCode.MESSAGE_ILLEGAL})
    with pytest.raises(SendError, match="refused by the test"):
        write(broker, BODIES, queue_id=3)
    assert BODIES[69] in broker.bodies


def test_a_busy_broker_is_tried_again_and_what_it_took_meanwhile_is_told() -> None:
    broker = TestBroker(refuse={BODIES[70]: ResponseCode.SYSTEM_BUSY})
    statistics = write(broker, BODIES[:100], queue_id=3)
    assert (statistics.messages, statistics.resent) == (100, 1)
    assert statistics.out_of_order == 29


def test_a_server_that_stays_away_is_given_up() -> None:
    async def main(world: World) -> None:
        with world.node(CLIENT):
            async with RemotingClient() as client:
                begin = trio.current_time()
                with pytest.raises(SendError, match="gave up after 5 s"):
                    await writer_for(client, retry_seconds=5).write(given_bodies(BODIES[:1]))
                assert 5 <= trio.current_time() - begin < 30

    simulate(main)
