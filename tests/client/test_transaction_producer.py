"""The transactional producer: against a whole cluster on virtual time, and on both loops over real connections."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
import trio
from trio.testing import MockClock

from tests.broker.name_servers import PORT
from tests.broker.name_servers import name_server as a_name_server
from tests.broker.running import CLIENT, NAME_SERVER, Client, Running, broker_in
from trio_rmq.client import Message, PushConsumer, TransactionProducer, TransactionState
from trio_rmq.client.message import ReceivedMessage
from trio_rmq.errors import ClientError, ResponseError
from trio_rmq.testing.world import open_world

ONE = f"{NAME_SERVER}:{PORT}"
COMMIT, ROLLBACK, UNKNOWN = TransactionState.COMMIT, TransactionState.ROLLBACK, TransactionState.UNKNOWN


class Checks:
    """A check listener that answers `state` and keeps what it was asked."""

    def __init__(self, state: TransactionState = UNKNOWN) -> None:
        self.state = state
        self.asked: list[ReceivedMessage] = []

    async def __call__(self, message: ReceivedMessage) -> TransactionState:
        self.asked.append(message)
        return self.state


async def never_asked(message: ReceivedMessage) -> TransactionState:
    raise AssertionError(message)


async def commit(transaction_id: str) -> TransactionState:
    return COMMIT


async def unknown(transaction_id: str) -> TransactionState:
    return UNKNOWN


@asynccontextmanager
async def cluster() -> AsyncIterator[tuple[Running, Client]]:
    """A name server and a broker with the topic T, and a plain client that looks at what is stored."""
    async with (
        open_world() as world,
        a_name_server(world),
        broker_in(world, namesrv_addr=ONE) as running,
        running.client() as client,
    ):
        await client.create_topic()
        with world.node(CLIENT):
            yield running, client


class TestOnVirtualTime:
    pytestmark = pytest.mark.trio

    async def test_commit_and_rollback(self, autojump_clock: MockClock) -> None:
        async with cluster() as (_, client):
            seen: list[str] = []

            async def fail(transaction_id: str) -> TransactionState:
                assert await client.stored() == []
                seen.append(transaction_id)
                return ROLLBACK

            async with TransactionProducer(never_asked, group="tx", name_servers=ONE) as producer:
                done = await producer.send_in_transaction(Message("T", b"no", tags="A"), fail)
                assert (done.state, [done.transaction_id]) == (ROLLBACK, seen)
                done = await producer.send_in_transaction(Message("T", b"yes", tags="A"), commit)
                assert (done.state, done.error, done.transaction_id) == (COMMIT, None, done.sent.message_id)
                await trio.sleep(300)
                [message] = await client.stored()
                assert (message.body, message.tags) == (b"yes", "A")

    async def test_the_broker_asks_for_an_unknown_end(self, autojump_clock: MockClock) -> None:
        async with cluster() as (_, client):
            checks = Checks()
            async with TransactionProducer(checks, group="tx", name_servers=ONE) as producer:
                done = await producer.send_in_transaction(Message("T", b"x", keys="k"), unknown)
                await trio.sleep(8)
                assert [(message.message_id, message.body) for message in checks.asked] == [(done.transaction_id, b"x")]
                checks.state = COMMIT
                await trio.sleep(62)
                assert len(checks.asked) == 2
                assert [message.body for message in await client.stored()] == [b"x"]

    async def test_what_a_local_transaction_raises_leaves_its_end_unknown(self, autojump_clock: MockClock) -> None:
        async with cluster() as (_, client):

            async def raise_it(transaction_id: str) -> TransactionState:
                raise ValueError("no money")

            async def hang(transaction_id: str) -> TransactionState:
                await trio.sleep(1000)
                return COMMIT

            checks = Checks(ROLLBACK)
            async with TransactionProducer(checks, group="tx", name_servers=ONE, local_timeout_seconds=2) as producer:
                done = await producer.send_in_transaction(Message("T", b"a"), raise_it)
                assert (done.state, type(done.error)) == (UNKNOWN, ValueError)
                done = await producer.send_in_transaction(Message("T", b"b"), hang)
                assert (done.state, type(done.error)) == (UNKNOWN, TimeoutError)
                done = await producer.send_in_transaction(Message("T", b"c"), never)  # type: ignore[arg-type]  # a mistake
                assert (done.state, type(done.error)) == (UNKNOWN, ClientError)
                await trio.sleep(20)
                assert sorted(message.body for message in checks.asked) == [b"a", b"b", b"c"]
                assert await client.stored() == []

    async def test_a_check_that_raises_or_hangs_is_asked_again(self, autojump_clock: MockClock) -> None:
        async with cluster() as (_, client):
            asked: list[float] = []

            async def check(message: ReceivedMessage) -> TransactionState:
                asked.append(trio.current_time())
                if len(asked) == 1:
                    raise ValueError
                if len(asked) == 2:
                    await trio.sleep_forever()
                return COMMIT

            async with TransactionProducer(check, group="tx", name_servers=ONE, check_timeout_seconds=5) as producer:
                await producer.send_in_transaction(Message("T", b"x"), unknown)
                await trio.sleep(200)
                assert len(asked) == 3
                assert len(await client.stored()) == 1

    async def test_another_of_the_group_answers_for_one_that_died(self, autojump_clock: MockClock) -> None:
        async with cluster() as (_, client):
            checks = Checks(COMMIT)
            async with TransactionProducer(checks, group="tx", topics=["T"], name_servers=ONE):
                with trio.CancelScope() as scope:
                    async with TransactionProducer(never_asked, group="tx", name_servers=ONE) as producer:

                        async def die(transaction_id: str) -> TransactionState:
                            scope.cancel()
                            await trio.lowlevel.checkpoint()
                            return ROLLBACK

                        await producer.send_in_transaction(Message("T", b"x"), die)
                assert scope.cancelled_caught
                await trio.sleep(10)
                assert len(checks.asked) == 1
                assert len(await client.stored()) == 1

    async def test_immunity_of_one_message(self, autojump_clock: MockClock) -> None:
        async with cluster() as (_, _client):
            checks = Checks()
            async with TransactionProducer(checks, group="tx", name_servers=ONE) as producer:
                await producer.send_in_transaction(Message("T", b"x"), unknown, check_immunity_seconds=40)
                await trio.sleep(38)
                assert checks.asked == []
                await trio.sleep(5)
                assert len(checks.asked) == 1

    async def test_a_message_for_a_later_time_and_its_recall(self, autojump_clock: MockClock) -> None:
        async with (
            cluster() as (running, client),
            TransactionProducer(never_asked, group="tx", name_servers=ONE) as producer,
        ):
            sent = await producer.send(Message("T", b"a", delay_ms=1500))
            at_ms = running.world.wall_ms() + 3000
            await producer.send(Message("T", b"b", deliver_at_ms=at_ms))
            gone = await producer.send(Message("T", b"c", delay_ms=5000))
            assert gone.recall_handle is not None
            await trio.sleep(4)
            assert [message.body for message in await client.stored()] == [b"a", b"b"]
            assert await producer.recall("T", gone.recall_handle) == gone.message_id
            with pytest.raises(ResponseError, match="timestamp invalid") as caught:
                await producer.recall("T", sent.recall_handle or "")
            assert caught.value.response_code == 604
            with pytest.raises(ClientError, match="no recall handle"):
                await producer.recall("T", "x")
            await trio.sleep(10)
            assert len(await client.stored()) == 2
            with pytest.raises(ClientError, match="singly"):
                await producer.send_batch([Message("T", b"d", delay_ms=1)])


async def never(transaction_id: str) -> None:
    return None


@pytest.mark.anyio
async def test_on_both_loops(name_server: str, topic: str) -> None:
    arrived: list[bytes] = []
    enough = anyio.Event()

    async def keep(messages: object) -> None:
        for message in messages:  # type: ignore[attr-defined]  # a sequence of ReceivedMessage
            arrived.append(message.body)
            if message.body == b"2":
                enough.set()

    async def decide(transaction_id: str) -> TransactionState:
        return ROLLBACK if decided.pop(0) else COMMIT

    decided = [False, True, False]
    with anyio.fail_after(20):
        async with (
            TransactionProducer(never_asked, group=f"p_{topic}", name_servers=name_server) as producer,
            PushConsumer(f"c_{topic}", name_servers=name_server) as consumer,
        ):
            await producer.send_in_transaction(Message(topic, b"0"), decide)
            await consumer.subscribe(topic, keep)
            await producer.send_in_transaction(Message(topic, b"1"), decide)
            await producer.send_in_transaction(Message(topic, b"2"), decide)
            await enough.wait()
    assert b"1" not in arrived
