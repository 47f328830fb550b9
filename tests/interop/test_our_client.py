"""Our producer and push consumer against Apache's name server and broker: 1,000 messages each way of running them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import anyio
import pytest

from tests.interop.peers import apache_broker, apache_name_server, run_java_peer
from trio_rmq.client.message import ConsumeResult, Message, ReceivedMessage, SendStatus
from trio_rmq.client.producer import Producer
from trio_rmq.client.push_consumer import PushConsumer
from trio_rmq.wire.command import SerializeType

pytestmark = pytest.mark.interop

COUNT = 1000
LIMIT_SECONDS = 60


@pytest.fixture(scope="module")
def apache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of Apache's name server, with Apache's broker registered there."""
    scratch = tmp_path_factory.mktemp("apache")
    with apache_name_server(scratch) as namesrv, apache_broker(scratch, namesrv.address):
        yield namesrv.address


async def _send(namesrv: str, topic: str, serialize_type: SerializeType) -> None:
    async with Producer(name_servers=namesrv, group=f"{topic}_producer", serialize_type=serialize_type) as producer:
        for number in range(COUNT):
            message = Message(
                topic,
                b"message %d" % number,
                tags="even" if number % 2 == 0 else "odd",
                keys=f"key{number}",
                properties={"number": str(number)},
            )
            result = await producer.send(message)
            assert result.status is SendStatus.SEND_OK


async def _receive(namesrv: str, topic: str, serialize_type: SerializeType) -> dict[bytes, ReceivedMessage]:
    received: dict[bytes, ReceivedMessage] = {}
    enough = anyio.Event()

    async def listen(messages: Sequence[ReceivedMessage]) -> ConsumeResult:
        received.update({message.body: message for message in messages})
        if len(received) == COUNT:
            enough.set()
        return ConsumeResult.SUCCESS

    async with PushConsumer(f"{topic}_consumer", name_servers=namesrv, serialize_type=serialize_type) as consumer:
        await consumer.subscribe(topic, listen, expression="even || odd")
        with anyio.move_on_after(LIMIT_SECONDS):
            await enough.wait()
    return received


@pytest.mark.parametrize("serialize", ["JSON", "ROCKETMQ"])
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_our_client_exchanges_1000_messages_with_apache(apache: str, backend: str, serialize: str) -> None:
    topic = f"Ours_{backend}_{serialize}"

    async def exchange() -> dict[bytes, ReceivedMessage]:
        await _send(apache, topic, SerializeType[serialize])
        return await _receive(apache, topic, SerializeType[serialize])

    received = anyio.run(exchange, backend=backend)
    assert sorted(received) == sorted(b"message %d" % number for number in range(COUNT))
    for body, message in received.items():
        number = body.decode().removeprefix("message ")
        assert message.properties["number"] == number
        assert message.keys == [f"key{number}"]
        assert message.tags == ("even" if int(number) % 2 == 0 else "odd")


def test_our_client_and_apaches_read_each_other(apache: str, tmp_path: Path) -> None:
    anyio.run(_send, apache, "FromUs", SerializeType.JSON, backend="trio")
    got = run_java_peer("5.3.3", "ROCKETMQ", ["receive", apache, "FromUs", "G_FromUs", str(COUNT)], scratch=tmp_path)
    assert f"received={COUNT} wrong=0" in got.stdout, got.stdout + got.stderr
    sent = run_java_peer("4.9.8", "JSON", ["send", apache, "FromJava", "G_FromJava", str(COUNT)], scratch=tmp_path)
    assert f"sent={COUNT}" in sent.stdout, sent.stdout + sent.stderr
    received = anyio.run(_receive, apache, "FromJava", SerializeType.ROCKETMQ, backend="trio")
    assert len(received) == COUNT
