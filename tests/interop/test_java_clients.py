"""Apache's Java clients against our servers, and with one of our servers beside one of Apache's.

Each exchange is 1,000 messages, sent one by one and taken by a push consumer, with tag filter, keys and properties
checked on the Java side (`java/src/main/java/interop/Peer.java`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.interop.peers import apache_broker, apache_name_server, our_broker, our_name_server, run_java_peer

pytestmark = pytest.mark.interop

COUNT = 1000
CLUSTERS = ["ours", "our broker, Apache's name server", "Apache's broker, our name server"]


@dataclass
class ClusterUnderTest:
    """A running name server and broker of a given make."""

    make: str
    namesrv: str
    scratch: Path


@pytest.fixture(scope="module", params=CLUSTERS)
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterUnderTest]:
    scratch = tmp_path_factory.mktemp("cluster")
    with ExitStack() as stack:
        if request.param == CLUSTERS[1]:
            namesrv = stack.enter_context(apache_name_server(scratch)).address
        else:
            namesrv = stack.enter_context(our_name_server(scratch)).address
        if request.param == CLUSTERS[2]:
            stack.enter_context(apache_broker(scratch, namesrv))
        else:
            stack.enter_context(our_broker(scratch, namesrv))
        yield ClusterUnderTest(request.param, namesrv, scratch)


@pytest.mark.parametrize("serialize", ["JSON", "ROCKETMQ"])
@pytest.mark.parametrize("version", ["4.9.8", "5.3.3"])
def test_java_client_exchanges_1000_messages(cluster: ClusterUnderTest, version: str, serialize: str) -> None:
    name = re.sub(r"\W", "_", f"java_{version}_{serialize}")
    arguments = ["exchange", cluster.namesrv, f"T_{name}", f"G_{name}", str(COUNT)]
    done = run_java_peer(version, serialize, arguments, scratch=cluster.scratch)
    assert f"RESULT sent={COUNT} received={COUNT} wrong=0" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.returncode == 0
