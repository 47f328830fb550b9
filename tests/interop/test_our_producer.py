"""Our producer at Apache's brokers read by Apache's consumers, and theirs by ours: packed, batched, ordered, named.

Each of Apache's servers (4.9.7, 5.3.3) and clients (4.9.8, 5.3.3), and our own broker in their place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import anyio
import pytest

from tests.interop.peers import (
    apache_broker,
    apache_name_server,
    our_broker,
    our_name_server,
    run_java_peer,
)
from trio_rmq.admin.client import AdminClient
from trio_rmq.admin.topics import list_topics
from trio_rmq.client import (
    AutoBatch,
    Compression,
    CompressionType,
    Message,
    MessageQueue,
    Producer,
    PullConsumer,
    PushConsumer,
    ReceivedMessage,
    SendResult,
    SendStatus,
    select_by_hash,
)
from trio_rmq.errors import RouteNotFoundError
from trio_rmq.wire.command import SerializeType
from trio_rmq.wire.sysflag import COMPRESSED, COMPRESSION_MASK, COMPRESSION_ZLIB

pytestmark = pytest.mark.interop

KEYS = ["orders-7", "a", "polygenelubricants", "ключ", "😀"]
LARGE = b"all work and no play " * 2000


@dataclass
class Place:
    """A cluster under test."""

    name: str
    name_server: str
    scratch: Path


@pytest.fixture(scope="module", params=["4.9.7", "5.3.3", "ours"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    name = str(request.param)
    scratch = tmp_path_factory.mktemp("cluster")
    if name == "ours":
        with our_name_server(scratch) as namesrv, our_broker(scratch, namesrv.address):
            yield Place(name, namesrv.address, scratch)
        return
    with (
        apache_name_server(scratch, version=name) as namesrv,
        apache_broker(scratch, namesrv.address, version=name),
    ):
        anyio.run(registered, namesrv.address)
        yield Place(name, namesrv.address, scratch)


async def registered(name_server: str) -> None:
    """Return when the broker has told the name server of itself: Apache's says that it is up before."""
    async with Producer(name_servers=name_server) as producer:
        await known_queues(producer, "TBW102")


@dataclass(frozen=True)
class Got:
    """A message as Java's consumer saw it."""

    tags: str
    queue_id: int
    queue_offset: int
    crc: int
    length: int
    topic: str
    message_id: str


def java_receives(place: Place, version: str, topic: str, count: int, namespace: str = "-") -> list[Got]:
    words = ["receive", place.name_server, topic, namespace, str(count)]
    done = run_java_peer(version, "ROCKETMQ", words, scratch=place.scratch, program="interop.ProducerPeer")
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("GOT ")]
    assert len(lines) == count, done.stdout[-3000:] + done.stderr[-3000:]
    return [
        Got(tags, int(queue), int(offset), int(crc), int(length), found_topic, message_id)
        for _, tags, queue, offset, crc, length, found_topic, message_id in lines
    ]


async def known_queues(client: Producer | PullConsumer, topic: str) -> list[MessageQueue]:
    with anyio.fail_after(30):
        while True:
            try:
                return await client.queues(topic)
            except RouteNotFoundError:
                await anyio.sleep(0.05)


async def stored(name_server: str, topic: str) -> list[ReceivedMessage]:
    found: list[ReceivedMessage] = []
    async with PullConsumer("reader", name_servers=name_server) as consumer:
        for queue in await known_queues(consumer, topic):
            offset, end = await consumer.min_offset(queue), await consumer.max_offset(queue)
            while offset < end:
                result = await consumer.pull(queue, offset)
                found += result.messages
                offset = result.next_offset
    return found


@pytest.mark.parametrize("serialize", [SerializeType.JSON, SerializeType.ROCKETMQ], ids=lambda kind: kind.name)
def test_ours_is_read_by_apaches_consumers(place: Place, serialize: SerializeType) -> None:
    topic = f"FromOurs{serialize.name}"
    sent: dict[str, tuple[bytes, SendResult]] = {}

    async def send() -> None:
        for kind in CompressionType:
            async with Producer(
                name_servers=place.name_server, compression=Compression(kind), serialize_type=serialize
            ) as producer:
                sent[kind.name] = LARGE, await producer.send(Message(topic, LARGE, tags=kind.name))
                assert sent[kind.name][1].status is SendStatus.SEND_OK
        async with Producer(name_servers=place.name_server, serialize_type=serialize) as producer:
            await known_queues(producer, topic)
            batch = [Message(topic, b"item %d" % number, tags=f"batch{number}") for number in range(3)]
            result = await producer.send_batch(batch)
            for number, unique_id in enumerate(result.message_ids):
                one = SendResult(result.status, unique_id, "", result.queue, result.queue_offset + number)
                sent[f"batch{number}"] = batch[number].body, one
            await producer.send_oneway(Message(topic, b"one way", tags="oneway"))
        gather = AutoBatch(count=4)
        async with Producer(name_servers=place.name_server, auto_batch=gather, serialize_type=serialize) as producer:

            async def gathered(number: int) -> None:
                body = b"gathered %d" % number
                sent[f"auto{number}"] = body, await producer.send(Message(topic, body, tags=f"auto{number}"))

            async with anyio.create_task_group() as group:
                for number in range(4):
                    group.start_soon(gathered, number)

    anyio.run(send, backend="asyncio")
    for version in ("4.9.8", "5.3.3"):
        got = {message.tags: message for message in java_receives(place, version, topic, len(sent) + 1)}
        assert got.pop("oneway").crc == crc32(b"one way")
        assert set(got) == set(sent)
        for tags, (body, result) in sent.items():
            message = got[tags]
            assert (message.crc, message.length) == (crc32(body), len(body))
            assert (message.queue_id, message.queue_offset) == (result.queue.queue_id, result.queue_offset)
            assert message.message_id == result.message_id


@pytest.mark.parametrize("version", ["4.9.8", "5.3.3"])
@pytest.mark.parametrize("kind", CompressionType, ids=lambda kind: kind.name)
def test_apaches_is_read_by_ours_and_both_choose_the_same_queues(
    place: Place, version: str, kind: CompressionType
) -> None:
    topic = f"FromJava{version.replace('.', '_')}{kind.name}"

    async def make_topic() -> None:
        async with Producer(name_servers=place.name_server) as producer:
            await producer.send(Message(topic, b"makes the topic"))
            await known_queues(producer, topic)

    anyio.run(make_topic)
    done = run_java_peer(
        version, "JSON", ["send", place.name_server, topic, "-"], scratch=place.scratch,
        program="interop.ProducerPeer",
        properties=[f"rocketmq.message.compressType={kind.name}", "file.encoding=UTF-8"],
    )  # fmt: skip
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("SENT ")]
    assert [line[-1] for line in lines] == ["SEND_OK"] * 7, done.stdout[-3000:] + done.stderr[-3000:]
    javas_queues = [int(line[2]) for line in lines[2:]]

    async def compare() -> None:
        found = await stored(place.name_server, topic)
        by_tags = {message.tags: message for message in found}
        large = by_tags["large"]
        assert large.body == LARGE
        assert large.stored.sys_flag & COMPRESSED
        assert large.stored.sys_flag & COMPRESSION_MASK == kind.value
        for number in range(3):
            assert by_tags[f"batch{number}"].body == b"item %d" % number
        async with Producer(name_servers=place.name_server) as producer:
            for key, queue_id in zip(KEYS, javas_queues, strict=True):
                by_key = await producer.send(Message(topic, key.encode(), sharding_key=key))
                by_selector = await producer.send(Message(topic, b"x"), selector=select_by_hash, argument=key)
                assert by_key.queue.queue_id == by_selector.queue.queue_id == queue_id

    anyio.run(compare)


def test_zlib_is_the_default_that_old_readers_know() -> None:
    assert Compression().kind is CompressionType.ZLIB
    assert CompressionType.ZLIB.value == COMPRESSION_ZLIB


@pytest.mark.parametrize("version", ["4.9.8", "5.3.3"])
def test_namespaces_are_apaches(place: Place, version: str) -> None:
    topic = f"Named{version.replace('.', '_')}"

    async def ours() -> SendResult:
        async with Producer(name_servers=place.name_server, namespace="TENANT") as producer:
            result = await producer.send(Message(topic, b"ours", tags="ours"))
            await known_queues(producer, topic)
            return result

    result = anyio.run(ours)
    done = run_java_peer(
        version, "JSON", ["send", place.name_server, topic, "TENANT"], scratch=place.scratch,
        program="interop.ProducerPeer",
    )  # fmt: skip
    assert done.stdout.count("SEND_OK") == 7, done.stdout[-3000:] + done.stderr[-3000:]
    got = {message.tags: message for message in java_receives(place, version, topic, 10, "TENANT")}
    assert got["ours"].message_id == result.message_id
    assert {message.topic for message in got.values()} == {topic}
    found = anyio.run(stored, place.name_server, f"TENANT%{topic}")
    assert {message.properties.get("INSTANCE_ID") for message in found if message.tags == "ours"} == {"TENANT"}
    heard = anyio.run(ours_hears, place.name_server, topic, 10)
    assert sorted(message.message_id for message in heard) == sorted(message.message_id for message in found)
    assert {message.topic for message in heard} == {topic}
    retries = [name for name in anyio.run(all_topics, place.name_server) if name.startswith("%RETRY%TENANT%")]
    assert f"%RETRY%TENANT%{topic}" in retries
    assert any(name.startswith("%RETRY%TENANT%consumer_peer_") for name in retries), "Java names them so"


async def ours_hears(name_server: str, topic: str, count: int) -> list[ReceivedMessage]:
    heard: list[ReceivedMessage] = []
    enough = anyio.Event()

    async def listen(messages: Sequence[ReceivedMessage]) -> None:
        heard.extend(messages)
        if len(heard) >= count:
            enough.set()

    async with PushConsumer(topic, name_servers=name_server, namespace="TENANT") as consumer:
        await consumer.subscribe(topic, listen)
        with anyio.fail_after(60):
            await enough.wait()
    return heard


async def all_topics(name_server: str) -> list[str]:
    async with AdminClient(name_servers=name_server) as admin:
        return list(await list_topics(admin, everything=True))
