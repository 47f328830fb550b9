"""Requests and their replies, against a real broker, on {trio, asyncio} x {tcp, websocket}."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import anyio
import pytest

from tests.client.test_producer import LIMIT_SECONDS, make_topic
from trio_rmq.client import (
    AutoBatch,
    Message,
    Producer,
    PushConsumer,
    ReceivedMessage,
    ReplyMessage,
    TransactionProducer,
    TransactionState,
    reply_to,
)
from trio_rmq.errors import ClientError, RequestTimeoutError, SendError

pytestmark = pytest.mark.anyio

Answer = Callable[[Producer, ReceivedMessage], Awaitable[None]]


async def echo(producer: Producer, request: ReceivedMessage) -> None:
    await producer.send(reply_to(request, b"re: " + request.body, tags="answers", properties={"own": "yes"}))


@asynccontextmanager
async def answering(name_server: str, topic: str, answer: Answer = echo) -> AsyncIterator[list[ReceivedMessage]]:
    """Somebody who answers what comes to the topic, ready; what came."""
    asked: list[ReceivedMessage] = []
    async with (
        Producer(name_servers=name_server, group=f"{topic}_answering") as producer,
        PushConsumer(f"{topic}_answering", name_servers=name_server) as consumer,
    ):
        await make_topic(producer, topic)

        async def listen(messages: Sequence[ReceivedMessage]) -> None:
            for message in messages:
                if message.body != b"makes the topic":
                    asked.append(message)
                    await answer(producer, message)

        await consumer.subscribe(topic, listen)
        yield asked


async def test_a_request_gets_its_reply(name_server: str, topic: str) -> None:
    async with (
        answering(name_server, topic) as asked,
        Producer(name_servers=name_server, group=topic) as producer,
    ):
        reply = await producer.request(
            Message(topic, b"question", tags="t", keys="k", properties={"user": "u"}), timeout_seconds=LIMIT_SECONDS
        )
        assert (reply.body, reply.tags, reply.topic) == (b"re: question", "answers", "DefaultCluster_REPLY_TOPIC")
        assert reply.properties["own"] == "yes"
        assert reply.properties["MSG_TYPE"] == "reply"
        [request] = asked
        assert (request.tags, request.keys, request.properties["user"]) == ("t", ["k"], "u")
        assert request.properties["TTL"] == str(LIMIT_SECONDS * 1000)
        assert request.properties["REPLY_TO_CLIENT"] == producer.client_id
        assert request.properties["CORRELATION_ID"] == reply.properties["CORRELATION_ID"]
        assert 0 < int(reply.properties["PUSH_REPLY_TIME"]) <= int(reply.properties["ARRIVE_TIME"])
        assert reply.born_host.startswith("127.0.0.1:")


async def test_each_of_many_requests_gets_its_own(name_server: str, topic: str) -> None:
    got: dict[bytes, bytes] = {}
    async with (
        answering(name_server, topic),
        Producer(name_servers=name_server, group=topic) as first,
        Producer(name_servers=name_server, group=topic) as second,
    ):

        async def ask(producer: Producer, body: bytes) -> None:
            message = Message(topic, body, sharding_key="one queue" if body.endswith(b"0") else None)
            got[body] = (await producer.request(message, timeout_seconds=LIMIT_SECONDS)).body

        async with anyio.create_task_group() as tasks:
            for number in range(50):
                tasks.start_soon(ask, first if number % 2 else second, b"%d" % number)
    assert got == {b"%d" % number: b"re: %d" % number for number in range(50)}


async def test_a_selector_chooses_the_queue(name_server: str, topic: str) -> None:
    async with (
        answering(name_server, topic) as asked,
        Producer(name_servers=name_server, group=topic) as producer,
    ):
        queues = await producer.queues(topic)
        question = Message(topic, b"q")
        for _ in range(3):
            await producer.request(
                question, selector=lambda all_of_them, message, argument: all_of_them[2], timeout_seconds=LIMIT_SECONDS
            )
        await producer.request(question, queue=queues[1], timeout_seconds=LIMIT_SECONDS)
        assert [message.queue.queue_id for message in asked] == [2, 2, 2, 1]


async def test_a_large_reply_is_packed_and_unpacked(name_server: str, topic: str) -> None:
    async def much(producer: Producer, request: ReceivedMessage) -> None:
        await producer.send(reply_to(request, b"x" * 100_000))

    async with (
        answering(name_server, topic, much),
        Producer(name_servers=name_server, group=topic) as producer,
    ):
        reply = await producer.request(Message(topic, b"q"), timeout_seconds=LIMIT_SECONDS)
        assert reply.body == b"x" * 100_000
        assert reply.stored_body_size_bytes < 1000


async def test_in_a_namespace_and_with_auto_batching(name_server: str, topic: str) -> None:
    settings = {"name_servers": name_server, "namespace": "NS", "auto_batch": AutoBatch()}
    async with (
        Producer(group=f"{topic}_a", **settings) as answering_producer,  # type: ignore[arg-type]  # they are its own
        answering(name_server, f"NS%{topic}", lambda _, request: echo(answering_producer, request)),
        Producer(group=topic, **settings) as producer,  # type: ignore[arg-type]  # they are its own
    ):
        reply = await producer.request(Message(topic, b"q"), timeout_seconds=LIMIT_SECONDS)
        assert (reply.body, reply.topic) == (b"re: q", "DefaultCluster_REPLY_TOPIC")


async def test_without_a_reply_the_error_says_so(name_server: str, topic: str) -> None:
    async with Producer(name_servers=name_server, group=topic) as producer:
        with pytest.raises(RequestTimeoutError, match=rf"no reply to the request [0-9A-F]+, .*{topic}.* within 0.5 s"):
            await producer.request(Message(topic, b"nobody listens"), timeout_seconds=0.5)


async def test_a_second_reply_is_dropped(name_server: str, topic: str) -> None:
    async def twice(producer: Producer, request: ReceivedMessage) -> None:
        await producer.send(reply_to(request, b"first"))
        await producer.send(reply_to(request, b"second"))

    async with (
        answering(name_server, topic, twice),
        Producer(name_servers=name_server, group=topic) as producer,
    ):
        for _ in range(3):
            assert (await producer.request(Message(topic, b"q"), timeout_seconds=LIMIT_SECONDS)).body == b"first"


async def test_a_producer_that_closes_ends_its_requests(name_server: str, topic: str) -> None:
    errors: list[ClientError] = []
    asked = anyio.Event()

    async def note(producer: Producer, request: ReceivedMessage) -> None:
        asked.set()

    async def ask(producer: Producer) -> None:
        try:
            await producer.request(Message(topic, b"q"), timeout_seconds=LIMIT_SECONDS)
        except ClientError as error:
            errors.append(error)

    async with (
        answering(name_server, topic, note),
        anyio.create_task_group() as tasks,
        Producer(name_servers=name_server, group=topic) as producer,
    ):
        tasks.start_soon(ask, producer)
        await asked.wait()
    assert "closed before a reply" in str(errors[0])


async def test_what_cannot_be_asked_or_answered(name_server: str, topic: str) -> None:
    async with (
        answering(name_server, topic) as asked,
        Producer(name_servers=name_server, group=topic) as producer,
    ):
        await producer.request(Message(topic, b"q"), timeout_seconds=LIMIT_SECONDS)
        [request] = asked
        answer = reply_to(request, b"x")
        assert isinstance(answer, ReplyMessage)
        with pytest.raises(ClientError, match="cannot ask for a reply"):
            await producer.request(answer)
        with pytest.raises(ClientError, match="send it singly"):
            await producer.send_batch([answer])
        with pytest.raises(ClientError, match="body is empty"):
            await producer.request(Message(topic, b""))
        with pytest.raises(ClientError, match="body is empty"):
            await producer.send(reply_to(request, b""))
        with pytest.raises(SendError, match="no queue was found within 0 s"):
            await producer.request(Message(topic, b"q"), selector=lambda *_: asked[0].queue, timeout_seconds=0)
        for name in ("CORRELATION_ID", "REPLY_TO_CLIENT"):
            with pytest.raises(ClientError, match=f"no {name}: reply only to"):
                reply_to(without(request, name), b"x")
        with pytest.raises(ClientError, match="in which cluster"):
            reply_to(without(request, "CLUSTER"), b"x")

        async def never(transaction_id: str) -> TransactionState:
            raise AssertionError(transaction_id)

        async def check(message: ReceivedMessage) -> TransactionState:
            raise AssertionError(message)

        async with TransactionProducer(check, name_servers=name_server, group=f"{topic}_tx") as transactional:
            with pytest.raises(ClientError, match="outside of transactions"):
                await transactional.send_in_transaction(answer, never)


def without(message: ReceivedMessage, name: str) -> ReceivedMessage:
    """The message as if it did not have this property."""
    other = ReceivedMessage.from_record(message.stored, message.queue)
    other._properties = {key: value for key, value in message.properties.items() if key != name}
    return other
