"""What brokers ask of a push consumer, on {trio, asyncio} x {tcp, websocket}, asked by a scripted broker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import anyio
import anyio.to_thread
import pytest

from tests.client.scripted_broker import HOST, NAME, ScriptedServer, scripted_queue, scripted_server
from tests.client.test_push_consumer import LIMIT_SECONDS, Crowd, Heard, at_broker
from trio_rmq.client import ConsumeResult, PushConsumer, ReceivedMessage
from trio_rmq.wire import headers
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.groups import MessageQueue
from trio_rmq.wire.record import encode_record, encode_topic
from trio_rmq.wire.running import (
    ConsumeMessageDirectlyResult,
    ConsumerRunningInfo,
    decode_directly_result,
    decode_running_info,
)
from trio_rmq.wire.stats import ResetOffsetBody, decode_consumer_status, encode_reset_offset

pytestmark = pytest.mark.anyio


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as running:
        yield running


@pytest.fixture
def names(server: ScriptedServer, scheme: str) -> str:
    return scheme + server.name_server


async def ask(server: ScriptedServer, command: Command) -> Command:
    return await anyio.to_thread.run_sync(server.ask, command)


def reset(server: ScriptedServer, offsets: dict[MessageQueue, int], *, group: str = "g") -> None:
    body = encode_reset_offset(ResetOffsetBody(offset_table=offsets))
    server.call(lambda: server.broker.reset(offsets, body, group=group))


async def test_a_notice_brings_a_rebalance(server: ScriptedServer, names: str) -> None:
    server.broker.queue_counts["T"] = 4
    async with PushConsumer("g", name_servers=names) as consumer:
        await consumer.subscribe("T", Heard())
        with anyio.fail_after(LIMIT_SECONDS):
            await consumer.wait_queues(lambda queues: len(queues) == 5)

            def join() -> None:
                server.broker.others = ["~"]
                server.broker.notify()

            server.call(join)
            await consumer.wait_queues(lambda queues: len(queues) == 3)


@pytest.mark.parametrize("orderly", [False, True], ids=["concurrent", "orderly"])
async def test_a_reset_begins_the_queue_anew_and_forgets_what_was_unfinished(
    server: ScriptedServer, names: str, orderly: bool
) -> None:
    server.append("T", *[b"%d" % number for number in range(5)])
    place = scripted_queue("T")
    server.broker.offsets[place] = 4
    heard = Heard()
    async with PushConsumer("g", name_servers=names, orderly=orderly, concurrency=1) as consumer:
        await consumer.subscribe("T", heard)
        await heard.wait(1)
        reset(server, {place: 0}, group="another")
        reset(server, {scripted_queue("U"): 0})
        reset(server, {place: 2})
        await heard.wait(4)
        reset(server, {place: 5})
        await at_broker(server, lambda: (place, 5) in server.broker.commits)
        server.append("T", b"5")
        await heard.wait(5)
    assert heard.bodies == [b"4", b"2", b"3", b"4", b"5"]
    assert server.broker.offsets[place] == 6


async def test_what_ran_during_a_reset_is_not_committed_over_it(server: ScriptedServer, names: str) -> None:
    server.append("T", *[b"%d" % number for number in range(5)])
    place = scripted_queue("T")
    crowd, again = Crowd(1), Heard()
    calls = 0

    async def listen(messages: Sequence[ReceivedMessage]) -> None:
        nonlocal calls
        calls += 1
        await (crowd if calls == 1 else again)(messages)

    async with PushConsumer("g", name_servers=names, batch_size=5) as consumer:
        await consumer.subscribe("T", listen)
        with anyio.fail_after(LIMIT_SECONDS):
            await crowd.full.wait()
        reset(server, {place: 3})
        await again.wait(2)
        crowd.release.set()
    assert again.bodies == [b"3", b"4"]
    assert server.broker.offsets[place] == 5


async def test_status_tells_the_offsets_of_its_queues(server: ScriptedServer, names: str) -> None:
    server.append("T", b"a", b"b")
    heard = Heard()
    async with PushConsumer("g", name_servers=names) as consumer:
        await consumer.subscribe("T", heard)
        await heard.wait(2)
        code = RequestCode.GET_CONSUMER_STATUS_FROM_CLIENT
        answer = await ask(server, Command(code, header=headers.GetConsumerStatusRequestHeader(topic="T", group="g")))
        assert decode_consumer_status(answer.body).message_queue_table == {scripted_queue("T"): 2}
        other = await ask(server, Command(code, header=headers.GetConsumerStatusRequestHeader(topic="T", group="h")))
        assert decode_consumer_status(other.body).message_queue_table == {}


async def test_calls_before_one_that_failed_are_counted_with_it(server: ScriptedServer, names: str) -> None:
    server.append("T", b"a", b"b", b"c")
    heard = Heard(None, None, ConsumeResult.RECONSUME_LATER)
    async with PushConsumer("g", name_servers=names, concurrency=1) as consumer:
        await consumer.subscribe("T", heard)
        await heard.wait(3)
    counts = consumer._figures.of("T", 0.0).counts
    assert (counts.calls, counts.consumed, counts.failed) == (3, 2, 1)


@pytest.mark.parametrize("orderly", [False, True], ids=["concurrent", "orderly"])
async def test_running_info_tells_settings_queues_and_figures(
    server: ScriptedServer, names: str, orderly: bool
) -> None:
    server.append("T", b"a", b"b", b"c")
    crowd = Crowd(1)

    async def listen(messages: Sequence[ReceivedMessage]) -> ConsumeResult | None:
        if messages[0].body == b"b":
            await crowd(messages)
        return None

    code = RequestCode.GET_CONSUMER_RUNNING_INFO
    async with PushConsumer("g", name_servers=names, orderly=orderly, concurrency=1) as consumer:
        await consumer.subscribe("T", listen, expression="red || blue || *")
        await consumer.subscribe("T", listen)
        with anyio.fail_after(LIMIT_SECONDS):
            await crowd.full.wait()
        header = headers.GetConsumerRunningInfoRequestHeader(
            consumer_group="g", client_id=consumer.client_id, jstack_enable=True
        )
        info: ConsumerRunningInfo = decode_running_info((await ask(server, Command(code, header=header))).body)
        header.consumer_group = "another"
        refused = await ask(server, Command(code, header=header))
        header.consumer_group, header.jstack_enable = "g", False
        assert decode_running_info((await ask(server, Command(code, header=header))).body).jstack is None
        crowd.release.set()
    assert (refused.code, refused.remark) == (
        ResponseCode.SYSTEM_ERROR, "The Consumer Group <another> not exist in this consumer",
    )  # fmt: skip
    assert info.properties["PROP_CONSUMEORDERLY"] == ("true" if orderly else "false")
    assert info.properties["PROP_CONSUME_TYPE"] == "CONSUME_PASSIVELY"
    assert info.properties["PROP_NAMESERVER_ADDR"] == names + ";"
    assert info.properties["PROP_CLIENT_VERSION"] == "V4_9_8"
    assert int(info.properties["PROP_CONSUMER_START_TIMESTAMP"]) > 0
    assert [data.topic for data in info.subscription_set] == ["%RETRY%g", "T"]
    queue = info.mq_table[scripted_queue("T")]
    assert (queue.commit_offset, queue.cached_msg_count) == (1, 2)
    assert (queue.cached_msg_min_offset, queue.cached_msg_max_offset) == (1, 2)
    assert (queue.locked, queue.droped) == (orderly, False)
    assert (queue.transaction_msg_count, queue.transaction_msg_min_offset) == ((1, 1) if orderly else (0, 0))
    assert queue.last_pull_timestamp >= queue.last_lock_timestamp > 0
    assert info.status_table["T"].consume_ok_tps == 1
    assert info.status_table["T"].pull_tps == 3
    assert info.jstack is not None
    assert "of T at scripted 0:1" in info.jstack


@pytest.mark.parametrize("orderly", [False, True], ids=["concurrent", "orderly"])
async def test_a_message_given_directly_is_consumed_and_the_result_told(
    server: ScriptedServer, names: str, orderly: bool
) -> None:
    server.broker.queue_counts["T"] = 1
    heard = Heard(None, ConsumeResult.RECONSUME_LATER, ValueError("bad message"))

    async def give(topic: str, group: str = "g") -> Command:
        record = encode_record(encode_topic(topic)[0], 3, 7, 70, 1, HOST, b"direct", b"", 0, 0, 1, HOST)
        header = headers.ConsumeMessageDirectlyResultRequestHeader(consumer_group=group, broker_name=NAME)
        return await ask(server, Command(RequestCode.CONSUME_MESSAGE_DIRECTLY, header=header, body=record))

    async def result(topic: str) -> ConsumeMessageDirectlyResult:
        return decode_directly_result((await give(topic)).body)

    async with PushConsumer("g", name_servers=names, orderly=orderly) as consumer:
        await consumer.subscribe("T", heard)
        first = await result("T")
        assert (first.consume_result, first.order, first.auto_commit) == ("CR_SUCCESS", orderly, True)
        assert (await result("T")).consume_result == "CR_LATER"
        failed = await result("T")
        assert (failed.consume_result, failed.remark) == ("CR_THROW_EXCEPTION", "ValueError: bad message")
        missing = await result("U")
        assert (missing.consume_result, missing.remark) == ("CR_THROW_EXCEPTION", "there is no listener for U")
        assert (await give("T", "another")).code == ResponseCode.SYSTEM_ERROR
    assert heard.bodies == [b"direct"] * 3
    assert server.broker.given_back == []
