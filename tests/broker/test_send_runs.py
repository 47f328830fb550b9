"""Sends that come in one read are answered and stored as if each had come alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import product

import pytest
from trio.testing import MockClock

from tests.broker.running import CLIENT, Client, one_broker, send_header
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.wire import binary_codec, binary_layouts, json_codec
from trio_rmq.wire.codes import RequestCode
from trio_rmq.wire.command import Command, SerializeType, outgoing_texts
from trio_rmq.wire.json_forms import JsonForms
from trio_rmq.wire.record import decode_records

pytestmark = pytest.mark.trio

QUEUES = 3
RUN = 60
TEXTS = [
    "UNIQ_KEY\x01AA\x02WAIT\x01true\x02",
    "UNIQ_KEY\x01BB\x02WAIT\x01true\x02",
    "UNIQ_KEY\x01BB\x02WAIT\x01fals\x02",
    "UNIQ_KEZ\x01BB\x02WAIT\x01true\x02",
    "UNIQ_KEY\x01éa\x02WAIT\x01tru\x02",
    "UNIQ_KEY\x01BB\x02TAGS\x01abcd\x02",
    "UNIQ_KEY\x01CC\x02TAGS\x01abcd\x02",
    "DELAY\x010\x02WAIT\x01true\x02xy\x011\x02",
    "UNIQ_KEY\x01\0C\x02TAGS\x01abcd\x02",
]
CHANGES: list[dict[str, object]] = [
    {},
    {"flag": 7},
    {"queue_id": 1},
    {"queue_id": 2},
    {"queue_id": QUEUES},
    {"queue_id": 9},
    {"reconsume_times": 3},
    {"topic": "U"},
    {"topic": "/"},
    {"batch": True},
    {"born_timestamp": 1_700_000_000_001},
    {"sys_flag": 1},
]


@asynccontextmanager
async def one_client(serialize_type: SerializeType) -> AsyncIterator[Client]:
    """A broker's client whose headers have this encoding."""
    async with one_broker(store={"max_message_size": 1500}) as (running, _):
        with running.world.node(CLIENT):
            async with RemotingClient(serialize_type=serialize_type) as remoting:
                yield Client(remoting, running.ready.address)


def command(number: int, changes: dict[str, object], text: str) -> Command:
    """A send whose body is its number, one in 17 of them too large."""
    body = b"%d" % number if number % 17 else bytes(2000)
    header = send_header(**{"properties": text, **changes})  # type: ignore[arg-type] # its fields by name
    return Command(RequestCode.SEND_MESSAGE_V2, header, body=body)


def sends() -> list[Command]:
    """Every change after every text and before every other one, and a few that are alike in between."""
    made: list[Command] = []
    for changes, text, after in product(CHANGES, TEXTS, TEXTS[:4]):
        made.append(command(len(made), changes, text))
        made.append(command(len(made), changes, after))
        made.append(command(len(made), {}, after))
    return made


async def outcome(client: Client, commands: list[Command], run: int) -> tuple[object, ...]:
    """The answers, and what is stored where, of commands that leave so many at a time."""
    for topic in ("T", "U"):
        await client.create_topic(topic, QUEUES)
    answers: list[tuple[object, ...]] = []
    for begin in range(0, len(commands), run):
        for answer in await client.ask_many(commands[begin : begin + run]):
            fields = answer.ext_fields()
            answers.append((answer.code, answer.remark, fields.get("queueId"), fields.get("queueOffset")))
    stored = []
    for topic, queue_id in product(("T", "U"), range(QUEUES)):
        offset = 0
        while messages := decode_records((await client.pull(topic, queue_id=queue_id, queue_offset=offset)).body):
            offset += len(messages)
            stored += [
                (
                    topic, queue_id, message.body, message.properties, message.flag, message.sys_flag,
                    message.born_timestamp_ms, message.born_host[0], message.reconsume_times,
                )
                for message in messages
            ]  # fmt: skip
    return answers, stored


async def test_a_run_is_what_its_sends_are_alone(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binary_codec, "layouts", binary_layouts.LayoutCache())
    monkeypatch.setattr(json_codec, "forms", JsonForms(json_codec.encode_json_header))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_codec, "SEND_CODE", -1)  # all are parsed
        async with one_client(SerializeType.JSON) as client:
            alone = await outcome(client, sends(), 1)
    assert not json_codec.forms.likenesses
    for serialize_type in (SerializeType.JSON, SerializeType.ROCKETMQ):
        async with one_client(serialize_type) as client:
            assert await outcome(client, sends(), RUN) == alone
    assert min(binary_codec.layouts.likenesses, json_codec.forms.likenesses) > 1  # they came the short way


@pytest.mark.parametrize("serialize_type", [SerializeType.JSON, SerializeType.ROCKETMQ])
async def test_sends_that_are_alike_but_for_queue_time_and_unique_id_are_not_looked_at_one_by_one(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, serialize_type: SerializeType
) -> None:
    monkeypatch.setattr(binary_codec, "layouts", binary_layouts.LayoutCache())
    monkeypatch.setattr(json_codec, "forms", JsonForms(json_codec.encode_json_header))
    async with one_client(serialize_type) as client:
        await client.create_topic("T", QUEUES)
        commands = [
            command(
                number, {"queue_id": number % QUEUES, "born_timestamp": 1_700_000_000_000 + number},
                f"UNIQ_KEY\x01{number:05}\x02TAGS\x01abcd\x02",
            )
            for number in range(103, 119)
        ]  # fmt: skip
        for _ in range(2):
            for sent in commands:
                await client.ask_many([sent])  # until the layout is known
        looked_at = 0
        decode = Command.decode_header

        def counted(self: Command, header_type: type) -> object:
            nonlocal looked_at
            looked_at += self.code == RequestCode.SEND_MESSAGE_V2
            return decode(self, header_type)

        monkeypatch.setattr(Command, "decode_header", counted)
        assert {answer.code for answer in await client.ask_many(commands)} == {0}
        assert looked_at == 1


@pytest.mark.parametrize(("name", "text"), [("g", "0700000000001"), ("e", "02")])
@pytest.mark.parametrize("serialize_type", [SerializeType.JSON, SerializeType.ROCKETMQ])
async def test_a_number_that_begins_with_a_zero_is_the_same_in_a_run_as_alone(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, serialize_type: SerializeType, name: str, text: str
) -> None:
    monkeypatch.setattr(binary_codec, "layouts", binary_layouts.LayoutCache())
    monkeypatch.setattr(json_codec, "forms", JsonForms(json_codec.encode_json_header))

    def plain(number: int) -> Command:
        header = send_header(queue_id=12, properties=f"UNIQ_KEY\x01{number:05}\x02TAGS\x01abcd\x02")
        return Command(RequestCode.SEND_MESSAGE_V2, header, body=b"%d" % number)

    def odd() -> Command:
        fields = {**(outgoing_texts(plain(1)) or {}), name: text}
        return Command(RequestCode.SEND_MESSAGE_V2, ext=fields, body=b"odd")

    async with one_client(serialize_type) as client:
        await client.create_topic("T", 20)
        [alone] = await client.ask_many([odd()])
        for number in range(50):
            await client.ask_many([plain(number)])  # until the layout is known
        *answers, among = await client.ask_many([*map(plain, range(3)), odd()])
    assert {answer.code for answer in answers} == {0}
    assert (among.code, among.ext_fields()["queueId"]) == (alone.code, alone.ext_fields()["queueId"])
