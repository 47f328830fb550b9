"""What a consumer holds of a queue keeps to a plain model, whatever a broker sends and in whatever order calls end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trio_rmq.client.process_queue import ProcessQueue
from trio_rmq.wire.groups import MessageQueue

SIZE_OF = {offset: 10 + offset for offset in range(20)}
OFFSETS = st.lists(st.integers(0, 19), max_size=6)


@given(st.lists(st.tuples(st.booleans(), OFFSETS), max_size=12))
def test_count_size_and_what_may_be_committed(steps: list[tuple[bool, list[int]]]) -> None:
    queue = ProcessQueue(MessageQueue(topic="T", broker_name="b", queue_id=0), 0)
    unfinished: list[int] = []
    for is_pull, offsets in steps:
        if is_pull:  # also one that has been there, or has one twice
            queue.pulled(offsets, [SIZE_OF[offset] for offset in offsets], max([queue.next_offset - 1, *offsets]) + 1)
            unfinished += [offset for offset in dict.fromkeys(offsets) if offset not in unfinished]
        else:
            queue.finished(offsets)
            unfinished = [offset for offset in unfinished if offset not in offsets]
        assert queue.count == len(unfinished)
        assert queue.size_bytes == sum(SIZE_OF[offset] for offset in unfinished)
        assert queue.commit_offset == (unfinished[0] if unfinished else queue.next_offset)
