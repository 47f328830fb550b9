"""Files of local offsets: Apache's client reads ours, and writes them as recorded."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.interop.peers import java_peer_class_path, need
from tests.wire.test_local_offsets import OFFSETS, VECTORS
from trio_rmq.client.offset_store import LocalOffsetStore

pytestmark = [pytest.mark.interop, pytest.mark.anyio]
WORDS = sorted(f"{queue.topic};{queue.broker_name};{queue.queue_id};{offset}" for queue, offset in OFFSETS.items())


@pytest.fixture
def anyio_backend() -> str:
    return "trio"


def java(version: str, *words: str) -> str:
    class_path = java_peer_class_path(version)
    command = [need("java"), "-Dfile.encoding=UTF-8", "-Dsun.jnu.encoding=UTF-8", "-cp", class_path]
    done = subprocess.run(
        [*command, "interop.OffsetsPeer", *words],
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize("version", ["4.9.8", "5.3.3"])
async def test_both_ways(version: str, tmp_path: Path) -> None:
    path = tmp_path / "offsets.json"
    store = LocalOffsetStore(path)
    for queue, offset in OFFSETS.items():
        store.table.update(queue, offset, increase_only=True)
    await store.persist(OFFSETS)
    assert java(version, "read", str(path)).splitlines() == WORDS
    theirs = tmp_path / "theirs.json"
    java(version, "write", str(theirs), *WORDS)
    assert theirs.read_bytes() == (VECTORS / f"offsets-{version}.json").read_bytes()
