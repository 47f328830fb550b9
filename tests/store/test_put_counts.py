"""What each topic got, told by its queues' entries: in memory, in files, and between the two."""

from __future__ import annotations

from random import Random

import pytest

from trio_rmq.store.message_store import MessageStore
from trio_rmq.testing.stores import Place, new_message, stored

pytestmark = pytest.mark.trio


def put(store: MessageStore) -> dict[str, tuple[int, int]]:
    return {topic: (messages, size) for topic, (messages, size) in store.put_counts.by_topic.items()}


async def test_each_message_is_counted_once_wherever_its_entry_is(place: Place) -> None:
    rng = Random(4)
    async with place.open() as store:
        expected: dict[str, tuple[int, int]] = {}
        for step in range(60):
            sent = [
                new_message(bytes(rng.choice((0, 1, 200, 255, 256, 5000))), topic=rng.choice("TUV"), queue_id=queue)
                for queue in rng.choices(range(5), k=rng.randint(1, 9))
            ]
            for message, result in zip(sent, stored(store.append(sent)), strict=True):
                messages, size = expected.get(message.topic, (0, 0))
                expected[message.topic] = messages + 1, size + result.size_bytes
            if step % 3 == 0:
                await store._queue_flusher.write_out(least_bytes=rng.choice((0, 100)))
            if step % 5 == 0:
                await store.put_counts.look()
                assert put(store) == expected
        await store.put_counts.look()
        await store.put_counts.look()
        assert put(store) == expected
    async with place.open() as store:
        await store.put_counts.look()
        assert put(store) == {}
    place.crash()
    async with place.open() as store:
        [result] = stored(store.append([new_message()]))
        await store.put_counts.look()
        assert put(store) == {"T": (1, result.size_bytes)}


async def test_what_readers_do_not_see_yet_does_not_count(place: Place) -> None:
    async with place.open(flush_disk_type="SYNC_FLUSH") as store:
        [result] = stored(store.append([new_message()]))
        await store.put_counts.look()
        assert put(store) == {}
        await store.wait_durable(result.size_bytes)
        await store.put_counts.look()
        assert put(store) == {"T": (1, result.size_bytes)}


async def test_a_topic_that_was_made_anew_goes_on(place: Place) -> None:
    async with place.open() as store:
        [first, _] = stored(store.append([new_message(), new_message()]))
        await store.put_counts.look()
        await store.delete_topic("T")
        stored(store.append([new_message()]))
        await store.put_counts.look()
        assert put(store) == {"T": (3, 3 * first.size_bytes)}


async def test_light_queues_hold_no_messages_of_their_own(place: Place) -> None:
    async with place.open(enable_lmq=True, enable_multi_dispatch=True) as store:
        message = new_message()
        message.properties = "INNER_MULTI_DISPATCH\x01%LMQ%a,%LMQ%b\x02"
        [result] = stored(store.append([message]))
        await store.put_counts.look()
        assert put(store) == {"T": (1, result.size_bytes)}
