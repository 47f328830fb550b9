"""Requests and replies with Apache's Java and Go clients, either way, through our broker and through Apache's."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

import anyio
import anyio.to_thread
import pytest

from tests.interop.peers import go_peer, run_java_peer
from tests.interop.test_our_producer import Place, known_queues
from tests.interop.test_our_producer import place as place
from trio_rmq.client import Message, Producer, PushConsumer, ReceivedMessage, ReplyMessage, reply_to
from trio_rmq.errors import SendError

pytestmark = [pytest.mark.interop, pytest.mark.anyio]
COUNT = 5
LARGE = b"x" * 100_000
"""A reply that our producer packs."""


@pytest.fixture(params=["trio", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> str:
    return "".join(character if character.isalnum() else "_" for character in request.node.name)


def java(version: str, place: Place, what: str, topic: str) -> list[str]:
    """What Java's client of that version says when it asks or answers."""
    arguments = [what, place.name_server, topic, str(COUNT)]
    done = run_java_peer(version, "JSON", arguments, scratch=place.scratch, program="interop.RequestPeer")
    return said(done)


def go(place: Place, what: str, topic: str) -> list[str]:
    """The same of Go's client."""
    command = [str(go_peer()), place.name_server, topic, str(COUNT), what]
    return said(subprocess.run(command, capture_output=True, text=True, timeout=120, check=False))


def said(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return [line for line in done.stdout.splitlines() if line.startswith(("REPL", "TIMEOUT", "FAILED"))]


async def peer(client: str, place: Place, what: str, topic: str) -> list[str]:
    if client == "go":
        return await anyio.to_thread.run_sync(go, place, what, topic)
    return await anyio.to_thread.run_sync(java, client, place, what, topic)


async def make_topic(producer: Producer, topic: str) -> None:
    await producer.send(Message(topic, b"makes the topic"))
    with anyio.fail_after(60):
        await known_queues(producer, topic)


CLIENTS = ["4.9.8", "5.3.3", "go"]


@pytest.mark.parametrize("client", CLIENTS)
async def test_they_ask_and_we_answer(client: str, place: Place, topic: str) -> None:
    asked: list[str] = []

    async def listen(messages: Sequence[ReceivedMessage]) -> None:
        for message in messages:
            if message.tags == "question":
                asked.append(message.body.decode())
                answer = LARGE if message.body == b"q0" and client != "go" else b"ours: " + message.body
                await producer.send(reply_to(message, answer, tags="answer"))

    async with (
        Producer(name_servers=place.name_server, group="our_answers", timeout_seconds=20) as producer,
        PushConsumer(f"our_{topic}", name_servers=place.name_server) as consumer,
    ):
        await make_topic(producer, topic)
        await consumer.subscribe(topic, listen)
        lines = await peer(client, place, "call" if client == "5.3.3" else "ask", topic)
    assert asked == [f"q{number}" for number in range(COUNT)]
    if client == "go":
        assert lines == [f"REPLY {number} ours: q{number}" for number in range(COUNT)]
        return
    reply_topic = "DefaultCluster_REPLY_TOPIC"
    answers = ["large", *(f"ours: q{number}" for number in range(1, COUNT))]
    assert lines == [*(f"REPLY {number} {text} {reply_topic} answer" for number, text in enumerate(answers)), "TIMEOUT"]


@pytest.mark.parametrize("client", CLIENTS)
async def test_we_ask_and_they_answer(client: str, place: Place, topic: str) -> None:
    got: dict[str, str] = {}
    lines: list[str] = []

    async def answer() -> None:
        lines.extend(await peer(client, place, "answer", topic))

    async with Producer(name_servers=place.name_server, group="our_questions") as producer:

        async def ask(body: str) -> None:
            message = Message(topic, body.encode(), tags="question")
            got[body] = (await producer.request(message, timeout_seconds=60)).body.decode()

        await make_topic(producer, topic)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(answer)
            async with anyio.create_task_group() as questions:
                for number in range(COUNT):
                    questions.start_soon(ask, f"q{number}")
    name = "go" if client == "go" else "java"
    assert got == {f"q{number}": f"{name}: q{number}" for number in range(COUNT)}
    ok = "REPLIED 0" if client == "go" else "REPLIED SEND_OK"
    assert lines == [ok] * COUNT


async def test_a_reply_for_nobody_gets_the_same_answer(place: Place) -> None:
    own = {"MSG_TYPE": "reply", "CORRELATION_ID": "c-1", "REPLY_TO_CLIENT": "gone"}
    reply = ReplyMessage("DefaultCluster_REPLY_TOPIC", b"late", own_properties=own)
    async with Producer(name_servers=place.name_server, group="our_answers", timeout_seconds=20) as producer:
        with pytest.raises(SendError, match=r"push reply message fail, channel of <gone> not found\.") as caught:
            await producer.send(reply)
        assert caught.value.response_code == 1
        del own["REPLY_TO_CLIENT"]
        with pytest.raises(SendError, match=r"reply message properties\[REPLY_TO_CLIENT\] is null"):
            await producer.send(reply)
