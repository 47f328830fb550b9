"""Topics over a cluster of two brokers, their queues' offsets, and single messages; over TCP and WebSocket."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from tests.admin.cluster import NAME_SERVERS, Cluster, cluster_of
from tests.broker.test_progress import commit
from trio_rmq.admin.client import AdminClient
from trio_rmq.admin.messages import query_by_key, query_by_unique_key, view_message
from trio_rmq.admin.topics import (
    create_topic,
    delete_topic,
    list_topics,
    max_offset,
    min_offset,
    offset_for_timestamp,
    show_topic,
    topic_queues,
)
from trio_rmq.client.message import ReceivedMessage
from trio_rmq.errors import ClientError, ProtocolError, RemotingError, ResponseError, RouteNotFoundError
from trio_rmq.wire.groups import MessageQueue

pytestmark = pytest.mark.trio

BROKERS = ("broker-a", "broker-b")
SETTLED_SECONDS = 1
"""After it the brokers have told the name servers of a change."""


@pytest.fixture(params=["", "ws://"], ids=["tcp", "websocket"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def admin_of(cluster: Cluster, scheme: str) -> AdminClient:
    return AdminClient(name_servers=scheme + NAME_SERVERS)


def places(messages: list[ReceivedMessage]) -> list[tuple[str, bytes]]:
    return [(message.queue.broker_name, message.body) for message in messages]


async def test_a_topic_is_made_changed_listed_and_deleted(autojump_clock: MockClock, scheme: str) -> None:
    async with cluster_of(*BROKERS) as cluster, admin_of(cluster, scheme) as admin:
        assert await list_topics(admin) == {}
        assert await create_topic(admin, "T") == list(BROKERS)
        assert await create_topic(admin, "T", write_queues=2, read_queues=3, permission=4, broker_name="broker-b") == [
            "broker-b"
        ]
        found = (await list_topics(admin, cluster="DefaultCluster"))["T"]
        assert [(one.write_queue_nums, one.read_queue_nums, one.perm) for one in found.values()] == [
            (8, 8, 6),
            (2, 3, 4),
        ]
        await trio.sleep(SETTLED_SECONDS)
        assert [(queue.broker_name, queue.queue_id) for queue in await topic_queues(admin, "T")] == [
            *(("broker-a", number) for number in range(8)),
            *(("broker-b", number) for number in range(3)),
        ]
        assert await delete_topic(admin, "T") == list(BROKERS)
        assert await list_topics(admin) == {}
        with pytest.raises(RouteNotFoundError, match="knows the topic T"):
            await topic_queues(admin, "T")


async def test_system_retry_and_dead_letter_topics_are_listed_when_asked_for(autojump_clock: MockClock) -> None:
    async with cluster_of("broker-a") as cluster, cluster.client() as client:
        await client.beat("c1")
        everything = await list_topics(cluster.admin, everything=True)
        assert {"TBW102", "broker-a", "DefaultCluster", "%RETRY%cg"} <= set(everything)
        assert await list_topics(cluster.admin) == {}


async def test_a_topic_is_shown_with_queues_and_groups(autojump_clock: MockClock, scheme: str) -> None:
    async with cluster_of(*BROKERS) as cluster, admin_of(cluster, scheme) as admin:
        await create_topic(admin, "T", write_queues=1)
        async with cluster.client("broker-b") as client:
            for _ in range(3):
                await client.send()
            await commit(client, "cg", 2)
            stored = await client.stored()
        topic = await show_topic(admin, "T")
        assert list(topic.configs) == list(BROKERS)
        assert topic.groups == ["cg"]
        assert [(one.queue.broker_name, one.min_offset, one.max_offset) for one in topic.queues] == [
            ("broker-a", 0, 0),
            ("broker-b", 0, 3),
        ]
        assert [one.last_stored_ms for one in topic.queues] == [0, stored[-1].store_timestamp_ms]
        with pytest.raises(RouteNotFoundError, match="no broker has the topic U"):
            await show_topic(admin, "U")


async def test_offsets_of_a_queue(autojump_clock: MockClock, scheme: str) -> None:
    async with cluster_of(*BROKERS) as cluster, admin_of(cluster, scheme) as admin:
        await create_topic(admin, "T", write_queues=1)
        async with cluster.client("broker-a") as client:
            await client.send()
            await trio.sleep(60)
            middle = cluster.world.wall_ms()
            await client.send()
        queue, empty = await topic_queues(admin, "T")
        assert (await min_offset(admin, queue), await max_offset(admin, queue)) == (0, 2)
        assert (await min_offset(admin, empty), await max_offset(admin, empty)) == (0, 0)
        assert [await offset_for_timestamp(admin, queue, time_ms) for time_ms in (0, middle, 2**62)] == [0, 1, 2]
        with pytest.raises(RouteNotFoundError, match="no master of elsewhere serves T now: broker-a, broker-b do"):
            await max_offset(admin, MessageQueue(topic="T", broker_name="elsewhere", queue_id=0))


async def test_messages_are_found_by_place_key_and_unique_key(autojump_clock: MockClock, scheme: str) -> None:
    async with cluster_of(*BROKERS) as cluster, admin_of(cluster, scheme) as admin:
        await create_topic(admin, "T", write_queues=1)
        times = []
        for number, name in enumerate((*BROKERS, *BROKERS)):
            async with cluster.client(name) as client:
                await client.send(b"%d" % number, properties=f"UNIQ_KEY\x01U{number % 3}\x02KEYS\x01all k{number}")
                times.append(cluster.world.wall_ms())
            await trio.sleep(60)
        everything = [("broker-a", b"0"), ("broker-b", b"1"), ("broker-a", b"2"), ("broker-b", b"3")]
        assert places(await query_by_key(admin, "T", "all")) == everything
        assert places(await query_by_key(admin, "T", "all", max_count=3)) == everything[1:]
        assert places(await query_by_key(admin, "T", "all", begin_ms=times[0], end_ms=times[2])) == everything[1:3]
        assert places(await query_by_key(admin, "T", "k3")) == everything[3:]
        assert await query_by_key(admin, "T", "U1") == []
        assert places(await query_by_unique_key(admin, "T", "U0")) == [everything[0], everything[3]]
        assert await query_by_unique_key(admin, "T", "all") == []
        (found,) = await query_by_unique_key(admin, "T", "U2")
        again = await view_message(admin, found.offset_message_id)
        assert places([again]) == [everything[2]]
        assert again.stored == found.stored
        wrong = f"{found.offset_message_id[:-16]}{found.stored.physical_offset + 1:016X}"
        with pytest.raises(ResponseError, match="can not find message by the offset"):
            await view_message(admin, wrong)
        with pytest.raises(ProtocolError, match="32 or 56 hexadecimal digits"):
            await view_message(admin, "U2")
        with pytest.raises(RouteNotFoundError):
            await query_by_key(admin, "Nowhere", "all")


async def test_nobody_at_the_place_an_id_names(autojump_clock: MockClock) -> None:
    async with cluster_of("broker-a") as cluster:
        with pytest.raises(RemotingError, match=r"10\.0\.0\.77:10911"):
            await view_message(cluster.admin, "0A00004D00002A9F0000000000000000")


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("a b", {}, "illegal characters"),
        ("", {}, "1 to 127 characters"),
        ("T", {"permission": 8}, "permission 8"),
        ("T", {"write_queues": 0}, "at least one queue"),
        ("T", {"read_queues": 0}, "at least one queue"),
        ("T", {"broker_name": "broker-z"}, "broker broker-z is known; known: broker-a"),
        ("T", {"cluster": "Elsewhere"}, "knows a cluster Elsewhere"),
    ],
)
async def test_what_cannot_be_made_is_refused(
    autojump_clock: MockClock, name: str, settings: dict[str, object], sentence: str
) -> None:
    async with cluster_of("broker-a") as cluster:
        with pytest.raises(ClientError, match=sentence):
            await create_topic(cluster.admin, name, **settings)  # type: ignore[arg-type]  # of various types
        assert await list_topics(cluster.admin) == {}


async def test_deleting_what_is_not_there_says_so(autojump_clock: MockClock) -> None:
    async with cluster_of("broker-a") as cluster:
        with pytest.raises(RouteNotFoundError, match="no broker has the topic T: nothing was deleted"):
            await delete_topic(cluster.admin, "T")
        with pytest.raises(ResponseError, match="system topic"):
            await delete_topic(cluster.admin, "TBW102")
