"""Whom admin calls reach: masters of a cluster and of a topic, and the name servers that are there."""

from __future__ import annotations

import pytest
from trio.testing import MockClock

from tests.admin.cluster import NAME_SERVERS, cluster_of
from trio_rmq.admin.client import AdminClient
from trio_rmq.errors import ClientError, RemotingError, RouteNotFoundError

pytestmark = pytest.mark.trio


async def test_masters_are_found_by_cluster_and_by_topic(autojump_clock: MockClock) -> None:
    async with cluster_of("broker-a", "broker-b") as cluster:
        assert await cluster.admin.masters() == cluster.addresses
        assert await cluster.admin.masters("DefaultCluster") == cluster.addresses
        async with cluster.client("broker-b") as client:
            await client.create_topic("Orders")
        assert await cluster.admin.topic_masters("Orders") == {"broker-b": cluster.addresses["broker-b"]}


async def test_an_unknown_cluster_and_topic_are_named_with_the_mend(autojump_clock: MockClock) -> None:
    async with cluster_of("broker-a") as cluster:
        with pytest.raises(ClientError, match="cluster Elsewhere; known: DefaultCluster"):
            await cluster.admin.masters("Elsewhere")
        with pytest.raises(RouteNotFoundError, match="knows the topic Nothing: create it"):
            await cluster.admin.topic_masters("Nothing")


async def test_a_name_server_that_is_away_is_passed_over(autojump_clock: MockClock) -> None:
    async with cluster_of("broker-a") as cluster:
        async with AdminClient(name_servers=f"10.0.0.99:9876;{NAME_SERVERS}") as admin:
            assert await admin.masters() == cluster.addresses
        async with AdminClient(name_servers="10.0.0.99:9876") as lone:
            with pytest.raises(RemotingError):
                await lone.masters()
