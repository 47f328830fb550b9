"""First tries in the calling thread: what the loop would have done, and what it goes on with when they fail."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest
import trio

from tests.remoting.test_thread_connection import wait_closed
from trio_rmq.client import AutoBatch, Message, Producer, SendStatus, blocking, thread_sending
from trio_rmq.client.message import UNIQUE_KEY_START
from trio_rmq.errors import ClientError, RouteNotFoundError, SendError
from trio_rmq.remoting import thread_connection
from trio_rmq.remoting.handlers import HandlerTable, Later, Reply
from trio_rmq.remoting.listener import serve_remoting
from trio_rmq.remoting.session import Session
from trio_rmq.wire import headers
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command, SerializeType
from trio_rmq.wire.groups import MessageQueue
from trio_rmq.wire.routes import BrokerData, QueueData, TopicRouteData, encode_route

LIMIT_SECONDS = 20
TOPIC = "T"


@dataclass(frozen=True)
class Seen:
    """A send that came: to which broker, over whose connection, with which id and body."""

    broker: str
    peer: str
    unique_id: str
    body: bytes


Answer = Callable[[Session, Command], Command | Later | None]


def stored(session: Session, request: Command) -> Command:
    header = headers.SendMessageResponseHeader(msg_id="A" * 32, queue_id=0, queue_offset=7)
    return request.reply(header=header)


def busy(session: Session, request: Command) -> Command:
    return request.reply(ResponseCode.SYSTEM_BUSY, remark="busy")


def too_long(session: Session, request: Command) -> Command:
    return request.reply(ResponseCode.MESSAGE_ILLEGAL, remark="too long")


def drop(session: Session, request: Command) -> None:
    session.close("test")


def never(session: Session, request: Command) -> Later:
    async def wait() -> Sequence[Reply]:
        await trio.sleep_forever()

    return Later(wait, answers=[request])


@dataclass
class Brokers:
    """Name servers and brokers `a` and `b` in one loop; each answers sends as the test says."""

    answers: dict[str, Answer] = field(default_factory=lambda: {"a": stored, "b": stored})
    addresses: dict[str, str] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    sessions: list[Session] = field(default_factory=list)
    permission: int = 6
    token: trio.lowlevel.TrioToken | None = None

    def table(self, name: str) -> HandlerTable:
        table = HandlerTable()
        table.register(RequestCode.GET_ROUTEINFO_BY_TOPIC, self._route)
        table.register(RequestCode.HEART_BEAT, lambda session, request: request.reply())
        table.register(RequestCode.UNREGISTER_CLIENT, lambda session, request: request.reply())
        table.register(RequestCode.SEND_MESSAGE_V2, lambda session, request: self._send(name, session, request))
        return table

    def _route(self, session: Session, request: Command) -> Command:
        queues = [
            QueueData(broker_name=name, read_queue_nums=1, write_queue_nums=1, perm=self.permission)
            for name in self.addresses
        ]
        brokers = [BrokerData(broker_name=n, cluster="c", broker_addrs={0: a}) for n, a in self.addresses.items()]
        data = TopicRouteData(broker_datas=brokers, queue_datas=queues)
        return request.reply(body=encode_route(data, standard_json=True))

    def _send(self, name: str, session: Session, request: Command) -> Command | Later | None:
        properties = request.decode_header(headers.SendMessageRequestHeaderV2).properties or ""
        unique_id = properties.removeprefix(UNIQUE_KEY_START).partition("\x02")[0]
        self.seen.append(Seen(name, session.peer, unique_id, bytes(request.body)))
        return self.answers[name](session, request)


@pytest.fixture
def brokers() -> Iterator[Brokers]:
    started: queue.Queue[tuple[trio.lowlevel.TrioToken, trio.CancelScope]] = queue.Queue()
    brokers = Brokers()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for name in brokers.answers:

                async def serve(table: HandlerTable, *, task_status: trio.TaskStatus[list[str]]) -> None:
                    await serve_remoting(
                        ["127.0.0.1:0"], table, on_open=brokers.sessions.append, task_status=task_status
                    )

                (brokers.addresses[name],) = await nursery.start(serve, brokers.table(name))
            brokers.token = trio.lowlevel.current_trio_token()
            started.put((trio.lowlevel.current_trio_token(), nursery.cancel_scope))

    thread = threading.Thread(target=trio.run, args=(main,), daemon=True)
    thread.start()
    token, scope = started.get(timeout=10)
    try:
        yield brokers
    finally:
        token.run_sync_soon(scope.cancel)
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture(params=["asyncio", "trio"])
def portal(request: pytest.FixtureRequest) -> blocking.BlockingPortalProvider:
    return blocking.BlockingPortalProvider(str(request.param))


@pytest.fixture
def producer(brokers: Brokers, portal: blocking.BlockingPortalProvider) -> Iterator[blocking.Producer]:
    """A producer that knows the topic's route."""
    with blocking.Producer(name_servers=brokers.addresses["a"], portal=portal) as producer:
        producer.send(Message(TOPIC, b"first"))
        yield producer


def place(broker: str) -> MessageQueue:
    return MessageQueue(topic=TOPIC, broker_name=broker, queue_id=0)


def only_connection(producer: blocking.Producer) -> thread_connection.ThreadConnection:
    """The one that a thread's sends made."""
    assert producer._first_tries is not None
    lanes = [lane for lanes in producer._first_tries._lanes.values() for lane in lanes if lane is not None]
    (connection,) = [lane.connection for lane in lanes if lane.connection is not None]
    return connection


@pytest.mark.parametrize("serialize_type", [SerializeType.JSON, SerializeType.ROCKETMQ])
@pytest.mark.parametrize("namespace", ["", "space"])
def test_a_thread_that_sends_keeps_its_connection_to_each_broker(
    brokers: Brokers, serialize_type: SerializeType, namespace: str
) -> None:
    with blocking.Producer(
        name_servers=brokers.addresses["a"], serialize_type=serialize_type, namespace=namespace
    ) as producer:
        results = [producer.send(Message(TOPIC, b"%d" % number)) for number in range(20)]
    assert [seen.body for seen in brokers.seen] == [b"%d" % number for number in range(20)]
    assert [seen.unique_id for seen in brokers.seen] == [result.message_id for result in results]
    assert len({result.message_id for result in results}) == 20
    for result in results:
        assert (result.status, result.queue_offset, result.queue.topic) == (SendStatus.SEND_OK, 7, TOPIC)
    direct = brokers.seen[1:]  # the first one learnt the route
    assert {seen.broker for seen in direct} == {"a", "b"}
    assert len({seen.peer for seen in direct}) == 2
    assert brokers.seen[0].peer not in {seen.peer for seen in direct}


@pytest.mark.parametrize("answer", [busy, drop])
def test_the_loop_goes_on_at_another_broker_with_the_same_bytes(
    brokers: Brokers, producer: blocking.Producer, answer: Answer
) -> None:
    brokers.answers["a"] = answer
    brokers.seen.clear()
    results = [producer.send(Message(TOPIC, b"%d" % number)) for number in range(4)]
    assert all(result.queue.broker_name == "b" for result in results)
    assert [seen.body for seen in brokers.seen if seen.broker == "b"] == [b"0", b"1", b"2", b"3"]
    tried = [seen for seen in brokers.seen if seen.broker == "a"]
    assert len(tried) == 2
    stored_ids = {seen.unique_id for seen in brokers.seen if seen.broker == "b"}
    assert {seen.unique_id for seen in tried} < stored_ids


def test_an_answer_that_no_other_broker_would_change_ends_the_send(
    brokers: Brokers, producer: blocking.Producer
) -> None:
    brokers.answers = {"a": too_long, "b": too_long}
    brokers.seen.clear()
    with pytest.raises(SendError, match="too long") as caught:
        producer.send(Message(TOPIC, b"x"))
    assert (caught.value.response_code, len(caught.value.tries), len(brokers.seen)) == (13, 1, 1)


def test_all_tries_count_and_are_told(brokers: Brokers, producer: blocking.Producer) -> None:
    brokers.answers = {"a": busy, "b": busy}
    with pytest.raises(SendError) as caught:
        producer.send(Message(TOPIC, b"x"))
    assert len(caught.value.tries) == 3
    brokers.seen.clear()
    with pytest.raises(SendError) as caught:
        producer.send(Message(TOPIC, b"x"), queue=place("b"))
    assert (len(caught.value.tries), [seen.broker for seen in brokers.seen]) == (1, ["b"])


def test_the_time_of_the_first_try_is_spent(brokers: Brokers, producer: blocking.Producer) -> None:
    for _ in range(2):
        producer.send(Message(TOPIC, b"connects"))
    brokers.answers = {"a": never, "b": never}
    brokers.seen.clear()
    with pytest.raises(SendError, match=r"gave no answer within 0\.05 s") as caught:
        producer.send(Message(TOPIC, b"x"), timeout_seconds=0.05)
    assert caught.value.tries[1:] == ["no time was left of 0.05 s"]
    assert len(brokers.seen) == 1
    brokers.answers = {"a": stored, "b": stored}
    assert producer.send(Message(TOPIC, b"y")).status is SendStatus.SEND_OK


def test_a_try_has_its_own_time(brokers: Brokers) -> None:
    with blocking.Producer(name_servers=brokers.addresses["a"], try_timeout_seconds=0.05) as producer:
        producer.send(Message(TOPIC, b"first"))
        brokers.answers["a"] = never
        for _ in range(2):
            assert producer.send(Message(TOPIC, b"x"), timeout_seconds=LIMIT_SECONDS).queue.broker_name == "b"


def test_a_connection_that_the_broker_closed_is_made_anew_before_the_try(
    brokers: Brokers, producer: blocking.Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thread_connection, "TRUSTED_SECONDS", 0.0)
    first = producer.send(Message(TOPIC, b"x"), queue=place("a"))
    (peer,) = {seen.peer for seen in brokers.seen if seen.unique_id == first.message_id}
    for session in brokers.sessions:
        if session.peer == peer:
            trio.from_thread.run_sync(session.close, "test", trio_token=brokers.token)
    wait_closed(only_connection(producer))
    second = producer.send(Message(TOPIC, b"y"), queue=place("a"))  # one try alone
    assert [seen.peer for seen in brokers.seen if seen.unique_id == second.message_id] != [peer]


def test_threads_beyond_the_connections_send_in_the_loop(
    brokers: Brokers, portal: blocking.BlockingPortalProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thread_sending, "CONNECTIONS_MAX", 2)
    with blocking.Producer(name_servers=brokers.addresses["a"], portal=portal) as producer:
        producer.send(Message(TOPIC, b"first"), queue=place("a"))
        brokers.seen.clear()
        threads = 6
        together = threading.Barrier(threads)
        results: list[str] = []

        def send() -> None:
            together.wait(LIMIT_SECONDS)
            results.extend([producer.send(Message(TOPIC, b"x"), queue=place("a")).message_id for _ in range(50)])

        workers = [threading.Thread(target=send) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(LIMIT_SECONDS)
        assert len(set(results)) == 50 * threads
        assert {seen.unique_id for seen in brokers.seen} == set(results)
        assert len(brokers.seen) == 50 * threads
        assert len({seen.peer for seen in brokers.seen}) <= 3


def test_errors_of_a_message_or_topic_keep_the_connection(brokers: Brokers, producer: blocking.Producer) -> None:
    producer.send(Message(TOPIC, b"x"), queue=place("a"))
    with pytest.raises(ClientError, match="the body is empty"):
        producer.send(Message(TOPIC, b""), queue=place("a"))
    producer.send(Message(TOPIC, b"y"), queue=place("a"))
    assert len({seen.peer for seen in brokers.seen[1:]}) == 1
    brokers.permission = 4
    producer.refresh_route(TOPIC)
    with pytest.raises(RouteNotFoundError):
        producer.send(Message(TOPIC, b"z"))


def test_an_interrupt_drops_the_connection_and_the_next_send_has_another(
    brokers: Brokers, producer: blocking.Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    producer.send(Message(TOPIC, b"x"), queue=place("a"))
    with monkeypatch.context() as patch:
        patch.setattr(thread_connection.ThreadConnection, "request", interrupted)
        with pytest.raises(KeyboardInterrupt):
            producer.send(Message(TOPIC, b"y"), queue=place("a"))
    producer.send(Message(TOPIC, b"z"), queue=place("a"))
    peers = [seen.peer for seen in brokers.seen[1:]]
    assert [seen.body for seen in brokers.seen[1:]] == [b"x", b"z"]
    assert peers[0] != peers[1]


def interrupted(connection: thread_connection.ThreadConnection, command: Command, seconds: float) -> Command:
    raise KeyboardInterrupt


def test_the_connections_end_with_the_producer(brokers: Brokers, producer: blocking.Producer) -> None:
    producer.send(Message(TOPIC, b"x"), queue=place("a"))
    connection = only_connection(producer)
    producer.close()
    assert connection._socket.fileno() < 0
    with pytest.raises(ClientError, match="is not open"):
        producer.send(Message(TOPIC, b"y"))


@pytest.mark.parametrize(
    "settings",
    [{"auto_batch": AutoBatch()}, {"retry_when_not_stored": True}, {"send_latency_fault_enable": True},
     {"use_tls": True}, {"trace": True}],
)  # fmt: skip
def test_sends_that_are_more_than_plain_are_the_loop_s(settings: dict[str, object]) -> None:
    assert Producer(name_servers="127.0.0.1:9876", **settings).thread_sender() is None  # type: ignore[arg-type] # by name
