"""Requests of tools that the broker passes on to connected consumers, and resets of offsets."""

from __future__ import annotations

import json

import pytest
import trio
from trio.testing import MockClock

from tests.broker.running import BROKER_NAME, Client, one_broker
from tests.broker.test_progress import commit, fill
from trio_rmq.remoting.connection import Connection
from trio_rmq.wire import headers
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.consumer_stats import decode_producer_table
from trio_rmq.wire.groups import MessageQueue
from trio_rmq.wire.ids import encode_offset_id, pack_host
from trio_rmq.wire.record import decode_record
from trio_rmq.wire.stats import (
    GetConsumerStatusBody,
    decode_consumer_status,
    decode_reset_offset,
    encode_consumer_status,
)

pytestmark = pytest.mark.trio

QUEUE = MessageQueue(topic="T", broker_name=BROKER_NAME, queue_id=0)


async def reset(client: Client, timestamp: int, **fields: object) -> Command:
    values: dict[str, object] = {"group": "cg", "topic": "T", "timestamp": timestamp, **fields}
    header = headers.ResetOffsetRequestHeader(**values)  # type: ignore[arg-type]  # fields of the header
    return await client.ask(RequestCode.INVOKE_BROKER_TO_RESET_OFFSET, header)


async def committed(client: Client, queue_id: int = 0) -> int:
    header = headers.QueryConsumerOffsetRequestHeader(consumer_group="cg", topic="T", queue_id=queue_id)
    answer = await client.ask(RequestCode.QUERY_CONSUMER_OFFSET, header)
    return answer.decode_header(headers.QueryConsumerOffsetResponseHeader).offset


def listen(client: Client) -> list[Command]:
    """What the client is told by 220, in order."""
    told: list[Command] = []

    async def note(connection: Connection, command: Command) -> None:
        told.append(command)

    client.remoting.register(RequestCode.RESET_CONSUMER_CLIENT_OFFSET, note)
    return told


async def test_every_member_is_told_where_to_go_on(autojump_clock: MockClock) -> None:
    async with one_broker() as (running, tool), running.client() as one, running.client() as two:
        await tool.create_topic()
        await fill(tool, 3)
        await trio.sleep(60)
        middle = running.world.wall_ms()
        await fill(tool, 4)
        told = [listen(one), listen(two)]
        await one.beat("c1")
        await two.beat("c2")
        assert (await reset(tool, middle)).code == ResponseCode.SYSTEM_ERROR, "the group has no offset yet"
        await commit(tool, "cg", 7)
        answer = await reset(tool, middle)
        assert decode_reset_offset(answer.body).offset_table == {QUEUE: 3}
        await trio.sleep(1)
        for commands in told:
            (command,) = commands
            assert command.is_oneway
            assert command.ext_fields()["group"] == "cg"
            assert decode_reset_offset(command.body).offset_table == {QUEUE: 3}
        assert await committed(tool) == 7, "the members commit it when they have let go of the queue"


async def test_only_force_goes_forward(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        await client.create_topic()
        await fill(client, 5)
        await client.beat("c1")
        await commit(client, "cg", 2)
        assert decode_reset_offset((await reset(client, -1)).body).offset_table == {QUEUE: 2}
        assert decode_reset_offset((await reset(client, -1, is_force=True)).body).offset_table == {QUEUE: 5}
        assert decode_reset_offset((await reset(client, 0)).body).offset_table == {QUEUE: 0}


async def test_nobody_online_is_206_and_an_unknown_topic_1(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        await client.create_topic()
        await fill(client, 5)
        await commit(client, "cg", 2)
        answer = await reset(client, 0)
        assert answer.code == ResponseCode.CONSUMER_NOT_ONLINE
        assert answer.remark == "Consumer not online, so can not reset offset, Group: cg Topic: T Timestamp: 0"
        assert (await reset(client, 0, topic="Nowhere")).code == ResponseCode.SYSTEM_ERROR


async def test_one_queue_or_an_offset_is_set_at_once_also_offline(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        await client.create_topic("T", 2)
        await fill(client, 5)
        await fill(client, 5, queue_id=1)
        assert (await reset(client, 0, queue_id=0, offset=3)).code == 0
        assert (await committed(client), await committed(client, 1)) == (3, 0)
        assert (await reset(client, -1, queue_id=1)).code == 0
        assert (await committed(client), await committed(client, 1)) == (3, 5)
        refused = await reset(client, 0, queue_id=0, offset=6)
        assert (refused.code, refused.remark) == (
            ResponseCode.SYSTEM_ERROR,
            "offset 6 of queue 0 must be from 0 to 5",
        )
        assert (await reset(client, 0, queue_id=2)).code == ResponseCode.SYSTEM_ERROR
        told = listen(client)
        await client.beat("c1")
        assert (await reset(client, 0, queue_id=0, offset=1)).code == 0
        await trio.sleep(1)
        assert decode_reset_offset(told[0].body).offset_table == {QUEUE: 1}


async def test_a_c_plus_plus_member_gets_a_list(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        await client.create_topic()
        await fill(client, 2)
        told = listen(client)
        await client.beat("c1")
        await commit(client, "cg", 2)
        header = headers.ResetOffsetRequestHeader(group="cg", topic="T", timestamp=0)
        command = Command(RequestCode.INVOKE_BROKER_TO_RESET_OFFSET, header, language="CPP")
        assert (await client.remoting.request(client.address, command, 10)).code == 0
        await trio.sleep(1)
        assert json.loads(told[0].body) == {
            "offsetTable": [{"brokerName": BROKER_NAME, "offset": 0, "queueId": 0, "topic": "T"}]
        }


async def test_the_status_of_members_is_what_they_say(autojump_clock: MockClock) -> None:
    async with one_broker() as (running, tool), running.client() as one, running.client() as two:

        async def tell(connection: Connection, command: Command) -> Command:
            assert command.ext_fields() == {"topic": "T", "group": "cg"}
            return command.reply(body=encode_consumer_status(GetConsumerStatusBody(message_queue_table={QUEUE: 7})))

        async def hang(connection: Connection, command: Command) -> Command:
            await trio.sleep_forever()
            raise AssertionError

        one.remoting.register(RequestCode.GET_CONSUMER_STATUS_FROM_CLIENT, tell)
        two.remoting.register(RequestCode.GET_CONSUMER_STATUS_FROM_CLIENT, hang)
        header = headers.GetConsumerStatusRequestHeader(topic="T", group="cg")
        code = RequestCode.INVOKE_BROKER_TO_GET_CONSUMER_STATUS
        assert (await tool.ask(code, header)).remark == "No Any Consumer online in the consumer group: [cg]"
        await one.beat("c1")
        await two.beat("c2")
        begun = trio.current_time()
        answer = await tool.ask(code, header)
        assert 5 <= trio.current_time() - begun < 6
        assert decode_consumer_status(answer.body).consumer_table == {"c1": {QUEUE: 7}}
        begun = trio.current_time()
        only = headers.GetConsumerStatusRequestHeader(topic="T", group="cg", client_addr="c1")
        assert decode_consumer_status((await tool.ask(code, only)).body).consumer_table == {"c1": {QUEUE: 7}}
        assert trio.current_time() - begun < 1


async def test_running_info_is_passed_on_both_ways(autojump_clock: MockClock) -> None:
    async with one_broker() as (running, tool), running.client() as consumer:

        async def tell(connection: Connection, command: Command) -> Command:
            assert command.ext_fields()["jstackEnable"] == "true"
            return command.reply(7, ext={"some": "field"}, body=b"state", remark="so it is")

        consumer.remoting.register(RequestCode.GET_CONSUMER_RUNNING_INFO, tell)
        header = headers.GetConsumerRunningInfoRequestHeader(consumer_group="cg", client_id="c1", jstack_enable=True)
        missing = await tool.ask(RequestCode.GET_CONSUMER_RUNNING_INFO, header)
        assert (missing.code, missing.remark) == (ResponseCode.SYSTEM_ERROR, "The Consumer <cg> <c1> not online")
        await consumer.beat("c1")
        answer = await tool.ask(RequestCode.GET_CONSUMER_RUNNING_INFO, header)
        assert (answer.code, answer.ext_fields(), answer.body, answer.remark) == (
            7, {"some": "field"}, b"state", "so it is",
        )  # fmt: skip


async def test_a_consumer_that_does_not_answer_is_207(autojump_clock: MockClock) -> None:
    async with one_broker() as (running, tool), running.client() as consumer:

        async def hang(connection: Connection, command: Command) -> Command:
            await trio.sleep_forever()
            raise AssertionError

        consumer.remoting.register(RequestCode.GET_CONSUMER_RUNNING_INFO, hang)
        await consumer.beat("c1")
        header = headers.GetConsumerRunningInfoRequestHeader(consumer_group="cg", client_id="c1")
        answer = await tool.ask(RequestCode.GET_CONSUMER_RUNNING_INFO, header)
        assert answer.code == ResponseCode.CONSUME_MSG_TIMEOUT


async def test_one_stored_message_is_given_to_one_consumer(autojump_clock: MockClock) -> None:
    async with one_broker() as (running, tool), running.client() as consumer:
        await fill(tool, 2)
        taken: list[tuple[dict[str, str], bytes]] = []

        async def take(connection: Connection, command: Command) -> Command:
            taken.append((command.ext_fields(), decode_record(command.body).body))
            return command.reply(body=b"taken")

        consumer.remoting.register(RequestCode.CONSUME_MESSAGE_DIRECTLY, take)
        await consumer.beat("c1")
        second = (await tool.stored())[1]

        async def ask(message_id: str) -> Command:
            header = headers.ConsumeMessageDirectlyResultRequestHeader(
                consumer_group="cg", client_id="c1", msg_id=message_id
            )
            return await tool.ask(RequestCode.CONSUME_MESSAGE_DIRECTLY, header)

        answer = await ask(second.offset_message_id)
        assert answer.body == b"taken"
        assert taken == [
            (
                {
                    "consumerGroup": "cg",
                    "clientId": "c1",
                    "msgId": second.offset_message_id,
                    "brokerName": BROKER_NAME,
                },
                b"1",
            )
        ]
        nowhere = encode_offset_id(pack_host("10.0.0.2", 10911), 77_777)
        for message_id, words in (("xyz", "is no offset id"), (nowhere, "no message has the id")):
            refused = await ask(message_id)
            assert refused.code == ResponseCode.SYSTEM_ERROR
            assert words in (refused.remark or "")


async def test_all_producers(autojump_clock: MockClock) -> None:
    async with one_broker() as (running, client):
        await client.beat("p1", None, producers=("one", "two"))
        await trio.sleep(10)
        answer = await client.ask(RequestCode.GET_ALL_PRODUCER_INFO, headers.GetAllProducerInfoRequestHeader())
        table = decode_producer_table(answer.body).data
        assert sorted(table) == ["one", "two"]
        (info,) = table["one"]
        assert (info.client_id, info.language) == ("p1", "PYTHON")
        assert info.remote_ip.startswith("/10.0.0.3:")
        assert abs(running.world.wall_ms() - info.last_update_timestamp - 10_000) < 500
