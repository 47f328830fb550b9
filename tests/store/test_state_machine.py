"""Any order of appends, waits, pulls, crashes and restarts, against a model that is two dictionaries."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AsyncExitStack
from random import Random
from typing import Any

import trio
from hypothesis import Phase
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from trio.testing import MockClock

from trio_rmq.store.message_store import MessageStore
from trio_rmq.store.messages import AppendStatus, GetStatus, NewMessage
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.testing.stores import Place, new_message
from trio_rmq.wire.record import decode_records

Key = tuple[str, int, int]

messages = st.lists(
    st.tuples(st.sampled_from("TU"), st.integers(0, 1), st.sampled_from([0, 10, 900, 3000])), min_size=1, max_size=8
)


class StoreMachine(RuleBasedStateMachine):
    """Each step opens the store if it is closed; the trio run of a step ends with it, so a life is replayed by steps.

    A store's life cannot span two runs of Trio: a step that leaves the store open stops it by a kill (the disk keeps
    what was written) or, when the step says so, in order or by a power loss.
    """

    def __init__(self) -> None:
        super().__init__()
        self.disk = FaultyDisk()
        self.written: dict[Key, bytes] = {}
        self.durable: dict[Key, bytes] = {}
        self.deleted: set[str] = set()
        self.sync = False
        self.number = 0

    @initialize(sync=st.booleans())
    def choose(self, sync: bool) -> None:
        self.sync = sync

    def open(self) -> AbstractAsyncContextManager[MessageStore]:
        return Place(self.disk, "store").open(
            mapped_file_size_commit_log=4096,
            mapped_file_size_consume_queue=80,
            flush_disk_type="SYNC_FLUSH" if self.sync else "ASYNC_FLUSH",
        )

    def run(self, job: Any) -> None:
        trio.run(job, clock=MockClock(autojump_threshold=0))

    @rule(
        batches=st.lists(messages, min_size=1, max_size=4),
        end=st.sampled_from(["stop", "kill", "power"]),
        seed=st.integers(0, 2**32),
        pause=st.sampled_from([0.0, 1.5, 100.0]),
        together=st.booleans(),
    )
    def live(
        self, batches: list[list[tuple[str, int, int]]], end: str, seed: int, pause: float, together: bool
    ) -> None:
        """Append some calls' worth, wait for some, and end one way or another."""
        rng = Random(seed)

        async def life() -> None:
            survivor: FaultyDisk | None = None
            async with AsyncExitStack() as stack:
                store = await stack.enter_async_context(self.open())
                for batch in batches:
                    await self.append(store, batch, rng, together)
                    await trio.sleep(pause)
                if pause == 100.0:
                    self.durable.update(self.written)
                if end == "kill":
                    survivor = self.disk.survivor_of_kill()
                elif end == "power":
                    survivor = self.disk.survivor_of_power_loss(rng)
            if survivor is not None:
                self.disk = survivor
            else:
                self.durable.update(self.written)

        self.run(life)
        if end == "power":
            self.written = dict(self.durable)

    async def append(self, store: MessageStore, batch: list[tuple[str, int, int]], rng: Random, together: bool) -> None:
        news: list[NewMessage] = []
        for topic, queue_id, size in batch:
            self.number += 1
            news.append(new_message(b"%d " % self.number + rng.randbytes(size), topic=topic, queue_id=queue_id))
        results = store.append_together(news) if together else store.append(news)
        for message, result in zip(news, results, strict=True):
            if result.status is AppendStatus.PUT_OK:
                key = (message.topic, message.queue_id, result.queue_offset)
                assert key not in self.written, "a queue offset was given twice"
                self.written[key] = message.body
                if rng.random() < 0.7:
                    await store.wait_durable(result.physical_offset + result.size_bytes)
                    if self.sync:
                        offset = self.written[key]
                        self.durable[key] = offset
            else:
                assert together
        if together:
            assert len({result.status for result in results}) == 1

    @precondition(lambda self: self.written)
    @rule(topic=st.sampled_from("TU"))
    def delete(self, topic: str) -> None:
        """Delete a topic; it begins again at offset 0."""

        async def life() -> None:
            async with self.open() as store:
                await store.delete_topic(topic)

        self.run(life)
        for known in (self.written, self.durable):
            for key in [key for key in known if key[0] == topic]:
                del known[key]
        self.durable.update(self.written)

    @invariant()
    def all_is_there(self) -> None:
        """A kill of this very moment loses nothing that must be there, and serves nothing changed."""
        promised = dict(self.written)

        async def look() -> None:
            async with self.open() as store:
                found: dict[Key, bytes] = {}
                for topic, queue_id in store.queues():
                    offset = store.min_offset(topic, queue_id)
                    while (
                        answer := store.get_messages(topic, queue_id, offset, max_count=3)
                    ).status is GetStatus.FOUND:
                        for record in decode_records(answer.body, check_crc=True):
                            assert record.queue_offset == offset
                            found[topic, queue_id, offset] = record.body
                            offset += 1
                    assert answer.status in (GetStatus.OFFSET_OVERFLOW_ONE, GetStatus.NO_MESSAGE_IN_QUEUE)
                for key, body in promised.items():
                    assert found.get(key) == body, f"{key} is lost or changed"
                self.written.update(found)

        self.run(look)
        self.durable.update(self.written)


StoreMachine.TestCase.settings = hypothesis_settings(
    max_examples=25, stateful_step_count=8, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate]
)
TestStoreMachine = StoreMachine.TestCase
