"""Real processes: a cluster's life, faults of disk and clock, the smallest scenario from the command to its report.

Nothing here waits for a time to pass but by what servers say; on a busy machine it takes longer and says the same.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio

from trio_rmq.client import Message, MessageQueue, Producer
from trio_rmq.errors import ConfigError, SendError
from trio_rmq.testing.chaos.cluster import Cluster, NodeError
from trio_rmq.testing.chaos.systems import ApacheSystem, OurSystem

SCENARIOS = Path(__file__).parents[2] / "scenarios"
TOPIC = "Torment"


class Notes:
    """What a cluster tells."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str]] = []

    def __call__(self, process: str, what: str, **value: Any) -> None:
        self.heard.append((process, what))


@asynccontextmanager
async def producing(cluster: Cluster) -> AsyncIterator[Producer]:
    async with Producer(name_servers=cluster.name_servers, retry_times=0) as producer:
        yield producer


async def send_until_stored(producer: Producer, body: bytes) -> int:
    """The offset in queue 0; again after each refusal, as a client that wants it stored."""
    queue = MessageQueue(topic=TOPIC, broker_name="broker-a", queue_id=0)
    while True:
        try:
            await producer.send(Message(TOPIC, b"makes the topic"))
            return (await producer.send(Message(TOPIC, body), queue=queue)).queue_offset
        except SendError:
            await trio.sleep(0.05)


@pytest.mark.trio
async def test_a_broker_lives_dies_and_lives_again_with_what_it_acknowledged(tmp_path: Path) -> None:
    notes = Notes()
    async with Cluster(str(tmp_path), note=notes) as cluster, producing(cluster) as producer:
        broker = cluster.nodes["broker-a"]
        assert broker.is_up
        first = await send_until_stored(producer, b"kept")
        await broker.kill()
        assert broker.process is None
        with pytest.raises(SendError):
            await producer.send(Message(TOPIC, b"nobody is there"))
        await broker.start()
        assert await send_until_stored(producer, b"kept too") > first
        with pytest.raises(ValueError, match="stop it before you wipe it"):
            broker.wipe()
        with pytest.raises(ValueError, match="track_unsynced"):
            await broker.lose_power(Random(1))
        await broker.stop()
        broker.wipe()
        broker.upgrade(OurSystem(chaos=False))
        await broker.start()
        assert await send_until_stored(producer, b"from the start") < 2
        edge = cluster.edge("others", "broker-a")
        assert edge.passed_bytes
        edge.change(cut=True)
        with pytest.raises(SendError):
            await producer.send(Message(TOPIC, b"cut off"))
        edge.heal()
        await send_until_stored(producer, b"healed")
    assert [what for process, what in notes.heard if process == "broker-a"] == [
        "starts", "up", "down", "starts", "up", "down", "starts", "up",
    ]  # fmt: skip


@pytest.mark.trio
async def test_disk_clock_and_power_of_a_node_obey(tmp_path: Path) -> None:
    notes = Notes()
    settings = {"flushDiskType": "SYNC_FLUSH"}
    async with (
        Cluster(str(tmp_path), settings=settings, track_unsynced=True, restart_seconds=0.01, note=notes) as cluster,
        producing(cluster) as producer,
    ):
        broker = cluster.nodes["broker-a"]
        offset = await send_until_stored(producer, b"synced")
        rule = broker.order(("fdatasync",), "error", path="commitlog", times=1)
        with pytest.raises(SendError):
            await producer.send(Message(TOPIC, b"its sync fails"))
        while ("broker-a", "ends") not in notes.heard:  # noqa: ASYNC110 - notes wake nobody
            await trio.sleep(0.01)
        await broker.wait_ready()
        broker.withdraw(rule)
        broker.step_clock(3_600_000)
        assert [(deed.action, deed.call) for deed in broker.deeds()] == [("error", "fdatasync")]
        await send_until_stored(producer, b"an hour later")
        await broker.lose_power(Random(2))
        await broker.start()
        assert await send_until_stored(producer, b"again") > offset


@pytest.mark.trio
async def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(NodeError, match="flushDiskType=NEVER"):
        async with Cluster(str(tmp_path), settings={"flushDiskType": "NEVER"}):
            pytest.fail("it started")


def test_apaches_jars_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give the folder with Apache's server jars"):
        ApacheSystem(str(tmp_path))


def chaos(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command, to its end."""
    command = [sys.executable, "-m", "trio_rmq.cli.main", "chaos", "run", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=False, cwd=cwd)


def test_the_smallest_scenario_from_the_command_line_to_the_report(tmp_path: Path) -> None:
    done = chaos(str(SCENARIOS / "kill-and-go-on.toml"), "--json", "--keep", "kept", "--report", "r.html", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    states = {verdict["invariant"]: verdict["state"] for verdict in told["verdicts"]}
    assert states["lost"] == states["delivered"] == states["liveness"] == states["store"] == "kept"
    assert "all promises kept in 1 run" in (tmp_path / "r.html").read_text()
    (history,) = (tmp_path / "kept").glob("*/history.jsonl")
    events = [json.loads(line)["what"] for line in history.read_text().splitlines()]
    assert events.count("down") == 2
    assert {"invoke", "ok", "consumed", "fault", "fault over"} <= set(events)


def test_a_plan_is_printed_and_nothing_run(tmp_path: Path) -> None:
    done = chaos(str(SCENARIOS / "kill-and-go-on.toml"), "--plan", "--seed", "5", cwd=tmp_path)
    assert done.stdout == "kill and go on, seed 5\n   1.00 s  kill broker-a\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["none.toml"], "the scenario none.toml cannot be read"),
        ([str(SCENARIOS / "kill-and-go-on.toml"), "--system", "theirs"], "--system theirs: ours, apache or both"),
    ],
)
def test_wrong_words_are_said_and_the_status_is_2(words: list[str], complaint: str, tmp_path: Path) -> None:
    done = chaos(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert complaint in done.stderr
