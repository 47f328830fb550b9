"""One record in several queues: what it says, who sees it when, what is refused, and what a start makes of it."""

from __future__ import annotations

from random import Random

import pytest
from trio.testing import MockClock

from trio_rmq.store.message_store import MessageStore
from trio_rmq.store.messages import AppendStatus, GetStatus, NewMessage
from trio_rmq.store.multi_dispatch import dispatched_to
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.testing.stores import Place, new_message, stored
from trio_rmq.wire.properties import format_properties, parse_properties
from trio_rmq.wire.record import StoredMessage, decode_records
from trio_rmq.wire.sysflag import TRANSACTION_PREPARED

LMQ = {"enable_lmq": True, "enable_multi_dispatch": True}


def dispatched(
    names: str,
    body: bytes = b"x",
    *,
    topic: str = "T",
    queue_id: int = 0,
    sys_flag: int = 0,
    more: dict[str, str] | None = None,
) -> NewMessage:
    properties = format_properties({"INNER_MULTI_DISPATCH": names, "TAGS": "t", **(more or {})})
    return new_message(body, topic=topic, queue_id=queue_id, sys_flag=sys_flag, properties=properties)


def read(store: MessageStore, topic: str, queue_id: int = 0) -> list[StoredMessage]:
    found: list[StoredMessage] = []
    offset = store.min_offset(topic, queue_id)
    while (answer := store.get_messages(topic, queue_id, offset, max_count=32)).status is GetStatus.FOUND:
        found += decode_records(answer.body, check_crc=True)
        offset = answer.next_begin_offset
    return found


@pytest.mark.trio
async def test_a_message_stands_in_its_own_queue_and_in_all_that_it_names(place: Place) -> None:
    async with place.open(**LMQ) as store:
        arrived: list[tuple[str, int, int]] = []
        store.on_arrival = lambda topic, queue_id, offset, code: arrived.append((topic, queue_id, offset))
        messages = [
            new_message(b"0", queue_id=2),
            dispatched("%LMQ%a,%LMQ%b", b"1", queue_id=2),
            dispatched("%LMQ%b", b"2", queue_id=2),
            new_message(b"3", queue_id=2),
        ]
        results = stored(store.append(messages))
        assert [result.queue_offset for result in results] == [0, 1, 2, 3]
        assert [message.body for message in read(store, "T", 2)] == [b"0", b"1", b"2", b"3"]
        assert [message.body for message in read(store, "%LMQ%a")] == [b"1"]
        assert [message.body for message in read(store, "%LMQ%b")] == [b"1", b"2"]
        assert arrived == [
            ("T", 2, 1), ("T", 2, 2), ("%LMQ%a", 0, 1), ("%LMQ%b", 0, 1), ("T", 2, 3), ("%LMQ%b", 0, 2), ("T", 2, 4),
        ]  # fmt: skip
        properties = [parse_properties(message.properties) for message in read(store, "%LMQ%b")]
        assert [each["INNER_MULTI_QUEUE_OFFSET"] for each in properties] == ["0,0", "1"]
        assert [each["INNER_MULTI_DISPATCH"] for each in properties] == ["%LMQ%a,%LMQ%b", "%LMQ%b"]
        assert store.statistics().messages_appended == 4
        message = read(store, "%LMQ%b")[1]
        assert (message.topic, message.queue_id, message.queue_offset) == ("T", 2, 2)


@pytest.mark.trio
async def test_it_may_name_a_queue_twice_or_its_own(place: Place) -> None:
    async with place.open(**LMQ) as store:
        stored(store.append([dispatched("%LMQ%a,%LMQ%a,"), dispatched("%LMQ%a", topic="%LMQ%a")]))
        assert store.max_offset("%LMQ%a", 0) == 2
        texts = [parse_properties(message.properties)["INNER_MULTI_QUEUE_OFFSET"] for message in read(store, "%LMQ%a")]
        assert texts == ["0,0", "1"]
    place.crash()
    async with place.open(**LMQ) as store:
        assert store.max_offset("%LMQ%a", 0) == 2


@pytest.mark.trio
@pytest.mark.parametrize(
    "name", ["Other", "SCHEDULE_TOPIC_XXXX", "%LMQ%/../../x", "%LMQ%a\0", "%LMQ%" + "a" * 123, "%LMQ%a,,x"]
)
async def test_only_lmq_queues_may_be_named(place: Place, name: str) -> None:
    async with place.open(**LMQ) as store:
        results = store.append([new_message(b"0"), dispatched(name), new_message(b"1")])
        assert [result.status for result in results] == [
            AppendStatus.PUT_OK, AppendStatus.MESSAGE_ILLEGAL, AppendStatus.PUT_OK,
        ]  # fmt: skip
        assert [result.queue_offset for result in results] == [0, -1, 1]
        assert "INNER_MULTI_DISPATCH names" in results[1].remark
        assert {topic for topic, _ in store.queues()} == {"T"}


@pytest.mark.trio
async def test_a_batchs_items_are_not_dispatched(place: Place) -> None:
    async with place.open(**LMQ) as store:
        results = store.append_together([new_message(), dispatched("%LMQ%a")])
        assert {result.status for result in results} == {AppendStatus.MESSAGE_ILLEGAL}
        assert store.max_physical_offset == 0


@pytest.mark.trio
async def test_what_is_not_delivered_yet_is_not_dispatched_yet(place: Place) -> None:
    async with place.open(**LMQ) as store:
        forged = {"INNER_MULTI_QUEUE_OFFSET": "7"}
        stored(
            store.append(
                [
                    dispatched("%LMQ%a", topic="SCHEDULE_TOPIC_XXXX", more=forged),
                    dispatched("%LMQ%a", topic="RMQ_SYS_TRANS_HALF_TOPIC", more=forged),
                    dispatched("%LMQ%a", sys_flag=TRANSACTION_PREPARED, more=forged),
                    dispatched("", more=forged),
                    dispatched("%LMQ%b", more=forged),
                ]
            )
        )
        assert store.max_offset("%LMQ%a", 0) == 0
        [message] = read(store, "%LMQ%b")
        assert parse_properties(message.properties)["INNER_MULTI_QUEUE_OFFSET"] == "0"
        for topic in ("SCHEDULE_TOPIC_XXXX", "RMQ_SYS_TRANS_HALF_TOPIC"):
            assert "INNER_MULTI_QUEUE_OFFSET" not in parse_properties(read(store, topic)[0].properties)


@pytest.mark.trio
async def test_there_may_be_so_many_queues(place: Place) -> None:
    async with place.open(**LMQ, max_lmq_consume_queue_num=3) as store:
        stored(store.append([dispatched("%LMQ%a,%LMQ%b"), new_message(topic="Other")]))
        assert store.append([dispatched("%LMQ%c,%LMQ%d")])[0].status is AppendStatus.LMQ_CONSUME_QUEUE_NUM_EXCEEDED
        stored(store.append([dispatched("%LMQ%c")]))
        [result] = store.append([dispatched("%LMQ%d")])
        assert result.status is AppendStatus.LMQ_CONSUME_QUEUE_NUM_EXCEEDED
        assert "maxLmqConsumeQueueNum (3)" in result.remark
        stored(store.append([dispatched("%LMQ%a,%LMQ%b,%LMQ%c")]))
        assert await store.delete_topic("%LMQ%a") == 1
        stored(store.append([dispatched("%LMQ%d")]))
        assert store.max_offset("%LMQ%a", 0) == 0


@pytest.mark.trio
async def test_off_it_is_a_property_like_others(place: Place) -> None:
    async with place.open() as store:
        stored(store.append([dispatched("%LMQ%a,anything/at all", more={"INNER_MULTI_QUEUE_OFFSET": "5,x"})]))
        assert [*store.queues()] == [("T", 0)]
        assert parse_properties(read(store, "T")[0].properties)["INNER_MULTI_QUEUE_OFFSET"] == "5,x"
    place.crash()
    async with place.open(**LMQ) as store:
        assert [*store.queues()] == [("T", 0)]


@pytest.mark.trio
async def test_under_sync_flush_all_entries_wait_for_the_sync(autojump_clock: MockClock) -> None:
    disk = FaultyDisk(latency=lambda: 1.0)
    async with Place(disk, "store").open(**LMQ, flush_disk_type="SYNC_FLUSH") as store:
        [result] = stored(store.append([dispatched("%LMQ%a")]))
        assert (store.max_offset("T", 0), store.max_offset("%LMQ%a", 0)) == (0, 0)
        await store.wait_durable(result.physical_offset + result.size_bytes)
        assert (store.max_offset("T", 0), store.max_offset("%LMQ%a", 0)) == (1, 1)


@pytest.mark.trio
async def test_a_refused_write_takes_all_entries_back(autojump_clock: MockClock) -> None:
    disk = FaultyDisk()
    async with Place(disk, "store").open(**LMQ) as store:
        stored(store.append([dispatched("%LMQ%a,%LMQ%b")]))
        disk.fail_next("pwrite", 28)
        assert store.append([dispatched("%LMQ%a,%LMQ%b")])[0].status is AppendStatus.SERVICE_NOT_AVAILABLE
        too_large = store.append([dispatched("%LMQ%a,%LMQ%c", body=b"x" * 40_000)])
        assert too_large[0].status is AppendStatus.MESSAGE_ILLEGAL
        assert [store.max_offset(name, 0) for name in ("T", "%LMQ%a", "%LMQ%b", "%LMQ%c")] == [1, 1, 1, 0]
        stored(store.append([dispatched("%LMQ%a,%LMQ%b")]))
        assert [message.queue_offset for message in read(store, "%LMQ%a")] == [0, 1]
        assert parse_properties(read(store, "%LMQ%b")[1].properties)["INNER_MULTI_QUEUE_OFFSET"] == "1,1"


@pytest.mark.trio
@pytest.mark.parametrize("lost", ["nothing", "the queues"])
async def test_a_start_after_a_crash_puts_every_entry_back(place: Place, lost: str) -> None:
    rng = Random(3)
    names = [f"%LMQ%{letter}" for letter in "abcde"]
    async with place.open(**LMQ) as store:
        for number in range(120):
            chosen = rng.sample(names, rng.randrange(4))
            body = str(number).encode().ljust(rng.choice((10, 900)))
            message = dispatched(",".join(chosen), body) if chosen else new_message(body)
            stored(store.append([message]))
        await store.delete_topic("%LMQ%e")
        stored(store.append([dispatched("%LMQ%e,%LMQ%a", b"after")]))
        before = {name: [message.body for message in read(store, name)] for name in ("T", *names)}
    assert before["%LMQ%e"] == [b"after"]
    place.crash()
    if lost == "the queues":
        for topic in place.disk.list_directory(f"{place.root}/consumequeue"):
            for name in place.disk.list_directory(f"{place.root}/consumequeue/{topic}/0"):
                place.disk.unlink(f"{place.root}/consumequeue/{topic}/0/{name}")
    async with place.open(**LMQ) as store:
        assert {name: [message.body for message in read(store, name)] for name in ("T", *names)} == before
        [result] = stored(store.append([dispatched(",".join(names), b"last")]))
        assert result.queue_offset == len(before["T"])
        for name in names:
            assert [message.body for message in read(store, name)] == [*before[name], b"last"]


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("INNER_MULTI_DISPATCH\x01%LMQ%a,%LMQ%b\x02INNER_MULTI_QUEUE_OFFSET\x013,4", [("%LMQ%a", 3), ("%LMQ%b", 4)]),
        ("INNER_MULTI_DISPATCH\x01%LMQ%a,T\x02INNER_MULTI_QUEUE_OFFSET\x013,4", [("%LMQ%a", 3)]),
        ("INNER_MULTI_DISPATCH\x01%LMQ%a/b\x02INNER_MULTI_QUEUE_OFFSET\x013", []),
        ("INNER_MULTI_DISPATCH\x01%LMQ%a\x02INNER_MULTI_QUEUE_OFFSET\x013,4", []),
        ("INNER_MULTI_DISPATCH\x01%LMQ%a\x02INNER_MULTI_QUEUE_OFFSET\x01-3", []),
        ("INNER_MULTI_DISPATCH\x01%LMQ%a", []),
        ("TAGS\x01a", []),
    ],
)
def test_what_a_record_says_of_its_queues(text: str, places: list[tuple[str, int]]) -> None:
    assert dispatched_to(text.encode()) == places
