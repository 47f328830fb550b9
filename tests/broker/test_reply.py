"""Replies pass through the broker to the client that asked: 324, 325 and 326."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from tests.broker.running import CLIENT, Client, Running, one_broker, send_header
from trio_rmq.errors import StoreFailedError
from trio_rmq.remoting.connection import Connection
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.wire import headers
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.properties import parse_properties
from trio_rmq.wire.sysflag import COMPRESSED

pytestmark = pytest.mark.trio
TOPIC = "DefaultCluster_REPLY_TOPIC"
TO_ASKER = "MSG_TYPE\x01reply\x02CORRELATION_ID\x01c-1\x02REPLY_TO_CLIENT\x01asker\x02TAGS\x01A"


class Asker:
    """A client that takes replies, and says `code` of each after `seconds`."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.pushed: list[tuple[headers.ReplyMessageRequestHeader, bytes]] = []
        self.code = int(ResponseCode.SUCCESS)
        self.seconds = 0.0
        client.remoting.register(RequestCode.PUSH_REPLY_MESSAGE_TO_CLIENT, self._push)

    async def _push(self, connection: Connection, command: Command) -> Command:
        self.pushed.append((command.decode_header(headers.ReplyMessageRequestHeader), command.body))
        await trio.sleep(self.seconds)
        return command.reply(self.code, remark="no")


@asynccontextmanager
async def asked(
    *, store: dict[str, object] | None = None, disk: FaultyDisk | None = None, **settings: object
) -> AsyncIterator[tuple[Running, Client, Asker]]:
    """A broker, a client that replies, and one that asked and is known as `asker`."""
    async with (
        one_broker(store=store, disk=disk, **settings) as (running, client),
        running.client() as other,
    ):
        asker = Asker(other)
        assert (await other.beat("asker", None, producers=["pg"])).code == 0
        yield running, client, asker


async def reply(client: Client, body: bytes = b"answer", **fields: object) -> Command:
    header = send_header(TOPIC, **{"properties": TO_ASKER, **fields})
    return await client.ask(RequestCode.SEND_REPLY_MESSAGE_V2, header, body)


async def test_a_reply_reaches_the_client_that_asked_and_is_stored(autojump_clock: MockClock) -> None:
    async with asked() as (_, client, asker):
        answer = await reply(client, sys_flag=COMPRESSED, flag=7, born_timestamp=123)
        assert answer.code == 0
        told = answer.decode_header(headers.SendMessageResponseHeader)
        assert answer.ext_fields()["MSG_REGION"] == "DefaultRegion"
        [(header, body)] = asker.pushed
        assert (body, header.topic, header.sys_flag, header.flag) == (b"answer", TOPIC, COMPRESSED, 7)
        assert (header.born_timestamp, header.born_host.partition(":")[0]) == (123, CLIENT)
        assert header.store_host == client.address
        pushed = parse_properties(header.properties or "")
        assert int(pushed.pop("PUSH_REPLY_TIME")) == header.store_timestamp
        assert pushed == parse_properties(TO_ASKER)
        [stored] = await client.stored(TOPIC)
        assert (stored.body, stored.offset_message_id, told.queue_offset) == (b"answer", told.msg_id, 0)
        assert stored.property_map() == parse_properties(TO_ASKER)
        assert (stored.sys_flag, stored.flag) == (COMPRESSED, 7)
        tagged = await client.pull(TOPIC, subscription="A")
        assert tagged.code == 0


async def test_the_long_header_says_the_same(autojump_clock: MockClock) -> None:
    async with asked(store_reply_message_enable=False) as (_, client, asker):
        short = send_header(TOPIC, properties=TO_ASKER)
        fields = {name: getattr(short, name) for name in headers.SendMessageRequestHeader.__struct_fields__}
        header = headers.SendMessageRequestHeader(**fields)
        answer = await client.ask(RequestCode.SEND_REPLY_MESSAGE, header, b"answer")
        assert answer.code == 0
        assert [body for _, body in asker.pushed] == [b"answer"]


async def test_what_is_not_to_be_stored_is_answered_with_the_id_0(autojump_clock: MockClock) -> None:
    async with asked(store_reply_message_enable=False) as (_, client, _asker):
        told = (await reply(client)).decode_header(headers.SendMessageResponseHeader)
        assert (told.msg_id, told.queue_id, told.queue_offset) == ("0", 0, 0)
        assert await client.stored(TOPIC) == []


async def test_a_reply_for_nobody_is_answered_as_apache_does(autojump_clock: MockClock) -> None:
    async with asked() as (_, client, asker):
        answer = await reply(client, properties=TO_ASKER.replace("asker", "gone"))
        assert (answer.code, answer.remark) == (1, "push reply message fail, channel of <gone> not found.")
        assert answer.ext_fields()["TRACE_ON"] == "true"
        answer = await reply(client, properties="MSG_TYPE\x01reply")
        assert (answer.code, answer.remark) == (1, "reply message properties[REPLY_TO_CLIENT] is null")
        assert (await reply(client, properties=None)).code == 1
        assert asker.pushed == []
        assert len(await client.stored(TOPIC)) == 3


async def test_a_client_that_leaves_or_is_lost_gets_no_replies(autojump_clock: MockClock) -> None:
    async with asked() as (running, client, asker):
        goodbye = headers.UnregisterClientRequestHeader(client_id="asker", producer_group="pg")
        await asker.client.beat("asker", None, producers=["other"])
        assert (await asker.client.ask(RequestCode.UNREGISTER_CLIENT, goodbye)).code == 0
        assert (await reply(client)).code == 0, "it is in another group still"
        goodbye = headers.UnregisterClientRequestHeader(client_id="asker", producer_group="other")
        assert (await asker.client.ask(RequestCode.UNREGISTER_CLIENT, goodbye)).code == 0
        assert (await reply(client)).code == 1
        async with running.client() as other:
            Asker(other)
            await other.beat("asker", None, producers=["pg"])
            assert (await reply(client)).code == 0
        await trio.sleep(1)
        assert (await reply(client)).code == 1


async def test_the_newest_connection_of_a_client_id_gets_the_replies(autojump_clock: MockClock) -> None:
    async with asked() as (running, client, asker), running.client() as other:
        newer = Asker(other)
        await trio.sleep(1)
        await other.beat("asker", None, producers=["another"])
        assert (await reply(client)).code == 0
        assert (len(asker.pushed), len(newer.pushed)) == (0, 1)


async def test_a_client_that_refuses_or_says_nothing_is_an_error(autojump_clock: MockClock) -> None:
    async with asked() as (_, client, asker):
        asker.code = 1
        answer = await reply(client)
        assert (answer.code, answer.remark) == (1, "push reply message to askerfail.")
        asker.code, asker.seconds = 0, 9.9
        began = trio.current_time()
        assert (await reply(client)).code == 0
        asker.seconds = 10.1
        assert (await reply(client)).code == 1
        assert trio.current_time() - began < 20
        # Meanwhile nobody else waits.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reply, client)
            began = trio.current_time()
            await client.create_topic("T")
            assert (await client.send()).code == 0
            assert trio.current_time() - began < 1


async def test_replies_are_checked_like_sends(autojump_clock: MockClock) -> None:
    async with asked(store={"max_message_size": 1000}) as (_, client, asker):
        assert (await reply(client, b"x" * 1001)).code == ResponseCode.MESSAGE_ILLEGAL
        assert (await reply(client, queue_id=9)).code == ResponseCode.SYSTEM_ERROR
        long = f"{TO_ASKER}\x02K\x01{'x' * 32_767}"
        answer = await reply(client, properties=long)
        assert answer.code == ResponseCode.MESSAGE_ILLEGAL
        assert answer.ext_fields()["MSG_REGION"] == "DefaultRegion"
        header = send_header("SCHEDULE_TOPIC_XXXX", properties=TO_ASKER)
        answer = await client.ask(RequestCode.SEND_REPLY_MESSAGE_V2, header, b"answer")
        assert answer.code == ResponseCode.NO_PERMISSION
        assert asker.pushed == []
        assert await client.stored(TOPIC) == []
        told = (await reply(client, queue_id=-1)).decode_header(headers.SendMessageResponseHeader)
        assert told.queue_id == 0


async def test_a_one_way_reply_is_delivered_and_not_answered(autojump_clock: MockClock) -> None:
    async with asked() as (_, client, asker):
        await client.tell(RequestCode.SEND_REPLY_MESSAGE_V2, send_header(TOPIC, properties=TO_ASKER), b"answer")
        await client.create_topic("T")
        await trio.sleep(1)
        assert [body for _, body in asker.pushed] == [b"answer"]


async def test_a_delivered_reply_that_cannot_be_stored_is_a_success(autojump_clock: MockClock) -> None:
    disk = FaultyDisk()
    sync: dict[str, object] = {"flush_disk_type": "SYNC_FLUSH"}
    with pytest.RaisesGroup(StoreFailedError, flatten_subgroups=True, allow_unwrapped=True):
        async with asked(disk=disk, store=sync) as (_, client, asker):
            told = (await reply(client)).decode_header(headers.SendMessageResponseHeader)
            assert told.msg_id != "0"
            disk.fail_next("fdatasync")
            for count in (2, 3):  # whose sync fails, and what a failed store does not take
                told = (await reply(client)).decode_header(headers.SendMessageResponseHeader)
                assert told.msg_id == "0"
                assert len(asker.pushed) == count
            await trio.sleep_forever()
