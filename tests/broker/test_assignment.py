"""Queues that the broker gives to clients of 5.x which ask for theirs."""

from __future__ import annotations

import json
import logging

import pytest
from trio.testing import MockClock

from tests.admin.cluster import cluster_of
from tests.broker.running import Client, one_broker
from trio_rmq.wire.assignment import (
    QueryAssignmentRequestBody,
    SetMessageRequestModeRequestBody,
    decode_assignments,
    decode_request_modes,
    encode_assignment_query,
    encode_request_mode,
)
from trio_rmq.wire.codes import RequestCode, ResponseCode

pytestmark = pytest.mark.trio

Queues = list[tuple[str, int]]


async def ask(client: Client, client_id: str, strategy: str = "AVG", **fields: str) -> Queues | None:
    values = {"topic": "T", "consumer_group": "cg", "client_id": client_id, "strategy_name": strategy, **fields}
    body = encode_assignment_query(QueryAssignmentRequestBody(**values))
    answer = await client.ask(RequestCode.QUERY_ASSIGNMENT, body=body)
    assert answer.code == 0
    assignments = decode_assignments(answer.body).message_queue_assignments
    if assignments is None:
        return None
    assert {assignment.mode for assignment in assignments} <= {"PULL"}
    return [(one.message_queue.broker_name, one.message_queue.queue_id) for one in assignments]


async def test_members_share_the_queues_of_all_brokers(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        cluster_of("broker-a", "broker-b") as cluster,
        cluster.client("broker-a") as client,
        cluster.client("broker-b") as other,
    ):
        await client.create_topic("T", 2)
        await other.create_topic("T", 3)
        assert await ask(client, "c1") is None, "nobody of the group is connected"
        await client.beat("c1")
        await client.beat("c2")
        assert await ask(client, "c1") == [("broker-a", 0), ("broker-a", 1), ("broker-b", 0)]
        assert await ask(client, "c2") == [("broker-b", 1), ("broker-b", 2)]
        assert await ask(client, "c2", "AVG_BY_CIRCLE") == [("broker-a", 1), ("broker-b", 1)]
        assert await ask(client, "stranger") == []
        assert len(await ask(client, "c1", message_model="BROADCASTING") or ()) == 5
        assert await ask(client, "c1", topic="Nowhere") is None
        with caplog.at_level(logging.WARNING):
            assert await ask(client, "c1", "CONSISTENT_HASH") is None
        assert "the strategy CONSISTENT_HASH is none of AVG, AVG_BY_CIRCLE" in caplog.text


async def test_without_the_balancer_everybody_gets_all(autojump_clock: MockClock) -> None:
    async with cluster_of("broker-a", server_load_balancer_enable=False) as cluster, cluster.client() as client:
        await client.create_topic("T", 2)
        await client.beat("c1")
        assert await ask(client, "c2") == [("broker-a", 0), ("broker-a", 1)]


async def test_modes_are_kept_and_only_pull_is_served(autojump_clock: MockClock) -> None:
    async with one_broker() as (running, client):

        async def set_mode(**fields: object) -> int:
            values: dict[str, object] = {"topic": "T", "consumer_group": "cg", "mode": "PULL", **fields}
            mode = SetMessageRequestModeRequestBody(**values)  # type: ignore[arg-type]  # fields of the body
            return (await client.ask(RequestCode.SET_MESSAGE_REQUEST_MODE, body=encode_request_mode(mode))).code

        assert await set_mode() == ResponseCode.TOPIC_NOT_EXIST
        await client.create_topic()
        assert await set_mode() == 0
        assert await set_mode(mode="POP", pop_share_queue_num=2) == ResponseCode.SYSTEM_ERROR
        assert await set_mode(topic="%RETRY%cg") == ResponseCode.NO_PERMISSION
        modes = decode_request_modes((await client.ask(RequestCode.GET_ALL_MESSAGE_REQUEST_MODE)).body)
        assert modes.message_request_mode_map["T"]["cg"].mode == "PULL"
        kept = json.loads(running.disk.read_file("store/config/messageRequestMode.json"))
        assert kept["messageRequestModeMap"]["T"]["cg"]["mode"] == "PULL"
