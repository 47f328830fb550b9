"""Producers for programs without an event loop: as the async ones do, in plain calls from any thread."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import anyio
import pytest

from tests.client.test_producer import known_queues
from trio_rmq import client
from trio_rmq.client import Message, SendResult, SendStatus, TransactionState, blocking, reply_to, select_by_hash
from trio_rmq.client.message import ReceivedMessage
from trio_rmq.errors import ClientError, SendError

LIMIT_SECONDS = 20
COMMIT, ROLLBACK, UNKNOWN = TransactionState.COMMIT, TransactionState.ROLLBACK, TransactionState.UNKNOWN


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["asyncio", "trio"])
def portal(request: pytest.FixtureRequest) -> blocking.BlockingPortalProvider:
    return blocking.BlockingPortalProvider(str(request.param))


def wait_for(name_server: str, topic: str) -> None:
    """Return when the name server knows the topic, which a send has made."""

    async def wait() -> None:
        async with client.Producer(name_servers=name_server) as producer:
            await known_queues(producer, topic)

    anyio.run(wait)


def stored(name_server: str, topic: str, count: int) -> list[str]:
    """The bodies of all the topic's messages, sorted."""
    bodies: list[str] = []
    wait_for(name_server, topic)
    with blocking.LitePullConsumer(f"{topic}_reader", name_servers=name_server) as consumer:
        consumer.assign(consumer.queues(topic))
        for queue in consumer.assignment():
            consumer.seek_to_begin(queue)
        while len(bodies) < count:
            found = consumer.poll(timeout_seconds=LIMIT_SECONDS)
            assert found
            bodies += [message.body.decode() for message in found]
        assert consumer.poll(timeout_seconds=0.1) == []
    return sorted(bodies)


def test_every_way_to_send(name_server: str, topic: str, portal: blocking.BlockingPortalProvider) -> None:
    with blocking.Producer(name_servers=name_server, portal=portal) as producer:
        assert producer.send(Message(topic, b"one")).status is SendStatus.SEND_OK
        wait_for(name_server, topic)
        producer.refresh_route(topic)
        queues = producer.queues(topic)
        assert producer.send(Message(topic, b"two"), queue=queues[2]).queue == queues[2]
        chosen = producer.select_queue(Message(topic, b"-"), select_by_hash, "key")
        assert producer.send(Message(topic, b"three"), selector=select_by_hash, argument="key").queue == chosen
        batch = producer.send_batch([Message(topic, b"four"), Message(topic, b"five")])
        assert len(batch.message_ids) == 2
        producer.send_oneway(Message(topic, b"six"), queue=queues[0])
        later = producer.send(Message(topic, b"later", delay_ms=60_000))
        assert later.recall_handle is not None
        assert producer.recall(topic, later.recall_handle) == later.message_id
    assert stored(name_server, topic, 6) == ["five", "four", "one", "six", "three", "two"]


def test_many_at_once_come_to_what_each_would_alone(
    name_server: str, topic: str, portal: blocking.BlockingPortalProvider
) -> None:
    messages = [Message(topic, b"%03d" % number) for number in range(500)]
    messages[7] = Message(topic, b"")
    with blocking.Producer(name_servers=name_server, portal=portal) as producer:
        results = producer.send_many(messages, at_once=100)
        assert producer.send_many([]) == []
        with pytest.raises(ClientError, match="at_once is 0"):
            producer.send_many(messages, at_once=0)
    assert len(results) == 500
    failed = results.pop(7)
    assert isinstance(failed, ClientError)
    assert "the body is empty" in str(failed)
    assert all(isinstance(result, SendResult) for result in results)
    assert stored(name_server, topic, 499) == [f"{number:03}" for number in range(500) if number != 7]


def test_threads_share_a_producer(name_server: str, topic: str, portal: blocking.BlockingPortalProvider) -> None:
    together = threading.Barrier(8)
    with blocking.Producer(name_servers=name_server, portal=portal) as producer:

        def send(number: int) -> str:
            together.wait(LIMIT_SECONDS)  # all have begun before the first has ended
            return producer.send(Message(topic, b"%d" % number)).message_id

        with ThreadPoolExecutor(8) as threads:
            assert len(set(threads.map(send, range(16)))) == 16
    assert stored(name_server, topic, 16) == sorted(map(str, range(16)))


def test_a_request_brings_its_reply(name_server: str, topic: str, portal: blocking.BlockingPortalProvider) -> None:
    with (
        blocking.Producer(name_servers=name_server, portal=portal) as producer,
        blocking.PushConsumer(topic, name_servers=name_server, portal=portal) as consumer,
    ):
        producer.send(Message(topic, b"makes the topic"))
        wait_for(name_server, topic)

        def answer(requests: Sequence[ReceivedMessage]) -> None:
            for request in requests:
                if request.body == b"how much?":
                    producer.send(reply_to(request, b"7"))

        consumer.subscribe(topic, answer)
        assert producer.request(Message(topic, b"how much?"), timeout_seconds=LIMIT_SECONDS).body == b"7"


def test_errors_are_those_of_the_async_producer(name_server: str, topic: str) -> None:
    producer = blocking.Producer(name_servers=name_server)
    with pytest.raises(ClientError, match="is not open"):
        producer.send(Message(topic, b"x"))
    with producer:
        with pytest.raises(ClientError, match="the body is empty"):
            producer.send(Message(topic, b""))
        queue = producer.send(Message(topic, b"x")).queue
        wait_for(name_server, topic)
        wrong = type(queue)(topic=topic, broker_name=queue.broker_name, queue_id=99)
        with pytest.raises(SendError, match="99"):
            producer.send(Message(topic, b"x"), queue=wrong)
    with pytest.raises(ClientError, match="is not open"):
        producer.send_oneway(Message(topic, b"x"))
    with pytest.raises(ClientError, match="group"):
        blocking.Producer(name_servers=name_server, group="b a d").open()


def test_local_transactions_run_in_the_calling_thread_and_checks_in_another(
    name_server: str, topic: str, portal: blocking.BlockingPortalProvider
) -> None:
    here = threading.get_ident()
    asked = threading.Event()
    states: dict[str, TransactionState] = {}

    def check(message: ReceivedMessage) -> TransactionState:
        assert threading.get_ident() != here
        asked.set()
        return states[message.message_id]

    def commit(transaction_id: str) -> TransactionState:
        assert threading.get_ident() == here
        states[transaction_id] = COMMIT
        return COMMIT

    def fail(transaction_id: str) -> TransactionState:
        states[transaction_id] = COMMIT
        raise ConnectionError("the answer was lost")

    with blocking.TransactionProducer(check, group=topic, name_servers=name_server, portal=portal) as producer:
        assert producer.send_in_transaction(Message(topic, b"yes"), commit).state is COMMIT
        assert producer.send_in_transaction(Message(topic, b"no"), lambda _: ROLLBACK).state is ROLLBACK
        lost = producer.send_in_transaction(Message(topic, b"asked"), fail, check_immunity_seconds=1)
        assert (lost.state, str(lost.error)) == (UNKNOWN, "the answer was lost")
        assert producer.send(Message(topic, b"plain")).status is SendStatus.SEND_OK
        with pytest.raises(ClientError, match="the body is empty"):
            producer.send_in_transaction(Message(topic, b""), commit)
        assert asked.wait(LIMIT_SECONDS)
    assert stored(name_server, topic, 3) == ["asked", "plain", "yes"]


def test_a_local_transaction_that_takes_too_long_is_unknown(name_server: str, topic: str) -> None:
    over = threading.Event()

    def slow(transaction_id: str) -> TransactionState:
        over.wait(0.2)
        return COMMIT

    with blocking.TransactionProducer(
        lambda message: UNKNOWN, group=topic, name_servers=name_server, local_timeout_seconds=0.05
    ) as producer:
        result = producer.send_in_transaction(Message(topic, b"slow"), slow)
    assert result.state is UNKNOWN
    assert isinstance(result.error, TimeoutError)


def test_what_ends_a_local_transaction_by_force_tells_no_end(name_server: str, topic: str) -> None:
    def interrupted(transaction_id: str) -> TransactionState:
        raise KeyboardInterrupt

    with blocking.TransactionProducer(lambda message: UNKNOWN, group=topic, name_servers=name_server) as producer:
        with pytest.raises(KeyboardInterrupt):
            producer.send_in_transaction(Message(topic, b"x"), interrupted)
        assert producer.send(Message(topic, b"goes on")).status is SendStatus.SEND_OK


INTERRUPTED = """
import sys
from trio_rmq.client import Message
from trio_rmq.client.blocking import Producer

try:
    with Producer(name_servers=sys.argv[2], timeout_seconds=600) as producer:
        print("sending", flush=True)
        producer.send_many([Message("T", b"x")] * 10) if sys.argv[1] == "many" else producer.send(Message("T", b"x"))
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def test_ctrl_c_ends_a_send_that_waits() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        for way in ("one", "many"):
            with subprocess.Popen(
                [sys.executable, "-c", INTERRUPTED, way, address],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            ) as script:
                assert script.stdout is not None
                assert script.stdout.readline() == "sending\n"
                with silent.accept()[0]:  # it asks the name server, which says nothing
                    script.send_signal(signal.SIGINT)
                    out, errors = script.communicate(timeout=LIMIT_SECONDS)
            assert (out, errors, script.returncode) == ("interrupted\n", "", 0)
