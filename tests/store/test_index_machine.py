"""Any order of appends, queries, flushes, stops, kills and power losses: a query finds just what the log has.

The model is the log itself as a dictionary from topic and key to bodies.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import AbstractAsyncContextManager
from random import Random

import trio
from hypothesis import Phase
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from trio_rmq.store.message_store import MessageStore
from trio_rmq.testing.faulty_disk import FaultyDisk
from trio_rmq.testing.stores import Place, new_message, stored, survives
from trio_rmq.wire.record import RecordKind, decode_record

EVER = 2**63 - 1
KEYS = ["a", "b", "Aa", "BB", "c"]
"""Aa and BB have one hash."""

words = st.lists(st.sampled_from(KEYS), max_size=3)
messages = st.lists(st.tuples(st.sampled_from("TU"), words, st.sampled_from([0, 900])), min_size=1, max_size=12)


class IndexMachine(RuleBasedStateMachine):
    """Each step is one life of a store, which ends in order, by a kill, by a power loss, or by a crash in a call."""

    def __init__(self) -> None:
        super().__init__()
        self.disk = FaultyDisk()
        self.sync = False
        self.number = 0

    @initialize(sync=st.booleans())
    def choose(self, sync: bool) -> None:
        self.sync = sync

    def open(self) -> AbstractAsyncContextManager[MessageStore]:
        return Place(self.disk, "store").open(
            mapped_file_size_commit_log=4096,
            mapped_file_size_consume_queue=80,
            max_hash_slot_num=7,
            max_index_num=20,
            flush_disk_type="SYNC_FLUSH" if self.sync else "ASYNC_FLUSH",
        )

    @rule(
        batches=st.lists(messages, min_size=1, max_size=4),
        end=st.sampled_from(["stop", "kill", "power", "crash"]),
        calls=st.integers(1, 80),
        seed=st.integers(0, 2**32),
        pause=st.sampled_from([0.0, 0.2, 1.5, 100.0]),
    )
    def live(
        self, batches: list[list[tuple[str, list[str], int]]], end: str, calls: int, seed: int, pause: float
    ) -> None:
        """Append some calls' worth, look some of it up, and end one way or another."""
        rng = Random(seed)

        async def life() -> None:
            survivor: FaultyDisk | None = None
            async with self.open() as store:
                if end == "crash":
                    self.disk.crash_at, self.disk.crash_rng = self.disk.operations + calls, rng
                for batch in batches:
                    self.append(store, batch)
                    await trio.sleep(pause)
                    await self.check(store)
                    if rng.random() < 0.3 and store._index is not None:
                        await store._index.flush()
                if end == "kill":
                    survivor = self.disk.survivor_of_kill()
                elif end == "power":
                    survivor = self.disk.survivor_of_power_loss(rng)
            if survivor is not None:
                self.disk = survivor

        if not survives(life):
            self.disk = self.disk.survivor_of_kill() if seed % 2 else self.disk.survivor_of_power_loss(rng)
        self.disk.crash_at = None

    def append(self, store: MessageStore, batch: list[tuple[str, list[str], int]]) -> None:
        news = []
        for topic, keys, size in batch:
            self.number += 1
            text = f"UNIQ_KEY\x01U{self.number}" + (f"\x02KEYS\x01{' '.join(keys)}" if keys else "")
            news.append(new_message(b"%d " % self.number + bytes(size), topic=topic, properties=text))
        stored(store.append(news))

    async def check(self, store: MessageStore) -> None:
        """Every key of the visible log finds all its messages, the newest first."""
        await store.wait_durable(EVER)  # nothing becomes visible between the model's look and the queries
        model: dict[tuple[str, str], list[tuple[int, bytes]]] = defaultdict(list)
        for offset, checked in store._log.scan(store.min_physical_offset):
            if checked.kind is RecordKind.RECORD and offset < store.max_physical_offset:
                data = store.record_at(offset)
                assert data is not None
                record = decode_record(data)
                properties = record.property_map()
                for key in {properties["UNIQ_KEY"], *properties.get("KEYS", "").split()}:
                    model[record.topic, key].append((offset, record.body))
        for topic, key in [*model, *((topic, key) for topic in "TU" for key in [*KEYS, "none"])]:
            found = await store.query(topic, key, max_count=64, begin_ms=0, end_ms=EVER)
            records = [decode_record(data, check_crc=True) for data in found.records]
            assert [(record.physical_offset, record.body) for record in records] == sorted(
                model.get((topic, key), []), reverse=True
            )[:64]

    @invariant()
    def all_is_found(self) -> None:
        """Whatever the last life left behind: the next one finds every message, by every key, once."""

        async def look() -> None:
            async with self.open() as store:
                await self.check(store)

        assert survives(look)


IndexMachine.TestCase.settings = hypothesis_settings(
    max_examples=25, stateful_step_count=6, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate]
)
TestIndexMachine = IndexMachine.TestCase
