"""Selectors: tags and SQL92 in every kind of consumer; filters no broker can read; members that subscribe unlike."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import anyio
import pytest

from trio_rmq.client import LitePullConsumer, Message, Producer, PullConsumer, PushConsumer, ReceivedMessage
from trio_rmq.errors import ProtocolError, ResponseError
from trio_rmq.wire.codes import ResponseCode
from trio_rmq.wire.heartbeat import EXPRESSION_SQL92

pytestmark = pytest.mark.anyio
LIMIT_SECONDS = 20
BIG = "size > 5 AND color IN ('red', 'blue')"
WANTED = {b"7", b"8", b"10", b"11"}
"""Of 0 to 11, the numbers over 5 that are red or blue: not every third."""


async def send(name_server: str, topic: str) -> None:
    async with Producer(name_servers=name_server) as producer:
        for number in range(12):
            color = ("green", "red", "blue")[number % 3]
            properties = {"size": str(number), "color": color}
            await producer.send(Message(topic, b"%d" % number, tags=color, properties=properties))


class Gathering:
    """A listener that gathers bodies."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self._came = anyio.Event()

    async def __call__(self, messages: Sequence[ReceivedMessage]) -> None:
        self.bodies += [message.body for message in messages]
        self._came.set()

    async def wait(self, count: int) -> None:
        with anyio.fail_after(LIMIT_SECONDS):
            while len(self.bodies) < count:
                self._came = anyio.Event()
                await self._came.wait()


@pytest.mark.parametrize("orderly", [False, True], ids=["concurrent", "orderly"])
async def test_a_push_consumer_gets_what_its_expression_takes(name_server: str, topic: str, orderly: bool) -> None:
    await send(name_server, topic)
    sql, tags = Gathering(), Gathering()
    async with (
        PushConsumer(f"{topic}_sql", name_servers=name_server, orderly=orderly) as by_sql,
        PushConsumer(f"{topic}_tags", name_servers=name_server, orderly=orderly) as by_tags,
    ):
        await by_sql.subscribe(topic, sql, expression=BIG, expression_type=EXPRESSION_SQL92)
        await by_tags.subscribe(topic, tags, expression="red || blue")
        await sql.wait(4)
        await tags.wait(8)
        await send(name_server, topic)  # held pulls wake for what the expression takes
        await sql.wait(8)
        await tags.wait(16)
    assert set(sql.bodies) == WANTED
    assert set(tags.bodies) == {b"%d" % number for number in range(12) if number % 3}


async def test_pull_consumers_get_what_their_expressions_take(name_server: str, topic: str) -> None:
    await send(name_server, topic)
    async with (
        LitePullConsumer(f"{topic}_a", name_servers=name_server) as subscribed,
        LitePullConsumer(f"{topic}_b", name_servers=name_server) as assigned,
        PullConsumer(f"{topic}_c", name_servers=name_server) as asking,
    ):
        await subscribed.subscribe(topic, BIG, expression_type=EXPRESSION_SQL92)
        await assigned.assign(await assigned.queues(topic), BIG, expression_type=EXPRESSION_SQL92)
        for consumer in (subscribed, assigned):
            bodies: set[bytes] = set()
            with anyio.fail_after(LIMIT_SECONDS):
                while bodies < WANTED:
                    bodies |= {message.body for message in await consumer.poll()}
            assert bodies == WANTED
        found: set[bytes] = set()
        for queue in await asking.queues(topic):
            result = await asking.pull(queue, 0, expression=BIG, expression_type=EXPRESSION_SQL92)
            found |= {message.body for message in result.messages}
        assert found == WANTED


@pytest.mark.parametrize(
    ("expression", "expression_type", "said"),
    [("size >", EXPRESSION_SQL92, "column 7"), ("size > 5", "JavaScript", "JavaScript")],
    ids=["broken", "unknown"],
)
async def test_a_filter_that_the_broker_cannot_read_is_refused_where_it_is_given(
    name_server: str, topic: str, expression: str, expression_type: str, said: str
) -> None:
    await send(name_server, topic)
    heard = Gathering()
    async with (
        PushConsumer(f"{topic}_a", name_servers=name_server) as pushed,
        LitePullConsumer(f"{topic}_b", name_servers=name_server) as subscribed,
        LitePullConsumer(f"{topic}_c", name_servers=name_server) as assigned,
        PullConsumer(f"{topic}_d", name_servers=name_server) as asking,
    ):
        queues = await assigned.queues(topic)
        await pushed.subscribe(topic, heard)
        selector: dict[str, Any] = {"expression": expression, "expression_type": expression_type}
        for call in (
            partial(pushed.subscribe, topic, heard, **selector),
            partial(subscribed.subscribe, topic, **selector),
            partial(assigned.assign, queues, **selector),
            partial(asking.pull, queues[0], 0, **selector),
        ):
            with pytest.raises(ResponseError, match=said) as caught:
                await call()
            assert caught.value.response_code == ResponseCode.SUBSCRIPTION_PARSE_FAILED
        await heard.wait(12)  # what it had subscribed before goes on
    with pytest.raises(ProtocolError, match="must not be empty"):
        async with PushConsumer(topic, name_servers=name_server) as pushed:
            await pushed.subscribe(topic, heard, expression="", expression_type=EXPRESSION_SQL92)


async def test_members_that_subscribe_differently_are_warned(
    name_server: str, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    await send(name_server, topic)
    async with (
        PushConsumer(topic, name_servers=name_server) as first,
        PushConsumer(topic, name_servers=name_server) as second,
    ):

        def told() -> list[str]:
            texts = [record.getMessage() for record in caplog.records]
            return [text for text in texts if "subscribe differently" in text]

        caplog.set_level(logging.WARNING, "trio_rmq.client")
        await first.subscribe(topic, Gathering(), expression="red")
        assert not told()
        await second.subscribe(topic, Gathering(), expression="blue")
        for member in (first, second):
            await member._membership.introduce()  # as each does every 30 seconds
        assert len(told()) == 2  # each once
        for client_id in (first.client_id, second.client_id):
            assert all(client_id in text for text in told())
        caplog.clear()
        await second.subscribe(topic, Gathering(), expression="red")
        await first._membership.introduce()
        assert not told()
