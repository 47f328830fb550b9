"""The programs of docs/transactions.md and docs/timers.md do what the pages say."""

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
