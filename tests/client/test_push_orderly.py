"""Orderly consumption on {trio, asyncio} x {tcp, websocket}, against a scripted broker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import anyio
import anyio.lowlevel
import pytest

from tests.client.scripted_broker import ScriptedServer, scripted_queue, scripted_server
from tests.client.test_push_consumer import LIMIT_SECONDS, Crowd, Heard, at_broker
from trio_rmq.client import ConsumeLater, ConsumeResult, PushConsumer, ReceivedMessage
from trio_rmq.wire.codes import RequestCode
from trio_rmq.wire.properties import parse_properties

pytestmark = pytest.mark.anyio
SUSPEND = ConsumeResult.SUSPEND_CURRENT_QUEUE_A_MOMENT


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as running:
        yield running


@pytest.fixture
def names(server: ScriptedServer, scheme: str) -> str:
    return scheme + server.name_server


async def test_each_queue_in_its_order_side_by_side(server: ScriptedServer, names: str) -> None:
    server.broker.queue_counts["T"] = 3
    for number in range(40):
        for queue_id in range(3):
            server.append("T", b"%d" % number, queue_id=queue_id)
    taken: dict[int, list[int]] = {0: [], 1: [], 2: []}
    at_once: set[int] = set()
    busy: set[int] = set()
    done = anyio.Event()

    async def listen(messages: Sequence[ReceivedMessage]) -> None:
        queue_id = messages[0].queue.queue_id
        assert queue_id not in busy
        busy.add(queue_id)
        at_once.add(len(busy))
        await anyio.lowlevel.checkpoint()
        taken[queue_id] += [int(message.body) for message in messages]
        busy.remove(queue_id)
        if sum(map(len, taken.values())) == 120:
            done.set()

    async with PushConsumer("g", name_servers=names, orderly=True, batch_size=7) as consumer:
        await consumer.subscribe("T", listen)
        with anyio.fail_after(LIMIT_SECONDS):
            await done.wait()
    assert taken == {queue_id: list(range(40)) for queue_id in range(3)}
    assert max(at_once) > 1
    assert set(server.broker.unlocked) >= {scripted_queue("T", queue_id) for queue_id in range(3)}
    assert server.broker.locks == {}
    assert [server.broker.offsets[scripted_queue("T", queue_id)] for queue_id in range(3)] == [40, 40, 40]


async def test_a_failed_message_is_tried_again_in_place(server: ScriptedServer, names: str) -> None:
    server.append("T", b"a", b"b", b"c")
    heard = Heard(
        SUSPEND,
        ValueError("no"),
        ConsumeResult.RECONSUME_LATER,
        ConsumeLater(consumed_count=1, suspend_seconds=0.01),
    )
    async with PushConsumer("g", name_servers=names, orderly=True, suspend_seconds=0.01, batch_size=2) as consumer:
        await consumer.subscribe("T", heard)
        await heard.wait(10)
    assert heard.calls == [[b"a", b"b"]] * 4 + [[b"b", b"c"]]
    assert heard.times == [0, 0, 1, 1, 2, 2, 3, 3, 4, 0]
    assert server.broker.given_back == []
    assert server.broker.offsets[scripted_queue("T")] == 3


async def test_what_failed_too_often_goes_to_the_dead_letters_and_the_queue_goes_on(
    server: ScriptedServer, names: str
) -> None:
    server.append("T", b"a", properties=b"UNIQ_KEY\x01U1")
    server.append("T", b"b")
    server.broker.refuse.add(RequestCode.SEND_MESSAGE)
    heard = Heard()

    async def listen(messages: Sequence[ReceivedMessage]) -> ConsumeResult | None:
        await heard(messages)
        return SUSPEND if messages[0].body == b"a" else None

    async with PushConsumer(
        "g", name_servers=names, orderly=True, suspend_seconds=0.01, max_reconsume_times=2
    ) as consumer:
        await consumer.subscribe("T", listen)
        await at_broker(server, lambda: RequestCode.SEND_MESSAGE in server.broker.seen)
        server.call(server.broker.refuse.clear)
        await at_broker(server, lambda: server.broker.sent)
        with anyio.fail_after(LIMIT_SECONDS):
            while heard.bodies[-1] != b"b":
                await heard.wait(len(heard.bodies) + 1)
    tries = heard.bodies.count(b"a")
    assert tries > 3  # while nobody took it the queue stood still
    assert heard.bodies == [b"a"] * tries + [b"b"]
    (sent,) = server.broker.sent
    header = sent.header
    assert (header.topic, header.reconsume_times, header.max_reconsume_times) == ("%RETRY%g", tries - 1, 2)
    assert parse_properties(header.properties or "")["RETRY_TOPIC"] == "T"
    assert server.broker.offsets[scripted_queue("T")] == 2


async def test_a_call_that_takes_too_long_is_cancelled_and_made_again(server: ScriptedServer, names: str) -> None:
    server.append("T", b"a")
    heard = Heard()
    calls = 0

    async def listen(messages: Sequence[ReceivedMessage]) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            await anyio.sleep_forever()
        await heard(messages)

    async with PushConsumer(
        "g", name_servers=names, orderly=True, consume_timeout_seconds=0.02, suspend_seconds=0.01
    ) as consumer:
        await consumer.subscribe("T", listen)
        await heard.wait(1)
    assert calls == 2


async def test_a_queue_is_taken_when_its_lock_is_free_and_begins_where_the_other_ended(
    server: ScriptedServer, names: str
) -> None:
    server.append("T", b"a", b"b", b"c")
    place = scripted_queue("T")
    server.broker.locks[place] = "another"
    heard = Heard()
    async with PushConsumer("g", name_servers=names, orderly=True) as consumer:
        await consumer.subscribe("T", heard)
        await at_broker(server, lambda: [place] in server.broker.lock_requests)
        with anyio.fail_after(LIMIT_SECONDS):
            await consumer.wait_queues(lambda queues: scripted_queue("%RETRY%g") in queues)
        assert place not in consumer.queues()

        def give_up() -> None:
            server.broker.offsets[place] = 2
            del server.broker.locks[place]

        server.call(give_up)
        await heard.wait(1)
    assert heard.bodies == [b"c"]


async def test_a_queue_that_goes_to_another_keeps_its_lock_until_the_call_ends(
    server: ScriptedServer, names: str
) -> None:
    server.append("T", b"a", b"b")
    place = scripted_queue("T")
    crowd = Crowd(1)
    async with PushConsumer("g", name_servers=names, orderly=True) as consumer:
        await consumer.subscribe("T", crowd)
        with anyio.fail_after(LIMIT_SECONDS):
            await crowd.full.wait()

        def join() -> None:
            server.broker.others = ["#"]  # it comes first in the order, so the only queue is its
            server.broker.notify()

        server.call(join)
        with anyio.fail_after(LIMIT_SECONDS):
            await consumer.wait_queues(lambda queues: scripted_queue("%RETRY%g") not in queues)
        assert place in consumer.queues()
        assert server.call(lambda: server.broker.locks[place]) == consumer.client_id
        crowd.release.set()
        with anyio.fail_after(LIMIT_SECONDS):
            await consumer.wait_queues(lambda queues: not queues)
        assert server.call(lambda: (place in server.broker.locks, server.broker.offsets[place])) == (False, 1)
    assert crowd.most == 1
