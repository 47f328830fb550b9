"""`standalone --brokers N` as processes: who serves, who ends with whom, and who is started again."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from tests.cli.processes import WAIT_SECONDS, RunningServer, free_ports, running, trio_rmq
from trio_rmq.cli.supervisor import PORT_DISTANCE
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.wire import headers
from trio_rmq.wire.codes import RequestCode
from trio_rmq.wire.command import Command


@contextmanager
def two_brokers(scratch: Path, *overrides: str) -> Iterator[tuple[RunningServer, str, dict[str, int]]]:
    """A supervisor with two brokers, ready: it, its name server, and the process of each broker."""
    port, namesrv_port = free_ports(2)
    words = ("standalone", "--brokers", "2", "--store", str(scratch / "s"), "--port", str(port))
    with running(scratch, *words, "--namesrv-port", str(namesrv_port), "fastPortEnable=false", *overrides) as server:
        processes: dict[str, int] = {}
        assert server.process.stdout is not None
        for line in server.process.stdout:
            if found := re.match(r"(broker-.) +127\.0\.0\.1:(\d+) .*process (\d+)", line):
                processes[found[1]] = int(found[3])
                assert int(found[2]) == port + PORT_DISTANCE * (len(processes) - 1)
            if line.startswith("ready"):
                break
        assert list(processes) == ["broker-a", "broker-b"]
        yield server, f"127.0.0.1:{namesrv_port}", processes


async def make_topic(name: str, name_server: str) -> None:
    """Two queues at every broker: a first send would make it at the broker that got it."""
    async with RemotingClient() as client:
        clusters = await client.request(name_server, Command(RequestCode.GET_BROKER_CLUSTER_INFO))
        addresses = re.findall(rb'0"?:"([^"]+)"', clusters.body)
        assert len(addresses) == 2
        for address in addresses:
            header = headers.CreateTopicRequestHeader(
                topic=name,
                default_topic="TBW102",
                read_queue_nums=2,
                write_queue_nums=2,
                perm=6,
                topic_filter_type="SINGLE_TAG",
                order=False,
            )
            answer = await client.request(address.decode(), Command(RequestCode.UPDATE_AND_CREATE_TOPIC, header))
            assert answer.code == 0, answer.remark


def said(server: RunningServer, text: str) -> re.Match[str]:
    """Read its log up to the line that matches."""
    assert server.process.stderr is not None
    for line in server.process.stderr:
        if found := re.search(text, line):
            return found
    raise AssertionError(f"never said {text!r}")


def wait_gone(descriptor: int) -> None:
    """Until the process of that pidfd has ended."""
    ready, _, _ = select.select([descriptor], [], [], WAIT_SECONDS)
    os.close(descriptor)
    assert ready, f"it still runs after {WAIT_SECONDS} s"


def test_two_brokers_share_a_topic_and_stop_in_order(tmp_path: Path) -> None:
    with two_brokers(tmp_path) as (server, name_server, processes):
        trio.run(make_topic, "Spread", name_server)
        texts = [f"message {number}" for number in range(64)]
        sent = trio_rmq("send", "-n", name_server, "Spread", *texts)
        assert sent.returncode == 0, sent.stderr
        received = trio_rmq("receive", "-n", name_server, "Spread", "--until-end")
        assert sorted(received.stdout.decode().splitlines()) == sorted(texts)
        ends = [os.pidfd_open(process) for process in processes.values()]
        status, _, log = server.stop()
        assert status == 0, log
        for end in ends:
            wait_gone(end)
    for name in processes:
        queues = sorted(path.name for path in (tmp_path / "s" / name / "consumequeue" / "Spread").iterdir())
        assert queues == ["0", "1"], "sends went to every queue of every broker"
    assert "broker-a trio_rmq: stopped" in log
    assert not list(tmp_path.glob("s/*/abort")), "each broker ended in order"
    single = trio_rmq("standalone", "--store", str(tmp_path / "s"))
    assert single.returncode == 2
    assert b"start with --brokers N" in single.stderr


def test_a_killed_broker_is_started_again_and_keeps_its_messages(tmp_path: Path) -> None:
    with two_brokers(tmp_path) as (server, name_server, processes):
        texts = [f"message {number}" for number in range(32)]
        assert trio_rmq("send", "-n", name_server, "Kept", *texts).returncode == 0
        os.kill(processes["broker-b"], signal.SIGKILL)
        said(server, "broker-b ended on SIGKILL; it is started again in 1 s")
        process = int(said(server, r"broker-b is ready again as process (\d+)")[1])
        assert process != processes["broker-b"]
        os.kill(processes["broker-a"], 0)  # the other one went on
        received = trio_rmq("receive", "-n", name_server, "Kept", "--until-end")
        assert sorted(received.stdout.decode().splitlines()) == sorted(texts)
        status, _, log = server.stop()
        assert status == 0, log


def test_a_broker_whose_store_failed_ends_all_with_status_4(tmp_path: Path) -> None:
    with two_brokers(tmp_path, "flushDiskType=SYNC_FLUSH") as (server, name_server, _):
        trio.run(make_topic, "Lost", name_server)
        texts = [f"message {number}" for number in range(16)]
        assert trio_rmq("send", "-n", name_server, "Lost", *texts).returncode == 0
        for file in (tmp_path / "s" / "broker-b" / "commitlog").iterdir():
            file.unlink()
        # The next sync finds that the file has no name; the sender itself tries for ever.
        sender = [sys.executable, "-m", "trio_rmq.cli.main", "send", "-n", name_server, "Lost", *texts]
        with subprocess.Popen(sender, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as sending:
            try:
                status = server.process.wait(WAIT_SECONDS)
            finally:
                sending.kill()
        assert server.process.stderr is not None
        log = server.process.stderr.read()
    assert status == 4, log
    assert log.splitlines()[-1] == "trio-rmq standalone: the store of broker-b failed"
    assert not (tmp_path / "s" / "broker-a" / "abort").exists(), "the other one ended in order"


def test_brokers_end_in_order_when_their_supervisor_is_killed(tmp_path: Path) -> None:
    with two_brokers(tmp_path) as (server, _, processes):
        ends = [os.pidfd_open(process) for process in processes.values()]
        server.process.kill()
        for end in ends:
            wait_gone(end)
    assert not list(tmp_path.glob("s/*/abort"))


def test_a_second_signal_ends_everything_at_once(tmp_path: Path) -> None:
    with two_brokers(tmp_path) as (server, _, processes):
        ends = [os.pidfd_open(process) for process in processes.values()]
        os.kill(processes["broker-a"], signal.SIGSTOP)  # so that the end in order takes for ever
        server.process.send_signal(signal.SIGINT)
        said(server, "stopping on SIGINT")
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(WAIT_SECONDS) == 128 + signal.SIGINT
        os.kill(processes["broker-a"], signal.SIGCONT)
        for end in ends:
            wait_gone(end)


def test_a_broker_that_cannot_start_ends_all_with_its_status(tmp_path: Path) -> None:
    (tmp_path / "s" / "broker-b").mkdir(parents=True)
    (tmp_path / "s" / "broker-b" / "commitlog").write_text("not a folder")
    port, namesrv_port = free_ports(2)
    words = ("standalone", "--brokers", "2", "--store", str(tmp_path / "s"), "--port", str(port))
    done = trio_rmq(*words, "--namesrv-port", str(namesrv_port), "fastPortEnable=false")
    assert done.returncode == 4, done.stderr
    assert done.stderr.decode().splitlines()[-1] == (
        "trio-rmq standalone: broker-b ended with status 4 before it was ready"
    )
    assert not (tmp_path / "s" / "broker-a" / "abort").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--brokers", "0"], "--brokers 0: the value must be from 1 to 26"),
        (["--brokers", "27"], "--brokers 27: the value must be from 1 to 26"),
        (["--brokers", "2", "--port", "65530"], "would need port 65540"),
        (["--brokers", "2", "--port", "0"], "listenPort must not be 0"),
        (["--brokers", "2", "storePathCommitLog=elsewhere"], "storePathCommitLog names one folder"),
        (["--brokers", "2", "--store", "single"], "single holds the store of a single broker"),
    ],
)
def test_what_several_brokers_cannot_have_is_a_sentence(words: list[str], sentence: str, tmp_path: Path) -> None:
    (tmp_path / "single" / "commitlog").mkdir(parents=True)
    done = trio_rmq("standalone", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert sentence in done.stderr.decode()


def test_the_end_of_standard_input_ends_a_supervised_broker(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    words = ("broker", "--supervised", "one", f"listenPort={port}", "bindAddress=127.0.0.1", "storePathRootDir=s")
    command = [sys.executable, "-m", "trio_rmq.cli.main", *words]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=WAIT_SECONDS, cwd=tmp_path,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "INFO one trio_rmq: stopping on the end of its supervisor" in done.stderr
