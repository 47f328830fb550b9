"""Who is in a group: heartbeats, goodbyes, lost connections, silence, and who is told."""

from __future__ import annotations

import json

import pytest
import trio
from trio.testing import MockClock

from tests.broker.running import Client, one_broker
from trio_rmq.wire import headers
from trio_rmq.wire.codes import RequestCode, ResponseCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.groups import SubscriptionGroupConfig, encode_group_config

pytestmark = pytest.mark.trio


async def members(client: Client, group: str = "cg") -> list[str]:
    answer = await client.ask(
        RequestCode.GET_CONSUMER_LIST_BY_GROUP, headers.GetConsumerListByGroupRequestHeader(consumer_group=group)
    )
    if answer.code == ResponseCode.SYSTEM_ERROR:
        assert answer.remark == f"no consumer for this group, {group}"
        return []
    found: list[str] = json.loads(answer.body)["consumerIdList"]
    return sorted(found)


async def leave(client: Client, client_id: str, **groups: str) -> None:
    header = headers.UnregisterClientRequestHeader(client_id=client_id, **groups)
    assert (await client.ask(RequestCode.UNREGISTER_CLIENT, header)).code == 0


def told(*clients: Client) -> list[list[str]]:
    """What each was told since the last look."""
    found = [list(client.notified) for client in clients]
    for client in clients:
        client.notified.clear()
    return found


async def test_everybody_is_told_of_each_change_the_new_one_too(autojump_clock: MockClock) -> None:
    async with one_broker() as (running, watcher), running.client() as one:
        assert await members(watcher) == []
        answer = await one.beat("c1")
        assert answer.code == 0
        assert answer.version >= 409
        await trio.sleep(1)
        assert told(one) == [["cg"]]
        async with running.client() as two:
            await two.beat("c2")
            await trio.sleep(1)
            assert told(one, two) == [["cg"], ["cg"]]
            assert await members(watcher) == ["c1", "c2"]
            await one.beat("c1")
            await two.beat("c2")
            await trio.sleep(1)
            assert told(one, two) == [[], []]
            await leave(two, "c2", consumer_group="cg")
            await trio.sleep(1)
            assert told(one, two) == [["cg"], []]
            assert await members(watcher) == ["c1"]
            await two.beat("c2")
            await trio.sleep(1)
            told(one, two)
        await trio.sleep(1)  # the connection of c2 is lost
        assert told(one) == [["cg"]]
        assert await members(watcher) == ["c1"]
        assert told(watcher) == [[]]


async def test_a_change_of_topics_is_told_and_one_of_text_is_not(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        await client.beat("c1", topics={"T": "*"}, version=1)
        await client.beat("c1", topics={"T": "*", "U": "*"}, version=1)
        await trio.sleep(1)
        assert told(client) == [["cg", "cg"]]
        await client.beat("c1", topics={"T": "a", "U": "*"}, version=2)
        await trio.sleep(1)
        assert told(client) == [[]]
        await client.beat("c1", topics={"U": "*"}, version=3)
        await trio.sleep(1)
        assert told(client) == [["cg"]]
        header = headers.GetConsumerConnectionListRequestHeader(consumer_group="cg")
        body = json.loads((await client.ask(RequestCode.GET_CONSUMER_CONNECTION_LIST, header)).body)
        assert list(body["subscriptionTable"]) == ["U"]
        assert body["connectionSet"][0]["clientId"] == "c1"


async def test_an_older_subscription_does_not_replace_a_newer_one(autojump_clock: MockClock) -> None:
    async with one_broker() as (running, client), running.client() as other:
        await client.beat("c1", topics={"T": "new"}, version=9)
        await other.beat("c2", topics={"T": "old"}, version=3)
        header = headers.GetConsumerConnectionListRequestHeader(consumer_group="cg")
        body = json.loads((await client.ask(RequestCode.GET_CONSUMER_CONNECTION_LIST, header)).body)
        assert body["subscriptionTable"]["T"]["subString"] == "new"


async def test_members_that_subscribe_differently_are_warned_of_once(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with one_broker() as (running, one), running.client() as two:
        for _ in range(3):
            await one.beat("c1", topics={"T": "a"})
            await two.beat("c2", topics={"T": "b"})
        assert sum("subscribe differently" in record.getMessage() for record in caplog.records) == 1


async def test_broadcast_groups_and_groups_that_do_not_want_it_are_not_told(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        await client.beat("c1", "broadcast", message_model="BROADCASTING")
        group = SubscriptionGroupConfig(group_name="quiet", notify_consumer_ids_changed_enable=False)
        await client.ask(RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, body=encode_group_config(group))
        await client.beat("c1", "quiet")
        await trio.sleep(1)
        assert told(client) == [[]]
        assert await members(client, "broadcast") == ["c1"]
    async with one_broker(notify_consumer_ids_changed_enable=False) as (_, client):
        await client.beat("c1")
        await trio.sleep(1)
        assert told(client) == [[]]


async def test_a_silent_client_is_dropped_and_the_others_are_told(autojump_clock: MockClock) -> None:
    async with one_broker() as (running, one), running.client() as two:
        await one.beat("c1", producers=["pg"])
        await two.beat("c2")
        await trio.sleep(100)
        await one.beat("c1", producers=["pg"])
        told(one, two)
        assert await members(one) == ["c1", "c2"]
        await trio.sleep(25)
        assert await members(one) == ["c1"]
        assert told(one) == [["cg"]]
        assert two.remoting.open_addresses() == []
        assert one.remoting.open_addresses() == [running.ready.address]


async def test_a_group_that_fell_silent_does_not_cost_its_client_the_connection(autojump_clock: MockClock) -> None:
    async with one_broker() as (running, client):
        await client.beat("c1", "old")
        for _ in range(5):
            await trio.sleep(29)
            await client.beat("c1", "new")
        assert await members(client, "old") == []
        assert await members(client, "new") == ["c1"]
        assert client.remoting.open_addresses() == [running.ready.address]


async def test_a_client_that_comes_over_a_new_connection_stays_when_the_old_one_closes(
    autojump_clock: MockClock,
) -> None:
    async with one_broker() as (running, watcher), running.client() as new:
        async with running.client() as old:
            await old.beat("c1")
            await new.beat("c1")
        await trio.sleep(1)
        assert await members(watcher) == ["c1"]
        assert told(new) == [["cg"]]


async def test_producers_are_known_until_they_leave(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        header = headers.GetProducerConnectionListRequestHeader(producer_group="pg")
        assert (await client.ask(RequestCode.GET_PRODUCER_CONNECTION_LIST, header)).code == ResponseCode.SYSTEM_ERROR
        await client.beat("c1", None, producers=["pg"])
        answer = await client.ask(RequestCode.GET_PRODUCER_CONNECTION_LIST, header)
        (connection,) = json.loads(answer.body)["connectionSet"]
        assert connection["clientId"] == "c1"
        assert connection["clientAddr"].startswith("10.0.0.3:")
        await leave(client, "c1", producer_group="pg")
        assert (await client.ask(RequestCode.GET_PRODUCER_CONNECTION_LIST, header)).code == ResponseCode.SYSTEM_ERROR


async def test_a_heartbeat_makes_the_group_and_its_retry_topic(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        await client.beat("c1")
        groups = await client.ask(RequestCode.GET_ALL_SUBSCRIPTIONGROUP_CONFIG)
        assert b'"cg"' in groups.body
        retry = await client.ask(RequestCode.GET_TOPIC_CONFIG, headers.GetTopicConfigRequestHeader(topic="%RETRY%cg"))
        assert retry.code == 0
        assert (await client.beat("c1", "bad name!")).code == ResponseCode.SYSTEM_ERROR
        assert await members(client, "bad name!") == []
    async with one_broker(auto_create_subscription_group=False) as (_, client):
        assert (await client.beat("c1")).code == 0
        assert await members(client) == ["c1"]
        groups = await client.ask(RequestCode.GET_ALL_SUBSCRIPTIONGROUP_CONFIG)
        assert b'"cg"' not in groups.body


@pytest.mark.parametrize("body", [b"", b"{", b'{"clientID":""}', b'{"clientID":"c","consumerDataSet":7}'])
async def test_a_heartbeat_that_cannot_be_read_is_refused(autojump_clock: MockClock, body: bytes) -> None:
    async with one_broker() as (_, client):
        assert (await client.ask(RequestCode.HEART_BEAT, body=body)).code == ResponseCode.SYSTEM_ERROR


async def test_an_unknown_request_is_3_and_costs_nothing(autojump_clock: MockClock) -> None:
    async with one_broker() as (_, client):
        answers = await client.ask_many([Command(31_999), Command(RequestCode.GET_BROKER_RUNTIME_INFO)])
        assert [answer.code for answer in answers] == [ResponseCode.REQUEST_CODE_NOT_SUPPORTED, 0]
