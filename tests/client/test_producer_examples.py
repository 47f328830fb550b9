"""The programs of docs/producers.md do what the page says."""

from __future__ import annotations

import re

import pytest

from tests.client.test_doc_examples import DOCS, run
from trio_rmq.wire.hashing import java_string_hash


@pytest.fixture
def scheme() -> str:
    return ""


def test_one_message(name_server: str, topic: str) -> None:
    (line,) = run("produce.py", name_server, topic, "hello")
    status, broker, queue, message_id = line.split()
    assert (status, broker) == ("SEND_OK", "broker-a")
    assert int(queue) in range(4)
    assert re.fullmatch("[0-9A-F]{32}", message_id)


def test_many_messages(name_server: str, topic: str) -> None:
    assert run("produce_many.py", name_server, topic, "200") == ["200 acknowledged"]


def test_ordered_messages(name_server: str, topic: str) -> None:
    lines = [line.split() for line in run("produce_ordered.py", name_server, topic)]
    assert [(order, step) for order, step, _, _ in lines] == [
        (order, step) for step in ("created", "paid", "shipped") for order in ("order-1", "order-2")
    ]
    for order in ("order-1", "order-2"):
        places = [(int(queue), int(offset)) for name, _, queue, offset in lines if name == order]
        assert {queue for queue, _ in places} == {abs(java_string_hash(order)) % 4}
        assert [offset for _, offset in places] == sorted(offset for _, offset in places)


def test_batches(name_server: str, topic: str) -> None:
    *watched, last = run("produce_batches.py", name_server, topic)
    assert last == "all acknowledged"
    found = [re.fullmatch(r"(\d+) to broker-a, (\d+) bytes", line) for line in watched]
    counts = [int(match[1]) for match in found if match]
    sizes = [int(match[2]) for match in found if match]
    assert len(counts) == len(watched) == 4
    assert sum(counts[:-1]) == 100
    assert max(sizes) <= 16 * 1024
    assert counts[-1] == 1
    assert sizes[-1] < 500  # of 5,000


def test_a_producer_is_ten_lines() -> None:
    source = (DOCS / "examples" / "produce.py").read_text().splitlines()
    assert len([line for line in source if line and not line.startswith(('"', "import", "from"))]) <= 10
