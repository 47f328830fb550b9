"""The server commands as processes: readiness, signals, and a sentence for whatever cannot be."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.cli.processes import free_ports, running, trio_rmq
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.wire.codes import RequestCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.routes import decode_kv_table


def test_name_server_says_where_it_is_and_stops_in_order(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with running(tmp_path, "namesrv", f"listenPort={port}", "bindAddress=127.0.0.1") as server:
        socket.create_connection(("127.0.0.1", port)).close()
        status, out, err = server.stop(signal.SIGINT)
        assert server.notices.recv(100) == b"STOPPING=1"
    assert status == 0
    assert re.search(rf"^name server  127\.0\.0\.1:{port}$", out, re.MULTILINE)
    assert re.search(r"^ready        \d+\.\d\d s after the process began$", out, re.MULTILINE)
    lines = err.splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["INFO trio_rmq: stopping on SIGINT", "INFO trio_rmq: stopped"]


def test_log_goes_to_a_file(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    words = ("namesrv", f"listenPort={port}", "--log-file", str(tmp_path / "log"), "--log-level", "info", "noSuchKey=1")
    with running(tmp_path, *words) as server:
        _, _, err = server.stop()
    assert err == ""
    assert "WARNING trio_rmq.config: unknown key noSuchKey" in (tmp_path / "log").read_text()


def test_standalone_says_what_to_do_next(tmp_path: Path) -> None:
    port, namesrv_port = free_ports(2)
    words = ("standalone", "--store", str(tmp_path / "s"), "--port", str(port), "--namesrv-port", str(namesrv_port))
    with running(tmp_path, *words) as server:
        status, out, err = server.stop()
    assert status == 0, err
    assert f"name server  127.0.0.1:{namesrv_port}" in out
    assert f"broker       127.0.0.1:{port}" in out
    assert f"trio-rmq send -n 127.0.0.1:{namesrv_port} Greetings hello && " in out
    assert not (tmp_path / "s" / "abort").exists(), "an orderly end removes the mark of a running store"
    assert {entry.name for entry in tmp_path.iterdir()} == {"s", "notify"}, "nothing is written elsewhere"


def test_a_broker_tells_how_long_its_turns_are(tmp_path: Path) -> None:
    port, namesrv_port = free_ports(2)
    words = ("standalone", "--store", str(tmp_path / "s"), "--port", str(port), "--namesrv-port", str(namesrv_port))

    async def ask() -> dict[str, str]:
        async with RemotingClient() as client:
            asked = Command(RequestCode.GET_BROKER_RUNTIME_INFO)
            await client.request(f"127.0.0.1:{port}", asked)
            return decode_kv_table((await client.request(f"127.0.0.1:{port}", asked)).body).table

    with running(tmp_path, *words):
        told = trio.run(ask)
    counts = [int(count) for count in re.findall(r"\]:(\d+)", told["loopTurnCpuDistribution"])]
    assert sum(counts) > 0
    assert float(told["loopTurnCpuLongestMs"]) >= 0


def test_a_second_broker_on_the_same_store_is_a_sentence(tmp_path: Path) -> None:
    ports = free_ports(4)
    words = ("standalone", "--store", str(tmp_path / "s"))
    with running(tmp_path, *words, "--port", str(ports[0]), "--namesrv-port", str(ports[1])):
        done = trio_rmq(*words, "--port", str(ports[2]), "--namesrv-port", str(ports[3]), cwd=tmp_path)
    assert done.returncode == 4
    _is_one_sentence(done.stderr, "trio-rmq standalone: ")
    assert b"in use by another process" in done.stderr


def test_a_port_in_use_is_a_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = trio_rmq("namesrv", f"listenPort={port}", "bindAddress=127.0.0.1", cwd=tmp_path)
        assert done.returncode == 3
        _is_one_sentence(done.stderr, f"trio-rmq namesrv: cannot listen on 127.0.0.1:{port}: ")
        done = trio_rmq("broker", f"listenPort={port}", "bindAddress=127.0.0.1", cwd=tmp_path)
        assert done.returncode == 3
        _is_one_sentence(done.stderr, f"trio-rmq broker: cannot listen on 127.0.0.1:{port}: ")


def test_an_unwritable_store_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    done = trio_rmq("broker", "listenPort=0", f"storePathRootDir={tmp_path}/file/store", cwd=tmp_path)
    assert done.returncode == 4, done.stderr
    _is_one_sentence(done.stderr, "trio-rmq broker: ")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["broker", "listenPort=x"], "listenPort=x (the command line): the value must be a whole number"),
        (["broker", "-c", "/does/not/exist"], "the configuration file /does/not/exist cannot be read"),
        (["namesrv", "--colour"], "unrecognized arguments: --colour (see trio-rmq namesrv --help)"),
        (["namesrv", "--log-level", "loud"], "--log-level loud: the level must be one of"),
        (["namesrv", "--log-file", "/does/not/exist"], "--log-file /does/not/exist cannot be opened"),
        (["standalone", "--namesrv-port", "70000"], "--namesrv-port 70000: the value must be from 0 to 65535"),
        (["standalone", "--port", "70000"], "listenPort=70000"),
    ],
)
def test_bad_settings_are_a_sentence(words: list[str], sentence: str, tmp_path: Path) -> None:
    done = trio_rmq(*words, cwd=tmp_path)
    assert done.returncode == 2
    _is_one_sentence(done.stderr, f"trio-rmq {words[0]}: ")
    assert sentence in done.stderr.decode()


@pytest.mark.parametrize("file", sorted(Path(__file__).parents[2].joinpath("conf").rglob("*.*")), ids=lambda f: f.name)
def test_every_file_in_conf_can_be_used(file: Path, tmp_path: Path) -> None:
    command = file.stem if file.stem in ("namesrv", "standalone") else "broker"
    ports = [str(port) for port in free_ports(2)]
    words = [command, "-c", str(file), f"listenPort={ports[0]}"]
    if command == "standalone":
        words += ["--namesrv-port", ports[1]]
    with running(tmp_path, *words) as server:
        status, _, err = server.stop()
    assert status == 0
    assert "WARNING" not in err


def test_servers_are_listed_in_the_help_of_all() -> None:
    shown = trio_rmq("--help").stdout.decode()
    for command in ("standalone", "namesrv", "broker", "send", "receive"):
        assert command in shown
    assert "--namesrv-port" in trio_rmq("standalone", "--help").stdout.decode()


def test_servers_do_not_load_what_only_people_need() -> None:
    code = (
        "import trio_rmq.cli.serve, sys; print([m for m in ('typer', 'rich', 'click', 'asyncio') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.strip() == "[]"


def _is_one_sentence(text: bytes, begin: str) -> None:
    said = [line for line in text.decode().splitlines() if " INFO " not in line]
    assert len(said) == 1, text.decode()
    assert said[0].startswith(begin)
