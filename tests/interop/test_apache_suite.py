"""Apache's own integration classes against a name server and two brokers of ours (see java-it/README.md).

`CAPABILITIES` are those that this version promises; the list only grows.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.interop.peers import CLUSTER, JAVA_IT, cache_folder, our_broker, our_name_server

pytestmark = [pytest.mark.interop, pytest.mark.slow]

CAPABILITIES = [
    "send", "async", "oneway", "batch", "exceptions", "order", "tag-filter", "sql-filter", "broadcast", "rebalance",
    "transaction", "delay", "query", "tls",
]  # fmt: skip


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_apache_integration_classes_pass(capability: str, tmp_path: Path) -> None:
    with (
        our_name_server(tmp_path) as namesrv,
        our_broker(tmp_path, namesrv.address, name="broker-a"),
        our_broker(tmp_path, namesrv.address, name="broker-b"),
    ):
        done = subprocess.run(
            [
                str(JAVA_IT / "run"), namesrv.address, CLUSTER, "broker-a", "broker-b", "-j", "2",
                "--capability", capability, "--logs", str(tmp_path / "logs"),
            ],
            capture_output=True, text=True, timeout=900, check=False,
            env={**os.environ, "RMQ_CACHE": str(cache_folder())},
        )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
