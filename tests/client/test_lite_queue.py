"""A lite consumer's queue: any order of pulls, takes, acknowledgements and seeks keeps to a plain model."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trio_rmq.client.lite_queue import LiteQueue
from trio_rmq.client.message import ReceivedMessage
from trio_rmq.wire.groups import MessageQueue
from trio_rmq.wire.ids import pack_host
from trio_rmq.wire.record import decode_record, encode_record, encode_topic

QUEUE = MessageQueue(topic="T", broker_name="b")


def message(offset: int, size: int = 1) -> ReceivedMessage:
    host = pack_host("127.0.0.1", 1)
    topic_field, magic = encode_topic("T")
    record = encode_record(topic_field, 0, offset, 0, 0, host, b"x" * size, b"", 0, 0, 0, host, magic=magic)
    return ReceivedMessage.from_record(decode_record(record, 0), QUEUE)


def is_full(queue: LiteQueue) -> bool:
    return queue.is_full  # a call, because mypy takes a property for unchanged


def offsets(messages: list[ReceivedMessage]) -> list[int]:
    return [item.queue_offset for item in messages]


def held(offset: int = 0, *, count_max: int = 10, size_max_bytes: int = 100) -> LiteQueue:
    return LiteQueue(QUEUE, offset, count_max=count_max, size_max_bytes=size_max_bytes)


def test_commits_stand_at_the_first_message_not_done() -> None:
    queue = held(5)
    assert queue.commit_offset == 5
    assert queue.pulled([message(7), message(8)], 10, generation=0)
    assert queue.commit_offset == 7  # 5 and 6 were filtered out
    assert offsets(queue.take(1)) == [7]
    assert queue.commit_offset == 5
    queue.acknowledge()
    assert queue.commit_offset == 8
    assert offsets(queue.take(9)) == [8]
    queue.acknowledge(8)
    assert queue.commit_offset == 8
    queue.acknowledge(99)
    assert queue.commit_offset == 10


def test_room_is_counted_in_messages_and_bytes() -> None:
    queue = held(count_max=2, size_max_bytes=50)
    queue.pulled([message(0)], 1, generation=0)
    assert not is_full(queue)
    queue.pulled([message(1)], 2, generation=0)
    assert is_full(queue)
    queue.take(2)
    assert not is_full(queue)
    queue.pulled([message(2, 50)], 3, generation=0)
    assert is_full(queue)
    queue.seek(0)
    assert not is_full(queue)


def test_a_paused_queue_hands_out_nothing() -> None:
    queue = held()
    queue.paused = True
    assert not queue.pulled([message(0)], 1, generation=0)
    assert queue.take(1) == []
    queue.paused = False
    assert offsets(queue.take(1)) == [0]


def test_a_pull_from_before_a_seek_counts_for_nothing() -> None:
    queue = held()
    queue.seek(40)
    assert not queue.pulled([message(0)], 1, generation=0)
    assert (queue.next_offset, queue.commit_offset, queue.take(1)) == (40, 40, [])


@given(st.lists(st.one_of(st.integers(1, 4), st.sampled_from(["pull", "gap", "done", "seek"])), max_size=40))
def test_every_message_is_handed_out_once_in_order_and_committed_after(steps: list[int | str]) -> None:
    queue = held()
    expected, done = 0, 0
    waiting: list[int] = []
    for step in steps:
        if step in ("pull", "gap"):
            first = queue.next_offset + (3 if step == "gap" else 0)
            queue.pulled([message(first), message(first + 1)], first + 2, generation=queue.generation)
            waiting += [first, first + 1]
        elif step == "done":
            queue.acknowledge()
            done = expected
        elif step == "seek":
            queue.seek(done)
            waiting, expected = [], done
        elif isinstance(step, int):
            taken = offsets(queue.take(step))
            assert taken == waiting[:step]
            del waiting[:step]
            expected = taken[-1] + 1 if taken else expected
        assert queue.commit_offset >= done
        if done < expected:
            assert queue.commit_offset == done
        elif waiting:
            assert queue.commit_offset == waiting[0]
