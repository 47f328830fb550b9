"""Every body that Apache 4.9.7 exchanged: decoded, and encoded again to the same bytes.

No difference is tolerated: maps are kept in the order in which they came, which is all that Apache itself varies in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from trio_rmq.wire import batch, groups, heartbeat, record, registration, routes, topics

VECTORS = Path(__file__).parents[2] / "protocol" / "vectors"
FOLDERS = ("wire-json", "wire-rocketmq", "wire-slave")
T = TypeVar("T")
Again = Callable[[bytes, dict[str, Any]], bytes]


def again(decode: Callable[[bytes], T], encode: Callable[[T], bytes]) -> Again:
    """A round trip that needs nothing of the header."""
    return lambda body, _: encode(decode(body))


def registration_again(body: bytes, entry: dict[str, Any]) -> bytes:
    header = entry["requestHeader"]
    compressed = header["extFields"]["compressed"] == "true"
    decoded = registration.decode_register_body(body, compressed=compressed, version=header["version"])
    assert decoded.topic_config_serialize_wrapper.data_version.timestamp > 1_795_000_000_000
    assert decoded.topic_config_serialize_wrapper.topic_config_table
    return registration.encode_register_body(decoded, compressed=compressed, version=header["version"])


def route_again(body: bytes, entry: dict[str, Any]) -> bytes:
    standard = routes.wants_standard_json(entry["requestHeader"]["version"], None)
    assert standard  # the asker was a 4.9.7 client
    return routes.encode_route(routes.decode_route(body), standard_json=standard)


def records_again(body: bytes, _: dict[str, Any]) -> bytes:
    return b"".join(map(record.encode_stored, record.decode_records(body, check_crc=True)))


data_version_again = again(topics.decode_data_version, topics.encode_data_version)
topic_table_again = again(topics.decode_topic_table, topics.encode_topic_table)


def batch_items(body: bytes) -> list[batch.BatchItem]:
    """The items of a batch send."""
    return [batch.BatchItem(*item) for item in batch.decode_batch(body)]


BODIES: dict[str, Again] = {
    "REGISTER_BROKER.request": registration_again,
    "QUERY_DATA_VERSION.request": data_version_again,
    "QUERY_DATA_VERSION.response": data_version_again,
    "UPDATE_AND_CREATE_SUBSCRIPTIONGROUP.request": again(groups.decode_group_config, groups.encode_group_config),
    "GET_BROKER_RUNTIME_INFO.response": again(routes.decode_kv_table, routes.encode_kv_table),
    "GET_ALL_TOPIC_CONFIG.response": topic_table_again,
    "HEART_BEAT.request": again(heartbeat.decode_heartbeat, heartbeat.encode_heartbeat),
    "GET_CONSUMER_CONNECTION_LIST.response": again(
        groups.decode_consumer_connection, groups.encode_consumer_connection
    ),
    "SEND_BATCH_MESSAGE.request": again(batch_items, batch.encode_batch),
    "QUERY_MESSAGE.response": records_again,
    "VIEW_MESSAGE_BY_ID.response": records_again,
    "CHECK_TRANSACTION_STATE.request": records_again,
    "PULL_MESSAGE.response": records_again,
    "GET_CONSUMER_LIST_BY_GROUP.response": again(groups.decode_consumer_list, groups.encode_consumer_list),
    "LOCK_BATCH_MQ.request": again(groups.decode_lock_request, groups.encode_lock_request),
    "LOCK_BATCH_MQ.response": again(groups.decode_lock_response, groups.encode_lock_response),
    "UNLOCK_BATCH_MQ.request": again(groups.decode_unlock_request, groups.encode_unlock_request),
    "GET_BROKER_CLUSTER_INFO.response": again(routes.decode_cluster_info, routes.encode_cluster_info),
    "GET_ROUTEINFO_BY_TOPIC.response": route_again,
    "GET_ALL_TOPIC_LIST_FROM_NAMESERVER.response": again(routes.decode_topic_list, routes.encode_topic_list),
    "GET_ALL_CONSUMER_OFFSET.response": again(groups.decode_consumer_offsets, groups.encode_consumer_offsets),
    "GET_ALL_DELAY_OFFSET.response": again(groups.decode_delay_offsets, groups.encode_delay_offsets),
    "GET_ALL_SUBSCRIPTIONGROUP_CONFIG.response": again(groups.decode_group_table, groups.encode_group_table),
}
OPAQUE = {
    "SEND_MESSAGE_V2.request": "the user's own bytes",
    "GET_BROKER_CONFIG.response": "Java properties text, which the config room reads",
    "UPDATE_BROKER_CONFIG.request": "Java properties text",
    "GET_NAMESRV_CONFIG.response": "Java properties text",
    "UPDATE_NAMESRV_CONFIG.request": "Java properties text",
}


def bodies() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(kind, path of the frame, index entry) of every frame with a body."""
    for folder in FOLDERS:
        for entry in json.loads((VECTORS / folder / "index.json").read_text()):
            for side in ("request", "response"):
                if entry.get(f"{side}Body"):
                    yield f"{entry['name']}.{side}", f"{folder}/{entry[side]}", entry


def body_of(path: str) -> bytes:
    """What follows the header in a stored frame."""
    frame = (VECTORS / path).read_bytes()
    return frame[8 + int.from_bytes(frame[5:8], "big") :]


@pytest.mark.parametrize(("kind", "path", "entry"), [pytest.param(*case, id=case[1]) for case in bodies()])
def test_the_same_bytes_again(kind: str, path: str, entry: dict[str, Any]) -> None:
    if kind in OPAQUE:
        return
    body = body_of(path)
    assert BODIES[kind](body, entry) == body


def test_no_body_is_left_out() -> None:
    kinds = {kind for kind, _, _ in bodies()}
    assert kinds == BODIES.keys() | OPAQUE.keys()
