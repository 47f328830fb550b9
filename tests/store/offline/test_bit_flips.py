"""Single bits of a stored log, flipped one at a time: each is named, or is of a field that docs/store.md excuses."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

import pytest

from trio_rmq.store.consume_queue import DELAY_TOPIC
from trio_rmq.testing.bit_flips import UNCOVERED, Flips, sample_store

DOCUMENT = Path(__file__).parents[3] / "docs" / "store.md"
RECORDS = 60


def flip_at_random(seed: int, count: int) -> tuple[int, set[str]]:
    """Flip `count` bits anywhere in the log's files; how many were named, and which fields excused the others."""
    flips = Flips(sample_store(seed, RECORDS))
    rng = Random(seed)
    named, excused = 0, set()
    for _ in range(count):
        offset, bit = rng.randrange(len(flips.content)), rng.randrange(8)
        if flips.flip(offset, bit):
            named += 1
            continue
        row = flips.uncovered(offset, bit)
        assert row is not None, f"nobody saw bit {bit} at {offset}: {flips.field_at(offset)}"
        excused.add(row)
    return named, excused


def test_random_flips_are_named() -> None:
    named, excused = flip_at_random(11, 400)
    assert named > 300
    assert excused <= set(UNCOVERED)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_many_random_flips_are_named(seed: int) -> None:
    named, _ = flip_at_random(seed, 2000)
    assert named > 1600


def test_every_bit_of_the_heads_of_records_is_named_or_listed() -> None:
    """What is listed is derived: each row has flips that nobody sees, and nothing else has."""
    flips = Flips(sample_store(12, 30))
    excused: set[str] = set()
    kinds: dict[object, int] = {}
    for start, record in flips.records.items():
        kind = (record.topic == DELAY_TOPIC, record.sys_flag, b"KEYS" in record.properties)
        kinds[kind] = kinds.get(kind, 0) + 1
        if kinds[kind] > 1:
            continue
        for at in [*range(88 + (len(record.born_host[0]) - 4)), record.size_bytes - len(record.properties) + 2]:
            for bit in (0, 7):
                if not flips.flip(start + at, bit):
                    row = flips.uncovered(start + at, bit)
                    assert row is not None, f"nobody saw bit {bit} of {flips.field_at(start + at)}"
                    excused.add(row)
    assert excused | {"properties"} == set(UNCOVERED)


def test_the_document_lists_the_same() -> None:
    rows = dict(re.findall(r"^\| ([a-zA-Z ]+) \| (.+) \|$", DOCUMENT.read_text(), re.MULTILINE))
    assert {name: rows.get(name) for name in UNCOVERED} == {name: words for name, (_, words) in UNCOVERED.items()}
