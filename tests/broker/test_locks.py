"""Queue locks: one client of a group at a time, for a minute after the last refresh."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from tests.broker.running import Client, one_broker
from trio_rmq.wire.codes import RequestCode
from trio_rmq.wire.groups import (
    LockBatchRequestBody,
    MessageQueue,
    UnlockBatchRequestBody,
    decode_lock_response,
    encode_lock_request,
    encode_unlock_request,
)

pytestmark = pytest.mark.trio

QUEUES = [MessageQueue(topic="T", broker_name="broker-a", queue_id=n) for n in range(3)]


async def lock(client: Client, client_id: str, *numbers: int, group: str = "cg") -> list[int]:
    """The queue ids that the client holds then."""
    body = LockBatchRequestBody(consumer_group=group, client_id=client_id, mq_set=[QUEUES[n] for n in numbers])
    answer = await client.ask(RequestCode.LOCK_BATCH_MQ, body=encode_lock_request(body))
    assert answer.code == 0
    return sorted(queue.queue_id for queue in decode_lock_response(answer.body).lock_ok_mq_set)


async def unlock(client: Client, client_id: str, *numbers: int) -> None:
    body = UnlockBatchRequestBody(consumer_group="cg", client_id=client_id, mq_set=[QUEUES[n] for n in numbers])
    assert (await client.ask(RequestCode.UNLOCK_BATCH_MQ, body=encode_unlock_request(body))).code == 0


async def test_a_queue_has_one_holder_in_a_group(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        assert await lock(client, "c1", 0, 1) == [0, 1]
        assert await lock(client, "c2", 0, 1, 2) == [2]
        assert await lock(client, "c1", 0, 1, 2) == [0, 1]
        assert await lock(client, "c2", 0, group="other") == [0]
        await unlock(client, "c2", 0)  # is not its own
        assert await lock(client, "c2", 0) == []
        await unlock(client, "c1", 0)
        assert await lock(client, "c2", 0) == [0]
        assert await lock(client, "c3") == []


async def test_a_lock_lives_a_minute_after_its_refresh(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        assert await lock(client, "c1", 0) == [0]
        await trio.sleep(50)
        assert await lock(client, "c1", 0) == [0]
        await trio.sleep(59)
        assert await lock(client, "c2", 0) == []
        await trio.sleep(1)
        assert await lock(client, "c2", 0) == [0]
        assert await lock(client, "c1", 0) == []
