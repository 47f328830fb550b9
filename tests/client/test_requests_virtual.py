"""Requests on virtual time: late and foreign replies, two brokers of one cluster, brokers that misbehave."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
import trio

from tests.broker.running import send_header
from tests.client.test_producer_bad_brokers import NAMES as BAD_NAMES
from tests.client.test_producer_bad_brokers import BadServer, never, stored
from tests.client.test_producer_bad_brokers import run as run_bad
from tests.client.test_producer_virtual import BROKERS, CLIENT, NAMES, TOPIC, Cluster, run
from trio_rmq.client import Message, Producer, PushConsumer, ReceivedMessage, Sending, SendResult, reply_to
from trio_rmq.client.send_interceptors import Proceed
from trio_rmq.errors import RequestTimeoutError, SendError
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.remoting.connection import Connection
from trio_rmq.remoting.handlers import Later, Reply
from trio_rmq.remoting.session import Session
from trio_rmq.testing.world import World
from trio_rmq.wire import headers
from trio_rmq.wire.codes import RequestCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.heartbeat import HeartbeatData, ProducerData, encode_heartbeat
from trio_rmq.wire.properties import property_of

ANSWERING = "10.0.2.2"
REPLY_TOPIC = "DefaultCluster_REPLY_TOPIC"
Answer = Callable[[Producer, ReceivedMessage], Awaitable[None]]


class Addresses:
    """An interceptor that notes to which addresses was sent."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def __call__(self, sending: Sending, proceed: Proceed) -> SendResult | None:
        self.seen.append(sending.address.partition(":")[0])
        return await proceed()


@asynccontextmanager
async def answering(world: World, answer: Answer, *interceptors: Addresses, topic: str = TOPIC) -> AsyncIterator[None]:
    """Somebody on a machine of their own who answers what comes to the topic."""
    with world.node(ANSWERING):
        producer = Producer(name_servers=NAMES, group="answering", interceptors=interceptors)
        consumer = PushConsumer("answering", name_servers=NAMES)
        await producer.__aenter__()
        await consumer.__aenter__()

    async def listen(messages: Sequence[ReceivedMessage]) -> None:
        for message in messages:
            await answer(producer, message)

    try:
        await consumer.subscribe(topic, listen)
        await trio.sleep(1)
        yield
    finally:
        await consumer.__aexit__(None, None, None)
        await producer.__aexit__(None, None, None)


async def echo(producer: Producer, request: ReceivedMessage) -> None:
    await producer.send(reply_to(request, request.body))


def after(seconds: float) -> Answer:
    async def answer(producer: Producer, request: ReceivedMessage) -> None:
        await trio.sleep(seconds)
        await producer.send(reply_to(request, request.body))

    return answer


def test_one_deadline_covers_all_and_what_comes_late_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    async def program(world: World, servers: Cluster) -> None:
        async with answering(world, after(5)), Producer(name_servers=NAMES, group="asking") as producer:
            began = trio.current_time()
            with pytest.raises(RequestTimeoutError, match=r"no reply to the request .* within 4.9 s"):
                await producer.request(Message(TOPIC, b"late"), timeout_seconds=4.9)
            assert trio.current_time() - began == pytest.approx(4.9)
            with trio.move_on_after(4.9):
                await producer.request(Message(TOPIC, b"cancelled"), timeout_seconds=60)
            await trio.sleep(1)
            assert sum("is dropped" in record.message for record in caplog.records) == 2
            assert (await producer.request(Message(TOPIC, b"in time"), timeout_seconds=5.1)).body == b"in time"
            with pytest.raises(RequestTimeoutError, match="within 3 s"):
                await producer.request(Message(TOPIC, b"the producer's own time"))

    with caplog.at_level(logging.WARNING):
        run(program)


def test_who_replies_to_a_client_that_left_is_told() -> None:
    problems: list[SendError] = []

    async def too_late(producer: Producer, request: ReceivedMessage) -> None:
        await trio.sleep(10)
        with pytest.raises(SendError) as caught:
            await producer.send(reply_to(request, b"x"))
        problems.append(caught.value)

    async def program(world: World, servers: Cluster) -> None:
        async with answering(world, too_late):
            async with Producer(name_servers=NAMES, group="asking") as producer:
                with pytest.raises(RequestTimeoutError):
                    await producer.request(Message(TOPIC, b"q"))
            await trio.sleep(10)
            assert f"push reply message fail, channel of <{producer.client_id}> not found." in str(problems[0])
            assert problems[0].response_code == 1

    run(program)


def test_a_reply_may_come_through_any_broker_of_the_cluster() -> None:
    """A client of RocketMQ replies through whichever broker has its turn, also one where the topic is not."""

    async def program(world: World, servers: Cluster) -> None:
        async def by_broker_b(producer: Producer, request: ReceivedMessage) -> None:
            own = {"CORRELATION_ID", "REPLY_TO_CLIENT"}
            text = "\x02".join(f"{name}\x01{request.properties[name]}" for name in own)
            command = Command(
                RequestCode.SEND_REPLY_MESSAGE_V2, send_header(REPLY_TOPIC, properties=text), body=b"by b"
            )
            async with RemotingClient() as client:
                assert (await client.request(f"{BROKERS['b']}:10911", command)).code == 0

        async with RemotingClient() as client:
            header = headers.CreateTopicRequestHeader(
                topic="OnlyA", default_topic="TBW102", read_queue_nums=1, write_queue_nums=1, perm=6,
                topic_filter_type="SINGLE_TAG", order=False,
            )  # fmt: skip
            command = Command(RequestCode.UPDATE_AND_CREATE_TOPIC, header=header)
            assert (await client.request(f"{BROKERS['a']}:10911", command)).code == 0
        async with (
            answering(world, by_broker_b, topic="OnlyA"),
            Producer(name_servers=NAMES, group="asking") as producer,
        ):
            assert {queue.broker_name for queue in await producer.queues("OnlyA")} == {"a"}
            assert (await producer.request(Message("OnlyA", b"q"))).body == b"by b"

    run(program)


def test_our_reply_goes_to_the_broker_of_the_request_first() -> None:
    """A client of RocketMQ may be known to that one only."""
    taken: list[bytes] = []

    async def take(connection: Connection, command: Command) -> Command:
        taken.append(command.body)
        return command.reply()

    async def program(world: World, servers: Cluster) -> None:
        tries = Addresses()
        async with answering(world, echo, tries), RemotingClient() as client:
            client.register(RequestCode.PUSH_REPLY_MESSAGE_TO_CLIENT, take)
            address = f"{BROKERS['b']}:10911"
            beat = HeartbeatData(client_id="java", producer_data_set=[ProducerData(group_name="g")])
            await client.request(address, Command(RequestCode.HEART_BEAT, body=encode_heartbeat(beat)))
            for number in range(6):
                text = f"CORRELATION_ID\x01c{number}\x02REPLY_TO_CLIENT\x01java\x02TTL\x013000"
                command = Command(RequestCode.SEND_MESSAGE_V2, send_header(TOPIC, properties=text), body=b"%d" % number)
                assert (await client.request(address, command)).code == 0
            await trio.sleep(2)
            assert sorted(taken) == [b"%d" % number for number in range(6)]
            assert tries.seen == [BROKERS["b"]] * 6

    run(program)


def test_a_lost_connection_is_made_again_and_the_reply_comes() -> None:
    async def program(world: World, servers: Cluster) -> None:
        async with answering(world, after(3)), Producer(name_servers=NAMES, group="asking") as producer:
            await producer.request(Message(TOPIC, b"q"), timeout_seconds=10)
            async with trio.open_nursery() as nursery:

                async def ask() -> None:
                    assert (await producer.request(Message(TOPIC, b"again"), timeout_seconds=10)).body == b"again"

                nursery.start_soon(ask)
                await trio.sleep(1)
                for address in BROKERS.values():
                    assert world.network.reset(CLIENT, address)

    run(program)


@pytest.mark.parametrize("name", BROKERS)
def test_a_broker_that_falls_silent_does_not_take_a_requests_whole_time(name: str) -> None:
    async def program(world: World, servers: Cluster) -> None:
        other = next(broker for broker in BROKERS if broker != name)
        async with answering(world, echo), Producer(name_servers=NAMES, group="asking") as producer:
            queue = next(queue for queue in await producer.queues(TOPIC) if queue.broker_name == other)
            await trio.sleep(60)
            world.network.cut(CLIENT, BROKERS[name])
            world.network.reset(CLIENT, BROKERS[name])
            for _ in range(3):
                assert (await producer.request(Message(TOPIC, b"q"), queue=queue)).body == b"q"

    run(program)


Push = Callable[[Session, str], Awaitable[None]]


def pushing(push: Push) -> Callable[[Session, Command], Sequence[Later]]:
    """Has a server push replies by itself, for each request, whose correlation id it gets."""

    def also(session: Session, request: Command) -> Sequence[Later]:
        text = request.decode_header(headers.SendMessageRequestHeaderV2).properties or ""
        correlation_id = property_of(text, "CORRELATION_ID")
        assert correlation_id is not None

        async def run() -> Sequence[Reply]:
            await push(session, correlation_id)
            return []

        return [Later(run, answers=[request])]

    return also


def pushed(correlation_id: str, body: bytes, **changes: object) -> Command:
    fields: dict[str, object] = {
        "producer_group": "g", "topic": "c_REPLY_TOPIC", "default_topic": "TBW102", "default_topic_queue_nums": 4,
        "queue_id": 0, "sys_flag": 0, "born_timestamp": 1, "flag": 0, "born_host": "1.2.3.4:5",
        "store_host": "1.2.3.4:6", "properties": f"CORRELATION_ID\x01{correlation_id}", **changes,
    }  # fmt: skip
    header = headers.ReplyMessageRequestHeader(**fields)  # type: ignore[arg-type]  # they are its own
    return Command(RequestCode.PUSH_REPLY_MESSAGE_TO_CLIENT, header=header, body=body)


def test_foreign_and_unreadable_replies_are_dropped_and_the_right_one_comes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    codes: list[int] = []

    async def push(session: Session, correlation_id: str) -> None:
        replies = (
            pushed("somebody else's", b"no"),
            pushed(correlation_id, b"no", properties=None),
            pushed(correlation_id, b"no", born_host="nobody"),
            pushed(correlation_id, b"yes"),
            pushed(correlation_id, b"twice"),
        )
        codes.extend([(await session.request(reply, 10)).code for reply in replies])

    async def program(a: BadServer, b: BadServer) -> None:
        a.also = b.also = pushing(push)
        async with Producer(name_servers=BAD_NAMES, group="asking") as producer:
            assert (await producer.request(Message(TOPIC, b"q"))).body == b"yes"
            await trio.sleep(1)

    with caplog.at_level(logging.WARNING):
        run_bad(program)
    assert codes == [0, 0, 1, 0, 0]
    lines = [record.message for record in caplog.records if "reply" in record.message]
    assert [("is dropped" in line, "cannot be read" in line) for line in lines] == [
        (True, False), (True, False), (False, True), (True, False),
    ]  # fmt: skip


def test_a_reply_to_a_request_that_was_never_acknowledged_counts() -> None:
    async def push(session: Session, correlation_id: str) -> None:
        await session.request(pushed(correlation_id, b"here"), 10)

    async def program(a: BadServer, b: BadServer) -> None:
        a.answer = b.answer = never
        a.also = b.also = pushing(push)
        async with Producer(name_servers=BAD_NAMES, group="asking") as producer:
            assert (await producer.request(Message(TOPIC, b"q"), timeout_seconds=4)).body == b"here"

    run_bad(program)


def test_a_request_that_nobody_takes_fails_as_a_send() -> None:
    async def program(a: BadServer, b: BadServer) -> None:
        a.answer = b.answer = lambda request: [stored(request, 13)]
        async with Producer(name_servers=BAD_NAMES, group="asking") as producer:
            with pytest.raises(SendError) as caught:
                await producer.request(Message(TOPIC, b"q"))
            assert caught.value.response_code == 13

    run_bad(program)
