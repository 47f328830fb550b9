"""When gathered batches leave, and what becomes of their messages: without a network, on virtual time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio.abc
import pytest
import trio
import trio.testing

from trio_rmq.client import AutoBatch, Message, MessageQueue, SendResult, SendStatus, auto_batch
from trio_rmq.client.auto_batch import AutoBatcher, Gathering
from trio_rmq.client.many import ADDED_AT_ONCE, BATCHES_AT_ONCE, GatheredSends, Outcome
from trio_rmq.client.outgoing import Outgoing, OutgoingMaker
from trio_rmq.client.replies import ReplyMessage
from trio_rmq.errors import ClientError, ProtocolError, SendError
from trio_rmq.wire import properties as prop
from trio_rmq.wire.batch import decode_batch

QUEUE = MessageQueue(topic="T", broker_name="b", queue_id=1)


class Broker:
    """Takes the batches: when each came, and what was in it."""

    def __init__(self) -> None:
        self.batches: list[tuple[float, Outgoing, list[Message]]] = []
        self.answers: Callable[[Outgoing], Awaitable[None]] | None = None

    async def send(self, outgoing: Outgoing, messages: list[Message], queue: MessageQueue | None) -> SendResult:
        self.batches.append((trio.current_time(), outgoing, messages))
        await trio.lowlevel.checkpoint()
        if self.answers is not None:
            await self.answers(outgoing)
        places = ",".join(f"place{number}" for number in range(len(messages)))
        return SendResult(SendStatus.SEND_OK, outgoing.message_id, places, queue or QUEUE, 100, region_id="here")

    @property
    def bodies(self) -> list[list[bytes]]:
        return [[body for _, body, _ in decode_batch(outgoing.body)] for _, outgoing, _ in self.batches]


Program = Callable[[AutoBatcher, Broker, anyio.abc.TaskGroup], Awaitable[None]]


def run(settings: AutoBatch, program: Program) -> Broker:
    broker = Broker()

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            await program(AutoBatcher(settings, OutgoingMaker(), tasks, broker.send), broker, tasks)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return broker


async def outcome(batcher: AutoBatcher, message: Message) -> SendResult:
    gathering, number = taken(batcher, message)
    await gathering.done.wait()
    return gathering.result(number)


def taken(batcher: AutoBatcher, message: Message, queue: MessageQueue | None = None) -> tuple[Gathering, int]:
    added = batcher.add(message, queue)
    assert added is not None
    return added


def test_a_batch_leaves_when_it_has_enough_messages() -> None:
    async def program(batcher: AutoBatcher, broker: Broker, tasks: anyio.abc.TaskGroup) -> None:
        began = trio.current_time()
        places = [taken(batcher, Message("T", b"%d" % number)) for number in range(7)]
        assert [number for _, number in places] == [0, 1, 2, 0, 1, 2, 0]
        for gathering, _ in places[:6]:
            await gathering.done.wait()
        assert trio.current_time() == began
        await places[6][0].done.wait()
        assert trio.current_time() == began + 5

    broker = run(AutoBatch(count=3, delay_seconds=5), program)
    assert sorted(broker.bodies) == [[b"0", b"1", b"2"], [b"3", b"4", b"5"], [b"6"]]


def test_a_batch_leaves_when_it_has_enough_bytes_or_its_first_has_waited_long_enough() -> None:
    async def program(batcher: AutoBatcher, broker: Broker, tasks: anyio.abc.TaskGroup) -> None:
        began = trio.current_time()
        first, _ = taken(batcher, Message("T", bytes(400)))
        await trio.sleep(3)
        second, _ = taken(batcher, Message("T", bytes(400)))
        assert second is first
        third, _ = taken(batcher, Message("T", bytes(400)))  # with their properties over 1,300
        assert third is first
        assert third.is_closed
        late, _ = taken(batcher, Message("T", b"late"))
        await late.done.wait()
        assert trio.current_time() == began + 3 + 5

    broker = run(AutoBatch(size_bytes=1300, delay_seconds=5), program)
    assert [len(messages) for _, _, messages in broker.batches] == [3, 1]


def test_each_message_has_its_own_id_properties_and_result() -> None:
    async def program(batcher: AutoBatcher, broker: Broker, tasks: anyio.abc.TaskGroup) -> None:
        messages = [
            Message("T", b"plain"), Message("T", b"full", tags="t", keys=["a", "b"], properties={"ключ": "1"}, flag=7),
        ]  # fmt: skip
        places = [taken(batcher, message) for message in messages]
        messages[0].body, messages[0].flag = b"changed later", 9
        await places[0][0].done.wait()
        results = [gathering.result(number) for gathering, number in places]
        ((_, outgoing, _),) = broker.batches
        plain, full = decode_batch(outgoing.body)
        ids = outgoing.message_id.split(",")
        assert plain == (0, b"plain", f"UNIQ_KEY\x01{ids[0]}\x02WAIT\x01true".encode())
        assert full[:2] == (7, b"full")
        assert prop.parse_properties(full[2]) == {
            "UNIQ_KEY": ids[1], "WAIT": "true", "TAGS": "t", "KEYS": "a b", "ключ": "1",
        }  # fmt: skip
        assert full[2].decode() == messages[1].properties_text(ids[1])
        assert results == [
            SendResult(SendStatus.SEND_OK, ids[number], f"place{number}", QUEUE, 100 + number, region_id="here")
            for number in range(2)
        ]

    run(AutoBatch(count=2), program)


def test_topics_queues_and_ways_to_wait_have_batches_of_their_own() -> None:
    async def program(batcher: AutoBatcher, broker: Broker, tasks: anyio.abc.TaskGroup) -> None:
        for message, queue in (
            (Message("T", b"1"), None), (Message("U", b"2"), None), (Message("T", b"3", wait_store=False), None),
            (Message("T", b"4"), QUEUE), (Message("T", b"5"), None),
        ):  # fmt: skip
            taken(batcher, message, queue)

    broker = run(AutoBatch(), program)
    assert sorted(broker.bodies) == [[b"1", b"5"], [b"2"], [b"3"], [b"4"]]


def test_what_is_large_late_a_reply_or_too_much_is_not_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto_batch, "GATHERED_BYTES_MAX", 100_000)

    async def program(batcher: AutoBatcher, broker: Broker, tasks: anyio.abc.TaskGroup) -> None:
        assert batcher.add(Message("T", bytes(1000)), None) is None
        assert batcher.add(Message("T", b"x", delay_level=1), None) is None
        assert batcher.add(Message("T", b"x", delay_ms=1), None) is None
        assert batcher.add(ReplyMessage("T", b"x"), None) is None
        for bad in (Message("T", b""), Message("T", b"x", tags="\x01"), Message("T", b"x", properties={"TAGS": "x"})):
            with pytest.raises(ClientError):
                batcher.add(bad, None)
        count = 0
        body = bytes(999)
        while batcher.add(Message("T", body), None) is not None:
            count += 1
        assert 90 < count < 100  # each has properties too
        await trio.testing.wait_all_tasks_blocked()  # all are acknowledged
        assert batcher.add(Message("T", body), None) is not None

    run(AutoBatch(count=1000, size_bytes=1000), program)


def test_a_failure_meets_every_message_of_its_batch_and_no_other() -> None:
    async def program(batcher: AutoBatcher, broker: Broker, tasks: anyio.abc.TaskGroup) -> None:
        async def refuse(outgoing: Outgoing) -> None:
            if outgoing.topic == "T":
                raise SendError("the disk is full", response_code=14, tries=["a: 14"])

        broker.answers = refuse
        places = [taken(batcher, Message(topic, b"x")) for topic in "TUT"]
        for gathering, _ in places:
            await gathering.done.wait()
        assert places[1][0].result(0).status is SendStatus.SEND_OK
        errors = []
        for gathering, number in (places[0], places[2]):
            with pytest.raises(SendError, match="the disk is full") as caught:
                gathering.result(number)
            assert (caught.value.response_code, caught.value.tries) == (14, ["a: 14"])
            errors.append(caught.value)
        assert errors[0] is not errors[1]

    run(AutoBatch(), program)


def test_a_sender_that_is_cancelled_leaves_the_others_of_its_batch() -> None:
    results: list[SendResult] = []

    async def program(batcher: AutoBatcher, broker: Broker, tasks: anyio.abc.TaskGroup) -> None:
        async def send(body: bytes) -> None:
            results.append(await outcome(batcher, Message("T", body)))

        async with trio.open_nursery() as others:
            others.start_soon(send, b"stays")
            with trio.move_on_after(1) as scope:
                await send(b"goes")
            assert scope.cancelled_caught
            assert not broker.batches

    broker = run(AutoBatch(delay_seconds=5), program)
    assert len(results) == 1
    assert sorted(broker.bodies[0]) == [b"goes", b"stays"]  # it may be stored


def test_a_producer_that_closes_tells_who_waits() -> None:
    errors: list[str] = []

    async def program(batcher: AutoBatcher, broker: Broker, tasks: anyio.abc.TaskGroup) -> None:
        gathering, number = taken(batcher, Message("T", b"x"))
        await trio.testing.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await gathering.done.wait()
        with pytest.raises(ClientError) as caught:
            gathering.result(number)
        errors.append(str(caught.value))

    run(AutoBatch(delay_seconds=5), program)
    assert errors == ["the producer closed before the batch was acknowledged"]


# -- many of one caller -------------------------------------------------------------------------------------------


async def no_choice(message: Message) -> MessageQueue:
    raise ClientError(f"no queue for {message.body!r}")


def test_many_are_gathered_and_each_comes_to_its_own() -> None:
    async def program(batcher: AutoBatcher, broker: Broker, tasks: anyio.abc.TaskGroup) -> None:
        messages = [Message("T", b"%d" % number) for number in range(10)]
        messages[3] = Message("T", b"")
        messages[5] = Message("T", bytes(2000))
        messages[6] = Message("T", b"6", sharding_key="key")

        async def refuse(outgoing: Outgoing) -> None:
            if b"8" in [body for _, body, _ in decode_batch(outgoing.body)]:
                raise ProtocolError("of the second batch")

        broker.answers = refuse
        outcomes: dict[int, Outcome] = {}
        gathered = GatheredSends(batcher, outcomes)
        others = await gathered.add(messages, None, no_choice, chooses=False)
        assert others == [(5, messages[5])]
        await gathered.wait()
        assert broker.bodies == [[b"0", b"1", b"2", b"4"], [b"7", b"8", b"9"]]
        ids = broker.batches[0][1].message_id.split(",")
        assert [getattr(outcomes[number], "message_id", None) for number in (0, 1, 2, 4)] == ids
        assert {number: str(outcomes[number]) for number in (3, 6, 7, 8, 9)} == {
            3: "the body is empty: a message needs at least one byte", 6: "no queue for b'6'",
        } | dict.fromkeys((7, 8, 9), "the batch was not sent: ProtocolError: of the second batch")  # fmt: skip

    run(AutoBatch(count=4, size_bytes=2000), program)


def test_many_have_a_bound_of_batches_under_way_and_give_others_a_turn() -> None:
    async def program(batcher: AutoBatcher, broker: Broker, tasks: anyio.abc.TaskGroup) -> None:
        go = trio.Event()

        async def hold(outgoing: Outgoing) -> None:
            await go.wait()

        broker.answers = hold
        outcomes: dict[int, Outcome] = {}

        async def send() -> None:
            gathered = GatheredSends(batcher, outcomes)
            messages = [Message("T", b"x")] * 100
            assert await gathered.add(messages, None, no_choice, chooses=False) == []
            await gathered.wait()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked()
            assert len(broker.batches) == BATCHES_AT_ONCE
            go.set()
        assert len(outcomes) == 100

        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(count)
            gathered = GatheredSends(batcher, outcomes)
            # Each of a topic of its own: no batch is filled.
            many = [Message(f"T{number}", b"x") for number in range(4 * ADDED_AT_ONCE)]
            await gathered.add(many, None, no_choice, chooses=False)
            assert turns >= 2  # of four: who is first in a turn of the event loop is chance
            nursery.cancel_scope.cancel()

    run(AutoBatch(count=2, delay_seconds=1), program)
