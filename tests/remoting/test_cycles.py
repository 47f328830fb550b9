"""A session that ended is freed at once, without a walk of the garbage collector.

A server process leaves what lasts out of collections for ever (`cli/serve.py`); a cycle around a session would stay.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from tests.remoting.conftest import ECHO, HOLD, REFUSE, Desk
from tests.remoting.raw import start_server
from tests.remoting.test_tls import Authority, authority, start  # noqa: F401  # a fixture
from trio_rmq.errors import RemotingError
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.remoting.session import Session
from trio_rmq.wire.command import Command


def sessions() -> list[Session]:
    return [each for each in gc.get_objects() if isinstance(each, Session)]


@pytest.fixture
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.trio
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("websocket", [False, True], ids=["tcp", "websocket"])
async def test_nothing_is_left_of_a_session(
    tls: bool,
    websocket: bool,
    nursery: trio.Nursery,
    authority: Authority,  # noqa: F811  # the fixture
    without_collector: None,
) -> None:
    desk = Desk()
    if tls:
        address = await start(nursery, desk, authority.config())
    else:
        address = await start_server(nursery, desk.table(), on_close=desk.on_close)
    scheme = ("wss://" if tls else "ws://") if websocket else ""
    context = authority.trusting() if tls else None
    async with RemotingClient(ssl_context=context) as client:
        assert (await client.request(scheme + address, Command(ECHO, body=b"x"), 5)).body == b"x"
        await client.request(scheme + address, Command(REFUSE), 5)
        with pytest.raises(RemotingError):
            await client.request(scheme + address, Command(HOLD), 0.05)
        assert len(sessions()) == 1
    with trio.fail_after(10):
        await desk.gone.wait()
    await trio.testing.wait_all_tasks_blocked()
    desk.closed.clear()
    assert sessions() == []
