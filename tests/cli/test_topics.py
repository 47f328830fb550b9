"""`trio-rmq topic` against a standalone server."""

from __future__ import annotations

from pathlib import Path

from tests.cli.processes import free_ports, running, trio_rmq


def test_a_topic_is_made_listed_shown_and_deleted(tmp_path: Path) -> None:
    port, namesrv_port = free_ports(2)
    server = f"127.0.0.1:{namesrv_port}"
    words = ("standalone", "--store", str(tmp_path / "s"), "--port", str(port), "--namesrv-port", str(namesrv_port))
    with running(tmp_path, *words):

        def topic(*words: str) -> list[list[str]]:
            done = trio_rmq("topic", *words, "-n", server)
            assert done.returncode == 0, done.stderr
            return [line.split() for line in done.stdout.decode().splitlines()]

        heads = ["TOPIC", "BROKERS", "WRITE", "READ", "PERMISSION"]
        assert topic("list") == [heads]
        assert topic("create", "T", "--queues", "2") == [["T", "is", "at", "broker-a"]]
        assert topic("list") == [heads, ["T", "broker-a", "2", "2", "rw"]]
        over_websocket = trio_rmq("topic", "list", "-n", f"ws://{server}")
        assert over_websocket.stdout.decode().split() == [*heads, "T", "broker-a", "2", "2", "rw"]
        assert ["TBW102", "broker-a", "8", "8", "rw"] in topic("list", "--all")
        assert trio_rmq("send", "-n", server, "T", "one", "two", "--queue", "1").returncode == 0
        assert trio_rmq("receive", "-n", server, "T", "--group", "G", "--count", "1", "--queue", "1").returncode == 0
        shown = topic("show", "T")
        assert ["groups", "G"] in shown
        assert ["settings", "2", "queues", "to", "write,", "2", "to", "read,", "permission", "rw"] in shown
        assert ["broker-a", "0", "0", "0", "-"] in shown
        assert ["broker-a", "1", "0", "2"] in [row[:4] for row in shown]
        assert shown[-1] == ["messages", "2"]
        topic("create", "T", "--queues", "4", "--read-queues", "6", "--permission", "r", "--broker", "broker-a")
        assert topic("list", "--cluster", "DefaultCluster") == [heads, ["T", "broker-a", "4", "6", "r"]]
        assert topic("delete", "T") == [["T", "was", "deleted", "at", "broker-a"]]
        assert topic("list") == [heads]
        wrong = trio_rmq("topic", "create", "T", "--permission", "all", "-n", server)
        assert (wrong.returncode, b"must be rw, r, w or none" in wrong.stderr) == (2, True)
        for command in ("show", "delete"):
            gone = trio_rmq("topic", command, "T", "-n", server)
            assert (gone.returncode, b"no broker has the topic T" in gone.stderr) == (1, True)
