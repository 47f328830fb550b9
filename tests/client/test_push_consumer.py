"""What a push consumer does with its messages, on {trio, asyncio} x {tcp, websocket}, against a scripted broker."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from functools import partial

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from tests.client.scripted_broker import ScriptedServer, scripted_queue, scripted_server
from trio_rmq.client import (
    ConsumeLater,
    ConsumeResult,
    Consumption,
    LocalOffsetStore,
    PushConsumer,
    ReceivedMessage,
    in_thread,
)
from trio_rmq.client.allocation import allocate_averagely
from trio_rmq.client.listening import Outcome, Proceed
from trio_rmq.errors import ClientError, ProtocolError
from trio_rmq.wire.codes import RequestCode
from trio_rmq.wire.groups import MessageQueue
from trio_rmq.wire.properties import parse_properties

pytestmark = pytest.mark.anyio
LIMIT_SECONDS = 10


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as running:
        yield running


@pytest.fixture
def names(server: ScriptedServer, scheme: str) -> str:
    return scheme + server.name_server


class Heard:
    """A listener that answers from a list, then None; and waits for a number of messages."""

    def __init__(self, *answers: Outcome | Exception) -> None:
        self.calls: list[list[bytes]] = []
        self.times: list[int] = []
        self._answers = list(answers)
        self._changed = anyio.Event()

    async def __call__(self, messages: Sequence[ReceivedMessage]) -> Outcome:
        self.calls.append([message.body for message in messages])
        self.times += [message.reconsume_times for message in messages]
        self._changed.set()
        self._changed = anyio.Event()
        answer = self._answers.pop(0) if self._answers else None
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def bodies(self) -> list[bytes]:
        return [body for call in self.calls for body in call]

    async def wait(self, count: int) -> None:
        with anyio.fail_after(LIMIT_SECONDS):
            while len(self.bodies) < count:
                await self._changed.wait()


async def at_broker(server: ScriptedServer, wanted: object) -> None:
    """Wait until something holds at the broker."""
    assert callable(wanted)
    await anyio.to_thread.run_sync(server.until, wanted)


async def test_a_failed_message_goes_back_with_the_level_its_listener_chose(
    server: ScriptedServer, names: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.append("T", b"a", b"b", b"c", b"d", b"e", b"f")
    heard = Heard(
        ConsumeLater(delay_level=5, consumed_count=1),
        ConsumeResult.RECONSUME_LATER,
        ValueError("not now"),
    )
    async with PushConsumer("g", name_servers=names, batch_size=2, concurrency=1) as consumer:
        await consumer.subscribe("T", heard)
        await heard.wait(6)
        await at_broker(server, lambda: len(server.broker.given_back) == 5)
    broker = server.broker
    assert heard.calls == [[b"a", b"b"], [b"c", b"d"], [b"e", b"f"]]
    assert [(back.offset, back.delay_level) for back in broker.given_back] == [(1, 5), (2, 0), (3, 0), (4, 0), (5, 0)]
    assert {(back.group, back.max_reconsume_times, back.origin_topic) for back in broker.given_back} == {("g", 16, "T")}
    assert broker.offsets[scripted_queue("T")] == 6
    assert "not now" in caplog.text
    assert broker.members == {"g": []}


async def test_a_message_that_cannot_go_back_is_sent_to_the_retry_topic(server: ScriptedServer, names: str) -> None:
    server.broker.refuse.add(RequestCode.CONSUMER_SEND_MSG_BACK)
    server.append("T", b"a", properties=b"UNIQ_KEY\x01U1\x02TAGS\x01red\x02TRAN_MSG\x01true")
    heard = Heard(ConsumeResult.RECONSUME_LATER)
    async with PushConsumer("g", name_servers=names, max_reconsume_times=7) as consumer:
        await consumer.subscribe("T", heard)
        await at_broker(server, lambda: server.broker.sent)
    (sent,) = server.broker.sent
    assert (sent.header.topic, sent.header.reconsume_times, sent.header.max_reconsume_times) == ("%RETRY%g", 1, 7)
    assert parse_properties(sent.header.properties or "") == {
        "UNIQ_KEY": "U1", "TAGS": "red", "RETRY_TOPIC": "T", "ORIGIN_MESSAGE_ID": "U1", "DELAY": "3",
    }  # fmt: skip
    assert sent.body == b"a"
    assert server.broker.offsets[scripted_queue("T")] == 1


async def test_a_message_that_nobody_takes_back_is_tried_again_here(server: ScriptedServer, names: str) -> None:
    server.broker.refuse |= {RequestCode.CONSUMER_SEND_MSG_BACK, RequestCode.SEND_MESSAGE}
    server.append("T", b"a", b"b")
    heard = Heard(ConsumeResult.RECONSUME_LATER)
    async with PushConsumer("g", name_servers=names, local_retry_seconds=0.01, concurrency=1) as consumer:
        await consumer.subscribe("T", heard)
        await heard.wait(3)
    assert heard.bodies == [b"a", b"b", b"a"]
    assert heard.times == [0, 0, 1]
    assert server.broker.offsets[scripted_queue("T")] == 2


async def test_retried_messages_reach_the_listener_of_their_topic(server: ScriptedServer, names: str) -> None:
    server.broker.queue_counts |= {"A": 1, "B": 1}
    for number, topic in enumerate(("A", "B", "B", "gone")):
        server.append("%RETRY%g", b"%d" % number, properties=b"RETRY_TOPIC\x01" + topic.encode())
    of_a, of_b = Heard(), Heard()
    async with PushConsumer("g", name_servers=names, batch_size=10) as consumer:
        await consumer.subscribe("A", of_a)
        await consumer.subscribe("B", of_b)
        await of_a.wait(1)
        await of_b.wait(2)
        await at_broker(server, lambda: server.broker.given_back)
    assert (of_a.calls, of_b.calls) == ([[b"0"]], [[b"1", b"2"]])
    assert [back.origin_topic for back in server.broker.given_back] == ["gone"]


async def test_what_a_listener_may_not_return_counts_as_failed(
    server: ScriptedServer, names: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.append("T", b"a")

    async def listen(messages: Sequence[ReceivedMessage]) -> bool:
        return True

    async with PushConsumer("g", name_servers=names) as consumer:
        await consumer.subscribe("T", listen)  # type: ignore[arg-type]  # that is what is tested
        await at_broker(server, lambda: server.broker.given_back)
    assert "a listener returned True" in caplog.text


async def test_a_listener_that_hangs_is_cancelled_and_its_message_goes_back(server: ScriptedServer, names: str) -> None:
    server.append("T", b"hangs", b"b")
    ended: list[str] = []
    heard = Heard()

    async def listen(messages: Sequence[ReceivedMessage]) -> Outcome:
        if messages[0].body == b"hangs":
            try:
                await anyio.sleep_forever()
            finally:
                ended.append("cancelled")
        return await heard(messages)

    async with PushConsumer("g", name_servers=names, consume_timeout_seconds=0.05, concurrency=1) as consumer:
        await consumer.subscribe("T", listen)
        await heard.wait(1)
        await at_broker(server, lambda: server.broker.given_back)
    assert ended == ["cancelled"]
    assert [(back.offset, back.delay_level) for back in server.broker.given_back] == [(0, 3)]


async def test_a_listener_that_raises_a_cancellation_of_its_own_ends_nothing(
    server: ScriptedServer, names: str, anyio_backend: str
) -> None:
    server.append("T", b"a", b"b", b"c")
    heard = Heard()

    async def listen(messages: Sequence[ReceivedMessage]) -> Outcome:
        if messages[0].body == b"a":
            if anyio_backend == "asyncio":
                raise anyio.get_cancelled_exc_class()
            with anyio.CancelScope() as scope:  # under trio nobody can raise one, only be in a cancelled scope
                scope.cancel()
                await anyio.sleep_forever()
            return ConsumeResult.RECONSUME_LATER
        return await heard(messages)

    async with PushConsumer("g", name_servers=names, concurrency=1) as consumer:
        await consumer.subscribe("T", listen)
        await heard.wait(2)
        await at_broker(server, lambda: server.broker.given_back)
    assert heard.bodies == [b"b", b"c"]
    assert [back.offset for back in server.broker.given_back] == [0]
    assert server.broker.offsets[scripted_queue("T")] == 3


class Crowd:
    """A listener that waits until it is let go, and knows how many calls there are at once."""

    def __init__(self, wanted: int) -> None:
        self.now = self.most = 0
        self.full = anyio.Event()
        self.release = anyio.Event()
        self._wanted = wanted

    async def __call__(self, messages: Sequence[ReceivedMessage]) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        if self.now == self._wanted:
            self.full.set()
        await self.release.wait()
        self.now -= 1


async def test_as_many_calls_at_once_as_allowed_and_no_more(server: ScriptedServer, names: str) -> None:
    server.append("T", *[b"%d" % number for number in range(50)])
    crowd = Crowd(7)
    async with PushConsumer("g", name_servers=names, concurrency=7, commit_seconds=0.05) as consumer:
        await consumer.subscribe("T", crowd)
        with anyio.fail_after(LIMIT_SECONDS):
            await crowd.full.wait()
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
        crowd.release.set()
        await at_broker(server, lambda: server.broker.offsets.get(scripted_queue("T"), 0) >= 32)
    assert crowd.most == 7


async def test_consumers_may_share_a_limiter(server: ScriptedServer, names: str) -> None:
    server.append("A", *[b"%d" % number for number in range(10)])
    server.append("B", *[b"%d" % number for number in range(10)])
    limiter = anyio.CapacityLimiter(3)
    crowd = Crowd(3)
    async with (
        PushConsumer("g", name_servers=names, concurrency=limiter) as one,
        PushConsumer("h", name_servers=names, concurrency=limiter, orderly=True) as other,
    ):
        await one.subscribe("A", crowd)
        await other.subscribe("B", crowd)
        with anyio.fail_after(LIMIT_SECONDS):
            await crowd.full.wait()
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
        crowd.release.set()
    assert crowd.most == 3


async def test_suspended_it_calls_nobody_and_keeps_its_queues(server: ScriptedServer, names: str) -> None:
    for orderly in (False, True):
        group, topic = ("go", "O") if orderly else ("g", "T")
        server.append(topic, b"a")
        heard = Heard()
        async with PushConsumer(group, name_servers=names, orderly=orderly) as consumer:
            await consumer.subscribe(topic, heard)
            await heard.wait(1)
            await at_broker(server, partial(holds, server, scripted_queue(topic), 1))
            await at_broker(server, partial(holds, server, scripted_queue(f"%RETRY%{group}"), 0))
            consumer.suspend()
            pulls = server.call(lambda: len(server.broker.pulls))
            server.append(topic, b"b")
            for _ in range(20):
                await anyio.lowlevel.checkpoint()
            assert server.call(lambda: len(server.broker.pulls)) == pulls
            assert heard.bodies == [b"a"]
            assert scripted_queue(topic) in consumer.queues()
            consumer.resume()
            await heard.wait(2)


def holds(server: ScriptedServer, place: MessageQueue, offset: int) -> bool:
    """Whether a pull from that offset came."""
    return any(
        (pull.topic, pull.queue_id, pull.queue_offset) == (place.topic, place.queue_id, offset)
        for pull in server.broker.pulls
    )


async def test_blocking_listeners_run_in_threads(server: ScriptedServer, names: str) -> None:
    server.append("T", b"a", b"b", b"c")
    here = threading.get_ident()
    together = threading.Barrier(3, timeout=LIMIT_SECONDS)
    threads: set[int] = set()

    def listen(messages: Sequence[ReceivedMessage]) -> Outcome:
        threads.add(threading.get_ident())
        together.wait()
        return ConsumeLater(delay_level=2) if messages[0].body == b"b" else None

    async with PushConsumer("g", name_servers=names) as consumer:
        await consumer.subscribe("T", in_thread(listen))
        await at_broker(server, lambda: server.broker.given_back)
    assert here not in threads
    assert len(threads) == 3
    assert [(back.offset, back.delay_level) for back in server.broker.given_back] == [(1, 2)]


async def test_interceptors_stand_around_each_call_the_first_outermost(server: ScriptedServer, names: str) -> None:
    server.append("T", b"a", b"b")
    said: list[str] = []

    async def outer(consumption: Consumption, proceed: Proceed) -> Outcome:
        said.append(f"outer {consumption.group} {consumption.queue.topic} {consumption.messages[0].body.decode()}")
        try:
            return await proceed()
        finally:
            said.append("outer ends")

    async def inner(consumption: Consumption, proceed: Proceed) -> Outcome:
        said.append("inner")
        if consumption.messages[0].body == b"b":
            return ConsumeResult.RECONSUME_LATER
        return await proceed()

    heard = Heard()
    async with PushConsumer("g", name_servers=names, interceptors=[outer, inner], concurrency=1) as consumer:
        await consumer.subscribe("T", heard)
        await at_broker(server, lambda: server.broker.given_back)
    assert said == ["outer g T a", "inner", "outer ends", "outer g T b", "inner", "outer ends"]
    assert heard.bodies == [b"a"]


async def test_broadcasting_has_all_queues_keeps_a_file_and_retries_nothing(
    server: ScriptedServer, names: str, tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path_factory.mktemp("offsets") / "offsets.json"
    server.broker.queue_counts["T"] = 2
    server.broker.others = ["somebody else"]
    server.append("T", b"a", b"b")
    server.append("T", b"c", queue_id=1)
    for orderly in (False, True):
        heard = Heard(ConsumeResult.RECONSUME_LATER)
        async with PushConsumer(
            "g", name_servers=names, broadcasting=True, orderly=orderly, max_reconsume_times=0,
            offset_store=LocalOffsetStore(file),
        ) as consumer:  # fmt: skip
            await consumer.subscribe("T", heard)
            await heard.wait(3)
            assert consumer.queues() == [scripted_queue("T", 0), scripted_queue("T", 1)]
        assert sorted(heard.bodies) == [b"a", b"b", b"c"]
        store = LocalOffsetStore(file)
        await store.load()
        assert store.table.snapshot() == {scripted_queue("T", 0): 2, scripted_queue("T", 1): 1}
        file.unlink()
        for left in file.parent.iterdir():
            left.unlink()
    broker = server.broker
    assert (broker.given_back, broker.sent, broker.commits, broker.lock_requests) == ([], [], [], [])
    assert broker.heartbeats[0].consumer_data_set[0].message_model == "BROADCASTING"
    assert [data.topic for data in broker.heartbeats[0].consumer_data_set[0].subscription_data_set] == ["T"]
    assert caplog.text.count("dropped") == 2


async def test_where_a_group_without_offsets_begins(server: ScriptedServer, names: str) -> None:
    server.append("T", *[b"%d" % number for number in range(6)])
    for options, first in (({}, b"0"), ({"from_timestamp_ms": 4}, b"4"), ({"from_first": False}, b"6")):
        heard = Heard()
        async with PushConsumer("g", name_servers=names, concurrency=1, **options) as consumer:
            await consumer.subscribe("T", heard)
            with anyio.fail_after(LIMIT_SECONDS):
                await consumer.wait_queues(lambda queues: scripted_queue("T") in queues)
            if first == b"6":
                server.append("T", b"6")
            await heard.wait(1)
        assert heard.bodies[0] == first
        server.broker.offsets.clear()


async def test_own_allocation_and_queues_of_the_subscription_only(server: ScriptedServer, names: str) -> None:
    server.broker.queue_counts |= {"T": 4, "U": 1}

    def last_two(client_id: str, queues: Sequence[MessageQueue], clients: Sequence[str]) -> list[MessageQueue]:
        return list(queues[-2:])

    async with PushConsumer("g", name_servers=names, allocation=last_two) as consumer:
        await consumer.subscribe("T", Heard())
        await consumer.subscribe("U", Heard())
        wanted = {scripted_queue("T", 2), scripted_queue("T", 3), scripted_queue("U"), scripted_queue("%RETRY%g")}
        with anyio.fail_after(LIMIT_SECONDS):
            await consumer.wait_queues(lambda queues: set(queues) == wanted)
            await consumer.unsubscribe("T")
            await consumer.wait_queues(lambda queues: set(queues) == {scripted_queue("U"), scripted_queue("%RETRY%g")})
    assert allocate_averagely is not last_two


async def test_an_offset_that_the_broker_does_not_have_is_mended(
    server: ScriptedServer, names: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.append("T", b"5", b"6", b"7")
    server.broker.first[scripted_queue("T")] = 5
    for offset, expected in ((2, [b"5", b"6", b"7", b"8"]), (99, [b"9"])):
        server.broker.offsets[scripted_queue("T")] = offset
        heard = Heard()
        async with PushConsumer("g", name_servers=names, concurrency=1) as consumer:
            await consumer.subscribe("T", heard)
            await at_broker(server, lambda: any(place == scripted_queue("T") for place, _ in server.broker.commits))
            server.append("T", b"8" if offset == 2 else b"9")
            await heard.wait(len(expected))
        assert heard.bodies == expected
        server.broker.commits.clear()
    assert "has no offset 2, it goes on at 5" in caplog.text
    assert "has no offset 99, it goes on at 9" in caplog.text


async def test_lag_tells_what_is_left(server: ScriptedServer, names: str) -> None:
    server.append("T", *[b"%d" % number for number in range(10)])
    server.broker.first[scripted_queue("T")] = 100
    heard = Heard()
    async with PushConsumer("g", name_servers=names, concurrency=1) as consumer:
        consumer_lag = await consumer.lag("T")
        assert consumer_lag[scripted_queue("T")].count == 10
        await consumer.subscribe("T", heard)
        await heard.wait(10)
        consumer.suspend()
        await consumer.commit()
        server.append("T", b"more")
        lag = await consumer.lag()
        assert {place.topic: (one.committed, one.count) for place, one in lag.items()} == {
            "T": (110, 1), "%RETRY%g": (0, 0),
        }  # fmt: skip


async def test_wrong_use_says_how_to_mend_it(server: ScriptedServer, names: str) -> None:
    for group in ("", "white space", "a" * 256, "DEFAULT_CONSUMER", "näh"):
        with pytest.raises(ClientError, match="group"):
            PushConsumer(group, name_servers=names)
    with pytest.raises(ClientError, match="1 or more"):
        PushConsumer("g", name_servers=names, batch_size=0)
    consumer = PushConsumer("g", name_servers=names)
    with pytest.raises(ClientError, match="async with"):
        await consumer.subscribe("T", Heard())
    async with consumer:
        with pytest.raises(ProtocolError, match="bars"):
            await consumer.subscribe("T", Heard(), expression="||")
    for call in (consumer.suspend, consumer.resume):
        with pytest.raises(ClientError, match="async with"):
            call()
    with pytest.raises(ClientError, match="once"):
        async with consumer:
            pass


async def test_an_error_in_the_block_comes_out_bare(server: ScriptedServer, names: str) -> None:
    server.append("T", b"a")
    heard = Heard()

    async def fail() -> None:
        async with PushConsumer("g", name_servers=names) as consumer:
            await consumer.subscribe("T", heard)
            await heard.wait(1)
            raise KeyError("mine")

    with pytest.raises(KeyError):
        await fail()
    assert server.broker.offsets[scripted_queue("T")] == 1
    assert not any(server.broker.members.values())


async def test_closing_waits_for_running_calls_as_long_as_the_grace_lasts(server: ScriptedServer, names: str) -> None:
    for orderly in (False, True):
        topic, group = ("O", "go") if orderly else ("T", "g")
        place = scripted_queue(topic)
        server.append(topic, b"a", b"b")
        crowd = Crowd(1)
        async with (
            anyio.create_task_group() as others,
            PushConsumer(group, name_servers=names, orderly=orderly, concurrency=1) as consumer,
        ):
            others.start_soon(release_when_closing, consumer, crowd)
            await consumer.subscribe(topic, crowd)
            with anyio.fail_after(LIMIT_SECONDS):
                await crowd.full.wait()
        assert crowd.now == 0
        assert server.broker.offsets[place] == 1  # the first call ended, and no other began
        stuck = Crowd(1)
        async with PushConsumer(group, name_servers=names, orderly=orderly, grace_seconds=0.01) as consumer:
            await consumer.subscribe(topic, stuck)
            with anyio.fail_after(LIMIT_SECONDS):
                await stuck.full.wait()
        assert stuck.now == 1  # it was cancelled
        assert server.broker.offsets[place] == 1


async def release_when_closing(consumer: PushConsumer, crowd: Crowd) -> None:
    await consumer._delivery.closing.wait()
    for _ in range(10):
        await anyio.lowlevel.checkpoint()
    crowd.release.set()
