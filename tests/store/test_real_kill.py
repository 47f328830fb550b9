"""A real process that is really killed, with default file sizes: nothing it was told is lost, little disk is used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from trio_rmq.config import MessageStoreConfig
from trio_rmq.store.message_store import open_message_store
from trio_rmq.store.messages import GetStatus
from trio_rmq.wire.record import decode_records

WRITER = """
import sys, trio
from trio_rmq.config import MessageStoreConfig
from trio_rmq.store.message_store import open_message_store
from trio_rmq.store.messages import NewMessage

async def main():
    config = MessageStoreConfig(store_path_root_dir=sys.argv[1], flush_disk_type=sys.argv[2])
    async with open_message_store(config) as store:
        number = 0
        while True:
            results = store.append([NewMessage("T", n % 4, b"%d" % (number + n)) for n in range(16)])
            await store.wait_durable(results[-1].physical_offset + results[-1].size_bytes)
            number += 16
            print(number, flush=True)

trio.run(main)
"""


def write_and_die(root: Path, flush: str, count: int) -> int:
    """Kill a writer after it said that `count` messages are stored; returns how many it said in all."""
    with subprocess.Popen([sys.executable, "-c", WRITER, str(root), flush], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        said = 0
        for line in process.stdout:
            said = int(line)
            if said >= count and process.poll() is None:
                process.kill()
        return said


@pytest.mark.trio
@pytest.mark.parametrize("flush", ["ASYNC_FLUSH", "SYNC_FLUSH"])
async def test_kill(tmp_path: Path, flush: str) -> None:
    root = tmp_path / "store"
    told = 0
    for life in range(1, 4):
        written = write_and_die(root, flush, 1600 * life)
        config = MessageStoreConfig(store_path_root_dir=str(root))
        async with open_message_store(config) as store:
            assert store.recovered is not None
            assert not store.recovered.clean
            found = 0
            for queue_id in range(4):
                offset, numbers = 0, []
                while (answer := store.get_messages("T", queue_id, offset, max_count=32)).status is GetStatus.FOUND:
                    numbers += [int(record.body) for record in decode_records(answer.body, check_crc=True)]
                    offset = answer.next_begin_offset
                assert offset == store.max_offset("T", queue_id) == len(numbers)
                found += len(numbers)
            assert found >= told + written
            told = found
    used = sum(path.stat().st_blocks * 512 for path in root.rglob("*"))
    assert used < 5_000_000
    assert (root / "commitlog" / "00000000000000000000").stat().st_size == 1024**3
