"""Our push consumers against Apache's name server and broker: members, orderly, broadcasting, SQL92, retries, lag."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import anyio
import pytest

from tests.interop.peers import apache_broker, apache_name_server
from trio_rmq.client import ConsumeLater, LocalOffsetStore, Message, Producer, PushConsumer, ReceivedMessage
from trio_rmq.errors import ResponseError
from trio_rmq.wire.heartbeat import EXPRESSION_SQL92

pytestmark = [pytest.mark.interop, pytest.mark.anyio]
COUNT = 100
LIMIT_SECONDS = 60


@pytest.fixture(scope="module", params=["4.9.7", "5.3.3"])
def apache(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    scratch, version = tmp_path_factory.mktemp("apache"), str(request.param)
    with (
        apache_name_server(scratch, version=version) as namesrv,
        apache_broker(scratch, namesrv.address, version=version),
    ):
        yield namesrv.address


@pytest.fixture(params=["trio", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Gathering:
    """A listener that gathers messages, and fails the first time with those whose body is in `failing`."""

    def __init__(self, failing: Sequence[bytes] = ()) -> None:
        self.messages: list[ReceivedMessage] = []
        self._failing = set(failing)
        self._came = anyio.Event()

    async def __call__(self, messages: Sequence[ReceivedMessage]) -> ConsumeLater | None:
        if messages[0].body in self._failing:
            self._failing.discard(messages[0].body)
            return ConsumeLater(delay_level=1, suspend_seconds=0.05)
        self.messages += messages
        self._came.set()
        return None

    @property
    def bodies(self) -> list[int]:
        return sorted(int(message.body) for message in self.messages)

    async def wait(self, count: int) -> None:
        with anyio.fail_after(LIMIT_SECONDS):
            while len({message.body for message in self.messages}) < count:
                self._came = anyio.Event()
                await self._came.wait()


async def send(apache: str, topic: str) -> None:
    async with Producer(name_servers=apache) as producer:
        for number in range(COUNT):
            message = Message(topic, b"%d" % number, tags="ab"[number % 2], properties={"n": str(number)})
            await producer.send(message)


async def test_concurrent_members_retries_and_lag(apache: str, anyio_backend: str) -> None:
    topic = f"Push_{anyio_backend}"
    await send(apache, topic)
    heard = Gathering(failing=[b"7"])
    async with (
        PushConsumer(f"G{topic}", name_servers=apache) as first,
        PushConsumer(f"G{topic}", name_servers=apache) as second,
    ):
        await first.subscribe(topic, heard)
        await heard.wait(COUNT)
        await second.subscribe(topic, heard)
        with anyio.fail_after(LIMIT_SECONDS):
            for member in (first, second):
                await member.wait_queues(lambda queues: len([one for one in queues if one.topic == topic]) == 2)
        assert set(heard.bodies) == set(range(COUNT))  # what moved between the members may have come twice
        assert any(
            message.body == b"7" and message.reconsume_times == 1 and message.topic == topic
            for message in heard.messages
        )
        for member in (first, second):
            await member.commit()
        assert sum(lag.count for lag in (await first.lag(topic)).values()) == 0


async def test_orderly(apache: str, anyio_backend: str) -> None:
    topic = f"Orderly_{anyio_backend}"
    await send(apache, topic)
    heard = Gathering(failing=[b"0", b"50"])
    async with PushConsumer(f"G{topic}", name_servers=apache, orderly=True) as consumer:
        await consumer.subscribe(topic, heard)
        await heard.wait(COUNT)
    assert heard.bodies == list(range(COUNT))
    for queue_id in range(4):
        offsets = [message.queue_offset for message in heard.messages if message.queue.queue_id == queue_id]
        assert offsets == list(range(len(offsets)))


async def test_broadcasting(apache: str, anyio_backend: str, tmp_path: Path) -> None:
    topic = f"Broadcast_{anyio_backend}"
    await send(apache, topic)
    stores = [LocalOffsetStore(tmp_path / f"{number}.json") for number in range(2)]
    gatherings = [Gathering(), Gathering()]
    async with (
        PushConsumer(f"G{topic}", name_servers=apache, broadcasting=True, offset_store=stores[0]) as first,
        PushConsumer(f"G{topic}", name_servers=apache, broadcasting=True, offset_store=stores[1]) as second,
    ):
        for member, heard in zip((first, second), gatherings, strict=True):
            await member.subscribe(topic, heard)
        for heard in gatherings:
            await heard.wait(COUNT)
            assert heard.bodies == list(range(COUNT))


async def test_sql92(apache: str, anyio_backend: str) -> None:
    topic = f"Sql_{anyio_backend}"
    await send(apache, topic)
    heard = Gathering()
    async with PushConsumer(f"G{topic}", name_servers=apache) as consumer:
        with pytest.raises(ResponseError):
            await consumer.subscribe(topic, heard, expression="n >", expression_type=EXPRESSION_SQL92)
        await consumer.subscribe(
            topic, heard, expression="n BETWEEN 10 AND 19 AND TAGS = 'a'", expression_type=EXPRESSION_SQL92
        )
        await heard.wait(5)
    assert heard.bodies == [10, 12, 14, 16, 18]
