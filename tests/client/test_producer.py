"""The producer against a real broker, on {trio, asyncio} x {tcp, websocket}: where messages go, what they carry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import anyio
import anyio.lowlevel
import pytest

from trio_rmq.client import (
    AutoBatch,
    Compression,
    CompressionType,
    Message,
    MessageQueue,
    Producer,
    PullConsumer,
    ReceivedMessage,
    SendResult,
    SendStatus,
    select_by_hash,
    split_batch,
)
from trio_rmq.client.send_interceptors import Proceed, Sending
from trio_rmq.errors import ClientError, RouteNotFoundError, SendError
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.wire import headers
from trio_rmq.wire import properties as prop
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.hashing import java_string_hash
from trio_rmq.wire.ids import decode_offset_id, host_text
from trio_rmq.wire.sysflag import COMPRESSED, COMPRESSION_MASK

pytestmark = pytest.mark.anyio
LIMIT_SECONDS = 20


async def stored(name_server: str, topic: str) -> dict[int, list[ReceivedMessage]]:
    """All messages of the topic by queue."""
    found: dict[int, list[ReceivedMessage]] = {}
    async with PullConsumer("reader", name_servers=name_server) as consumer:
        for queue in await known_queues(consumer, topic):
            offset, end = await consumer.min_offset(queue), await consumer.max_offset(queue)
            while offset < end:
                result = await consumer.pull(queue, offset)
                found.setdefault(queue.queue_id, []).extend(result.messages)
                offset = result.next_offset
    return found


async def make_topic(producer: Producer, topic: str) -> list[MessageQueue]:
    """The topic's queues, once the name server knows it."""
    first = await producer.send(Message(topic, b"makes the topic"))
    assert first.status is SendStatus.SEND_OK
    return await known_queues(producer, topic)


async def known_queues(client: Producer | PullConsumer, topic: str) -> list[MessageQueue]:
    """The topic's queues, once the broker's registration of it has arrived."""
    with anyio.fail_after(LIMIT_SECONDS):
        while True:
            try:
                return await client.queues(topic)
            except RouteNotFoundError:
                await anyio.sleep(0.01)


async def test_queues_take_turns(name_server: str, topic: str) -> None:
    async with Producer(name_servers=name_server) as producer:
        results = [await producer.send(Message(topic, b"x")) for _ in range(12)]
    assert Counter(result.queue.queue_id for result in results) == dict.fromkeys(range(4), 3)


async def test_a_sharding_key_chooses_the_queue_as_javas_does_and_keeps_the_order(name_server: str, topic: str) -> None:
    async with Producer(name_servers=name_server) as producer:
        for number in range(6):
            for key in ("orders-7", "ключ", "😀"):
                await producer.send(Message(topic, b"%d" % number, sharding_key=key))
    found = await stored(name_server, topic)
    for key in ("orders-7", "ключ", "😀"):
        queue = abs(java_string_hash(key)) % 4
        mine = [message for message in found[queue] if message.properties[prop.SHARDING_KEY] == key]
        assert [message.body for message in mine] == [b"%d" % number for number in range(6)]


async def test_a_selector_chooses_among_the_writable_queues(name_server: str, topic: str) -> None:
    seen: list[tuple[Sequence[MessageQueue], object]] = []

    def last(queues: Sequence[MessageQueue], message: Message, argument: object) -> MessageQueue:
        seen.append((queues, argument))
        return queues[-1]

    async with Producer(name_servers=name_server) as producer:
        queues = await make_topic(producer, topic)
        result = await producer.send(Message(topic, b"x"), selector=last, argument=5)
        assert result.queue == queues[-1]
        assert seen == [(tuple(queues), 5)]
        hashed = await producer.send(Message(topic, b"x"), selector=select_by_hash, argument=6)
        assert hashed.queue == queues[6 % 4]
        await producer.send_oneway(Message(topic, b"one way"), selector=last)
        with pytest.raises(ClientError, match="one of the queues"):
            await producer.send(Message(topic, b"x"), selector=lambda *_: None)  # type: ignore[arg-type]  # a user's mistake


async def test_a_batch_is_stored_in_order_in_one_queue(name_server: str, topic: str) -> None:
    async with Producer(name_servers=name_server) as producer:
        messages = [Message(topic, b"%d" % number, tags="t", keys=f"k{number}") for number in range(5)]
        result = await producer.send_batch(messages)
        assert result.status is SendStatus.SEND_OK
        assert len(result.message_ids) == len(set(result.message_ids)) == 5
        assert len(result.offset_message_id.split(",")) == 5
    (batch,) = (await stored(name_server, topic)).values()
    assert [message.body for message in batch] == [b"%d" % number for number in range(5)]
    assert [message.message_id for message in batch] == result.message_ids
    assert [message.offset_message_id for message in batch] == result.offset_message_id.split(",")
    assert [message.queue_offset for message in batch] == list(range(result.queue_offset, result.queue_offset + 5))
    assert {message.tags for message in batch} == {"t"}
    assert [message.keys for message in batch] == [[f"k{number}"] for number in range(5)]


async def test_a_large_list_is_split_into_batches(name_server: str, topic: str) -> None:
    messages = [Message(topic, b"%04d" % number * 100) for number in range(100)]
    async with Producer(name_servers=name_server, body_size_max_bytes=10_000) as producer:
        with pytest.raises(ClientError, match="split_batch"):
            await producer.send_batch(messages)
        batches = list(split_batch(messages, 10_000))
        assert len(batches) > 4
        queue = (await producer.send_batch(batches[0])).queue
        for batch in batches[1:]:
            assert (await producer.send_batch(batch, queue=queue)).status is SendStatus.SEND_OK
    assert [m.body for m in (await stored(name_server, topic))[queue.queue_id]] == [m.body for m in messages]


async def test_single_sends_leave_together_when_gathered(name_server: str, broker: str, topic: str) -> None:
    requests: list[Sending] = []

    async def count(sending: Sending, proceed: Proceed) -> SendResult | None:
        requests.append(sending)
        return await proceed()

    gather = AutoBatch(count=25, delay_seconds=0.2)
    async with Producer(name_servers=name_server, auto_batch=gather, interceptors=[count]) as producer:
        results: dict[int, SendResult] = {}

        async def send(number: int) -> None:
            results[number] = await producer.send(Message(topic, b"%d" % number))

        async with anyio.create_task_group() as group:
            for number in range(60):
                group.start_soon(send, number)
        assert [len(request.message) for request in requests if isinstance(request.message, list)] == [25, 25, 10]
        large = await producer.send(Message(topic, bytes(40_000)))  # too large to be gathered
        assert large.status is SendStatus.SEND_OK
    found = [message for queue in (await stored(name_server, topic)).values() for message in queue]
    assert len(found) == 61
    by_id = {message.message_id: message for message in found}
    for number, result in results.items():
        message = by_id[result.message_id]
        assert message.body == b"%d" % number
        assert message.offset_message_id == result.offset_message_id
        assert (message.queue.queue_id, message.queue_offset) == (result.queue.queue_id, result.queue_offset)


@pytest.mark.parametrize("gather", [None, AutoBatch(count=20, size_bytes=10_000)], ids=["singly", "gathered"])
async def test_many_at_once_come_to_what_each_would_alone(
    name_server: str, topic: str, gather: AutoBatch | None
) -> None:
    under_way = most = requests = 0

    async def count(sending: Sending, proceed: Proceed) -> SendResult | None:
        nonlocal under_way, most, requests
        under_way += 1
        requests += 1
        most = max(most, under_way)
        try:
            return await proceed()
        finally:
            under_way -= 1

    messages = [Message(topic, b"%03d" % number) for number in range(100)]
    messages[7] = Message(topic, b"")
    messages[20] = Message(topic, bytes(20_000))
    for number in range(50, 60):
        messages[number].sharding_key = "key"
    async with Producer(name_servers=name_server, auto_batch=gather, interceptors=[count]) as producer:
        await make_topic(producer, topic)
        with pytest.raises(ClientError, match="at_once is 0"):
            await producer.send_many(messages, at_once=0)
        assert await producer.send_many([]) == []
        requests = 0
        outcomes = await producer.send_many(messages, at_once=5)
    assert "the body is empty" in str(outcomes[7])
    if gather is None:
        assert (requests, most) == (99, 5)
    else:  # 88 in batches of 20, the ten with a key, and the large one
        assert requests == 5 + 1 + 1
    by_id = {message.message_id: message for queue in (await stored(name_server, topic)).values() for message in queue}
    assert len(by_id) == 100
    for number, outcome in enumerate(outcomes):
        if number == 7:
            continue
        assert isinstance(outcome, SendResult)
        message = by_id[outcome.message_id]
        assert message.body == messages[number].body
        assert message.offset_message_id == outcome.offset_message_id
        assert (message.queue, message.queue_offset) == (outcome.queue, outcome.queue_offset)
        if 50 <= number < 60:
            assert message.queue.queue_id == abs(java_string_hash("key")) % 4


async def test_a_sender_of_a_gathered_message_may_be_cancelled(name_server: str, topic: str) -> None:
    async with Producer(name_servers=name_server, auto_batch=AutoBatch(delay_seconds=0.2)) as producer:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(producer.send, Message(topic, b"gone"))
                await anyio.lowlevel.checkpoint()
                await anyio.lowlevel.checkpoint()
                scope.cancel()
        assert (await producer.send(Message(topic, b"stays"))).status is SendStatus.SEND_OK
    bodies = {message.body for queue in (await stored(name_server, topic)).values() for message in queue}
    assert b"stays" in bodies


@pytest.mark.parametrize("kind", CompressionType, ids=lambda kind: kind.name)
async def test_large_bodies_are_packed(name_server: str, topic: str, kind: CompressionType) -> None:
    body = b"all work and no play " * 1000
    async with Producer(name_servers=name_server, compression=Compression(kind)) as producer:
        await producer.send(Message(topic, body, tags="large"))
        await producer.send(Message(topic, body[:4095], tags="small"))
    found = {message.tags: message for queue in (await stored(name_server, topic)).values() for message in queue}
    large = found["large"]
    assert large.body == body
    assert len(large.stored.body) < len(body) // 10
    assert large.stored.sys_flag & (COMPRESSED | COMPRESSION_MASK) == COMPRESSED | kind.value
    assert found["small"].stored.sys_flag & COMPRESSED == 0


async def test_a_namespace_stands_before_topics_and_groups(name_server: str, broker: str, topic: str) -> None:
    async with Producer(name_servers=name_server, group="makers", namespace="TENANT") as producer:
        result = await producer.send(Message(topic, b"one"))
        assert result.queue.topic == topic
        ordered = await producer.send(Message(topic, b"two", sharding_key="a"))
        assert ordered.queue.topic == topic
        batch = await producer.send_batch([Message(topic, b"three"), Message(topic, b"four")])
        assert batch.queue.topic == topic
        await wait_member(broker, "TENANT%makers", producer.client_id)
    found = [message for queue in (await stored(name_server, f"TENANT%{topic}")).values() for message in queue]
    assert {message.body for message in found} == {b"one", b"two", b"three", b"four"}
    assert {message.properties[prop.INSTANCE_ID] for message in found} == {"TENANT"}


async def members(broker: str, group: str) -> list[str]:
    """The client ids of a producer group, by the broker."""
    async with RemotingClient() as client:
        header = headers.GetProducerConnectionListRequestHeader(producer_group=group)
        answer = await client.request(broker, Command(RequestCode.GET_PRODUCER_CONNECTION_LIST, header=header))
    if answer.code != ResponseCode.SUCCESS:
        return []
    text = answer.body.decode()
    return [part.partition('"')[0] for part in text.split('"clientId":"')[1:]]


async def wait_member(broker: str, group: str, client_id: str) -> None:
    with anyio.fail_after(LIMIT_SECONDS):
        while True:
            if client_id in await members(broker, group):
                return
            await anyio.sleep(0.01)  # its heartbeat is on the way


async def test_brokers_know_the_producer_from_its_first_route_to_its_goodbye(
    name_server: str, broker: str, topic: str
) -> None:
    async with Producer(name_servers=name_server, group=topic) as producer:
        assert await members(broker, topic) == []
        await producer.send(Message(topic, b"x"))
        await wait_member(broker, topic, producer.client_id)
    assert await members(broker, topic) == []
    with anyio.CancelScope() as scope:
        async with Producer(name_servers=name_server, group=topic) as producer:
            await producer.send(Message(topic, b"x"))
            await wait_member(broker, topic, producer.client_id)
            scope.cancel()
            await anyio.sleep_forever()
    assert await members(broker, topic) == []


async def test_interceptors_stand_around_each_try(name_server: str, topic: str) -> None:
    seen: list[str] = []

    async def outer(sending: Sending, proceed: Proceed) -> SendResult | None:
        seen.append(f"outer before {sending.queue.queue_id}")
        sending.outgoing.properties = prop.append_property(sending.outgoing.properties, "traced", "yes")
        result = await proceed()
        seen.append(f"outer after {result.queue.queue_id if result else None}")
        return result

    async def forbid(sending: Sending, proceed: Proceed) -> SendResult | None:
        message = sending.message
        assert isinstance(message, Message)
        if message.body == b"secret":
            raise ClientError("secrets are not sent")
        seen.append(f"inner {'one way' if sending.is_oneway else sending.group}")
        return await proceed()

    async with Producer(name_servers=name_server, group="intercepted", interceptors=[outer, forbid]) as producer:
        queue = (await producer.send(Message(topic, b"x"))).queue
        assert seen == [
            f"outer before {queue.queue_id}", "inner intercepted", f"outer after {queue.queue_id}",
        ]  # fmt: skip
        seen.clear()
        with pytest.raises(ClientError, match="secrets are not sent"):
            await producer.send(Message(topic, b"secret"), queue=queue)
        assert seen == [f"outer before {queue.queue_id}"]
        seen.clear()
        await producer.send_oneway(Message(topic, b"quiet"), queue=queue)
        assert seen == [f"outer before {queue.queue_id}", "inner one way", "outer after None"]
        await producer.send(Message(topic, b"last"), queue=queue)
    (found,) = (await stored(name_server, topic)).values()
    assert [message.body for message in found] == [b"x", b"quiet", b"last"]
    assert {message.properties["traced"] for message in found} == {"yes"}


async def test_what_an_interceptor_raises_meets_the_senders_of_a_gathered_batch(name_server: str, topic: str) -> None:
    async def broken(sending: Sending, proceed: Proceed) -> SendResult | None:
        raise ValueError("of the user's own")

    async with Producer(name_servers=name_server, auto_batch=AutoBatch(), interceptors=[broken]) as producer:
        for _ in range(2):  # the producer lives on
            with pytest.raises(SendError, match="ValueError: of the user's own"):
                await producer.send(Message(topic, b"x"))


async def test_offset_ids_name_the_brokers_tcp_address(name_server: str, broker: str, topic: str) -> None:
    async with Producer(name_servers=name_server) as producer:
        result = await producer.send(Message(topic, b"x"))
    host, _ = decode_offset_id(result.offset_message_id)
    assert host_text(host) == broker.removeprefix("ws://")
    ((message,),) = (await stored(name_server, topic)).values()
    assert host_text(message.stored.store_host) == broker.removeprefix("ws://")


# -- bad input ----------------------------------------------------------------------------------------------------

BAD_MESSAGES = [
    (Message("", b"x"), "1 to 127"),
    (Message("t" * 128, b"x"), "1 to 127"),
    (Message("with space", b"x"), "illegal characters"),
    (Message("SCHEDULE_TOPIC_XXXX", b"x"), "the system's own"),
    (Message("T", b""), "at least one byte"),
    (Message("T", bytes(4 * 1024 * 1024 + 1)), "split it"),
    (Message("T", b"x", properties={"DELAY": "3"}), "reserved"),
    (Message("T", b"x", properties={"__SHARDINGKEY": "3"}), "reserved"),
    (Message("T", b"x", properties={"a": ""}), "empty"),
    (Message("T", b"x", properties={"a": "\x01"}), "control character"),
    (Message("T", b"x", properties={"a\x02": "b"}), "control character"),
    (Message("T", b"x", tags="a\x02b"), "control character"),
    (Message("T", b"x", keys=["a", "b\x01"]), "control character"),
    (Message("T", b"x", properties={"a": "é" * 20_000}), "shorten"),
    (Message("T", b"x", properties={"a": "😀" * 10_000}), "shorten or drop"),  # four bytes each
]


@pytest.mark.parametrize(("message", "reason"), BAD_MESSAGES, ids=[reason for _, reason in BAD_MESSAGES])
async def test_what_no_broker_would_take_is_not_sent(name_server: str, message: Message, reason: str) -> None:
    async with Producer(name_servers=name_server) as producer:
        for sent in (producer.send(message), producer.send_oneway(message), producer.send_batch([message])):
            with pytest.raises(ClientError, match=reason):
                await sent


async def test_bad_batches(name_server: str, topic: str) -> None:
    async with Producer(name_servers=name_server) as producer:
        for messages, reason in (
            ([], "empty"),
            ([Message(topic, b"x"), Message(f"{topic}2", b"y")], "one topic"),
            ([Message(topic, b"x"), Message(topic, b"y", wait_store=False)], "wait_store"),
            ([Message("%RETRY%g", b"x")], "takes no batches"),
        ):
            with pytest.raises(ClientError, match=reason):
                await producer.send_batch(messages)


async def test_a_queue_id_out_of_range_and_an_unknown_broker(name_server: str, topic: str) -> None:
    async with Producer(name_servers=name_server) as producer:
        known = (await make_topic(producer, topic))[0]
        wrong = MessageQueue(topic=topic, broker_name=known.broker_name, queue_id=44)
        with pytest.raises(SendError, match=r"after 1 tries.*answered 1, request queueId\[44\] is illegal") as caught:
            await producer.send(Message(topic, b"x"), queue=wrong)
        assert caught.value.response_code == ResponseCode.SYSTEM_ERROR
        nowhere = MessageQueue(topic=topic, broker_name="nowhere", queue_id=0)
        with pytest.raises(SendError, match="broker nowhere has no master now, says name server"):
            await producer.send(Message(topic, b"x"), queue=nowhere)


@pytest.mark.parametrize("group", ["", "with space", "g" * 256])
def test_a_bad_group_is_refused(group: str) -> None:
    with pytest.raises(ClientError, match="the group"):
        Producer(group=group, name_servers="127.0.0.1:1")


async def test_errors_of_the_broker_keep_their_code() -> None:
    error = SendError("text", response_code=13, tries=["a"])
    assert (error.response_code, error.tries, str(error)) == (13, ["a"], "text")
    assert isinstance(error, ClientError)
