"""A broker on a thread of its own: the same handle for plain functions and for asyncio, and an end without a trace."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import anyio
import pytest

from trio_rmq import testing
from trio_rmq.client import Message, Producer
from trio_rmq.errors import ConfigError, ConnectError, SendError, StoreFailedError
from trio_rmq.remoting.client import connect_channel
from trio_rmq.testing.threaded import BrokerEndedError


async def send(name_server: str, *bodies: bytes) -> None:
    async with Producer(name_servers=name_server) as producer:
        for body in bodies:
            await producer.send(Message("Orders", body))


def held() -> tuple[list[str], int]:
    return sorted(thread.name for thread in threading.enumerate()), len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("in_folder", [False, True])
def test_plain_functions(tmp_path: Path, in_folder: bool) -> None:
    before = held()
    with testing.threaded_broker(folder=str(tmp_path / "store") if in_folder else None) as broker:
        busy = broker.inject(testing.Fail())
        anyio.run(send, broker.name_server, b"one", backend="asyncio")
        broker.wait_until(lambda: broker.messages("Orders"))
        assert [message.body for message in broker.sent()] == [b"one"]
        assert busy.done == 1
        with pytest.raises(TimeoutError, match=r"within 0\.01 s"):
            broker.wait_until(lambda: False, timeout_seconds=0.01)
    assert held() == before
    with pytest.raises(ConnectError):
        anyio.run(connect_channel, broker.address)


@pytest.mark.anyio
async def test_async_functions(anyio_backend_name: str) -> None:
    async with testing.async_broker() as broker:
        await send(broker.name_server, b"one")
        await broker.wait_until(lambda: len(broker.messages("Orders")) == 1)
        with pytest.raises(TimeoutError):
            await broker.wait_until(lambda: False, timeout_seconds=0.01)
        with anyio.move_on_after(0.01) as scope:
            await broker.wait_until(lambda: False, timeout_seconds=60)
        assert scope.cancelled_caught


def test_errors_come_out_as_they_are() -> None:
    def divide() -> None:
        with testing.threaded_broker():
            1 / 0  # noqa: B018 - raises

    with pytest.raises(ZeroDivisionError):
        divide()
    with pytest.raises(ConfigError), testing.threaded_broker("listenPort=many"):
        pass


def test_a_predicate_that_raises_does_the_broker_no_harm() -> None:
    with testing.threaded_broker() as broker:
        with pytest.raises(IndexError):
            broker.wait_until(lambda: broker.messages("Orders")[0])
        with pytest.raises(pytest.fail.Exception):
            broker.wait_until(lambda: pytest.fail("seen enough"))
        anyio.run(send, broker.name_server, b"one")
        broker.wait_until(lambda: broker.messages("Orders")[0])


def test_a_broker_that_fails_says_why_at_the_end(tmp_path: Path) -> None:
    def lose_the_log() -> None:
        with testing.threaded_broker("flushDiskType=SYNC_FLUSH", folder=str(tmp_path)) as broker:
            anyio.run(send, broker.name_server, b"one")
            (tmp_path / "commitlog" / ("0" * 20)).unlink()
            with pytest.raises(SendError, match="14"):
                anyio.run(send, broker.name_server, b"two")
            with pytest.raises(BrokerEndedError):
                broker.wait_until(lambda: False)
            with pytest.raises(BrokerEndedError):
                broker.messages("Orders")

    with pytest.raises(StoreFailedError, match="deleted while in use"):
        lose_the_log()
