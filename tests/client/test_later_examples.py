"""The programs of docs/transactions.md, docs/timers.md and docs/delays-and-retries.md do what the pages say."""

from __future__ import annotations

import pytest

from tests.client.test_doc_examples import run


@pytest.fixture
def scheme() -> str:
    return ""


def test_transactions(name_server: str, topic: str) -> None:
    assert run("transaction.py", name_server, topic) == ["pay COMMIT", "cancel ROLLBACK", "forget UNKNOWN"]


def test_timers(name_server: str, topic: str) -> None:
    assert run("timers.py", name_server, topic) == ["taken back", "too late: 604"]


def test_delay_levels(name_server: str, topic: str) -> None:
    lines = run("delays.py", name_server, topic, f"{topic}_a")
    assert lines == ["at once", "after a second", "after five seconds"]


def test_dead_letters(name_server: str, topic: str) -> None:
    lines = run("dead_letters.py", name_server, topic, f"{topic}_b")
    assert lines == ["shaky: consumed after a retry", "broken: dead, it failed 3 times"]
