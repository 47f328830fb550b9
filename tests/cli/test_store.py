"""`trio-rmq store` as a person runs it: on the documented examples, on a damaged store, on one in use."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from tests.cli.processes import free_ports, running, trio_rmq
from trio_rmq.cli.app import run_app
from trio_rmq.config import MessageStoreConfig
from trio_rmq.store.message_store import open_message_store
from trio_rmq.store.messages import NewMessage
from trio_rmq.testing.stores import HOST

Run = Callable[..., tuple[int, str, str]]
DOCUMENT = (Path(__file__).parents[2] / "docs" / "store.md").read_text()
SMALL = ("mappedFileSizeCommitLog=65536", "maxHashSlotNum=100", "maxIndexNum=400")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store with 100 messages of two queues of topic Greetings."""
    config = MessageStoreConfig(
        store_path_root_dir=str(tmp_path / "store"),
        mapped_file_size_commit_log=65536,
        max_hash_slot_num=100,
        max_index_num=400,
    )

    async def main() -> None:
        async with open_message_store(config, store_host=HOST) as store:
            for n in range(100):
                store.append([NewMessage("Greetings", n % 2, b"hello %d" % n, f"KEYS\x01order-{n}", born_host=HOST)])

    trio.run(main)
    return tmp_path / "store"


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs `trio-rmq store` in this process, beside the folder: (exit status, stdout, stderr)."""
    monkeypatch.chdir(folder.parent)

    def command(*words: str) -> tuple[int, str, str]:
        status = run_app(["store", *words])
        out, err = capfd.readouterr()
        return status, out, err

    return command


def test_the_documents_examples(run: Run) -> None:
    examples = [shlex.split(line, comments=True) for line in re.findall(r"^    trio-rmq store (.+)$", DOCUMENT, re.M)]
    assert {words[0] for words in examples} == {"inspect", "verify", "dump", "rebuild"}
    for words in examples:
        status, out, err = run(*words)
        assert (status, err) == (0, ""), words
        assert out


def test_verify_says_whole_or_names_the_damage(run: Run, folder: Path) -> None:
    status, out, _ = run("verify", "store")
    assert status == 0
    assert out.splitlines()[-1] == "whole"
    log = folder / "commitlog" / f"{0:020d}"
    content = bytearray(log.read_bytes())
    content[content.index(b"hello 7")] ^= 1
    log.write_bytes(content)
    status, out, _ = run("verify", "store")
    assert status == 1
    *_, named, verdict = out.splitlines()
    assert verdict == "DAMAGED in 1 places"
    assert named.startswith(f"damage: store/commitlog/{0:020d} byte ")
    assert named.endswith("the body's checksum is wrong [record]")
    status, out, _ = run("verify", "store", "--json")
    told = json.loads(out)
    assert (status, told["damages"], told["records"], told["findings"][0]["kind"]) == (1, 1, 99, "record")
    status, _, err = run("rebuild", "store")
    assert status == 4
    assert "the log is damaged, so nothing was changed" in err


def test_inspect_and_rebuild(run: Run, folder: Path) -> None:
    for path in (folder / "consumequeue").rglob("0*"):
        if path.is_file():
            path.unlink()
    made = json.loads(run("rebuild", "store", *SMALL, "--json")[1])
    assert (made["queues"], made["entries"], made["indexKeys"]) == (2, 100, 100)
    told = json.loads(run("inspect", "store", "--json")[1])
    assert [(queue["topic"], queue["maxOffset"]) for queue in told["queues"]] == [("Greetings", 50), ("Greetings", 50)]
    assert "Greetings" in run("inspect", "store")[1]


def test_dump(run: Run) -> None:
    words = ("dump", "store", "--topic", "Greetings")
    assert json.loads(run(*words, "--queue", "1", "--offset", "3")[1])["body"] == "hello 7"
    assert json.loads(run(*words, "--key", "order-42")[1])["body"] == "hello 42"
    out = run("dump", "store", "--all")[1]
    assert [json.loads(line)["body"] for line in out.splitlines()] == [f"hello {n}" for n in range(100)]


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (("inspect", "nowhere"), 4, "nowhere is no store folder"),
        (("verify", "store", "noSetting"), 2, "write KEY=VALUE"),
        (("dump", "store"), 2, "say which message"),
        (("dump", "store", "--at", "1", "--key", "k"), 2, "give one of"),
        (("dump", "store", "--offset", "1"), 2, "needs --topic and --queue"),
        (("dump", "store", "--at", "7"), 4, "no record begins at 7"),
    ],
)
def test_what_cannot_be_done_is_said(run: Run, words: tuple[str, ...], status: int, sentence: str) -> None:
    done, _, err = run(*words)
    assert done == status
    assert sentence in err


def test_a_store_in_use(run: Run, folder: Path, tmp_path: Path) -> None:
    port, namesrv_port = free_ports(2)
    words = ("standalone", "--store", str(folder), "--port", str(port), "--namesrv-port", str(namesrv_port), *SMALL)
    with running(tmp_path, *words):
        for command in ("verify", "rebuild"):
            status, _, err = run(command, "store")
            assert status == 4
            assert "is in use by a broker: stop it first" in err
        status, out, _ = run("inspect", "store")
        assert status == 0
        assert "in use by a broker: what it wrote in the last moments may be missing here" in out
        status, out, _ = run("dump", "store", "--topic", "Greetings", "--queue", "0", "--offset", "0")
        assert json.loads(out)["body"] == "hello 0"


def test_as_a_command_of_its_own(folder: Path) -> None:
    done = trio_rmq("store", "verify", str(folder))
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.endswith(b"whole\n")
