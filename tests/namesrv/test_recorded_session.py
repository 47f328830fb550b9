"""The name server answers the requests that Apache's broker, client and tools sent as Apache's name server did."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio

from trio_rmq.config import NamesrvConfig, RemotingConfig
from trio_rmq.namesrv.server import NameServerReady, serve_name_server
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.wire.command import Command
from trio_rmq.wire.frame import decode_frame, encode_frame

VECTORS = Path(__file__).parents[2] / "protocol" / "vectors" / "wire-json"
OTHERWISE = {
    "QUERY_DATA_VERSION": "asked after registrations that are not among the vectors",
    "GET_ALL_TOPIC_LIST_FROM_NAMESERVER": "lists topics whose registrations are not among the vectors",
    "GET_NAMESRV_CONFIG": "the keys are our own",
    "UPDATE_NAMESRV_CONFIG": "settings change only in the file (protocol/differences.md)",
}
OTHER_TOPICS = {"%RETRY%golden_orderly", "GoldenAuto"}
"""Topics whose registration is not among the vectors, or came later than the request."""


def recorded() -> list[dict[str, object]]:
    index = json.loads((VECTORS / "index.json").read_text())
    entries = [entry for entry in index if entry["to"] == "namesrv"]
    # The vectors stand by kind, not in time: the broker said goodbye last.
    return sorted(entries, key=lambda entry: str(entry["name"]) == "UNREGISTER_BROKER")


def read(name: object) -> Command:
    return decode_frame((VECTORS / str(name)).read_bytes())


def canonical(body: bytes) -> object:
    """A body with the order of its topic list taken away (a hash map's in Apache's)."""
    value = json.loads(body) if body.startswith(b"{") and b"{0:" not in body else body.decode()
    if isinstance(value, dict) and "topicList" in value:
        value["topicList"] = sorted(value["topicList"])
    return value


@pytest.mark.trio
async def test_recorded_requests_get_the_recorded_answers(tmp_path: Path) -> None:
    config = NamesrvConfig(listen_port=0, kv_config_path=str(tmp_path / "kvConfig.json"))
    async with trio.open_nursery() as nursery:

        async def start(*, task_status: trio.TaskStatus[NameServerReady]) -> None:
            await serve_name_server(config, remoting=RemotingConfig(bind_address="127.0.0.1"), task_status=task_status)

        ready: NameServerReady = await nursery.start(start)
        async with RemotingClient() as client:
            compared = 0
            for entry in recorded():
                request = read(entry["request"])
                if request.is_oneway:
                    await client.request_oneway(ready.address, request)
                    continue
                answer = await client.request(ready.address, request)
                if str(entry["name"]) in OTHERWISE or request.ext_fields().get("topic") in OTHER_TOPICS:
                    continue
                expected = read(entry["response"])
                assert answer.code == expected.code, entry
                assert answer.ext_fields() == expected.ext_fields(), entry
                assert canonical(answer.body) == canonical(expected.body), entry
                if expected.remark is not None:
                    assert answer.remark == expected.remark.splitlines()[0], entry
                assert encode_frame(answer)
                compared += 1
            assert compared > 10
        nursery.cancel_scope.cancel()
