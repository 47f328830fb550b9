"""Consumers for programs without an event loop: as the async ones do, in plain calls from any thread."""

from __future__ import annotations

import inspect
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any, get_type_hints

import anyio
import pytest

from trio_rmq import client
from trio_rmq.client import ConsumeResult, Message, PullStatus, ReceivedMessage, blocking
from trio_rmq.client.blocking import consumer as blocking_consumer
from trio_rmq.client.blocking import producer as blocking_producer
from trio_rmq.errors import ClientError, ProtocolError

LIMIT_SECONDS = 20


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["asyncio", "trio"])
def portal(request: pytest.FixtureRequest) -> blocking.BlockingPortalProvider:
    return blocking.BlockingPortalProvider(str(request.param))


def fill(name_server: str, topic: str, count: int) -> None:
    async def send() -> None:
        async with client.Producer(name_servers=name_server) as producer:
            for number in range(count):
                await producer.send(Message(topic, b"%d" % number, tags="even" if number % 2 == 0 else "odd"))

    anyio.run(send)


def test_a_loop_over_a_consumer_brings_everything_and_commits_what_was_followed_by_more(
    name_server: str, topic: str, portal: blocking.BlockingPortalProvider
) -> None:
    fill(name_server, topic, 10)
    bodies = []
    with blocking.LitePullConsumer(topic, name_servers=name_server, portal=portal) as consumer:
        consumer.subscribe(topic)
        for message in consumer:
            bodies.append(int(message.body))
            if len(bodies) == 10:
                break
        last = message
    assert sorted(bodies) == list(range(10))
    with blocking.LitePullConsumer(topic, name_servers=name_server, portal=portal) as consumer:
        consumer.subscribe(topic)
        assert [message.body for message in consumer.poll(timeout_seconds=LIMIT_SECONDS)] == [last.body]
        consumer.commit()
        assert consumer.committed(last.queue) == last.queue_offset + 1


def test_one_loop_serves_several_clients(name_server: str, topic: str, portal: blocking.BlockingPortalProvider) -> None:
    fill(name_server, topic, 4)
    threads = threading.active_count()
    with (
        blocking.PullConsumer(topic, name_servers=name_server, portal=portal) as asking,
        blocking.LitePullConsumer(topic, name_servers=name_server, portal=portal, auto_commit=False) as consumer,
    ):
        assert threading.active_count() <= threads + 2  # the loop's, and asyncio's or Trio's for names or files
        queues = asking.queues(topic)
        assert queues == consumer.queues(topic)
        count = 0
        for queue in queues:
            result = asking.pull(queue, asking.min_offset(queue), expression="even")
            if result.status is PullStatus.FOUND:
                count += len(result.messages)
            asking.commit(queue, asking.max_offset(queue))
            assert asking.committed(queue) == asking.offset_for_timestamp(queue, 2**62) == asking.max_offset(queue)
        assert count == 2
        consumer.assign(queues)
        assert set(consumer.assignment()) == set(queues)
        assert consumer.poll(timeout_seconds=0.05) == []  # all is committed
        consumer.pause(queues)
        for queue in queues:
            consumer.seek_to_begin(queue)
        assert consumer.poll(timeout_seconds=0.05) == []
        consumer.resume(queues)
        assert consumer.poll(1, timeout_seconds=LIMIT_SECONDS)
        for queue in queues:
            consumer.seek_to_end(queue)
            consumer.seek(queue, consumer.offset_for_timestamp(queue, 0))
        bodies: set[int] = set()
        while len(bodies) < 4:
            bodies |= {int(message.body) for message in consumer.poll(timeout_seconds=LIMIT_SECONDS)}
        consumer.commit(dict.fromkeys(queues, 0))
        with pytest.raises(ClientError, match="exclude each other"):
            consumer.subscribe(topic)


def test_listeners_are_plain_functions_in_threads_of_a_limited_number(
    name_server: str, topic: str, portal: blocking.BlockingPortalProvider
) -> None:
    fill(name_server, topic, 20)
    lock = threading.Lock()
    bodies: list[int] = []
    running, most = 0, 0
    three = threading.Barrier(3)
    enough = threading.Event()

    def listen(messages: Sequence[ReceivedMessage]) -> ConsumeResult:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        if not bodies:
            three.wait(LIMIT_SECONDS)
        with lock:
            running -= 1
            bodies.extend(int(message.body) for message in messages)
            if len(bodies) == 20:
                enough.set()
        return ConsumeResult.SUCCESS

    with blocking.PushConsumer(topic, name_servers=name_server, portal=portal, concurrency=3) as consumer:
        consumer.subscribe(topic, listen)
        assert enough.wait(LIMIT_SECONDS)
        consumer.wait_queues(lambda queues: len([queue for queue in queues if queue.topic == topic]) == 4)
        consumer.suspend()
        consumer.resume()
        assert len(consumer.queues()) >= 4
        consumer.unsubscribe(topic)
        consumer.wait_queues(lambda queues: not any(queue.topic == topic for queue in queues))
        consumer.commit()
        assert sum(lag.count for lag in consumer.lag(topic).values()) == 0
    assert sorted(bodies) == list(range(20))
    assert most == 3


def test_a_shared_limiter_bounds_threads_and_does_not_stand_in_their_way(name_server: str, topic: str) -> None:
    fill(name_server, topic, 5)
    heard = threading.Semaphore(0)
    limiter = anyio.CapacityLimiter(1)
    with blocking.PushConsumer(topic, name_servers=name_server, concurrency=limiter) as consumer:
        consumer.subscribe(topic, lambda messages: heard.release(len(messages)))
        for _ in range(5):
            assert heard.acquire(timeout=LIMIT_SECONDS)


def test_errors_are_those_of_the_async_client(name_server: str, topic: str) -> None:
    with pytest.raises(ClientError, match="the group 'b a d' must have"):
        blocking.LitePullConsumer("b a d", name_servers=name_server).open()
    consumer = blocking.LitePullConsumer(topic, name_servers=name_server)
    with pytest.raises(ClientError, match="is not open"):
        consumer.poll()
    consumer.open()
    with pytest.raises(ClientError, match="open already"):
        consumer.open()
    with pytest.raises(ProtocolError, match="nothing but bars"):
        consumer.subscribe(topic, "||")
    consumer.close()
    consumer.close()
    with pytest.raises(ClientError, match="is not open"):
        consumer.subscribe(topic)


INTERRUPTED = """
import sys
from trio_rmq.client.blocking import LitePullConsumer

try:
    with LitePullConsumer(sys.argv[2], name_servers=sys.argv[1]) as consumer:
        consumer.subscribe(sys.argv[2])
        for message in consumer:
            print(message.body.decode(), flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def test_ctrl_c_ends_a_waiting_loop_and_keeps_its_progress(name_server: str, topic: str) -> None:
    fill(name_server, topic, 3)
    command = [sys.executable, "-c", INTERRUPTED, name_server, topic]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as script:
        assert script.stdout is not None
        assert sorted(script.stdout.readline() for _ in range(3)) == ["0\n", "1\n", "2\n"]
        script.send_signal(signal.SIGINT)
        out, errors = script.communicate(timeout=LIMIT_SECONDS)
    assert (out, errors, script.returncode) == ("interrupted\n", "", 0)
    with blocking.LitePullConsumer(topic, name_servers=name_server) as consumer:
        consumer.subscribe(topic)
        assert len(consumer.poll(timeout_seconds=0.3)) <= 1  # what it had asked for more after was consumed


SETTINGS: dict[str, Any] = {
    "LitePullConsumer": blocking_consumer.LitePullSettings,
    "PushConsumer": blocking_consumer.PushSettings,
    "Producer": blocking_producer.ProducerSettings,
    "TransactionProducer": blocking_producer.TransactionSettings,
}

FIRST_TRIES = ("thread_sender", "send_on")
"""What the blocking producer's own sends are made of."""


def settings_of(kind: type[Any]) -> set[str]:
    """The names of what can be said of an async client, also of what it hands on to the class it extends."""
    parameters = inspect.signature(kind).parameters
    names = {word for word in parameters if word not in ("group", "check", "settings")}
    if "settings" in parameters:
        names |= settings_of(kind.__mro__[1])
    return names


@pytest.mark.parametrize(
    "name", ["LitePullConsumer", "Producer", "PullConsumer", "PushConsumer", "TransactionProducer"]
)
def test_every_setting_and_method_of_the_async_client_is_there(name: str) -> None:
    ours: type[Any] = getattr(blocking, name)
    theirs: type[Any] = getattr(client, name)
    functions = [word for word, _ in inspect.getmembers(theirs, inspect.isfunction) if not word.startswith("_")]
    public = [word for word in functions if word not in FIRST_TRIES]
    assert not [word for word in public if not callable(getattr(ours, word, None))]
    for word in public:
        if word not in ("subscribe", "send_in_transaction"):  # whose functions are async there and plain here
            theirs_of, ours_of = (inspect.signature(getattr(kind, word)).parameters for kind in (theirs, ours))
            assert list(theirs_of.values()) == list(ours_of.values()), word
    if name in SETTINGS:
        given = set(get_type_hints(SETTINGS[name])) - {"group"}
    else:
        given = set(inspect.signature(ours).parameters) - {"group", "portal"}
    assert given == settings_of(theirs)


def test_a_script_needs_no_trio() -> None:
    code = "import sys, trio_rmq.client.blocking; sys.exit('trio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=30).returncode == 0
