"""A broker whose name servers an address server tells: it follows the list as that changes, and goes on without."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from tests.broker.name_servers import PORT, SECOND_NAME_SERVER, Notebook, name_server
from tests.broker.running import NAME_SERVER, Client, broker_in
from tests.remoting.address_server import ADDRESS_SERVER, AddressServer, listing
from trio_rmq.config import BrokerConfig
from trio_rmq.testing.world import open_world
from trio_rmq.wire.codes import RequestCode

pytestmark = pytest.mark.trio

ONE, TWO = f"{NAME_SERVER}:{PORT}", f"{SECOND_NAME_SERVER}:{PORT}"


@asynccontextmanager
async def told(server: AddressServer, one: Notebook, two: Notebook) -> AsyncIterator[Client]:
    """A client of a broker that asks `server`; two name servers take notes."""
    settings = {"fetch_namesrv_addr_by_address_server": True, "rmq_address_server_domain": ADDRESS_SERVER}
    async with (
        open_world() as world,
        server.on(world),
        name_server(world, one),
        name_server(world, two, SECOND_NAME_SERVER),
        broker_in(world, disk=None, store=None, **settings) as running,
        running.client() as client,
    ):
        yield client


async def test_it_registers_where_the_list_says_and_goes_where_that_goes(autojump_clock: MockClock) -> None:
    server, one, two = AddressServer(listing(ONE)), Notebook(), Notebook()
    async with told(server, one, two) as client:
        assert server.requests[0].startswith("GET /rocketmq/nsaddr HTTP/1.1")
        assert len(one.registrations) == 1
        server.answer = listing(f"{ONE};{TWO}")
        await trio.sleep(121)
        assert "TBW102" in two.registrations[0].topics
        await client.create_topic("Both")
        await trio.sleep(1)
        assert [one.registrations[-1].topics, two.registrations[-1].topics] == [["Both"], ["Both"]]
        server.answer = listing(TWO)
        await trio.sleep(120)
        assert len(one.of(RequestCode.UNREGISTER_BROKER)) == 1
        count = len(one.told)
        await client.create_topic("Second")
        await trio.sleep(121)
        assert len(one.told) == count
        assert two.of(RequestCode.UNREGISTER_BROKER) == []
        assert ["Second"] in [told.topics for told in two.registrations]
    assert len(two.of(RequestCode.UNREGISTER_BROKER)) == 1
    assert len(one.of(RequestCode.UNREGISTER_BROKER)) == 1


async def test_a_list_that_comes_late_is_used_when_it_comes(autojump_clock: MockClock) -> None:
    server, one, two = AddressServer(listing("", "500 Oops")), Notebook(), Notebook()
    async with told(server, one, two) as client:
        assert (await client.send()).code == 0
        await trio.sleep(15)
        server.answer = listing(ONE)
        await trio.sleep(10)
        assert len(one.registrations) == 1
        assert len(server.requests) == 3  # at start, and every ten seconds until there is one


async def test_a_list_that_cannot_be_had_changes_nothing(autojump_clock: MockClock) -> None:
    server, one, two = AddressServer(listing(ONE)), Notebook(), Notebook()
    async with told(server, one, two):
        server.answer = listing("no address")
        await trio.sleep(300)
        assert one.of(RequestCode.UNREGISTER_BROKER) == []
        assert len(one.registrations) > 5


async def test_which_address_server_is_asked() -> None:
    asks = {"fetch_namesrv_addr_by_address_server": True, "rmq_address_server_domain": "ns.example"}
    assert BrokerConfig(**asks).name_servers() == ["http://ns.example:8080/rocketmq/nsaddr"]  # type: ignore[arg-type]  # its fields
    other = BrokerConfig(**asks | {"rmq_address_server_domain": "ns:80", "rmq_address_server_sub_group": "x"})  # type: ignore[arg-type]  # its fields
    assert other.name_servers() == ["http://ns:80/rocketmq/x"]
    assert BrokerConfig(**asks, namesrv_addr=ONE).name_servers() == [ONE]  # type: ignore[arg-type]  # its fields
    assert BrokerConfig(rmq_address_server_domain="ns.example").name_servers() == []
