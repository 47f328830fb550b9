"""Our admin calls at Apache's name server and broker (4.9.7 and 5.3.3), and at ours in their place."""

from __future__ import annotations

import anyio
import pytest

from tests.interop.test_our_producer import Place, known_queues, place
from trio_rmq.admin.client import AdminClient
from trio_rmq.admin.messages import query_by_key, query_by_unique_key, view_message
from trio_rmq.admin.topics import (
    create_topic,
    delete_topic,
    list_topics,
    max_offset,
    min_offset,
    offset_for_timestamp,
    show_topic,
    topic_queues,
)
from trio_rmq.client import Message, Producer
from trio_rmq.errors import RouteNotFoundError

__all__ = ["place"]

pytestmark = [pytest.mark.interop, pytest.mark.anyio]


async def test_topics_and_messages(place: Place, anyio_backend: str) -> None:
    topic = f"Admin_{anyio_backend}"  # what is left in the log of one that was deleted is still found by key
    server = place.name_server
    async with AdminClient(name_servers=server) as admin, Producer(name_servers=server) as producer:
        (broker,) = await create_topic(admin, topic, write_queues=2)
        assert (await list_topics(admin))[topic][broker].write_queue_nums == 2
        assert "TBW102" in await list_topics(admin, everything=True)
        assert "TBW102" not in await list_topics(admin)
        await known_queues(producer, topic)
        one, two = await topic_queues(admin, topic)
        sent = [
            await producer.send(Message(topic, b"%d" % number, keys=["all", f"k{number}"]), queue=one)
            for number in range(3)
        ]
        with anyio.fail_after(20):  # Apache's index and queues follow the log a moment later
            while True:
                found = await query_by_key(admin, topic, "all")
                if len(found) == 3:
                    break
                await anyio.sleep(0.1)
        assert [message.body for message in found] == [b"0", b"1", b"2"]
        assert [message.body for message in await query_by_key(admin, topic, "k1")] == [b"1"]
        (unique,) = await query_by_unique_key(admin, topic, sent[2].message_id)
        assert (unique.body, unique.queue) == (b"2", one)
        viewed = await view_message(admin, sent[0].offset_message_id)
        assert (viewed.body, viewed.queue, viewed.message_id) == (b"0", one, sent[0].message_id)
        assert (await min_offset(admin, one), await max_offset(admin, one)) == (0, 3)
        assert (await min_offset(admin, two), await max_offset(admin, two)) == (0, 0)
        assert await offset_for_timestamp(admin, one, found[0].store_timestamp_ms) == 0
        shown = await show_topic(admin, topic)
        assert [(state.queue, state.min_offset, state.max_offset) for state in shown.queues] == [
            (one, 0, 3),
            (two, 0, 0),
        ]
        assert shown.queues[0].last_stored_ms == found[2].store_timestamp_ms
        assert await delete_topic(admin, topic) == [broker]
        assert topic not in await list_topics(admin)
        with pytest.raises(RouteNotFoundError):
            await topic_queues(admin, topic)


@pytest.fixture(params=["trio", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)
