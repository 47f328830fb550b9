"""Filters, bloom filters and the file of registrations against what Apache's programs answered and wrote."""

from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path

import pytest

from tests.filter.generated import answer
from trio_rmq.filter.bloom import BloomFilter
from trio_rmq.filter.registration import decode_consumer_filters, encode_consumer_filters

VECTORS = Path(__file__).parents[2] / "protocol" / "vectors" / "filter"


def test_expressions_answer_as_apaches_do() -> None:
    recorded = json.loads((VECTORS / "expressions.json").read_text())
    ours = [[text, answer(text, recorded["property_sets"])] for text, _ in recorded["cases"]]
    assert ours == recorded["cases"]


def test_bloom_filters_set_apaches_bits() -> None:
    for rate, number, name, told in json.loads((VECTORS / "bloom.json").read_text())["cases"]:
        bloom = BloomFilter(rate, number)
        bits = bloom.new_map()
        bloom.hash_to(bloom.generate(name), bits)
        numbers = " ".join(map(str, (bloom.hash_count, bloom.bit_count, *bloom.positions(name))))
        assert f"{numbers} {b64encode(bytes(bits)).decode()}" == told


@pytest.mark.parametrize("version", ["4.9.7", "5.3.3"])
def test_the_file_of_registrations_comes_out_as_it_went_in(version: str) -> None:
    content = (VECTORS / f"consumerFilter-{version}.json").read_bytes()
    assert encode_consumer_filters(decode_consumer_filters(content)) == content
