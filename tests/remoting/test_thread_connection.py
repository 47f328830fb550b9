"""A connection without a loop: what comes back, and that it is not used again after anything went wrong."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from tests.remoting.conftest import CRASH, DROP, ECHO, HOLD, LONG, NOTIFY, ThreadServer
from trio_rmq.errors import ConnectError, ConnectionLostError, RemotingError, RequestTimeoutError
from trio_rmq.remoting import thread_connection
from trio_rmq.remoting.thread_connection import ThreadConnection
from trio_rmq.wire.command import Command, SerializeType
from trio_rmq.wire.frame import encode_frame

LIMIT_SECONDS = 10.0


@pytest.fixture
def connection(thread_server: ThreadServer) -> ThreadConnection:
    return ThreadConnection(thread_server.address, LIMIT_SECONDS)


def is_closed(connection: ThreadConnection) -> bool:
    return connection._socket.fileno() < 0


def test_requests_get_their_answers_whatever_their_size_or_code(connection: ThreadConnection) -> None:
    for number in range(3):
        answer = connection.request(Command(ECHO, body=b"%d" % number), LIMIT_SECONDS)
        assert (answer.code, bytes(answer.body)) == (0, b"%d" % number)
    assert connection.request(Command(CRASH), LIMIT_SECONDS).code == 1
    assert len(connection.request(Command(LONG, body=b"x"), LIMIT_SECONDS).body) == 4 * 1024 * 1024
    large = bytes(range(256)) * 8 * 1024
    answer = connection.request(Command(ECHO, body=large, serialize_type=SerializeType.ROCKETMQ), LIMIT_SECONDS)
    assert answer.body == large
    connection.close()


def test_what_nobody_asked_for_is_dropped(connection: ThreadConnection) -> None:
    assert connection.request(Command(NOTIFY), LIMIT_SECONDS).code == 0
    assert connection.request(Command(ECHO, body=b"x"), LIMIT_SECONDS).body == b"x"
    connection.close()


@pytest.mark.parametrize(
    ("code", "seconds", "error"), [(HOLD, 0.01, RequestTimeoutError), (DROP, LIMIT_SECONDS, ConnectionLostError)]
)
def test_without_an_answer_it_is_closed(
    connection: ThreadConnection, code: int, seconds: float, error: type[RemotingError]
) -> None:
    with pytest.raises(error) as caught:
        connection.request(Command(code), seconds)
    assert caught.value.address == connection.address
    assert is_closed(connection)


class Interrupted:
    """What a signal's handler makes of a wait."""

    def feed(self, data: bytes) -> list[Command]:
        raise KeyboardInterrupt


def test_an_interrupt_closes_it(connection: ThreadConnection) -> None:
    splitter: Any = Interrupted()
    connection._splitter = splitter
    with pytest.raises(KeyboardInterrupt):
        connection.request(Command(ECHO), LIMIT_SECONDS)
    assert is_closed(connection)


class Trickle:
    """A socket whose peer sends these pieces, each of which takes a second by the clock that it has."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces
        self.now = 0.0
        self.timeouts: list[float] = []

    def settimeout(self, seconds: float) -> None:
        self.timeouts.append(seconds)

    def sendall(self, data: bytes) -> None:
        pass

    def recv(self, size: int) -> bytes:
        self.now += 1.0
        return self.pieces.pop(0)

    def close(self) -> None:
        pass


def test_the_time_is_for_all_of_an_answer(connection: ThreadConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = encode_frame(Command(0, flag=1, opaque=1, body=b"x" * 100))
    trickle: Any = Trickle([frame[:10], frame[10:20], frame[20:]])
    monkeypatch.setattr(thread_connection, "thread_time", lambda: trickle.now)
    connection.close()
    connection._socket = trickle
    assert connection.request(Command(ECHO), 3.5).body == b"x" * 100
    assert trickle.timeouts == [3.5, 2.5, 1.5]


def test_bytes_that_are_no_command_lose_it(connection: ThreadConnection) -> None:
    connection.close()
    trickle: Any = Trickle([b"HTTP/1.1 200 OK\r\n\r\n"])
    connection._socket = trickle
    with pytest.raises(ConnectionLostError, match="no valid command"):
        connection.request(Command(ECHO), 3.5)


def wait_closed(connection: ThreadConnection) -> None:
    """Return when the peer has closed it."""
    connection._socket.settimeout(LIMIT_SECONDS)
    with suppress(ConnectionResetError):
        assert connection._socket.recv(1, socket.MSG_PEEK) == b""
    connection._socket.settimeout(connection._seconds)


def by_the_server(server: ThreadServer, connection: ThreadConnection) -> None:
    def close() -> None:
        for session in server.desk.opened:
            session.close("test")

    server.call(close)
    wait_closed(connection)


def by_nobody(server: ThreadServer, connection: ThreadConnection) -> None:
    pass


@pytest.mark.parametrize(
    ("closed", "idle_seconds", "usable"),
    [
        (by_nobody, 0.0, True),
        (by_nobody, 1.0, True),
        (by_nobody, 31.0, False),
        (by_the_server, 1.0, False),
    ],
)
def test_a_look_tells_whether_it_can_be_used(
    thread_server: ThreadServer,
    connection: ThreadConnection,
    monkeypatch: pytest.MonkeyPatch,
    closed: Callable[[ThreadServer, ThreadConnection], None],
    idle_seconds: float,
    usable: bool,
) -> None:
    connection.request(Command(ECHO), LIMIT_SECONDS)
    closed(thread_server, connection)
    monkeypatch.setattr(thread_connection, "thread_time", lambda: connection._last_answer + idle_seconds)
    assert connection.is_usable() is usable
    if usable:
        assert connection.request(Command(ECHO, body=b"x"), LIMIT_SECONDS).body == b"x"
    connection.close()


def test_a_refused_connection_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ConnectError, match="cannot connect to"):
        ThreadConnection(address, LIMIT_SECONDS)
