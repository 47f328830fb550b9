"""What client tests share: a name server and a broker for all of them, on {trio, asyncio} x {tcp, websocket}."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.interop.peers import our_broker, our_name_server


@pytest.fixture(scope="session")
def server_addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A name server's and its broker's address; their logs go to files, because nobody reads a pipe for so long."""
    scratch = tmp_path_factory.mktemp("servers")
    with our_name_server(scratch) as namesrv, our_broker(scratch, namesrv.address) as broker:
        yield namesrv.address, broker.address


@pytest.fixture(params=["trio", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["", "ws://"], ids=["tcp", "websocket"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def name_server(server_addresses: tuple[str, str], scheme: str) -> str:
    return scheme + server_addresses[0]


@pytest.fixture
def broker(server_addresses: tuple[str, str], scheme: str) -> str:
    return scheme + server_addresses[1]


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> str:
    """A topic and group of this test's own."""
    return "".join(character if character.isalnum() else "_" for character in request.node.name)
