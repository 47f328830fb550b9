"""Delays, retries and dead letters as Apache's client meets them: on our broker as on Apache's, down to each record.

A push consumer of 4.9.8 or 5.3.3 fails (`java/src/.../RetryPeer.java`); what it is given, and what then stands in the
two brokers' logs, is compared.  And config/delayOffset.json goes from one broker to the other and back.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.broker.running import send_header
from tests.interop.peers import Server, apache_broker, apache_name_server, our_broker, our_name_server, run_java_peer
from tests.interop.stored import stored_records
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.wire.codes import RequestCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.groups import decode_delay_offsets

pytestmark = [pytest.mark.interop, pytest.mark.slow]

TOPIC, GROUP, MOST = "Retried", "retry_group", 3
LEVELS: dict[str, Any] = {"messageDelayLevel": " ".join(["1s"] * 18)}
VOLATILE = frozenset({"UNIQ_KEY", "ORIGIN_MESSAGE_ID", "CONSUME_START_TIME", "TRACE_ON", "MSG_REGION"})
"""Properties that differ from run to run; that they are there is compared."""


def told(store: Path) -> dict[bytes, list[tuple[object, ...]]]:
    """By body, each record: topic, queue of a delay, counts, flags, properties."""
    found: dict[bytes, list[tuple[object, ...]]] = {}
    for record in stored_records(store):
        properties = {name: "" if name in VOLATILE else value for name, value in record.property_map().items()}
        queue_id = record.queue_id if record.topic == "SCHEDULE_TOPIC_XXXX" else 0
        if "REAL_QID" in properties and record.reconsume_times == 0:
            properties["REAL_QID"] = ""  # the producer's choice
        found.setdefault(record.body, []).append(
            (record.topic, queue_id, record.reconsume_times, record.sys_flag, record.flag, properties)
        )
    return found


def run_peer(version: str, namesrv: str, scratch: Path) -> str:
    done = run_java_peer(
        version, "JSON", [namesrv, TOPIC, GROUP, str(MOST)], scratch=scratch, timeout_seconds=200,
        program="interop.RetryPeer",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return "\n".join(line for line in done.stdout.splitlines() if line.startswith("GOT"))


@pytest.mark.parametrize("version", ["4.9.8", "5.3.3"])
def test_a_consumer_that_fails_meets_the_same_up_to_its_dead_letters(version: str, tmp_path: Path) -> None:
    with our_name_server(tmp_path) as namesrv, our_broker(tmp_path, namesrv.address, **LEVELS):
        ours = run_peer(version, namesrv.address, tmp_path)
    with apache_name_server(tmp_path) as namesrv, apache_broker(tmp_path, namesrv.address, **LEVELS):
        apaches = run_peer(version, namesrv.address, tmp_path)
    assert ours == apaches
    assert ours.count("GOT fails") == MOST + 1
    our_records, apaches_records = told(tmp_path / "store-broker-a"), told(tmp_path / "apache-store-broker-a")
    assert our_records[b"fails"][-1][0] == f"%DLQ%{GROUP}"
    for body in (b"later", b"fails", b"level", b"gives up"):
        assert our_records[body] == apaches_records[body]


async def send_and_wait(address: str, body: bytes, seconds: float) -> None:
    async with RemotingClient() as client:
        header = send_header(TOPIC, queue_id=0, properties=f"UNIQ_KEY\x01{body.decode()}\x02WAIT\x01true\x02DELAY\x011")
        answer = await client.request(address, Command(RequestCode.SEND_MESSAGE_V2, header, body=body), 10)
        assert answer.code == 0, answer.remark
        await trio.sleep(seconds)


def test_the_offsets_file_goes_back_and_forth(tmp_path: Path) -> None:
    """Each broker delivers what is its to deliver, and nothing that the other delivered."""
    store = tmp_path / "both"
    sizes: dict[str, Any] = {
        "mappedFileSizeCommitLog": 4 * 1024 * 1024,
        "mappedFileSizeConsumeQueue": 20 * 500,
        **LEVELS,
    }
    brokers: list[tuple[bytes, Callable[..., AbstractContextManager[Server]]]] = [
        (b"ours 1", our_broker), (b"apaches 1", apache_broker), (b"ours 2", our_broker), (b"apaches 2", apache_broker),
    ]  # fmt: skip
    with our_name_server(tmp_path) as namesrv:
        for number, (body, broker) in enumerate(brokers, 1):
            with broker(tmp_path, namesrv.address, store=store, **sizes) as server:
                trio.run(send_and_wait, server.address, body, 3)
            offsets = decode_delay_offsets((store / "config" / "delayOffset.json").read_bytes())
            assert offsets.offset_table[1] == number
            assert (offsets.log_offset is not None) == (broker is our_broker)
    delivered = [record.body for record in stored_records(store) if record.topic == TOPIC]
    assert delivered == [body for body, _ in brokers]
