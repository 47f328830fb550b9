"""`trio-rmq testing serve` says where it is, serves, and never outlives who started it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.cli.processes import WAIT_SECONDS, environment, trio_rmq
from trio_rmq.client import Message, Producer

SERVE = [sys.executable, "-m", "trio_rmq.cli.main", "testing", "serve"]


def start(*words: str, stdin: int = subprocess.PIPE) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*SERVE, *words], stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )


def where(process: subprocess.Popen[str]) -> dict[str, str]:
    assert process.stdout is not None
    line: dict[str, str] = json.loads(process.stdout.readline())
    return line


async def send(name_server: str) -> None:
    async with Producer(name_servers=name_server) as producer:
        await producer.send(Message("Orders", b"one"))


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=WAIT_SECONDS)
    return process.returncode, out, err


@pytest.mark.parametrize("in_folder", [False, True])
def test_it_serves_until_its_input_ends(tmp_path: Path, in_folder: bool) -> None:
    process = start(*(["--folder", str(tmp_path)] if in_folder else []), "brokerName=renamed", "--log-level=ERROR")
    addresses = where(process)
    assert set(addresses) == {"nameServer", "broker"}
    anyio.run(send, addresses["nameServer"])
    assert bool(os.listdir(tmp_path)) == in_folder
    assert ended(process) == (0, "", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_on_a_signal(number: signal.Signals) -> None:
    process = start()
    where(process)
    process.send_signal(number)
    assert process.wait(WAIT_SECONDS) == 0
    ended(process)


def test_a_closed_input_says_nothing() -> None:
    closing = ["sh", "-c", 'exec "$@" <&-', "sh", *SERVE]
    process = subprocess.Popen(closing, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    anyio.run(send, where(process)["nameServer"])
    process.send_signal(signal.SIGTERM)
    assert ended(process)[:2] == (0, "")


PARENT = """
import subprocess, sys, time
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
print(child.pid, child.stdout.readline(), flush=True)
time.sleep(1000)
"""


def test_it_ends_with_a_parent_that_is_killed_and_left_it_no_input() -> None:
    reading, writing = os.pipe()
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, *SERVE], stdout=subprocess.PIPE, stderr=writing, text=True, env=environment()
    )
    os.close(writing)  # the server has it now, and nobody else once the parent is gone
    assert parent.stdout is not None
    line: dict[str, Any] = json.loads(parent.stdout.readline().partition(" ")[2])
    anyio.run(send, line["nameServer"])
    parent.kill()
    ended(parent)
    with os.fdopen(reading) as rest:
        rest.read()  # until the server has ended


def test_wrong_words() -> None:
    for words, sentence in (
        (["serve", "listenPort=many"], b"listenPort=many"),
        (["serve", "--colour"], b"unrecognized arguments: --colour"),
        ([], b"command"),
    ):
        done = trio_rmq("testing", *words)
        assert (done.returncode, done.stdout) == (2, b"")
        assert sentence in done.stderr
    assert b"standard input" in trio_rmq("testing", "--help").stdout
    assert b"testing" in trio_rmq("--help").stdout
