"""Transactions and timers with Apache's 5.3.3 client: one program prints the same against our broker and Apache's.

`java/later/LaterPeer.java`: commit, rollback, unknown and then a check; timers by delay and by time; recall, in time
and too late.  And our own transactional producer against Apache's brokers.
"""

from __future__ import annotations

import subprocess
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.interop.peers import (
    HERE,
    apache_broker,
    apache_name_server,
    cache_folder,
    jars,
    need,
    our_broker,
    our_name_server,
)
from trio_rmq.client import (
    LocalTransaction,
    Message,
    PushConsumer,
    ReceivedMessage,
    TransactionProducer,
    TransactionState,
)
from trio_rmq.errors import RouteNotFoundError
from trio_rmq.testing.apache_java import JAVA_OPENS

pytestmark = [pytest.mark.interop, pytest.mark.slow]

VERSION = "5.3.3"
CHECKS: dict[str, Any] = {"transactionTimeOut": 1000, "transactionCheckInterval": 1000}
APACHE: dict[str, Any] = {**CHECKS, "transactionOpBatchInterval": 200, "recallMessageEnable": "true"}


def class_path() -> str:
    """The class path of LaterPeer; compiled on first use."""
    lib = jars(HERE / "java", "pom.xml", f"-Dclient.version={VERSION}")
    source = HERE / "java" / "later" / "LaterPeer.java"
    classes = cache_folder() / f"later-peer-{VERSION}"
    stamp = classes / "built"
    if not stamp.exists() or stamp.stat().st_mtime < source.stat().st_mtime:
        classes.mkdir(parents=True, exist_ok=True)
        command = [need("javac"), "-nowarn", "-encoding", "UTF-8", "-d", str(classes), "-cp", f"{lib}/*", str(source)]
        subprocess.run(command, check=True, timeout=120)
        stamp.touch()
    return f"{classes}:{lib}/*"


def what_java_prints(namesrv: str, scratch: Path) -> list[str]:
    command = [
        need("java"), "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xmx256m", *JAVA_OPENS,
        f"-Duser.home={scratch}", f"-Drocketmq.client.logRoot={scratch}",
        "-cp", class_path(), "interop.LaterPeer", namesrv, "Later", "later_group",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return [line for line in done.stdout.splitlines() if not line.startswith("RocketMQLog")]


async def when_registered(call: Callable[[], Awaitable[object]]) -> None:
    """Make the call, again while a name server knows no route."""
    with anyio.fail_after(60):
        while True:
            try:
                await call()
                return
            except RouteNotFoundError:
                await anyio.sleep(0.2)


def test_apaches_client_sees_the_same(tmp_path: Path) -> None:
    with (
        our_name_server(tmp_path) as namesrv,
        our_broker(tmp_path, namesrv.address, **CHECKS),
    ):
        ours = what_java_prints(namesrv.address, tmp_path)
    with (
        apache_name_server(tmp_path, version=VERSION) as namesrv,
        apache_broker(tmp_path, namesrv.address, version=VERSION, **APACHE),
    ):
        apaches = what_java_prints(namesrv.address, tmp_path)
    assert "\n".join(ours) == "\n".join(apaches)
    assert "UNKNOW delivered 1" in "\n".join(ours)


@pytest.mark.parametrize("version", ["4.9.7", "5.3.3"])
def test_our_transactional_producer_works_against_apaches_broker(version: str, tmp_path: Path) -> None:
    asked: list[bytes] = []
    arrived: list[bytes] = []

    async def main(name_server: str) -> None:
        enough = anyio.Event()

        async def check(message: ReceivedMessage) -> TransactionState:
            asked.append(message.body)
            return TransactionState.COMMIT

        def ending(state: TransactionState) -> LocalTransaction:
            async def local(transaction_id: str) -> TransactionState:
                return state

            return local

        async def keep(messages: object) -> None:
            arrived.extend(message.body for message in messages)  # type: ignore[attr-defined]  # ReceivedMessage
            if b"asked" in arrived and b"committed" in arrived:
                enough.set()

        async with (
            TransactionProducer(check, group="tx", name_servers=name_server) as producer,
            PushConsumer("readers", name_servers=name_server) as consumer,
        ):
            await producer.send(
                Message("T", b"first")
            )  # makes the topic, which Apache's broker registers some time later
            await when_registered(partial(consumer.subscribe, "T", keep))
            for body, state in (
                (b"committed", TransactionState.COMMIT),
                (b"rolled back", TransactionState.ROLLBACK),
                (b"asked", TransactionState.UNKNOWN),
            ):
                done = await producer.send_in_transaction(Message("T", body), ending(state))
                assert done.state is state
            with anyio.fail_after(90):
                await enough.wait()
            await anyio.sleep(3)

    with (
        apache_name_server(tmp_path, version=version) as namesrv,
        apache_broker(tmp_path, namesrv.address, version=version, **APACHE),
    ):
        anyio.run(main, namesrv.address)
    assert set(asked) == {b"asked"}
    assert b"rolled back" not in arrived
    assert arrived.count(b"committed") == 1
