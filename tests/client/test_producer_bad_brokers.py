"""Brokers and name servers that misbehave: what a producer makes of each, on virtual time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import pytest
import trio

from trio_rmq.client import AutoBatch, Message, Producer, SendStatus
from trio_rmq.errors import RouteNotFoundError, SendError
from trio_rmq.remoting.handlers import HandlerTable, Later, Reply
from trio_rmq.remoting.listener import serve_remoting
from trio_rmq.remoting.session import Session
from trio_rmq.testing.world import World, simulate
from trio_rmq.wire import headers
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.routes import BrokerData, QueueData, TopicRouteData, encode_route

SERVERS = {"a": "10.0.0.1:10911", "b": "10.0.0.2:10911"}
NAMES = ";".join(SERVERS.values())
TOPIC = "T"

Answer = Callable[[Command], Sequence[Reply] | Later]


def stored(request: Command, code: int = ResponseCode.SUCCESS) -> Command:
    """The usual answer."""
    header = headers.SendMessageResponseHeader(msg_id="A" * 32, queue_id=0, queue_offset=7)
    return request.reply(code, header=header)


class BadServer:
    """A name server and broker in one, whose answers a test chooses; `asked` counts the sends that came."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked = 0
        self.answer: Answer = lambda request: [stored(request)]
        self.also: Callable[[Session, Command], Sequence[Later]] = lambda session, request: ()
        """What it does besides for each send."""
        self.brokers = [
            BrokerData(broker_name=name, cluster="c", broker_addrs={0: address}) for name, address in SERVERS.items()
        ]
        self.queues = [QueueData(broker_name=name, read_queue_nums=2, write_queue_nums=2, perm=6) for name in SERVERS]
        self.route: Callable[[Command], Command] = self._route

    def _route(self, request: Command) -> Command:
        if request.decode_header(headers.GetRouteInfoRequestHeader).topic != TOPIC:
            return request.reply(ResponseCode.TOPIC_NOT_EXIST, remark="no such topic")
        data = TopicRouteData(broker_datas=self.brokers, queue_datas=self.queues)
        return request.reply(body=encode_route(data, standard_json=True))

    async def serve(self, *, task_status: trio.TaskStatus[object]) -> None:
        table = HandlerTable()
        table.register(RequestCode.GET_ROUTEINFO_BY_TOPIC, lambda session, request: self.route(request))
        table.register(RequestCode.HEART_BEAT, lambda session, request: request.reply())
        table.register(RequestCode.UNREGISTER_CLIENT, lambda session, request: request.reply())
        for code in (RequestCode.SEND_MESSAGE_V2, RequestCode.SEND_BATCH_MESSAGE):
            table.register_batch(code, self._send)
        await serve_remoting([SERVERS[self.name]], table, task_status=task_status)

    def _send(self, session: Session, requests: Sequence[Command]) -> Sequence[Reply | Later]:
        answers: list[Reply | Later] = []
        for request in requests:
            self.asked += 1
            answer = self.answer(request)
            answers += [answer] if isinstance(answer, Later) else answer
            answers += self.also(session, request)
        return answers


Program = Callable[[BadServer, BadServer], Awaitable[None]]


def run(program: Program) -> None:
    async def main(world: World) -> None:
        async with trio.open_nursery() as nursery:
            servers = [BadServer(name) for name in SERVERS]
            for server in servers:
                with world.node(SERVERS[server.name].partition(":")[0]):
                    await nursery.start(server.serve)
            with world.node("10.0.0.9"):
                await program(*servers)
            nursery.cancel_scope.cancel()

    simulate(main)


def never(request: Command) -> Later:
    async def wait() -> Sequence[Reply]:
        await trio.sleep_forever()

    return Later(wait, answers=[request])


def test_a_second_answer_is_dropped() -> None:
    async def program(a: BadServer, b: BadServer) -> None:
        a.answer = b.answer = lambda request: [stored(request), stored(request, ResponseCode.SYSTEM_ERROR)]
        async with Producer(name_servers=NAMES) as producer:
            for _ in range(20):
                assert (await producer.send(Message(TOPIC, b"x"))).status is SendStatus.SEND_OK
        assert a.asked + b.asked == 20

    run(program)


def test_an_answer_to_nothing_is_dropped() -> None:
    async def program(a: BadServer, b: BadServer) -> None:
        def made_up(request: Command) -> Sequence[Reply]:
            other = stored(request)
            other.opaque += 1000
            return [other, stored(request)]

        a.answer = b.answer = made_up
        async with Producer(name_servers=NAMES) as producer:
            assert (await producer.send(Message(TOPIC, b"x"))).queue_offset == 7

    run(program)


def test_no_answer_ends_at_the_deadline_and_names_who_was_silent() -> None:
    async def program(a: BadServer, b: BadServer) -> None:
        a.answer = b.answer = never
        async with Producer(name_servers=NAMES, timeout_seconds=2) as producer:
            began = trio.current_time()
            with pytest.raises(SendError) as caught:
                await producer.send(Message(TOPIC, b"x"))
            assert trio.current_time() - began == pytest.approx(2)
            assert a.asked + b.asked == 1
            assert "gave no answer within 2 s" in str(caught.value)
            assert caught.value.response_code is None
            with pytest.raises(SendError, match=r"within 0\.25 s"):
                await producer.send(Message(TOPIC, b"x"), timeout_seconds=0.25)

    run(program)


@pytest.mark.parametrize(
    "code",
    [
        ResponseCode.SYSTEM_ERROR, ResponseCode.SYSTEM_BUSY, ResponseCode.SERVICE_NOT_AVAILABLE,
        ResponseCode.NO_PERMISSION, ResponseCode.TOPIC_NOT_EXIST, ResponseCode.NO_BUYER_ID,
        ResponseCode.NOT_IN_CURRENT_UNIT,
    ],
)  # fmt: skip
def test_what_another_broker_may_take_is_tried_there(code: int) -> None:
    async def program(a: BadServer, b: BadServer) -> None:
        a.answer = lambda request: [request.reply(code, remark="not here")]
        async with Producer(name_servers=NAMES) as producer:
            for _ in range(4):
                result = await producer.send(Message(TOPIC, b"x"))
                assert result.queue.broker_name == "b"
            b.answer = a.answer
            a.asked = b.asked = 0
            with pytest.raises(SendError) as caught:
                await producer.send(Message(TOPIC, b"x"))
            assert a.asked + b.asked == 3
            assert caught.value.response_code == code
            assert caught.value.tries[0].endswith(f"answered {code}, not here")
            assert {attempt.partition(":")[0] for attempt in caught.value.tries[:2]} == {"10.0.0.1", "10.0.0.2"}
        async with Producer(name_servers=NAMES, retry_times=0) as producer:
            a.asked = b.asked = 0
            with pytest.raises(SendError, match="after 1 tries"):
                await producer.send(Message(TOPIC, b"x"))
            assert a.asked + b.asked == 1

    run(program)


@pytest.mark.parametrize("code", [ResponseCode.MESSAGE_ILLEGAL, 2037])
def test_what_no_broker_would_take_is_tried_once(code: int) -> None:
    async def program(a: BadServer, b: BadServer) -> None:
        a.answer = b.answer = lambda request: [request.reply(code, remark="never")]
        async with Producer(name_servers=NAMES) as producer:
            with pytest.raises(SendError, match=f"answered {int(code)}, never") as caught:
                await producer.send(Message(TOPIC, b"x"))
            assert a.asked + b.asked == 1
            assert caught.value.response_code == code

    run(program)


@pytest.mark.parametrize("status", [SendStatus.FLUSH_DISK_TIMEOUT, SendStatus.SLAVE_NOT_AVAILABLE])
def test_stored_less_safely_is_told_or_tried_elsewhere(status: SendStatus) -> None:
    async def program(a: BadServer, b: BadServer) -> None:
        a.answer = lambda request: [stored(request, status.value)]
        async with Producer(name_servers=NAMES) as producer:
            found = {(await producer.send(Message(TOPIC, b"x"))).status for _ in range(4)}
            assert found == {SendStatus.SEND_OK, status}
        async with Producer(name_servers=NAMES, retry_when_not_stored=True) as producer:
            assert {(await producer.send(Message(TOPIC, b"x"))).status for _ in range(4)} == {SendStatus.SEND_OK}
            b.answer = a.answer
            a.asked = b.asked = 0
            assert (await producer.send(Message(TOPIC, b"x"))).status is status  # stored after all
            assert a.asked + b.asked == 3
            b.answer = lambda request: [request.reply(ResponseCode.MESSAGE_ILLEGAL)]
            assert (await producer.send(Message(TOPIC, b"x"))).status in (status, SendStatus.SEND_OK)

    run(program)


def test_an_answer_that_cannot_be_read_is_not_tried_again() -> None:
    async def program(a: BadServer, b: BadServer) -> None:
        a.answer = b.answer = lambda request: [request.reply(ext={"msgId": "x", "queueId": "none"})]
        async with Producer(name_servers=NAMES) as producer:
            with pytest.raises(SendError, match="stored it, but its answer cannot be read"):
                await producer.send(Message(TOPIC, b"x"))
            assert a.asked + b.asked == 1  # it would be stored twice

    run(program)


def test_a_batch_of_which_the_broker_names_too_few_ids() -> None:
    async def program(a: BadServer, b: BadServer) -> None:
        async with Producer(name_servers=NAMES, auto_batch=AutoBatch(count=2)) as producer:
            errors: list[str] = []

            async def send() -> None:
                with pytest.raises(SendError) as caught:
                    await producer.send(Message(TOPIC, b"x"))
                errors.append(str(caught.value))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                nursery.start_soon(send)
            assert errors == ["the broker named 1 of 2 messages of a batch"] * 2

    run(program)


# -- routes -------------------------------------------------------------------------------------------------------


def test_a_name_server_that_talks_nonsense_is_passed_over() -> None:
    async def program(a: BadServer, b: BadServer) -> None:
        a.route = lambda request: request.reply(body=b"{nonsense")
        async with Producer(name_servers=NAMES) as producer:
            await producer.send(Message(TOPIC, b"x"))
        b.route = lambda request: request.reply(ResponseCode.SYSTEM_ERROR, remark="out of order")
        async with Producer(name_servers=NAMES) as producer:
            with pytest.raises(SendError, match=r"asking the name servers: 10\.0\.0\.2:10911 answered 1: out of order"):
                await producer.send(Message(TOPIC, b"x"))

    run(program)


def test_a_route_without_a_writable_queue() -> None:
    async def program(a: BadServer, b: BadServer) -> None:
        def read_only(queues: QueueData) -> None:
            queues.perm = 4

        def no_queues(queues: QueueData) -> None:
            queues.write_queue_nums = 0

        for spoil in (read_only, no_queues):
            a.queues = [QueueData(broker_name=name, read_queue_nums=2, write_queue_nums=2, perm=6) for name in SERVERS]
            for queues in a.queues:
                spoil(queues)
            async with Producer(name_servers=SERVERS["a"]) as producer:
                with pytest.raises(RouteNotFoundError, match=f"no broker has a writable queue of {TOPIC} now"):
                    await producer.send(Message(TOPIC, b"x"))

    run(program)


def test_a_route_whose_brokers_have_no_address_or_only_slaves() -> None:
    async def program(a: BadServer, b: BadServer) -> None:
        a.brokers[0].broker_addrs = {1: SERVERS["a"]}
        async with Producer(name_servers=SERVERS["a"]) as producer:
            for _ in range(4):
                assert (await producer.send(Message(TOPIC, b"x"))).queue.broker_name == "b"
        a.brokers.pop()
        async with Producer(name_servers=SERVERS["a"]) as producer:
            with pytest.raises(RouteNotFoundError):
                await producer.send(Message(TOPIC, b"x"))

    run(program)


@pytest.mark.parametrize("address", ["10.0.0.77:10911", "nowhere", "10.0.0.1:1"])
def test_a_route_to_where_nobody_is_costs_one_try_and_says_who_told_it(address: str) -> None:
    async def program(a: BadServer, b: BadServer) -> None:
        a.brokers[0].broker_addrs = {0: address}
        async with Producer(name_servers=SERVERS["a"]) as producer:
            for _ in range(4):
                assert (await producer.send(Message(TOPIC, b"x"))).queue.broker_name == "b"
            a.brokers[1].broker_addrs = {0: address}
            await producer.refresh_route(TOPIC)
            with pytest.raises(SendError) as caught:
                await producer.send(Message(TOPIC, b"x"))
            assert all(address in attempt for attempt in caught.value.tries)
            assert all("(told by name server 10.0.0.1:10911)" in attempt for attempt in caught.value.tries)

    run(program)
