"""What client tests share: one standalone server for all of them, on {trio, asyncio} x {tcp, websocket}."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cli.processes import running
from tests.interop.peers import free_ports


@pytest.fixture(scope="session")
def server_ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """The ports of a standalone's name server and broker."""
    namesrv_port, broker_port = free_ports(2)
    scratch = tmp_path_factory.mktemp("standalone")
    words = ("standalone", "--store", "store", "--port", str(broker_port), "--namesrv-port", str(namesrv_port))
    with running(scratch, *words) as server:
        yield namesrv_port, broker_port
        server.stop()


@pytest.fixture(params=["trio", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["", "ws://"], ids=["tcp", "websocket"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def name_server(server_ports: tuple[int, int], scheme: str) -> str:
    return f"{scheme}127.0.0.1:{server_ports[0]}"


@pytest.fixture
def broker(server_ports: tuple[int, int], scheme: str) -> str:
    return f"{scheme}127.0.0.1:{server_ports[1]}"


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> str:
    """A topic and group of this test's own."""
    return "".join(character if character.isalnum() else "_" for character in request.node.name)
