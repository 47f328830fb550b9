"""Transactions at the broker: out of sight until committed, gone when rolled back, asked about in between."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from tests.broker.running import Client, Running, broker_in, one_broker
from trio_rmq.remoting.connection import Connection
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.testing.world import open_world
from trio_rmq.wire import headers
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.properties import parse_properties
from trio_rmq.wire.record import StoredMessage, decode_record

pytestmark = pytest.mark.trio

HALF, OP = "RMQ_SYS_TRANS_HALF_TOPIC", "RMQ_SYS_TRANS_OP_HALF_TOPIC"
PARKED = "TRANS_CHECK_MAX_TIME_TOPIC"
UNDECIDED, COMMIT, ROLLBACK = 0, 8, 12


class Producer:
    """A producer of the group `tx` that answers checks with `decision` once it has begun to `beat`."""

    def __init__(self, client: Client, decision: int | None = UNDECIDED) -> None:
        self.client = client
        self.decision = decision
        self.asked: list[tuple[float, headers.CheckTransactionStateRequestHeader, StoredMessage]] = []
        client.remoting.register(RequestCode.CHECK_TRANSACTION_STATE, self._check)

    async def _check(self, connection: Connection, command: Command) -> None:
        header = command.decode_header(headers.CheckTransactionStateRequestHeader)
        self.asked.append((trio.current_time(), header, decode_record(command.body)))
        if self.decision is not None:
            await self.client.tell(
                RequestCode.END_TRANSACTION,
                end_header(header.tran_state_table_offset, header.commit_log_offset, self.decision, checked=True),
            )

    async def beat(self, client_id: str = "producer-1") -> None:
        assert (await self.client.beat(client_id, None, producers=["tx"])).code == 0

    @property
    def times(self) -> list[int]:
        """TRANSACTION_CHECK_TIMES of each check, in order."""
        return [int(parse_properties(record.properties)["TRANSACTION_CHECK_TIMES"]) for _, _, record in self.asked]


def end_header(
    offset: int, physical: int, decision: int, *, group: str = "tx", checked: bool = False
) -> headers.EndTransactionRequestHeader:
    return headers.EndTransactionRequestHeader(
        producer_group=group,
        tran_state_table_offset=offset,
        commit_log_offset=physical,
        commit_or_rollback=decision,
        from_transaction_check=checked,
        msg_id="K1",
    )


async def half(client: Client, body: bytes = b"paid", *, more: str = "", **fields: object) -> tuple[int, int]:
    """Send a half message; its (queue offset, physical offset)."""
    properties = f"TRAN_MSG\x01true\x02PGROUP\x01tx\x02UNIQ_KEY\x01K1\x02TAGS\x01A\x02WAIT\x01true{more}"
    answer = await client.send(body, properties=properties, sys_flag=4, **fields)  # type: ignore[arg-type]  # fields of the header
    assert answer.code == 0, answer.remark
    header = answer.decode_header(headers.SendMessageResponseHeader)
    return header.queue_offset, int(header.msg_id[-16:], 16)


async def end(client: Client, place: tuple[int, int], decision: int, **fields: object) -> Command:
    return await client.ask(RequestCode.END_TRANSACTION, end_header(*place, decision, **fields))  # type: ignore[arg-type]  # fields of end_header


@asynccontextmanager
async def producing(running: Running, decision: int | None = UNDECIDED) -> AsyncIterator[Producer]:
    async with running.client() as client:
        yield Producer(client, decision)


async def test_a_half_message_is_out_of_sight_until_it_is_committed(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        await client.create_topic("T", queues=4)
        answer = await client.send(b"x", properties="TRAN_MSG\x01true\x02PGROUP\x01tx", sys_flag=4, queue_id=3)
        header = answer.decode_header(headers.SendMessageResponseHeader)
        assert (header.queue_id, header.queue_offset) == (3, 0)  # the queue it is for, its offset as half message
        assert await client.stored("T", 3) == []
        place = header.queue_offset, int(header.msg_id[-16:], 16)
        assert (await end(client, place, COMMIT)).code == 0
        [message] = await client.stored("T", 3)
        assert (message.body, message.sys_flag, message.prepared_transaction_offset) == (b"x", 8, place[1])
        properties = parse_properties(message.properties)
        assert (properties["REAL_TOPIC"], properties["REAL_QID"], properties["TRAN_MSG"]) == ("T", "3", "true")
        [stored] = await client.stored(HALF)
        assert (stored.sys_flag, stored.body) == (0, b"x")
        [op] = await client.stored(OP)
        assert (op.body, op.tags) == (b"0", "d")


async def test_a_rolled_back_message_is_never_delivered(autojump_clock: MockClock) -> None:
    async with one_broker() as (running, client), producing(running) as producer:
        await producer.beat()
        assert (await end(client, await half(client), ROLLBACK)).code == 0
        await trio.sleep(1000)
        assert await client.stored("T") == []
        assert producer.asked == []
        assert len(await client.stored(OP)) == 1


async def test_what_cannot_end_a_transaction_is_answered_with_its_reason(
    autojump_clock: MockClock,
) -> None:
    async with one_broker() as (_, client):
        offset, physical = await half(client)
        for place, fields, remark in [
            ((offset, physical + 1), {}, "Find prepared transaction message failed"),
            ((offset + 1, physical), {}, "The transaction state table offset wrong"),
            ((offset, physical), {"group": "other"}, "The producer group wrong"),
        ]:
            answer = await end(client, place, COMMIT, **fields)
            assert (answer.code, answer.remark) == (ResponseCode.SYSTEM_ERROR, remark)
        plain = (await client.send()).decode_header(headers.SendMessageResponseHeader)
        answer = await end(client, (0, int(plain.msg_id[-16:], 16)), COMMIT)
        assert answer.remark == "Find prepared transaction message failed"
        assert (await end(client, (offset, physical), COMMIT)).code == 0
        for decision in (COMMIT, ROLLBACK):
            answer = await end(client, (offset, physical), decision)
            assert answer.code == ResponseCode.SYSTEM_ERROR
            assert "has ended already" in (answer.remark or "")
        assert len(await client.stored("T")) == 2


async def test_one_that_does_not_decide_is_not_answered(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        place = await half(client)
        with pytest.raises(Exception, match=r"no answer|time"):
            await client.ask(RequestCode.END_TRANSACTION, end_header(*place, UNDECIDED), seconds=5)


async def test_rejected_where_the_setting_says_so(autojump_clock: MockClock) -> None:
    async with one_broker(reject_transaction_message=True) as (_, client):
        answer = await client.send(properties="TRAN_MSG\x01true\x02PGROUP\x01tx", sys_flag=4)
        assert answer.code == ResponseCode.NO_PERMISSION
        assert "sending transaction message is forbidden" in (answer.remark or "")


async def test_fifteen_checks_then_parked_with_a_line_that_says_whose_it_was(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with one_broker() as (running, client), producing(running) as producer:
        await producer.beat()
        begun = trio.current_time()
        await half(client, more="\x02KEYS\x01order-7", flag=5)
        while len(producer.asked) < 15:
            await trio.sleep(60)
            await producer.beat()
        assert producer.times == list(range(1, 16))
        first, *_, last = [time - begun for time, _, _ in producer.asked]
        assert 6 <= first < 7.1
        assert 6 + 14 * 60 <= last < 6 + 14 * 62
        assert await client.stored(PARKED) == []
        with caplog.at_level(logging.ERROR):
            await trio.sleep(70)
        assert len(producer.asked) == 15
        [message] = await client.stored(PARKED)
        assert (message.body, message.flag) == (b"paid", 5)
        assert parse_properties(message.properties)["TRANSACTION_CHECK_TIMES"] == "15"
        assert await client.stored("T") == []
        assert "K1 of producer group 'tx' to T-0" in caplog.text
        assert "after 15 checks" in caplog.text


async def test_the_check_carries_the_message_and_its_answer_ends_it(autojump_clock: MockClock) -> None:
    async with one_broker() as (running, client), producing(running, COMMIT) as producer:
        await producer.beat()
        await half(client)
        await trio.sleep(8)
        [(_, header, record)] = producer.asked
        assert (header.msg_id, header.transaction_id) == ("K1", "K1")
        assert (record.topic, record.queue_id, record.body) == ("T", 0, b"paid")
        assert (record.queue_offset, record.physical_offset) == (
            header.tran_state_table_offset,
            header.commit_log_offset,
        )
        [message] = await client.stored("T")
        assert message.prepared_transaction_offset == header.commit_log_offset
        await trio.sleep(500)
        assert len(producer.asked) == 1
        assert len(await client.stored("T")) == 1


@pytest.mark.parametrize("restart", [False, True])
async def test_what_is_sent_after_the_clock_was_set_back_is_asked_about_in_its_time(
    restart: bool, autojump_clock: MockClock
) -> None:
    offset, disk = 0, FaultyDisk()
    async with open_world() as world:
        async with broker_in(world, lambda: offset, disk=disk) as running, running.client() as client:
            assert (await client.send()).code == 0
            offset = -3_600_000  # store times stand still for an hour
            if not restart:
                async with producing(running, COMMIT) as producer:
                    await producer.beat()
                    await half(client)
                    await trio.sleep(8)
                    assert len(producer.asked) == 1
                    return
            await half(client)
        disk = disk.survivor_of_kill()
        async with (
            broker_in(world, lambda: offset, disk=disk) as running,
            producing(running, COMMIT) as producer,
        ):
            await producer.beat()
            await trio.sleep(8)
            assert len(producer.asked) == 1


async def test_an_end_that_comes_after_the_check_counts_once(autojump_clock: MockClock) -> None:
    """The producer's own commit names the first record; the check was about its copy.  RocketMQ would deliver twice."""
    async with one_broker() as (running, client), producing(running, UNDECIDED) as producer:
        await producer.beat()
        place = await half(client)
        await trio.sleep(8)
        assert len(producer.asked) == 1
        assert (await end(client, place, COMMIT)).code == 0
        producer.decision = COMMIT
        await trio.sleep(200)
        assert len(producer.asked) == 1
        assert len(await client.stored("T")) == 1


async def test_late_answers_to_two_checks_count_once(autojump_clock: MockClock) -> None:
    async with one_broker() as (running, client), producing(running, None) as producer:
        await producer.beat()
        await half(client)
        await trio.sleep(70)
        await producer.beat()
        assert producer.times == [1, 2]
        for _, header, _ in producer.asked:
            place = header.tran_state_table_offset, header.commit_log_offset
            await end(client, place, COMMIT, checked=True)
        assert len(await client.stored("T")) == 1


async def test_another_producer_of_the_group_is_asked(autojump_clock: MockClock) -> None:
    async with one_broker() as (running, client):
        async with producing(running) as first:
            await first.beat()
            await half(first.client)
        async with producing(running, COMMIT) as second:
            await second.beat("producer-2")
            await trio.sleep(8)
            assert len(second.asked) == 1
            assert len(await client.stored("T")) == 1


async def test_without_a_producer_no_check_is_counted_and_the_next_one_is_asked_at_once(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with one_broker() as (running, client):
        await half(client)
        await trio.sleep(3 * 3600)
        assert await client.stored(PARKED) == []
        assert caplog.text.count("no connected producer to ask") == 1
        async with producing(running, COMMIT) as producer:
            await producer.beat()
            await trio.sleep(0.5)
            assert producer.times == [1]
            assert len(await client.stored("T")) == 1


async def test_immunity_of_one_message_counts_from_its_store_time(autojump_clock: MockClock) -> None:
    async with one_broker() as (running, client), producing(running) as producer:
        await producer.beat()
        begun = trio.current_time()
        born = running.world.wall_ms() - 3_600_000  # the client's clock is slow
        await half(client, more="\x02CHECK_IMMUNITY_TIME_IN_SECONDS\x01100", born_timestamp=born)
        await half(client, more="\x02CHECK_IMMUNITY_TIME_IN_SECONDS\x011")
        await trio.sleep(50)
        assert [1 <= time - begun <= 3 for time, _, _ in producer.asked] == [True]
        await producer.beat()
        await trio.sleep(60)
        assert round(producer.asked[-1][0] - begun) == 100


async def test_an_end_after_the_immunity_is_left_to_the_check(autojump_clock: MockClock) -> None:
    async with one_broker(transaction_time_out=1000) as (_, client):
        place = await half(client, more="\x02CHECK_IMMUNITY_TIME_IN_SECONDS\x0110")
        await trio.sleep(11)
        assert (await end(client, place, COMMIT)).code == ResponseCode.ILLEGAL_OPERATION
        assert await client.stored("T") == []


async def test_a_restart_goes_on_where_it_was(autojump_clock: MockClock) -> None:
    disk = FaultyDisk()
    async with open_world() as world:
        async with broker_in(world, disk=disk) as running, running.client() as client:
            ended = [await half(client, b"a"), await half(client, b"b")]
            await half(client, b"open")
            await end(client, ended[0], COMMIT)
            await end(client, ended[1], ROLLBACK)
            await trio.sleep(10)  # progress is saved
        async with (
            broker_in(world, disk=disk) as running,
            running.client() as client,
            producing(running, COMMIT) as producer,
        ):
            await producer.beat()
            await trio.sleep(20)
            assert [record.body for _, _, record in producer.asked] == [b"open"]
            await producer.beat()
            assert [message.body for message in await client.stored("T")] == [b"a", b"open"]
            await trio.sleep(100)
            assert len(producer.asked) == 1


class Steps(trio.abc.Instrument):
    """Counts the steps of the task that asks back."""

    def __init__(self) -> None:
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += "Transactions" in task.name


async def test_nothing_wakes_while_nothing_is_open(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        await end(client, await half(client), COMMIT)
        await trio.sleep(100)
        steps = Steps()
        trio.lowlevel.add_instrument(steps)
        for _ in range(100):
            await client.send()
        await trio.sleep(3600)
        trio.lowlevel.remove_instrument(steps)
        assert steps.count == 0
