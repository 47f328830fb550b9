"""checkCRCOnPull: a damaged body reaches nobody, what stands before it does, and the answer says what to do."""

from __future__ import annotations

import pytest

from trio_rmq.errors import StoreCorruptError
from trio_rmq.store.messages import GetStatus
from trio_rmq.store.served import first_damaged
from trio_rmq.testing.bit_flips import Flips, sample_store
from trio_rmq.testing.stores import Place, new_message, stored
from trio_rmq.wire.hashing import tags_code
from trio_rmq.wire.record import decode_records

SIZE = 91 + 100 + 1 + len("TAGS\x01t0")
LOG = "commitlog/00000000000000000000"


async def fill(place: Place) -> None:
    async with place.open() as store:
        for n in range(40):
            stored(store.append([new_message(b"%d" % n + bytes(100 - len(str(n))), queue_id=n % 2, tags=f"t{n % 4}")]))
    place.write(LOG, b"\xff", 12 * SIZE + 120)  # the seventh message of queue 0


@pytest.mark.trio
async def test_what_is_before_a_damaged_message_is_served_then_an_error(place: Place) -> None:
    await fill(place)
    async with place.open(check_crc_on_pull=True) as store:
        answer = store.get_messages("T", 0, 2, max_count=32)
        assert (answer.status, answer.count, answer.next_begin_offset) == (GetStatus.FOUND, 4, 6)
        assert [record.queue_offset for record in decode_records(answer.body, check_crc=True)] == [2, 3, 4, 5]
        sentence = f"offset 6 of T-0, physical offset {12 * SIZE}, is damaged.*trio-rmq store verify"
        with pytest.raises(StoreCorruptError, match=sentence):
            store.get_messages("T", 0, 6, max_count=32)
        answer = store.get_messages("T", 0, 7, max_count=32)
        assert (answer.count, answer.next_begin_offset) == (13, 20)
        assert store.get_messages("T", 1, 0, max_count=32).count == 20
    async with place.open() as store:  # the default
        assert store.get_messages("T", 0, 2, max_count=32).count == 18


@pytest.mark.trio
async def test_filtered_pulls(place: Place) -> None:
    await fill(place)
    async with place.open(check_crc_on_pull=True) as store:
        wanted = frozenset({tags_code("t0")})
        answer = store.get_messages("T", 0, 0, max_count=32, tags_codes=wanted)
        assert (answer.count, answer.next_begin_offset) == (3, 5)
        with pytest.raises(StoreCorruptError, match="offset 6 of T-0"):
            store.get_messages("T", 0, 5, max_count=32, tags_codes=wanted)
        answer = store.get_messages("T", 0, 0, max_count=32, tags_codes=frozenset({tags_code("t2")}))
        assert answer.count == 10


def test_every_kind_of_record_is_understood() -> None:
    flips = Flips(sample_store(3, 60))
    for start, record in flips.records.items():
        whole = flips.content[start : start + record.size_bytes]
        assert first_damaged(whole * 3) is None
        at = 88 + len(record.born_host[0]) - 4
        broken = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        assert first_damaged(whole + broken + whole) == (1, len(whole), 0)
        for size in (b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff"):  # a body that would reach outside
            assert first_damaged(whole[: at - 4] + size + whole[at:]) == (0, 0, 0)
