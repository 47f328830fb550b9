"""Pulls: every answer of RocketMQ's table, tag filters, committed offsets, and pulls that are held."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.broker.running import Client, one_broker, pull_header, send_header
from trio_rmq.broker.long_polling import HeldPulls
from trio_rmq.remoting.handlers import Flush, GiveUp
from trio_rmq.store import reading
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.wire import headers
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.groups import SubscriptionGroupConfig, encode_group_config
from trio_rmq.wire.record import decode_records
from trio_rmq.wire.sysflag import PULL_COMMIT_OFFSET, PULL_SUBSCRIPTION, PULL_SUSPEND

pytestmark = pytest.mark.trio

HELD = PULL_SUBSCRIPTION | PULL_SUSPEND


def offsets(answer: Command) -> tuple[int, int, int]:
    """(next, min, max) of a pull's answer."""
    fields = answer.ext_fields()
    assert fields["suggestWhichBrokerId"] == "0"
    return int(fields["nextBeginOffset"]), int(fields["minOffset"]), int(fields["maxOffset"])


async def with_group(client: Client, **settings: object) -> None:
    values: dict[str, object] = {"group_name": "cg", **settings}
    group = SubscriptionGroupConfig(**values)  # type: ignore[arg-type]  # the values are those of the fields
    answer = await client.ask(RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, body=encode_group_config(group))
    assert answer.code == 0


# -- what is there ------------------------------------------------------------------------------------------------


async def test_each_place_of_a_queue_has_its_code_and_offsets(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        await client.create_topic("T", 2)
        for offset, code in ((0, ResponseCode.PULL_NOT_FOUND), (5, ResponseCode.PULL_OFFSET_MOVED)):
            answer = await client.pull(queue_offset=offset)
            assert (answer.code, *offsets(answer)) == (code, 0, 0, 0)
        for n in range(3):
            await client.send(b"%d" % n)
        answer = await client.pull()
        assert (answer.code, *offsets(answer)) == (ResponseCode.SUCCESS, 3, 0, 3)
        assert [m.body for m in decode_records(answer.body)] == [b"0", b"1", b"2"]
        answer = await client.pull(queue_offset=1, max_msg_nums=1)
        assert (answer.code, *offsets(answer)) == (ResponseCode.SUCCESS, 2, 0, 3)
        answer = await client.pull(queue_offset=3)
        assert (answer.code, *offsets(answer)) == (ResponseCode.PULL_NOT_FOUND, 3, 0, 3)
        answer = await client.pull(queue_offset=4)
        assert (answer.code, *offsets(answer)) == (ResponseCode.PULL_OFFSET_MOVED, 3, 0, 3)
        answer = await client.pull(queue_offset=-1)
        assert (answer.code, *offsets(answer)) == (ResponseCode.PULL_OFFSET_MOVED, 0, 0, 3)
        answer = await client.pull(queue_id=1)
        assert (answer.code, *offsets(answer)) == (ResponseCode.PULL_NOT_FOUND, 0, 0, 0)
        lite = await client.ask(RequestCode.LITE_PULL_MESSAGE, pull_header())
        assert (lite.code, *offsets(lite)) == (ResponseCode.SUCCESS, 3, 0, 3)


async def test_tags_filter_and_what_does_not_match_is_passed_over(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        await client.create_topic()
        for tag in ("a", "b", "a", "c"):
            await client.send(tag.encode(), properties=f"TAGS\x01{tag}")
        await client.send(b"none", properties=None)
        answer = await client.pull(subscription="a || c")
        assert [m.body for m in decode_records(answer.body)] == [b"a", b"a", b"c"]
        answer = await client.pull(subscription="zz")
        assert (answer.code, *offsets(answer)) == (ResponseCode.PULL_RETRY_IMMEDIATELY, 5, 0, 5)
        answer = await client.pull(subscription=" || ")  # names no tag, so no message has one of them
        assert (answer.code, *offsets(answer)) == (ResponseCode.PULL_RETRY_IMMEDIATELY, 5, 0, 5)


# -- refusals -----------------------------------------------------------------------------------------------------


async def test_refusals_have_rocketmqs_codes(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        assert (await client.pull("Nowhere")).code == ResponseCode.TOPIC_NOT_EXIST
        await client.create_topic("T", 2)
        for queue_id in (-1, 2):
            answer = await client.pull(queue_id=queue_id)
            assert answer.code == ResponseCode.SYSTEM_ERROR
            assert f"queueId[{queue_id}] is illegal, topic:[T] topicConfig.readQueueNums:[2]" in (answer.remark or "")
        await client.create_topic("WriteOnly", 1, 2)
        assert (await client.pull("WriteOnly")).code == ResponseCode.NO_PERMISSION
        assert (await client.pull(subscription="||")).code == ResponseCode.SUBSCRIPTION_PARSE_FAILED
        assert (await client.pull(consumer_group="bad group!")).code == ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST
        await with_group(client, consume_enable=False)
        answer = await client.pull()
        assert (answer.code, answer.remark) == (
            ResponseCode.NO_PERMISSION,
            "subscription group no permission, cg",
        )


async def test_an_unknown_group_is_26_where_groups_are_not_made(autojump_clock: MockClock) -> None:
    async with one_broker(auto_create_subscription_group=False) as (_, client):
        await client.create_topic()
        assert (await client.pull()).code == ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST


async def test_a_broker_that_may_not_be_read_refuses(autojump_clock: MockClock) -> None:
    async with one_broker(broker_permission=2) as (_, client):
        await client.create_topic()
        assert (await client.pull()).code == ResponseCode.NO_PERMISSION


async def test_without_a_filter_in_the_request_the_heartbeats_counts(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        await client.create_topic()
        await client.create_topic("Other")
        await client.send(b"a", properties="TAGS\x01a")
        await client.send(b"b", properties="TAGS\x01b")
        plain: dict[str, Any] = {"sys_flag": 0, "subscription": None}
        answer = await client.pull(**plain)
        assert (answer.code, answer.remark) == (
            ResponseCode.SUBSCRIPTION_NOT_EXIST,
            "the consumer's group info not exist",
        )
        assert (await client.beat("c1", topics={"T": "b"}, version=5)).code == 0
        answer = await client.pull(**plain, sub_version=5)
        assert [m.body for m in decode_records(answer.body)] == [b"b"]
        answer = await client.pull("Other", **plain)
        assert (answer.code, answer.remark) == (
            ResponseCode.SUBSCRIPTION_NOT_EXIST,
            "the consumer's subscription not exist",
        )
        answer = await client.pull(**plain, sub_version=6)
        assert answer.code == ResponseCode.SUBSCRIPTION_NOT_LATEST


async def test_a_group_that_may_not_broadcast_is_refused(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        await client.create_topic()
        await with_group(client, consume_broadcast_enable=False)
        await client.beat("c1", message_model="BROADCASTING")
        answer = await client.pull(sys_flag=0, subscription=None)
        assert answer.code == ResponseCode.NO_PERMISSION


# -- committed offsets --------------------------------------------------------------------------------------------


async def committed(client: Client) -> Command:
    header = headers.QueryConsumerOffsetRequestHeader(consumer_group="cg", topic="T", queue_id=0)
    return await client.ask(RequestCode.QUERY_CONSUMER_OFFSET, header)


async def test_a_pull_commits_when_its_flag_says_so(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        await client.create_topic()
        for _n in range(5):
            await client.send()
        await client.pull(commit_offset=4)
        assert (await committed(client)).ext_fields()["offset"] == "0"
        await client.pull(commit_offset=3, sys_flag=PULL_SUBSCRIPTION | PULL_COMMIT_OFFSET)
        assert (await committed(client)).ext_fields()["offset"] == "3"


async def test_a_held_pull_commits_on_arrival_and_not_again(autojump_clock: MockClock) -> None:
    async with one_broker() as (running, client):
        await client.create_topic()
        async with running.client() as other, trio.open_nursery() as nursery:
            flags = HELD | PULL_COMMIT_OFFSET
            nursery.start_soon(lambda: other.pull(sys_flag=flags, commit_offset=7, suspend_timeout_millis=5000))
            await trio.sleep(1)
            assert (await committed(client)).ext_fields()["offset"] == "7"
            header = headers.UpdateConsumerOffsetRequestHeader(
                consumer_group="cg", topic="T", queue_id=0, commit_offset=9
            )
            await client.ask(RequestCode.UPDATE_CONSUMER_OFFSET, header)
        assert (await committed(client)).ext_fields()["offset"] == "9"


# -- held pulls ---------------------------------------------------------------------------------------------------


async def test_a_held_pull_is_woken_by_an_arrival(autojump_clock: MockClock) -> None:
    async with one_broker() as (running, client):
        await client.create_topic("T", 2)
        async with running.client() as other, trio.open_nursery() as nursery:

            async def pull() -> None:
                start = trio.current_time()
                answer = await other.pull(sys_flag=HELD)
                assert (answer.code, *offsets(answer)) == (ResponseCode.SUCCESS, 1, 0, 1)
                assert 3.0 <= trio.current_time() - start < 3.5

            nursery.start_soon(pull)
            await trio.sleep(2)
            await client.send(queue_id=1)
            await trio.sleep(1)
            await client.send(queue_id=0)


async def test_a_held_pull_waits_for_its_tag(autojump_clock: MockClock) -> None:
    async with one_broker() as (running, client):
        await client.create_topic()
        async with running.client() as other, trio.open_nursery() as nursery:

            async def pull() -> None:
                start = trio.current_time()
                answer = await other.pull(sys_flag=HELD, subscription="b")
                assert [m.body for m in decode_records(answer.body)] == [b"b"]
                assert 2.0 <= trio.current_time() - start < 2.5

            nursery.start_soon(pull)
            await trio.sleep(1)
            await client.send(b"a", properties="TAGS\x01a")
            await trio.sleep(1)
            await client.send(b"b", properties="TAGS\x01b")


async def test_a_held_pull_ends_with_its_time(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        await client.create_topic()
        start = trio.current_time()
        answer = await client.pull(sys_flag=HELD, suspend_timeout_millis=15_000)
        assert (answer.code, *offsets(answer)) == (ResponseCode.PULL_NOT_FOUND, 0, 0, 0)
        assert 15.0 <= trio.current_time() - start < 15.5
        start = trio.current_time()
        await client.pull(sys_flag=HELD, suspend_timeout_millis=10**9)
        assert 60.0 <= trio.current_time() - start < 60.5  # well inside a connection's idle time


async def test_without_long_polling_a_pull_waits_a_second(autojump_clock: MockClock) -> None:
    async with one_broker(long_polling_enable=False) as (_, client):
        await client.create_topic()
        start = trio.current_time()
        assert (await client.pull(sys_flag=HELD)).code == ResponseCode.PULL_NOT_FOUND
        assert 1.0 <= trio.current_time() - start < 1.5


async def test_messages_that_a_held_pulls_filter_leaves_out_are_passed_over_at_its_end(
    autojump_clock: MockClock,
) -> None:
    async with one_broker() as (running, client):
        await client.create_topic()
        async with running.client() as other, trio.open_nursery() as nursery:

            async def pull() -> None:
                answer = await other.pull(sys_flag=HELD, subscription="b")
                assert (answer.code, *offsets(answer)) == (ResponseCode.PULL_RETRY_IMMEDIATELY, 1, 0, 1)

            nursery.start_soon(pull)
            await trio.sleep(1)
            await client.send(b"a", properties="TAGS\x01a")


async def test_a_held_pull_learns_that_its_topic_is_gone(autojump_clock: MockClock) -> None:
    async with one_broker() as (running, client):
        await client.create_topic()
        async with running.client() as other, trio.open_nursery() as nursery:

            async def pull() -> None:
                start = trio.current_time()
                assert (await other.pull(sys_flag=HELD)).code == ResponseCode.TOPIC_NOT_EXIST
                assert trio.current_time() - start < 1.5

            nursery.start_soon(pull)
            await trio.sleep(1)
            header = headers.DeleteTopicRequestHeader(topic="T")
            assert (await client.ask(RequestCode.DELETE_TOPIC_IN_BROKER, header)).code == 0


async def held(client: Client) -> str:
    answer = await client.ask(RequestCode.GET_BROKER_RUNTIME_INFO)
    return answer.body.decode().partition('"pullThreadPoolQueueSize":"')[2].partition('"')[0]


async def test_a_closed_connection_lets_go_of_its_pulls(autojump_clock: MockClock) -> None:
    async with one_broker() as (running, client):
        await client.create_topic()
        async with running.client() as other:
            with trio.move_on_after(1):
                await other.pull(sys_flag=HELD)
            assert await held(client) == "1"
        await trio.sleep(1)
        assert await held(client) == "0"


async def test_one_connection_holds_a_pull_for_each_of_many_queues(autojump_clock: MockClock) -> None:
    async with one_broker() as (running, client):
        await client.create_topic("T", 50)
        async with running.client() as other, trio.open_nursery() as nursery:

            async def pull() -> None:
                pulls = [Command(RequestCode.PULL_MESSAGE, pull_header(queue_id=n, sys_flag=HELD)) for n in range(50)]
                assert [answer.code for answer in await other.ask_many(pulls)] == [0] * 50

            nursery.start_soon(pull)
            await trio.sleep(1)
            assert await held(client) == "50"
            await client.ask_many([Command(RequestCode.SEND_MESSAGE_V2, send_header(queue_id=n)) for n in range(50)])


async def test_under_sync_flush_a_held_pull_sees_only_what_is_synced(autojump_clock: MockClock) -> None:
    async with one_broker(store={"flush_disk_type": "SYNC_FLUSH"}) as (running, client):
        await client.create_topic()
        async with running.client() as other, trio.open_nursery() as nursery:

            async def pull() -> None:
                start = trio.current_time()
                assert (await other.pull(sys_flag=HELD)).code == 0
                assert trio.current_time() - start >= 4.0

            nursery.start_soon(pull)
            await trio.sleep(1)
            running.disk.latency = lambda: 3.0
            await client.send()
            running.disk.latency = None


# -- HeldPulls by itself ------------------------------------------------------------------------------------------


class Pulls:
    """HeldPulls with its service, and what became of the pulls."""

    def __init__(self, *, held_max: int = 100) -> None:
        self.held = HeldPulls(held_max=held_max)
        self.woken: list[tuple[object, bool, float]] = []
        self.flushed: list[tuple[object, ...]] = []

    def hold(self, name: object, tags: frozenset[int] | None, seconds: float, *, arrived: bool = False) -> GiveUp:
        def wake(arrived: bool) -> Flush:
            self.woken.append((name, arrived, trio.current_time()))
            return self._flush

        return self.held.hold("T", 0, tags, trio.current_time() + seconds, wake, arrived=arrived)

    def _flush(self) -> None:
        self.flushed.append(tuple(name for name, _, _ in self.woken))


async def test_held_pulls_are_bounded_and_woken_by_what_their_filter_takes_or_at_their_end(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    pulls = Pulls(held_max=2)
    nursery.start_soon(pulls.held.run)
    start = trio.current_time()
    pulls.hold("all", None, 10)
    pulls.hold("seven", frozenset({7}), 5)
    assert pulls.held.full
    pulls.held.arrived("T", 1, 1, 7)
    pulls.held.arrived("U", 0, 1, 7)
    pulls.held.arrived("T", 0, 1, 6)
    pulls.held.arrived("T", 0, 2, 6)
    await trio.sleep(20)
    assert pulls.woken == [("all", True, start), ("seven", False, start + 5)]
    assert pulls.held.held == 0
    assert not pulls.held.awaited


async def test_pulls_woken_together_leave_together(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    pulls = Pulls()
    nursery.start_soon(pulls.held.run)
    for number in range(3):
        pulls.hold(number, None, 10)
    pulls.hold("came before", None, 10, arrived=True)
    pulls.held.arrived("T", 0, 1, 6)
    await trio.testing.wait_all_tasks_blocked()
    assert [name for name, arrived, _ in pulls.woken if arrived] == ["came before", 0, 1, 2]
    assert pulls.flushed == [("came before", 0, 1, 2)]


async def test_a_pull_given_up_is_never_woken(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    pulls = Pulls()
    nursery.start_soon(pulls.held.run)
    give_up = [pulls.hold(number, None, number) for number in range(3)]
    for call in (give_up[1], give_up[1]):
        call()
    assert pulls.held.held == 2
    pulls.held.arrived("T", 0, 1, 6)
    give_up[2]()  # woken, and not answered yet
    await trio.sleep(20)
    give_up[0]()
    assert [name for name, _, _ in pulls.woken] == [0]
    assert pulls.held.held == 0


async def test_a_nearer_end_is_kept_and_many_ended_pulls_take_no_room(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    pulls = Pulls()
    nursery.start_soon(pulls.held.run)
    start = trio.current_time()
    pulls.hold("far", frozenset({9}), 1000)
    await trio.testing.wait_all_tasks_blocked()
    pulls.hold("near", frozenset({9}), 1)
    for number in range(5000):
        pulls.hold(number, frozenset({7}), 500)
        pulls.held.arrived("T", 0, number, 7)
        await trio.testing.wait_all_tasks_blocked()
    assert len(pulls.held._times) < 3000
    await trio.sleep(2000)
    assert pulls.woken[5000:] == [("near", False, start + 1), ("far", False, start + 1000)]
    assert not pulls.held._times


async def test_a_cold_read_stalls_nobody(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "RECENT_BYTES", 0)
    disk = FaultyDisk()
    async with one_broker(disk=disk) as (running, client):
        await client.create_topic("T", 2)
        await with_group(client)
        await client.send(b"old")
        log = next(path for path in (line.partition(" ")[2] for line in disk.trace) if "/commitlog/" in path)
        disk.cold.add(log)
        answers: list[tuple[float, Command]] = []

        async def pull_cold() -> None:
            answer = await client.pull(sys_flag=PULL_SUBSCRIPTION | PULL_COMMIT_OFFSET, commit_offset=0)
            answers.append((trio.current_time() - begun, answer))

        async with running.client() as other, trio.open_nursery() as nursery:
            begun = trio.current_time()
            disk.latency = lambda: 3.0
            nursery.start_soon(pull_cold)
            await trio.sleep(1)
            assert not answers
            assert (await other.pull(queue_id=1)).code == ResponseCode.PULL_NOT_FOUND
            assert trio.current_time() - begun < 1.5
        ((seconds, answer),) = answers
        assert 3.0 <= seconds < 3.5
        assert [message.body for message in decode_records(answer.body)] == [b"old"]
        assert (answer.code, *offsets(answer)) == (ResponseCode.SUCCESS, 1, 0, 1)
