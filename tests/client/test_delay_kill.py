"""A real broker is killed while delayed messages wait: each comes once after its restart, and none early."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.interop.peers import free_ports, our_broker, our_name_server
from tests.interop.stored import stored_records
from trio_rmq.client import Message, Producer, PushConsumer, ReceivedMessage
from trio_rmq.wire.record import StoredMessage

pytestmark = pytest.mark.anyio
TOPIC = "Delayed"
SCHEDULE = "SCHEDULE_TOPIC_XXXX"
MESSAGES = 120
LEVELS = 3
"""Of so many seconds each."""
LIMIT_SECONDS = 60


@pytest.fixture
def anyio_backend() -> str:
    return "trio"


@pytest.mark.parametrize("flush", [pytest.param("SYNC_FLUSH", marks=pytest.mark.slow), "ASYNC_FLUSH"])
async def test_each_comes_once_after_the_kill_and_none_early(flush: str, tmp_path: Path) -> None:
    [port] = free_ports(1)
    keys: dict[str, Any] = {
        "messageDelayLevel": " ".join(f"{level}s" for level in range(1, LEVELS + 1)),
        "flushDiskType": flush,
    }
    heard: Counter[bytes] = Counter()
    some, all_of_them = anyio.Event(), anyio.Event()

    async def listen(messages: Sequence[ReceivedMessage]) -> None:
        heard.update(message.body for message in messages)
        if len(heard) >= MESSAGES // 6:
            some.set()
        if len(heard) == 1 + MESSAGES:
            all_of_them.set()

    with our_name_server(tmp_path) as names, ExitStack() as brokers:
        broker = brokers.enter_context(our_broker(tmp_path, names.address, port=port, **keys))
        async with (
            Producer(name_servers=names.address) as producer,
            PushConsumer("delayed", name_servers=names.address) as consumer,
        ):
            await producer.send(Message(TOPIC, b"makes the topic"))
            await consumer.subscribe(TOPIC, listen)
            for number in range(MESSAGES):
                await producer.send(Message(TOPIC, b"%d" % number, delay_level=1 + number % LEVELS))
            with anyio.fail_after(LIMIT_SECONDS):
                await some.wait()
                broker.process.kill()
                broker.process.wait(timeout=10)
                assert len(heard) < MESSAGES
                await anyio.sleep(1)  # what comes due meanwhile is late
                brokers.enter_context(our_broker(tmp_path, names.address, port=port, **keys))
                await all_of_them.wait()
    waited: dict[int, StoredMessage] = {}
    copies: Counter[int] = Counter()
    for record in stored_records(tmp_path / "store-broker-a"):
        if record.topic == SCHEDULE:
            waited[record.physical_offset] = record
        elif record.topic == TOPIC and record.get_property("DELAY"):
            before = waited[record.prepared_transaction_offset]
            delay_ms = 1000 * int(record.get_property("DELAY") or 0)
            assert record.body == before.body
            assert record.store_timestamp_ms >= before.store_timestamp_ms + delay_ms
            copies[before.physical_offset] += 1
    assert len(waited) == MESSAGES
    assert copies == dict.fromkeys(waited, 1)
