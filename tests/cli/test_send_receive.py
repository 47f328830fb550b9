"""`trio-rmq send` and `receive` against a standalone server: byte for byte, also over its death."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.processes import WAIT_SECONDS, environment, free_ports, running, trio_rmq


def _records(count: int) -> bytes:
    """Stanzas of several lines, such as package lists have."""
    rng = random.Random(7)
    words = [b"Package:", b"Version:", b"Depends:", "Übersicht".encode(), b"lib\x00nul", b"x" * 200]
    stanzas = [b"\n".join(rng.choices(words, k=rng.randint(1, 12))) for _ in range(count)]
    return b"".join(stanza + b"\n\n" for stanza in stanzas)


def test_words_of_the_command_line(tmp_path: Path) -> None:
    port, namesrv_port = free_ports(2)
    server = f"127.0.0.1:{namesrv_port}"
    words = ("standalone", "--store", str(tmp_path / "s"), "--port", str(port), "--namesrv-port", str(namesrv_port))
    with running(tmp_path, *words):
        sent = trio_rmq("send", "-n", server, "Greetings", "hello", "wörld", "--queue", "1", "--tag", "a")
        assert sent.returncode == 0, sent.stderr
        assert sent.stdout.count(b"in broker-a queue 1 offset") == 2
        assert trio_rmq("send", "-n", server, "Greetings", "other", "--queue", "1", "--tag", "b").returncode == 0
        got = trio_rmq("receive", "-n", server, "Greetings", "--until-end")
        assert got.stdout == "hello\nwörld\nother\n".encode()
        got = trio_rmq("receive", "-n", f"ws://{server}", "Greetings", "--until-end", "--tag", "a")
        assert got.stdout == "hello\nwörld\n".encode()
        first = trio_rmq("receive", "-n", server, "Greetings", "--group", "G", "--count", "1", "--queue", "1")
        rest = trio_rmq("receive", "-n", server, "Greetings", "--group", "G", "--until-end")
        assert (first.stdout, rest.stdout) == (b"hello\n", "wörld\nother\n".encode())
        waiting = trio_rmq("receive", "-n", server, "Nowhere", "--until-end")
        assert waiting.returncode == 1
        assert b"knows the topic Nowhere" in waiting.stderr


@pytest.mark.parametrize("scheme", ["", "ws://"])
def test_a_file_survives_a_kill_on_the_way(scheme: str, tmp_path: Path) -> None:
    _through_a_kill(_records(6_000), scheme, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["", "ws://"])
def test_the_list_of_all_packages_survives_a_kill_on_the_way(scheme: str, tmp_path: Path) -> None:
    listed = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, check=True).stdout
    assert listed.count(b"\n\n") > 10_000, "apt-get update has not been run"
    _through_a_kill(listed, scheme, tmp_path)


def _through_a_kill(content: bytes, scheme: str, tmp_path: Path) -> None:
    """`content`, a stanza a message, into one queue and out again; the server is killed about in the middle."""
    port, namesrv_port = free_ports(2)
    words = ("standalone", "--store", str(tmp_path / "s"), "--port", str(port), "--namesrv-port", str(namesrv_port))
    server = f"{scheme}127.0.0.1:{namesrv_port}"
    source = ["send", "-n", server, "Packages", "--separator", r"\n\n", "--queue", "0"]
    with running(tmp_path, *words) as first:
        sender = subprocess.Popen(
            [sys.executable, "-m", "trio_rmq.cli.main", *source],
            stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
        )  # fmt: skip
        assert sender.stdin is not None
        half = len(content) // 2
        try:
            sender.stdin.write(content[:half])  # returns when the sender has taken nearly all, some of it in flight
            sender.stdin.flush()
        except BrokenPipeError:
            assert sender.stderr is not None
            pytest.fail(f"the sender gave up: {sender.stderr.read().decode()}")
        first.process.kill()
        first.process.wait()
    with running(tmp_path, *words) as second:
        _, said = sender.communicate(content[half:], timeout=WAIT_SECONDS)
        assert sender.returncode == 0, said
        count = content.count(b"\n\n")
        assert f"stored {count} messages".encode() in said
        target = ["--separator", r"\n\n", "--until-end", "--output", str(tmp_path / "out")]
        got = trio_rmq("receive", "-n", server, "Packages", *target)
        assert got.returncode == 0, got.stderr
        assert f"received {count} messages".encode() in got.stderr
        status, _, log = second.stop()
        assert status == 0, log
    assert (tmp_path / "out").read_bytes() == content
