"""Our SQL92 filters, bloom filter and filter registration answer as Apache's do, refusals and failures included.

`python -m tests.interop.test_filter` writes protocol/vectors/filter anew, from Apache's answers.
"""

from __future__ import annotations

import json
import random
import tempfile
from base64 import b64encode
from pathlib import Path

import pytest

from tests.filter.generated import Generator, answer
from tests.interop.filter_peer import VERSIONS, ask, evaluate, packed
from trio_rmq.filter.bloom import BloomFilter
from trio_rmq.filter.registration import decode_consumer_filters, encode_consumer_filters

pytestmark = pytest.mark.interop

COUNT = 2000
SETS = 20
VECTORS = Path(__file__).parents[2] / "protocol" / "vectors" / "filter"
RECORDED_COUNT = 300
RECORDED_VERSION = "5.3.3"


def searches_in(version: str) -> bool:
    """Whether that version has CONTAINS, STARTSWITH and ENDSWITH, which to 4.9 are names."""
    return version >= "5"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("seed", [1, 2])
def test_two_thousand_expressions(version: str, seed: int, tmp_path: Path) -> None:
    generator = Generator(f"{version} {seed}", searches=searches_in(version))
    sets, expressions = generator.property_sets(SETS), generator.expressions(COUNT)
    theirs = evaluate(version, sets, expressions, tmp_path)
    answers = zip(expressions, theirs, (answer(text, sets) for text in expressions), strict=True)
    assert [unlike for unlike in answers if unlike[1] != unlike[2]] == []
    refused = theirs.count("refused")
    assert COUNT // 10 < refused < COUNT // 2, "the generator no longer tries both"
    assert set("".join(text for text in theirs if text != "refused")) == set("TFNE")


def test_ten_thousand_slips(tmp_path: Path) -> None:
    """Characters taken out, put in and exchanged: what Apache's lexer and parser still take, and make of it."""
    generator = Generator("slips")
    sets = generator.property_sets(SETS)
    expressions = [_mutated(generator.random, text) for text in generator.expressions(10_000)]
    theirs = evaluate(RECORDED_VERSION, sets, expressions, tmp_path)
    answers = zip(expressions, theirs, (answer(text, sets) for text in expressions), strict=True)
    assert [unlike for unlike in answers if unlike[1] != unlike[2]] == []


def _mutated(rng: random.Random, text: str) -> str:
    characters = list(text)
    for _ in range(rng.randint(1, 3)):
        place, character = (
            rng.randrange(len(characters) + 1),
            rng.choice("'()-+.0e*/\n\r\t ,<>=LlE_$a\u00e9\0\U0001f600"),
        )
        kind = rng.choice(("put", "put", "exchange", "take"))
        if kind == "put":
            characters.insert(place, character)
        elif place < len(characters):
            characters[place : place + 1] = [character] if kind == "exchange" else []
    return "".join(characters)


def bloom_inputs(count: int) -> list[tuple[int, int, str]]:
    """Error rates, numbers and names."""
    rng = random.Random("bloom")
    return [
        (
            rng.randint(1, 99),
            rng.choice((1, 2, 7, 8, 31, 32, 33, 64, 128, 1000, 4096, 99_999)),
            "".join(rng.choices("ab#%\u00e9\U0001f600_G", k=rng.randint(0, 40))),
        )
        for _ in range(count)
    ]


def bloom_answer(rate: int, number: int, name: str) -> str:
    """What FilterPeer says of a name: hash functions, bits, positions, the bytes of a map."""
    bloom = BloomFilter(rate, number)
    bits = bloom.new_map()
    bloom.hash_to(bloom.generate(name), bits)
    numbers = " ".join(map(str, (bloom.hash_count, bloom.bit_count, *bloom.positions(name))))
    return f"{numbers} {b64encode(bytes(bits)).decode()}"


@pytest.mark.parametrize("version", VERSIONS)
def test_bloom_filters(version: str, tmp_path: Path) -> None:
    inputs = bloom_inputs(1000)
    theirs = ask(version, "bloom", [f"{rate} {number} {packed(name)}" for rate, number, name in inputs], tmp_path)
    assert theirs.decode().splitlines() == [bloom_answer(*one) for one in inputs]


@pytest.mark.parametrize("version", VERSIONS)
def test_apache_reads_our_file_and_writes_it_again(version: str, tmp_path: Path) -> None:
    theirs = ask(version, "register", [], tmp_path)
    table = decode_consumer_filters(theirs)
    assert encode_consumer_filters(table) == theirs
    again = ask(version, "rewrite", [packed(encode_consumer_filters(table).decode())], tmp_path)
    read = decode_consumer_filters(again)  # topics in another order, which is that of a map of Apache's
    assert encode_consumer_filters(read) == again
    table["Orders"]["audit"].dead_time = read["Orders"]["audit"].dead_time  # dead when loaded
    assert table["Orders"]["audit"].dead
    assert read == table


def test_the_recorded_answers_are_apaches(tmp_path: Path) -> None:
    recorded = json.loads((VECTORS / "expressions.json").read_text())
    expressions = [expression for expression, _ in recorded["cases"]]
    theirs = evaluate(RECORDED_VERSION, recorded["property_sets"], expressions, tmp_path)
    assert theirs == [letters for _, letters in recorded["cases"]]
    for version in VERSIONS:
        assert ask(version, "register", [], tmp_path) == (VECTORS / f"consumerFilter-{version}.json").read_bytes()


def record(scratch: Path) -> None:
    """Write the vector files."""
    VECTORS.mkdir(parents=True, exist_ok=True)
    generator = Generator("recorded")
    sets, expressions = generator.property_sets(SETS), generator.expressions(RECORDED_COUNT)
    cases = zip(expressions, evaluate(RECORDED_VERSION, sets, expressions, scratch), strict=True)
    (VECTORS / "expressions.json").write_text(
        '{"provenance": "see PROVENANCE.md", "property_sets": [\n'
        + ",\n".join(map(json.dumps, sets))
        + '\n], "cases": [\n'
        + ",\n".join(map(json.dumps, cases))
        + "\n]}\n"
    )
    inputs = bloom_inputs(40)
    theirs = ask(
        RECORDED_VERSION, "bloom", [f"{rate} {number} {packed(name)}" for rate, number, name in inputs], scratch
    )
    rows = [json.dumps([*one, line]) for one, line in zip(inputs, theirs.decode().splitlines(), strict=True)]
    (VECTORS / "bloom.json").write_text(
        '{"provenance": "see PROVENANCE.md", "cases": [\n' + ",\n".join(rows) + "\n]}\n"
    )
    for version in VERSIONS:
        (VECTORS / f"consumerFilter-{version}.json").write_bytes(ask(version, "register", [], scratch))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        record(Path(folder))
