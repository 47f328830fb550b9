"""The programs that pages in docs/ name do what the pages say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from tests.client.test_pull_consumer import fill
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.wire.codes import RequestCode
from trio_rmq.wire.command import Command
from trio_rmq.wire.headers import CreateTopicRequestHeader

pytestmark = pytest.mark.anyio
DOCS = Path(__file__).parents[2] / "docs"
PAGES = {
    "producers.md": r"produce.*",
    "consumers-pull.md": r"(lite_)?pull.*",
    "consumers-push.md": r"push(_.*)?\.py",
    "blocking.md": r"blocking_.*",
    "requests.md": r"request.*",
    "admin.md": r"admin.*",
    "tracing.md": r"trace.*",
    "tls.md": r"tls_.*",
}
"""Each page and the programs it names."""


@pytest.fixture
def anyio_backend() -> str:
    return "trio"


def run(program: str, *words: str) -> list[str]:
    command = [sys.executable, "-W", "error", str(DOCS / "examples" / program), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd=DOCS.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


async def test_pulling(name_server: str, topic: str) -> None:
    await fill(name_server, topic, 6, ["red", "green", None])
    assert run("lite_pull.py", name_server, topic, f"{topic}_a", "2") == ["0", "3"]
    again = run("lite_pull_assign.py", name_server, topic, f"{topic}_b", "1", "7")
    assert sorted(again) == sorted(["makes the topic", *map(str, range(6))])
    counts = run("pull.py", name_server, topic, f"{topic}_c")
    assert sum(int(line.rpartition(" ")[2]) for line in counts) == 7
    assert [line.partition(":")[0] for line in counts] == [f"broker-a {number}" for number in range(4)]


async def test_pushing(name_server: str, topic: str, tmp_path: Path) -> None:
    await fill(name_server, topic, 6, ["red", "green", None])
    everything = ["makes the topic", *map(str, range(6))]
    assert sorted(run("push.py", name_server, topic, f"{topic}_a", "7")) == sorted(everything)
    queues: dict[str, list[str]] = {}
    for line in run("push_orderly.py", name_server, topic, f"{topic}_b", "7"):
        queue, _, body = line.partition(" ")
        queues.setdefault(queue, []).append(body)
    assert sorted(body for bodies in queues.values() for body in bodies) == sorted(everything)
    assert all(bodies == sorted(bodies, key=everything.index) for bodies in queues.values())
    lines = run("push_broadcasting.py", name_server, topic, f"{topic}_c", "7", str(tmp_path))
    assert sorted(lines) == sorted(f"{name} {body}" for name in ("first", "second") for body in everything)
    assert run("push_sql.py", name_server, topic, f"{topic}_d", "TAGS IN ('red', 'pink')", "2") == ["0", "3"]


async def test_without_an_event_loop(name_server: str, topic: str) -> None:
    await fill(name_server, topic, 3, [None])
    everything = ["makes the topic", *map(str, range(3))]
    assert sorted(run("blocking_lite_pull.py", name_server, topic, f"{topic}_a", "4")) == sorted(everything)
    assert sorted(run("blocking_push.py", name_server, topic, "4")) == sorted(2 * everything)
    first, last = run("blocking_produce.py", name_server, topic, "100")
    assert first.startswith("SEND_OK ")
    assert last == "done"
    assert len(set(run("blocking_produce_threads.py", name_server, topic, "20"))) == 20


async def test_asking_and_answering(name_server: str, broker: str, topic: str) -> None:
    header = CreateTopicRequestHeader(
        topic=topic, default_topic="TBW102", read_queue_nums=2, write_queue_nums=2, perm=6,
        topic_filter_type="SINGLE_TAG", order=False,
    )  # fmt: skip
    async with RemotingClient() as client:
        command = Command(RequestCode.UPDATE_AND_CREATE_TOPIC, header=header)
        assert (await client.request(broker, command)).code == 0
    program = [sys.executable, "-W", "error", str(DOCS / "examples" / "request_reply.py"), name_server, topic]
    async with await anyio.open_process([*program, f"{topic}_a", "3"], cwd=DOCS.parent) as answering:
        assert answering.stdout is not None
        with anyio.fail_after(30):
            assert (await answering.stdout.receive()).startswith(b"ready")
            lines = await anyio.to_thread.run_sync(run, "request.py", name_server, topic, "one", "two", "three")
            assert sorted(lines) == ["one: ONE", "three: THREE", "two: TWO"]
            assert await answering.wait() == 0


def test_admin_calls(name_server: str, topic: str) -> None:
    found, keys, *counts = run("admin.py", name_server, topic)
    assert found == str([f"order {number}" for number in range(3)])
    assert keys == "['orders', 'order-2']"
    assert sorted(counts) == [
        f"queue {queue}: {n} messages, of them {n} not before the first order"
        for queue, n in ([(0, 1), (1, 2)] if "queue 0: 1" in counts[0] else [(0, 2), (1, 1)])
    ]


async def test_tracing(name_server: str, broker: str, topic: str) -> None:
    lines = run("trace.py", name_server, topic, f"{topic}_traces")
    address = broker.rpartition("/")[2]
    assert sorted(lines) == ["consumed by docs_readers successfully", f"sent by docs to {address} with keys order-7"]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_names_every_program_of_its_own(page: str) -> None:
    named = set(re.findall(r"\(examples/(\w+\.py)\)", (DOCS / page).read_text()))
    programs = {path.name for path in (DOCS / "examples").glob("*.py")}
    assert named == {name for name in programs if re.fullmatch(PAGES[page], name)}
