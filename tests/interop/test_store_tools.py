"""`trio-rmq store` on real folders, Apache's and ours, stopped in order and killed; Apache's broker on a rebuilt one.

Verification finds such folders whole.  A folder whose queues and index `rebuild` made anew from the log serves every
acknowledged message at Apache's broker - by queue offset, key and id - which searches it by time, and goes on with it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.interop.peers import our_name_server
from tests.interop.test_store_folders import SIZES, TOPICS, UNITS, Ledger, create_topics, made_by, send_many, verify
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.wire import headers
from trio_rmq.wire.codes import RequestCode
from trio_rmq.wire.command import Command

pytestmark = pytest.mark.interop
GROUPS = 20


def store_tool(command: str, folder: Path, *, status: int = 0) -> dict[str, Any]:
    """What `trio-rmq store COMMAND --json` says of a folder; no setting but the folder is given."""
    done = subprocess.run(
        [sys.executable, "-m", "trio_rmq.cli.main", "store", command, str(folder), "--json"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stdout[-3000:] + done.stderr[-3000:]
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def stored_at(folder: Path) -> dict[tuple[str, int], list[int]]:
    """The store times of every queue's messages, in order of their offsets."""
    done = subprocess.run(
        [sys.executable, "-m", "trio_rmq.cli.main", "store", "dump", str(folder), "--all"],
        capture_output=True, timeout=120, check=True,
    )  # fmt: skip
    times_ms: dict[tuple[str, int], list[int]] = {}
    for line in done.stdout.splitlines():
        record = json.loads(line)
        times_ms.setdefault((record["topic"], record["queueId"]), []).append(record["storeTimestamp"])
    return times_ms


async def misses(address: str, times_ms: dict[tuple[str, int], list[int]]) -> int:
    """How often a search by time does not land where 4.9's does in a store whose files have their records' times.

    That is at a message whose time is the nearest, or at the first that is not older, where that begins a file: 4.9
    looks into one file only.
    """
    missed = 0
    async with RemotingClient() as client:
        for (topic, queue_id), stored_ms in times_ms.items():
            if topic not in TOPICS:
                continue
            first, last = stored_ms[0], stored_ms[-1]
            for part in range(17):
                time_ms = first + (last - first) * part // 16
                header = headers.SearchOffsetRequestHeader(topic=topic, queue_id=queue_id, timestamp=time_ms)
                answer = await client.request(address, Command(RequestCode.SEARCH_OFFSET_BY_TIMESTAMP, header), 20)
                assert answer.code == 0, answer.remark
                found_ms = stored_ms[int(answer.ext_fields()["offset"])]
                nearest = min(abs(known - time_ms) for known in stored_ms)
                not_older = min(known for known in stored_ms if known >= time_ms)
                missed += abs(found_ms - time_ms) != nearest and found_ms != not_older
    return missed


@pytest.mark.parametrize("settings", [{}, UNITS], ids=["plain", "units"])
@pytest.mark.parametrize("end", ["stopped", "killed"])
@pytest.mark.parametrize("make", ["ours", "Apache's"])
def test_a_real_folder_is_whole(make: str, end: str, settings: dict[str, Any], tmp_path: Path) -> None:
    store, ledger = tmp_path / "store", Ledger()
    with our_name_server(tmp_path) as names:
        for life in range(2):  # the second life begins with a recovery
            with made_by(make, tmp_path / str(life), names.address, store, **settings) as server:
                if not life:
                    trio.run(create_topics, server.address)
                kill = server.kill if end == "killed" else None
                trio.run(partial(send_many, server.address, ledger, groups=GROUPS, kill=kill))
            told = store_tool("verify", store)
            assert told["damages"] == 0
            assert told["records"] >= len(ledger.acknowledged)
            if end == "stopped":
                assert told["findings"] == []
                assert told["queueRecords"] == told["records"]
                assert told["cleanStop"]
            else:
                assert told["queueRecords"] + told["unwrittenEntries"] == told["records"]
            assert told["units"] == (told["queueRecords"] if settings else 0)
    told = store_tool("inspect", store)
    assert told["messages"] + (0 if end == "stopped" else 10**6) >= len(ledger.acknowledged)


@pytest.mark.parametrize("settings", [{}, UNITS], ids=["plain", "units"])
@pytest.mark.parametrize("make", ["ours", "Apache's"])
def test_apaches_broker_serves_a_rebuilt_folder(
    make: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SIZES, "mappedFileSizeConsumeQueue", 20 * 50)  # several files a queue, for the search by time
    store, ledger = tmp_path / "store", Ledger()
    with our_name_server(tmp_path) as names:
        with made_by(make, tmp_path / "0", names.address, store, **settings) as server:
            trio.run(create_topics, server.address)
            for _ in range(3):
                trio.run(partial(send_many, server.address, ledger, groups=GROUPS, kill=None))
        told = store_tool("verify", store)
        assert told["findings"] == []
        times_ms = stored_at(store)
        for path in (store / "consumequeue").rglob("0*"):
            if path.is_file():
                os.utime(path)  # as a copy has it: all files were written now
        copied = tmp_path / "copied"
        if make == "ours":
            shutil.copytree(store, copied)
        made = store_tool("rebuild", store)
        assert made["entries"] == made["records"]
        assert made["indexKeys"] == told["indexItems"]
        rebuilt = store_tool("verify", store)
        assert (rebuilt["findings"], rebuilt["units"]) == ([], told["units"])
        assert told["units"] == (told["records"] if settings else 0)
        with made_by("Apache's", tmp_path / "1", names.address, store, **settings) as server:
            assert trio.run(misses, server.address, times_ms) == 0
            trio.run(verify, server.address, ledger, "TagA || TagB" if settings else "*")
            trio.run(partial(send_many, server.address, ledger, groups=5, kill=None))
        assert store_tool("verify", store)["damages"] == 0
        if make == "ours":  # what the times of the files are for
            with made_by("Apache's", tmp_path / "2", names.address, copied, **settings) as server:
                assert trio.run(misses, server.address, times_ms) > 0
