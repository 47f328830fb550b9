"""`trio-rmq group` against a standalone server."""

from __future__ import annotations

from pathlib import Path

from tests.cli.processes import free_ports, running, trio_rmq


def test_a_group_is_listed_shown_measured_and_reset(tmp_path: Path) -> None:
    port, namesrv_port = free_ports(2)
    server = f"127.0.0.1:{namesrv_port}"
    words = ("standalone", "--store", str(tmp_path / "s"), "--port", str(port), "--namesrv-port", str(namesrv_port))
    with running(tmp_path, *words):

        def group(*words: str) -> list[list[str]]:
            done = trio_rmq("group", *words, "-n", server)
            assert done.returncode == 0, done.stderr
            return [line.split() for line in done.stdout.decode().splitlines()]

        assert trio_rmq("send", "-n", server, "T", "one", "two", "three", "--queue", "1").returncode == 0
        assert trio_rmq("receive", "-n", server, "T", "--group", "G", "--count", "1", "--queue", "1").returncode == 0
        assert ["G", "broker-a", "yes", "yes", "16"] in group("list")
        heads, *rows = group("lag", "G")
        assert heads[:6] == ["TOPIC", "BROKER", "QUEUE", "END", "CONSUMED", "LAG"]
        assert ["T", "broker-a", "1", "3", "1", "2"] in [row[:6] for row in rows]
        assert rows[-1] == ["total", "lag", "2"]
        shown = group("show", "G")
        assert ["lag", "2"] in shown
        assert ["members", "none:", "the", "group", "is", "offline"] in shown
        assert ["T", "broker-a", "1", "3"] in group("reset", "G", "T", "--to", "last")
        assert group("lag", "G", "--topic", "T")[-1] == ["total", "lag", "0"]
        assert ["T", "broker-a", "1", "0"] in group("reset", "G", "T", "--to", "2020-01-01T00:00:00")
        assert ["T", "broker-a", "1", "0"] in group("reset", "G", "T", "--to", "last", "--only-back")
        wrong = trio_rmq("group", "reset", "G", "T", "--to", "tomorrow", "-n", server)
        assert (wrong.returncode, b"must be first, last, a time" in wrong.stderr) == (2, True)
        unknown = trio_rmq("group", "show", "Unknown", "-n", server)
        assert (unknown.returncode, b"no broker knows the group Unknown" in unknown.stderr) == (1, True)
