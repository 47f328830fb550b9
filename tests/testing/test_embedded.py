"""A broker inside a test serves as any other does, and leaves nothing behind."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from trio_rmq import testing
from trio_rmq.client import LitePullConsumer, Message, Producer
from trio_rmq.errors import ConfigError, ListenError, SendError, StoreFailedError
from trio_rmq.remoting.client import connect_channel
from trio_rmq.remoting.local_address import reserve_port


async def send(broker: testing.EmbeddedBroker, *bodies: bytes, topic: str = "Orders") -> None:
    async with Producer(name_servers=broker.name_server, group="shop") as producer:
        for body in bodies:
            await producer.send(Message(topic, body))


async def receive(broker: testing.EmbeddedBroker, count: int, topic: str = "Orders") -> set[bytes]:
    bodies: set[bytes] = set()
    async with LitePullConsumer("warehouse", name_servers=broker.name_server) as consumer:
        await consumer.subscribe(topic)
        async for message in consumer:
            bodies.add(message.body)
            if len(bodies) == count:
                break
    return bodies


@pytest.mark.trio
async def test_send_and_receive_in_memory() -> None:
    async with testing.broker() as broker:
        await send(broker, b"one", b"two")
        assert await receive(broker, 2) == {b"one", b"two"}


@pytest.mark.trio
async def test_send_and_receive_in_a_folder(tmp_path: Path) -> None:
    folder = str(tmp_path / "store")
    async with testing.broker(folder=folder) as broker:
        await send(broker, b"one")
    assert os.listdir(f"{folder}/commitlog") == ["0" * 20]
    async with testing.broker(folder=folder) as broker:
        assert await receive(broker, 1) == {b"one"}


@pytest.mark.trio
async def test_nothing_is_left_behind(tmp_path: Path) -> None:
    before = threads(), handles(), trio.lowlevel.current_statistics().tasks_living
    for folder in (None, str(tmp_path)):
        async with testing.broker(folder=folder) as broker:
            await send(broker, b"one")
            await receive(broker, 1)
        for address in (broker.address, broker.name_server):
            with pytest.raises(Exception, match=r"nobody listens|refused"):
                await connect_channel(address)
    assert before == (threads(), handles(), trio.lowlevel.current_statistics().tasks_living)


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def handles() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.trio
async def test_two_brokers_know_nothing_of_each_other() -> None:
    async with testing.broker() as first, testing.broker() as second:
        await send(first, b"first")
        await send(second, b"second")
        assert await receive(first, 1) == {b"first"}
        assert await receive(second, 1) == {b"second"}


@pytest.mark.trio
async def test_an_error_of_the_block_comes_out_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        async with testing.broker():
            1 / 0  # noqa: B018 - raises
    lonely = ExceptionGroup("the block's own", [ValueError("one")])
    with pytest.raises(ExceptionGroup) as caught:
        async with testing.broker():
            raise lonely
    assert (caught.value.message, caught.value.exceptions) == (lonely.message, lonely.exceptions)


@pytest.mark.trio
async def test_cancelled_it_ends() -> None:
    with trio.move_on_after(60) as scope:
        async with testing.broker():
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught


@pytest.mark.trio
async def test_settings_are_those_of_the_command_line() -> None:
    async with testing.broker("autoCreateTopicEnable=false") as broker:
        with pytest.raises(Exception, match="Orders"):
            await send(broker, b"one")
        taken = broker.address.rpartition(":")[2]
        with pytest.raises(ListenError):
            async with testing.broker(f"listenPort={taken}"):
                pass
    with pytest.raises(ConfigError, match="listenPort"):
        async with testing.broker("listenPort=many"):
            pass


@pytest.mark.trio
async def test_a_broker_that_fails_ends_the_block_with_its_reason(tmp_path: Path) -> None:
    async def lose_the_log() -> None:
        async with testing.broker("flushIntervalCommitLog=10", "flushCommitLogLeastPages=0", folder=str(tmp_path)) as b:
            await send(b, b"one")
            (tmp_path / "commitlog" / ("0" * 20)).unlink()
            with suppress(SendError):
                await send(b, b"two")
            await trio.sleep_forever()

    with pytest.raises(StoreFailedError, match="deleted while in use"):
        await lose_the_log()


@pytest.mark.trio
async def test_a_virtual_broker_needs_virtual_time() -> None:
    with pytest.raises(RuntimeError, match="autojump_clock"):
        async with testing.virtual_broker():
            pass


@pytest.mark.trio
async def test_two_hours_on_a_virtual_broker(autojump_clock: MockClock) -> None:
    async with testing.virtual_broker() as broker:
        async with Producer(name_servers=broker.name_server, group="shop") as producer:
            await producer.send(Message("Orders", b"later", delay_level=18))
        started = trio.current_time()
        await trio.sleep(7190)
        assert await receive(broker, 1) == {b"later"}
        assert 7199 < trio.current_time() - started < 7210


@pytest.mark.trio
async def test_a_port_that_is_reserved_is_given_to_nobody_else() -> None:
    with await reserve_port("127.0.0.1", 0) as reserved:
        with pytest.raises(OSError, match="in use"):
            await trio.open_tcp_listeners(reserved.port, host="127.0.0.1")
        reserved.release()
        for listener in await trio.open_tcp_listeners(reserved.port, host="127.0.0.1"):
            await listener.aclose()
    with pytest.raises(ListenError, match=r"192\.0\.2\.1"):
        await reserve_port("192.0.2.1", 0)
