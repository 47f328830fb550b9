"""Sends: what is stored, where, under which properties, and every refusal with its code."""

from __future__ import annotations

import errno

import pytest
import trio
from trio.testing import MockClock

from tests.broker.running import BROKER, CLIENT, Client, broker_config, broker_in, one_broker, send_header
from trio_rmq.broker.server import serve_broker
from trio_rmq.errors import ConfigError, StoreFailedError
from trio_rmq.limits import REQUESTS_IN_FLIGHT_MAX
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.testing.stores import small_config
from trio_rmq.testing.world import open_world
from trio_rmq.wire import headers
from trio_rmq.wire.batch import BatchItem, encode_batch
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.ids import decode_offset_id, host_text

pytestmark = pytest.mark.trio

SYSTEM_TOPICS = [
    "SCHEDULE_TOPIC_XXXX",
    "RMQ_SYS_TRANS_HALF_TOPIC",
    "RMQ_SYS_TRANS_OP_HALF_TOPIC",
    "TRANS_CHECK_MAX_TIME_TOPIC",
    "SELF_TEST_TOPIC",
    "OFFSET_MOVED_EVENT",
]


async def test_a_send_answers_with_all_that_clients_read(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        await client.create_topic("T", 4)
        first = await client.send(b"one", queue_id=3)
        second = await client.send(b"two", queue_id=3)
        assert first.code == second.code == 0
        fields = first.ext_fields()
        assert fields["queueId"] == "3"
        assert (fields["queueOffset"], second.ext_fields()["queueOffset"]) == ("0", "1")
        assert (fields["MSG_REGION"], fields["TRACE_ON"]) == ("DefaultRegion", "true")
        assert fields["msgId"] == "0A00000200002A9F" + "0" * 16
        assert [(m.body, m.queue_offset) for m in await client.stored("T", 3)] == [(b"one", 0), (b"two", 1)]


async def test_v1_v2_batch_and_oneway_store_the_same(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        await client.create_topic()
        v1 = headers.SendMessageRequestHeader(
            producer_group="pg",
            topic="T",
            default_topic="TBW102",
            default_topic_queue_nums=4,
            queue_id=0,
            sys_flag=0,
            born_timestamp=1,
            flag=7,
        )
        assert (await client.ask(RequestCode.SEND_MESSAGE, v1, b"1")).code == 0
        assert (await client.send(b"2", flag=7)).code == 0
        items = encode_batch([BatchItem(7, b"3", b"TAGS\x01a"), BatchItem(7, b"4", b"")])
        batch = await client.ask(RequestCode.SEND_BATCH_MESSAGE, send_header(batch=True), items)
        assert batch.code == 0
        assert len(batch.ext_fields()["msgId"].split(",")) == 2
        assert batch.ext_fields()["queueOffset"] == "2"
        marked = await client.send(encode_batch([BatchItem(7, b"5", b"")]), batch=True)
        assert marked.code == 0
        await client.tell(RequestCode.SEND_MESSAGE_V2, send_header(flag=7), b"6")
        await client.tell(RequestCode.SEND_BATCH_MESSAGE, send_header(), encode_batch([BatchItem(7, b"7", b"")]))
        assert (await client.send(b"8", flag=7)).code == 0
        messages = await client.stored()
        assert [m.body for m in messages] == [b"%d" % n for n in range(1, 9)]
        assert {m.flag for m in messages} == {7}


async def test_sends_of_one_read_are_answered_each(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        await client.create_topic()
        commands = [Command(RequestCode.SEND_MESSAGE_V2, send_header(queue_id=n % 3), body=b"%d" % n) for n in range(9)]
        answers = await client.ask_many(commands)
        assert [answer.code for answer in answers] == [0, 1, 1] * 3
        assert [m.body for m in await client.stored()] == [b"0", b"3", b"6"]


# -- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("topic", "remark"),
    [
        ("bad topic!", "The specified topic contains illegal characters, allowing only ^[%|a-zA-Z0-9_-]+$"),
        ("t" * 128, "The specified topic is longer than topic max length."),
        ("", "The specified topic is blank."),
    ],
)
async def test_an_illegal_topic_is_refused(autojump_clock: MockClock, topic: str, remark: str) -> None:
    async with one_broker() as (_, client):
        answer = await client.send(topic=topic)
        assert (answer.code, answer.remark) == (ResponseCode.SYSTEM_ERROR, remark)
        assert answer.ext_fields()["MSG_REGION"] == "DefaultRegion"


async def test_clients_may_not_send_to_six_system_topics(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        for topic in SYSTEM_TOPICS:
            answer = await client.send(topic=topic)
            assert (answer.code, answer.remark) == (
                ResponseCode.NO_PERMISSION,
                f"Sending message to topic[{topic}] is forbidden.",
            )
        for topic in ("TBW102", "BenchmarkTest", "DefaultCluster", "broker-a", "DefaultCluster_REPLY_TOPIC"):
            assert (await client.send(topic=topic)).code == 0


async def test_an_unknown_topic_without_a_template_is_17(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        answer = await client.send(default_topic="NoSuchTemplate")
        assert answer.code == ResponseCode.TOPIC_NOT_EXIST
        assert (answer.remark or "").startswith("topic[T] not exist, apply first please!")
        await client.create_topic("NotInheriting", 4, 6)
        assert (await client.send(default_topic="NotInheriting")).code == ResponseCode.TOPIC_NOT_EXIST
    async with one_broker(auto_create_topic_enable=False) as (_, client):
        assert (await client.send()).code == ResponseCode.TOPIC_NOT_EXIST


async def test_a_queue_id_out_of_range_is_refused_in_rocketmqs_words(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        await client.create_topic("T", 4)
        answer = await client.send(queue_id=4)
        assert answer.code == ResponseCode.SYSTEM_ERROR
        assert (answer.remark or "").startswith(
            "request queueId[4] is illegal, TopicConfig [topicName=T, readQueueNums=4, writeQueueNums=4, perm=RW-, "
            "topicFilterType=SINGLE_TAG, topicSysFlag=0, order=false] Producer: 10.0.0.3:"
        )
        chosen = await client.send(queue_id=-1)
        assert chosen.code == 0
        assert 0 <= int(chosen.ext_fields()["queueId"]) < 4


async def test_too_large_bodies_and_properties_are_13(autojump_clock: MockClock) -> None:
    async with one_broker(store={"max_message_size": 1000}) as (_, client):
        await client.create_topic()
        assert (await client.send(b"x" * 1000)).code == 0
        assert (await client.send(b"x" * 1001)).code == ResponseCode.MESSAGE_ILLEGAL
        cluster = len("\x02CLUSTER\x01DefaultCluster")
        # A record so long does not fit the test store's small files, so only the refusal's words tell them apart.
        fits = await client.send(properties="K\x01" + "v" * (32_767 - cluster - 2))
        assert "properties" not in (fits.remark or "")
        over = await client.send(properties="K\x01" + "v" * (32_768 - cluster - 2))
        assert over.code == ResponseCode.MESSAGE_ILLEGAL
        assert "32768" in (over.remark or "")
        in_bytes = await client.send(properties="K\x01" + "\u00e9" * 16_400)
        assert in_bytes.code == ResponseCode.MESSAGE_ILLEGAL


async def test_an_items_plus_its_batchs_properties_over_the_limit_are_refused(autojump_clock: MockClock) -> None:
    async with one_broker(store={"mapped_file_size_commit_log": 262_144}) as (_, client):
        await client.create_topic()
        items = encode_batch([BatchItem(0, b"ok", b""), BatchItem(0, b"x", b"K\x01" + b"v" * 20_000)])
        header = send_header(properties="L\x01" + "v" * 12_800)
        answer = await client.ask(RequestCode.SEND_BATCH_MESSAGE, header, items)
        assert answer.code == ResponseCode.MESSAGE_ILLEGAL
        assert await client.stored() == []
        assert (await client.send(b"next")).ext_fields()["queueOffset"] == "0"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0\0\0\1",
        encode_batch([BatchItem(0, b"x", b"")])[:-1],
        encode_batch([BatchItem(0, b"x" * 2000, b"")]),
    ],
    ids=["empty", "cut", "short", "large"],
)
async def test_a_bad_batch_is_13_and_stores_nothing(autojump_clock: MockClock, body: bytes) -> None:
    async with one_broker(store={"max_message_size": 1000}) as (_, client):
        await client.create_topic()
        answer = await client.ask(RequestCode.SEND_BATCH_MESSAGE, send_header(batch=True), body)
        assert answer.code == ResponseCode.MESSAGE_ILLEGAL
        assert answer.ext_fields()["TRACE_ON"] == "true"
        assert await client.stored() == []


async def test_batches_are_neither_delayed_nor_transactional_nor_for_retry_topics(autojump_clock: MockClock) -> None:
    items = encode_batch([BatchItem(0, b"x", b"")])
    async with one_broker() as (_, client):
        await client.create_topic()
        for header in (
            send_header(properties="DELAY\x013"),
            send_header(sys_flag=4),
            send_header("%RETRY%cg"),
        ):
            answer = await client.ask(RequestCode.SEND_BATCH_MESSAGE, header, items)
            assert answer.code == ResponseCode.MESSAGE_ILLEGAL
        assert (await client.ask(RequestCode.SEND_BATCH_MESSAGE, send_header(properties="DELAY\x010"), items)).code == 0


async def test_a_broker_that_may_not_be_written_refuses_and_makes_no_topic(autojump_clock: MockClock) -> None:
    async with one_broker(broker_permission=4) as (_, client):
        assert (await client.send(topic="New")).code == ResponseCode.NO_PERMISSION
        assert (await client.pull("New")).code == ResponseCode.TOPIC_NOT_EXIST
        await client.create_topic()
        answer = await client.send()
        assert answer.code == ResponseCode.NO_PERMISSION
        assert "sending message is forbidden" in (answer.remark or "")


async def test_a_missing_header_field_is_answered_with_its_name(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        header = headers.GetMaxOffsetRequestHeader(topic="T", queue_id=0)
        answer = await client.ask(RequestCode.SEND_MESSAGE_V2, header, b"x")
        assert answer.code == ResponseCode.SYSTEM_ERROR
        assert "SendMessageRequestHeaderV2" in (answer.remark or "")


async def test_a_topic_that_is_not_writable_still_takes_sends(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with one_broker() as (_, client):
        await client.create_topic("T", 1, 4)
        assert [(await client.send()).code for _ in range(3)] == [0, 0, 0]
        assert sum("not writable" in record.getMessage() for record in caplog.records) == 1


# -- auto-creation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "made"), [(4, 4), (16, 8), (0, 0)])
async def test_a_topic_is_made_with_the_smaller_number_of_queues(
    autojump_clock: MockClock, asked: int, made: int
) -> None:
    async with one_broker() as (_, client):
        answer = await client.send(topic="New", default_topic_queue_nums=asked)
        assert answer.code == (0 if made else 1)
        header = headers.GetTopicConfigRequestHeader(topic="New")
        body = (await client.ask(RequestCode.GET_TOPIC_CONFIG, header)).body.decode().replace(" ", "")
        assert f'"readQueueNums":{made}' in body
        assert f'"writeQueueNums":{made}' in body
        assert '"perm":6' in body


# -- what is stored -----------------------------------------------------------------------------------------------


async def test_stored_properties_are_the_clients_without_wait_and_with_the_cluster(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        await client.create_topic()
        texts = [
            "KEYS\x01k\x02UNIQ_KEY\x01AA\x02WAIT\x01true\x02TAGS\x01a",
            "WAIT\x01false\x02KEYS\x01k\x02",
            "WAIT\x01true",
            "MYWAIT\x01true\x02X\x01WAIT",
            "CLUSTER\x01elsewhere\x02KEYS\x01k",
            None,
        ]
        for text in texts:
            assert (await client.send(properties=text)).code == 0
        assert await client.properties() == [
            {"KEYS": "k", "UNIQ_KEY": "AA", "TAGS": "a", "CLUSTER": "DefaultCluster"},
            {"KEYS": "k", "CLUSTER": "DefaultCluster"},
            {"CLUSTER": "DefaultCluster"},
            {"MYWAIT": "true", "X": "WAIT", "CLUSTER": "DefaultCluster"},
            {"CLUSTER": "DefaultCluster", "KEYS": "k"},
            {"CLUSTER": "DefaultCluster"},
        ]
        for message in await client.stored():
            segments = [segment for segment in message.properties.split(b"\x02") if segment]
            assert len(segments) == len({segment.partition(b"\x01")[0] for segment in segments})
            assert b"\x02\x02" not in message.properties


async def test_a_broker_with_a_trace_topic_keeps_what_clients_trace_by(autojump_clock: MockClock) -> None:
    """Without MSG_REGION in a message Java's client 5.3.3 traces nothing of its consumption."""
    async with one_broker(trace_topic_enable=True, region_id="North") as (_, client):
        await client.create_topic()
        own = {"CLUSTER": "DefaultCluster", "MSG_REGION": "North", "TRACE_ON": "true"}
        for text in ("KEYS\x01k", "MSG_REGION\x01South\x02KEYS\x01k\x02TRACE_ON\x01false", "WAIT\x01true"):
            assert (await client.send(properties=text)).code == 0
        await client.ask(
            RequestCode.SEND_BATCH_MESSAGE, send_header(batch=True), encode_batch([BatchItem(0, b"x", b"")])
        )
        first, second, bare, item = await client.properties()
        assert first == second == {"KEYS": "k", **own}
        assert bare == own
        assert item == {"UNIQ_KEY": "AA", "WAIT": "true", **own}
        for message in await client.stored():
            assert message.properties.count(b"TRACE_ON") == 1


async def test_a_batch_keeps_wait(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        await client.create_topic()
        items = encode_batch([BatchItem(0, b"x", b"KEYS\x01k\x02"), BatchItem(0, b"y", b"TAGS\x01a")])
        await client.ask(RequestCode.SEND_BATCH_MESSAGE, send_header(batch=True), items)
        shared = {"UNIQ_KEY": "AA", "WAIT": "true", "CLUSTER": "DefaultCluster"}
        assert await client.properties() == [{"KEYS": "k", **shared}, {"TAGS": "a", **shared}]


@pytest.mark.parametrize(("level", "queue_id"), [("1", 0), ("3", 2), ("18", 17), ("99", 17)])
async def test_a_delayed_message_goes_to_the_schedule_topic(
    autojump_clock: MockClock, level: str, queue_id: int
) -> None:
    async with one_broker() as (_, client):
        await client.create_topic("T", 4)
        answer = await client.send(queue_id=1, properties=f"WAIT\x01true\x02DELAY\x01{level}\x02TAGS\x01a")
        assert answer.code == 0
        assert await client.stored("T", 1) == []
        (properties,) = await client.properties("SCHEDULE_TOPIC_XXXX", queue_id)
        assert properties == {
            "WAIT": "true",
            "DELAY": str(queue_id + 1),
            "TAGS": "a",
            "CLUSTER": "DefaultCluster",
            "REAL_TOPIC": "T",
            "REAL_QID": "1",
        }


async def test_delay_level_zero_is_no_delay_and_a_word_is_refused(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        await client.create_topic()
        assert (await client.send(properties="DELAY\x010")).code == 0
        assert len(await client.stored()) == 1
        assert (await client.send(properties="DELAY\x01soon")).code == ResponseCode.MESSAGE_ILLEGAL


async def test_a_retried_message_becomes_a_dead_letter_at_the_limit(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        assert (await client.send(topic="%RETRY%cg", reconsume_times=15, properties="K\x01v")).code == 0
        assert len(await client.stored("%RETRY%cg")) == 1
        assert (await client.send(topic="%RETRY%cg", reconsume_times=16, properties="DELAY\x013")).code == 0
        assert (await client.send(topic="%RETRY%cg", reconsume_times=3, max_reconsume_times=3)).code == 0
        assert len(await client.stored("%RETRY%cg")) == 1
        dead = await client.stored("%DLQ%cg")
        assert [m.reconsume_times for m in dead] == [16, 3]
    async with one_broker(auto_create_subscription_group=False) as (_, client):
        answer = await client.send(topic="%RETRY%nobody")
        assert answer.code == ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST


# -- durability ---------------------------------------------------------------------------------------------------


async def test_sync_flush_answers_only_after_the_sync(autojump_clock: MockClock) -> None:
    disk = FaultyDisk()
    async with one_broker(disk=disk, store={"flush_disk_type": "SYNC_FLUSH"}) as (_, client):
        await client.create_topic()
        disk.latency = lambda: 5.0
        start = trio.current_time()
        commands = [Command(RequestCode.SEND_MESSAGE_V2, send_header(), body=b"%d" % n) for n in range(3)]
        refused = Command(RequestCode.SEND_MESSAGE_V2, send_header(queue_id=9), body=b"x")
        answers = await client.ask_many([*commands, refused])
        assert [answer.code for answer in answers] == [0, 0, 0, 1]
        assert 5.0 <= trio.current_time() - start < 11.0
        disk.latency = None
        assert len(await client.stored()) == 3


async def test_a_failed_sync_is_14_and_ends_the_broker(autojump_clock: MockClock) -> None:
    disk = FaultyDisk()
    answers = []
    with pytest.RaisesGroup(StoreFailedError, flatten_subgroups=True, allow_unwrapped=True):
        async with one_broker(disk=disk, store={"flush_disk_type": "SYNC_FLUSH"}) as (_, client):
            await client.create_topic()
            disk.latency = lambda: 1.0
            disk.fail_next("fdatasync", errno.EIO)
            answers.append(await client.send())
            await trio.sleep(10)
    assert [answer.code for answer in answers] == [ResponseCode.SERVICE_NOT_AVAILABLE]


async def test_async_flush_does_not_wait(autojump_clock: MockClock) -> None:
    disk = FaultyDisk()
    async with one_broker(disk=disk) as (_, client):
        await client.create_topic()
        disk.latency = lambda: 5.0
        start = trio.current_time()
        assert (await client.send()).code == 0
        assert trio.current_time() - start < 0.1
        disk.latency = None


async def test_a_full_disk_is_14_with_the_reason(autojump_clock: MockClock) -> None:
    disk = FaultyDisk()
    async with one_broker(disk=disk) as (_, client):
        await client.create_topic()
        assert (await client.send()).code == 0
        disk.fail_next("pwrite", errno.ENOSPC)
        disk.fail_next("pwritev", errno.ENOSPC)
        answer = await client.send()
        assert answer.code == ResponseCode.SERVICE_NOT_AVAILABLE
        assert answer.remark


async def test_a_bad_batch_behind_plain_sends_doubles_none_of_them(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        await client.create_topic()
        commands = [
            Command(RequestCode.SEND_MESSAGE_V2, send_header(), body=b"before"),
            Command(RequestCode.SEND_MESSAGE_V2, send_header(batch=True), body=b"no batch"),
            Command(RequestCode.SEND_MESSAGE_V2, send_header(), body=b"after"),
        ]
        answers = await client.ask_many(commands)
        assert [answer.code for answer in answers] == [0, ResponseCode.MESSAGE_ILLEGAL, 0]
        assert [m.body for m in await client.stored()] == [b"before", b"after"]


@pytest.mark.trio
async def test_under_sync_flush_only_who_wants_it_waits(autojump_clock: MockClock) -> None:
    disk = FaultyDisk()
    async with one_broker(disk=disk, store={"flush_disk_type": "SYNC_FLUSH"}) as (_, client):
        await client.create_topic("T")
        disk.latency = lambda: 5.0
        begun = trio.current_time()
        both = [
            Command(RequestCode.SEND_MESSAGE_V2, send_header(properties=f"WAIT\x01{wait}"), body=b"x")
            for wait in ("false", "true")
        ]
        seconds = []

        async def ask(command: Command) -> None:
            answer = await client.remoting.request(client.address, command, 100)
            assert answer.code == 0
            seconds.append(trio.current_time() - begun)

        async with trio.open_nursery() as nursery:
            for command in both:
                nursery.start_soon(ask, command)
        assert seconds[0] < 1
        assert 5 <= seconds[1] < 11


async def test_a_flood_of_waiting_sends_is_slowed_down_and_none_is_refused(autojump_clock: MockClock) -> None:
    """Answer 2 ends a send for 4.9 and Go clients: while the disk is slow, reading stops instead."""
    disk = FaultyDisk()
    async with one_broker(disk=disk, store={"flush_disk_type": "SYNC_FLUSH"}) as (_, client):
        await client.create_topic()
        disk.latency = lambda: 0.05
        header = send_header()
        count = REQUESTS_IN_FLIGHT_MAX + 4_000
        commands = [Command(RequestCode.SEND_MESSAGE_V2, header, body=b"x") for _ in range(count)]
        answers = await client.ask_many(commands)
        assert {answer.code for answer in answers} == {0}
        assert len({answer.ext_fields()["queueOffset"] for answer in answers}) == count


# -- the store host -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["", "ws://"], ids=["tcp", "websocket"])
@pytest.mark.parametrize("told", ["10.0.0.77", "broker.example"], ids=["address", "name"])
async def test_ids_and_records_name_brokerip1_resolved_once_and_the_real_port(
    autojump_clock: MockClock, scheme: str, told: str
) -> None:
    async with open_world() as world:
        world.network.name("broker.example", "10.0.0.77")
        async with broker_in(world, broker_ip1=told, listen_port=0) as running:
            world.network.name("broker.example", "10.0.0.99")
            advertised, _, port = running.ready.address.rpartition(":")
            assert advertised == told
            assert int(port) > 0
            with world.node(CLIENT):
                async with RemotingClient() as remoting:
                    client = Client(remoting, f"{BROKER}:{port}")
                    await client.create_topic()
                    header = send_header()
                    answer = await remoting.request(
                        f"{scheme}{BROKER}:{port}", Command(RequestCode.SEND_MESSAGE_V2, header, body=b"x")
                    )
                    host, offset = decode_offset_id(answer.ext_fields()["msgId"])
                    assert (host_text(host), offset) == (f"10.0.0.77:{port}", 0)
                    (message,) = await client.stored()
                    assert message.store_host == host
                    assert host_text(message.born_host).startswith(f"{CLIENT}:")


async def test_a_name_that_does_not_resolve_stops_the_start(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        with world.node(BROKER), pytest.raises(ConfigError, match=r"brokerIP1=no\.such does not resolve .*: use an"):
            await serve_broker(broker_config(broker_ip1="no.such"), small_config("store"), disk=FaultyDisk())
