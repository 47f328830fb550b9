"""Servers that cannot start, or cannot go on: one sentence that says why, an exit status that says what kind."""

from __future__ import annotations

import os
import resource
import socket
from contextlib import closing
from pathlib import Path

import pytest

from tests.cli.processes import free_ports, running, trio_rmq


def sentence(text: bytes | str, *, command: str) -> str:
    """The one line of a server's log that is no ordinary event; nothing of Python's."""
    lines = (text if isinstance(text, str) else text.decode()).splitlines()
    said = [line for line in lines if " INFO " not in line and " WARNING " not in line]
    assert len(said) == 1, lines
    assert said[0].startswith(f"trio-rmq {command}: ")
    return said[0]


def standalone(store: Path, port: int, namesrv_port: int) -> list[str]:
    """The words of a standalone server."""
    return ["standalone", "--store", str(store), "--port", str(port), "--namesrv-port", str(namesrv_port)]


def test_a_second_broker_on_the_same_store_leaves_the_first_alone(tmp_path: Path) -> None:
    first, first_names, second = free_ports(3)
    with running(tmp_path, *standalone(tmp_path / "s", first, first_names)) as server:
        where = ["-n", f"127.0.0.1:{first_names}"]
        assert trio_rmq("send", *where, "T", "before").returncode == 0
        words = ["broker", f"storePathRootDir={tmp_path}/s", f"listenPort={second}", *where]
        for _ in range(2):
            done = trio_rmq(*words, cwd=tmp_path)
            assert done.returncode == 4
            assert f"{tmp_path}/s" in sentence(done.stderr, command="broker")
        assert trio_rmq("send", *where, "T", "after").returncode == 0
        received = trio_rmq("receive", *where, "T", "--until-end")
        assert sorted(received.stdout.split()) == [b"after", b"before"]
        assert server.stop()[0] == 0
    with running(tmp_path, *words, "fastPortEnable=false") as server:
        assert server.stop()[0] == 0, "the store is free again"


@pytest.mark.parametrize("which", [0, 1])
def test_either_port_of_a_standalone_in_use(which: int, tmp_path: Path) -> None:
    ports = free_ports(2)
    with closing(socket.create_server(("127.0.0.1", ports[which]))):
        done = trio_rmq(*standalone(tmp_path / "s", *ports), cwd=tmp_path)
    assert done.returncode == 3
    said = sentence(done.stderr, command="standalone")
    assert f":{ports[which]}" in said
    assert "Address already in use" in said
    assert not (tmp_path / "s" / "abort").exists(), "the store was closed in order"
    with running(tmp_path, *standalone(tmp_path / "s", *ports)) as server:
        assert server.stop()[0] == 0


def test_the_fast_port_in_use_is_a_warning(tmp_path: Path) -> None:
    ports = free_ports(2)
    with (
        closing(socket.create_server(("127.0.0.1", ports[0] - 2))),
        running(tmp_path, *standalone(tmp_path / "s", *ports), "fastPortEnable=true") as server,
    ):
        status, _, err = server.stop()
    assert status == 0
    assert len([line for line in err.splitlines() if " WARNING " in line and str(ports[0] - 2) in line]) == 1


@pytest.mark.parametrize("command", ["namesrv", "broker"])
def test_an_address_of_another_machine(command: str, tmp_path: Path) -> None:
    done = trio_rmq(command, "bindAddress=203.0.113.7", "listenPort=10911", cwd=tmp_path)
    assert done.returncode == 3
    assert "203.0.113.7:10911" in sentence(done.stderr, command=command)


def test_a_store_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("not a folder")
    done = trio_rmq(*standalone(tmp_path / "s", *free_ports(2)), cwd=tmp_path)
    assert done.returncode == 4
    assert f"{tmp_path}/s" in sentence(done.stderr, command="standalone")
    assert (tmp_path / "s").read_text() == "not a folder"


def test_a_store_where_no_folder_can_be_made(tmp_path: Path) -> None:
    done = trio_rmq("broker", "listenPort=0", "storePathRootDir=/proc/self/fdinfo/store", cwd=tmp_path)
    assert done.returncode == 4
    assert "/proc/self/fdinfo/store" in sentence(done.stderr, command="broker")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_store_that_may_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir(mode=0o500)
    done = trio_rmq(*standalone(tmp_path / "s", *free_ports(2)), cwd=tmp_path)
    assert done.returncode == 4
    assert "Permission denied" in sentence(done.stderr, command="standalone")


def test_a_table_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "s" / "config").mkdir(parents=True)
    (tmp_path / "s" / "config" / "topics.json").write_text("{broken")
    done = trio_rmq("broker", "listenPort=0", f"storePathRootDir={tmp_path}/s", cwd=tmp_path)
    assert done.returncode == 4
    assert "topics.json" in sentence(done.stderr, command="broker")
    assert (tmp_path / "s" / "config" / "topics.json").read_text() == "{broken", "what cannot be read stays as it is"


def test_a_server_whose_files_may_not_grow_refuses_until_they_may(tmp_path: Path) -> None:
    ports = free_ports(2)
    where = ["-n", f"127.0.0.1:{ports[1]}"]
    with running(tmp_path, *standalone(tmp_path / "s", *ports)) as server:
        assert trio_rmq("send", *where, "T", "good").returncode == 0
        before = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (0, before[1]))
        refused = trio_rmq("send", *where, "--retry-for", "1", "T", "lost")
        assert refused.returncode != 0, "what was not written is not acknowledged"
        assert b"Traceback" not in refused.stderr
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, before)
        assert trio_rmq("send", *where, "T", "again").returncode == 0
        status, _, err = server.stop()
        assert status == 0
        assert err.count("senders are refused: the disk is full or refuses the write") == 1
        assert "File too large" in err
        assert err.count("senders are served again") == 1
        assert "Traceback" not in err
    with running(tmp_path, *standalone(tmp_path / "s", *ports)):
        received = trio_rmq("receive", *where, "T", "--until-end")
        assert sorted(received.stdout.split()) == [b"again", b"good"]
