"""Groups over a cluster of two brokers: listed, shown, measured, and put elsewhere, running or not."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from tests.admin.cluster import Cluster, cluster_of
from tests.broker.test_consumer_calls import listen
from tests.broker.test_progress import commit, fill
from trio_rmq.admin.groups import END, group_progress, list_groups, reset_group, show_group
from trio_rmq.errors import ClientError, RouteNotFoundError
from trio_rmq.wire.stats import decode_reset_offset

pytestmark = pytest.mark.trio

BROKERS = ("broker-a", "broker-b")


async def ready(cluster: Cluster) -> int:
    """Ten messages a broker with a minute in the middle; the wall clock of that middle."""
    for name in BROKERS:
        async with cluster.client(name) as client:
            await client.create_topic("T", 1)
            await fill(client, 4)
    await trio.sleep(60)
    middle = cluster.world.wall_ms()
    for name in BROKERS:
        async with cluster.client(name) as client:
            await fill(client, 6)
    return middle


async def consumed(cluster: Cluster) -> list[tuple[str, int, int, int]]:
    return [
        (one.queue.broker_name, one.broker_offset, one.consumer_offset, one.lag)
        for one in await group_progress(cluster.admin, "cg", topic="T")
    ]


async def test_a_group_is_listed_and_shown(autojump_clock: MockClock) -> None:
    async with cluster_of(*BROKERS) as cluster, cluster.client("broker-a") as one, cluster.client("broker-b") as two:
        with pytest.raises(ClientError, match="no broker knows the group cg"):
            await show_group(cluster.admin, "cg")
        await one.beat("c1", topics={"T": "a"})
        await two.beat("c2", topics={"T": "a"})
        assert sorted((await list_groups(cluster.admin))["cg"]) == list(BROKERS)
        group = await show_group(cluster.admin, "cg")
        assert sorted(group.members) == ["c1", "c2"]
        assert group.subscriptions["T"].sub_string == "a"
        assert (group.message_model, group.consume_type, group.problems) == ("CLUSTERING", "CONSUME_PASSIVELY", [])


async def test_members_that_subscribe_differently_are_a_problem(autojump_clock: MockClock) -> None:
    async with cluster_of("broker-a") as cluster, cluster.client() as client:
        await client.beat("c1", topics={"T": "a"})
        await client.beat("c2", topics={"T": "b"})
        (problem,) = (await show_group(cluster.admin, "cg")).problems
        for word in ("broker-a", "c1", "c2", "'a'", "'b'"):
            assert word in problem
        await client.beat("c1", topics={"T": "b"}, version=2)
        assert (await show_group(cluster.admin, "cg")).problems == []


async def test_an_offline_group_is_set_by_time_and_to_the_ends(autojump_clock: MockClock) -> None:
    async with cluster_of(*BROKERS) as cluster:
        middle = await ready(cluster)
        assert list((await reset_group(cluster.admin, "cg", "T", middle)).values()) == [4, 4]
        assert await consumed(cluster) == [("broker-a", 10, 4, 6), ("broker-b", 10, 4, 6)]
        assert list((await reset_group(cluster.admin, "cg", "T", END)).values()) == [10, 10]
        assert list((await reset_group(cluster.admin, "cg", "T", 0)).values()) == [0, 0]
        await reset_group(cluster.admin, "cg", "T", middle, force=False)
        assert await consumed(cluster) == [("broker-a", 10, 0, 10), ("broker-b", 10, 0, 10)]
        with pytest.raises(RouteNotFoundError):
            await reset_group(cluster.admin, "cg", "Nowhere", 0)


async def test_members_of_a_running_group_are_told(autojump_clock: MockClock) -> None:
    async with cluster_of(*BROKERS) as cluster, cluster.client("broker-a") as client:
        await ready(cluster)
        told = listen(client)
        await client.beat("c1")
        await commit(client, "cg", 9)
        offsets = await reset_group(cluster.admin, "cg", "T", 0)
        assert list(offsets.values()) == [0, 0]
        await trio.sleep(1)
        assert list(decode_reset_offset(told[0].body).offset_table.values()) == [0]
        assert await consumed(cluster) == [("broker-a", 10, 9, 1), ("broker-b", 10, 0, 10)], (
            "told here, committed there"
        )


async def test_a_bad_group_name_is_refused_here(autojump_clock: MockClock) -> None:
    async with cluster_of("broker-a") as cluster:
        for name in ("", "a b", "x" * 256):
            with pytest.raises(ClientError):
                await group_progress(cluster.admin, name)
