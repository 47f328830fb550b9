"""The client half against a real server: the same behaviour under Trio and asyncio, over TCP and WebSocket."""

from __future__ import annotations

import anyio
import pytest

from tests.remoting.conftest import (
    ASK_BACK,
    BATCH_ECHO,
    CLIENT_CODE,
    CRASH,
    DROP,
    ECHO,
    HOLD,
    NOTIFY,
    REFUSE,
    RELEASE,
    UNKNOWN,
    ThreadServer,
)
from trio_rmq.errors import ClientError, ConnectError, ConnectionLostError, RequestError, RequestTimeoutError
from trio_rmq.remoting.client import Connection, RemotingClient, open_connection
from trio_rmq.wire.command import Command

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["tcp", "websocket"])
def transport(request: pytest.FixtureRequest) -> str:
    """Both transports."""
    return str(request.param)


@pytest.fixture
def address(transport: str, thread_server: ThreadServer) -> str:
    """The server's address for the transport."""
    return thread_server.address if transport == "tcp" else f"ws://{thread_server.address}"


async def test_a_request_gets_its_response(address: str, transport: str) -> None:
    async with open_connection(address) as connection:
        response = await connection.request(Command(ECHO, body=b"hello"))
    assert (response.code, bytes(response.body), response.remark) == (0, b"hello", transport)
    assert response.is_response


async def test_many_concurrent_requests_each_get_their_own(address: str) -> None:
    bodies: dict[int, bytes] = {}

    async with RemotingClient() as client:

        async def one(number: int) -> None:
            response = await client.request(address, Command(ECHO, body=b"%d" % number))
            bodies[number] = bytes(response.body)

        async with anyio.create_task_group() as group:
            for number in range(200):
                group.start_soon(one, number)
        assert client.open_addresses() == [address], "they share one connection"
    assert bodies == {number: b"%d" % number for number in range(200)}


async def test_requests_sent_together_return_together_in_order(address: str, thread_server: ThreadServer) -> None:
    async with open_connection(address) as connection:
        commands = [Command(BATCH_ECHO, body=b"%d" % number) for number in range(64)]
        answers = await connection.request_many(commands)
    assert [bytes(answer.body) for answer in answers if isinstance(answer, Command)] == [b"%d" % n for n in range(64)]
    assert thread_server.desk.runs == [64], "one write of ours is one run of theirs"


async def test_large_bodies_go_both_ways(address: str) -> None:
    body = bytes(range(256)) * 8 * 1024  # 2 MiB
    async with open_connection(address) as connection:
        answers = await connection.request_many([Command(ECHO, body=body) for _ in range(3)], 30.0)
    assert [isinstance(answer, Command) and bytes(answer.body) == body for answer in answers] == [True] * 3


async def test_error_rules(address: str) -> None:
    async with open_connection(address) as connection:
        unknown = await connection.request(Command(UNKNOWN))
        refused = await connection.request(Command(REFUSE))
        crashed = await connection.request(Command(CRASH))
        alive = await connection.request(Command(ECHO))
    assert (unknown.code, unknown.remark) == (3, f"request code {UNKNOWN} is not supported")
    assert (refused.code, refused.remark) == (13, "too long; shorten it")
    assert (crashed.code, crashed.remark) == (1, "LookupError: a defect")
    assert alive.code == 0


async def test_one_way_is_never_answered(address: str, thread_server: ThreadServer) -> None:
    async with open_connection(address) as connection:
        await connection.send_oneway(Command(ECHO, body=b"one-way"))
        await connection.send_oneway(Command(UNKNOWN))
        await connection.send_oneway(Command(CRASH))
        await connection.send_oneway(Command(REFUSE))
        response = await connection.request(Command(ECHO, body=b"after"))
    assert bytes(response.body) == b"after"
    assert [bytes(command.body) for command in thread_server.desk.seen] == [b"one-way", b"after"]
    assert thread_server.desk.seen[0].is_oneway


async def test_a_request_without_an_answer_times_out_and_the_connection_lives(address: str) -> None:
    async with open_connection(address) as connection:
        with pytest.raises(RequestTimeoutError) as caught:
            await connection.request(Command(HOLD), timeout_seconds=0.01)
        assert caught.value.address == address
        assert len(connection._requests) == 0
        await connection.request(Command(RELEASE))  # the late answer comes before or after this one, and is dropped
        assert (await connection.request(Command(ECHO, body=b"x"))).code == 0


async def test_a_peer_from_which_nothing_comes_any_more_is_given_up(address: str) -> None:
    async with RemotingClient() as client:
        first = await client.connection(address)
        for _ in range(2):
            with pytest.raises(RequestTimeoutError):
                await client.request(address, Command(HOLD), 0.01)
        await first.wait_closed()
        assert first.close_reason == "lost: requests got no answer, and nothing else came"
        assert (await client.request(address, Command(ECHO, body=b"x"))).code == 0


async def test_a_peer_that_answers_others_is_kept(address: str) -> None:
    async with RemotingClient() as client:
        first = await client.connection(address)
        for _ in range(3):
            with pytest.raises(RequestTimeoutError):
                await client.request(address, Command(HOLD), 0.01)
            assert (await client.request(address, Command(ECHO, body=b"x"))).code == 0
        assert await client.connection(address) is first


async def test_an_answer_goes_first_to_who_takes_it_as_it_is_read(address: str) -> None:
    async with open_connection(address) as connection:
        taken: list[bytes] = []
        answer = await connection.request(Command(ECHO, body=b"x"), on_answer=lambda answer: taken.append(answer.body))
        assert taken == [b"x"] == [answer.body]

        def refuse(answer: Command) -> None:
            raise ClientError(f"not {answer.body.decode()}")

        with pytest.raises(ClientError, match="not y"):
            await connection.request(Command(ECHO, body=b"y"), on_answer=refuse)

        async def hold() -> None:
            await connection.request(Command(HOLD), 60.0, on_answer=lambda answer: taken.append(answer.body))

        async with anyio.create_task_group() as group:
            group.start_soon(hold)
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        await connection.request(Command(RELEASE))
        assert (await connection.request(Command(ECHO))).body == b""
        assert taken == [b"x"]


async def test_a_cancelled_request_leaves_no_entry_and_the_connection_lives(address: str) -> None:
    async with open_connection(address) as connection:
        async with anyio.create_task_group() as group:
            group.start_soon(connection.request, Command(HOLD), 60.0)
            await anyio.wait_all_tasks_blocked()
            assert len(connection._requests) == 1
            group.cancel_scope.cancel()
        assert len(connection._requests) == 0
        assert (await connection.request(Command(ECHO))).code == 0


async def test_a_lost_connection_fails_all_at_once(address: str) -> None:
    errors: list[BaseException] = []
    async with open_connection(address) as connection:

        async def wait() -> None:
            try:
                await connection.request(Command(HOLD), 60.0)
            except ConnectionLostError as error:
                errors.append(error)

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(wait)
            await connection.send_oneway(Command(DROP))
        await connection.wait_closed()
        assert connection.closed
        with pytest.raises(ConnectionLostError):
            await connection.request(Command(ECHO))
        with pytest.raises(ConnectionLostError):
            connection.send_nowait(Command(ECHO))
    assert len(errors) == 5


async def test_closing_by_hand_fails_all(address: str) -> None:
    async with open_connection(address) as connection, anyio.create_task_group() as group:

        async def wait() -> None:
            with pytest.raises(ConnectionLostError, match="enough"):
                await connection.request(Command(HOLD), 60.0)

        group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        connection.close("enough")
        await connection.wait_closed()


async def test_an_error_in_the_block_comes_out_bare(address: str) -> None:
    with pytest.raises(LookupError, match="mine"):
        async with open_connection(address):
            raise LookupError("mine")
    with pytest.raises(LookupError, match="mine"):
        async with RemotingClient():
            raise LookupError("mine")


async def test_the_server_asks_the_client(address: str) -> None:
    async def answer(connection: Connection, command: Command) -> Command:
        await anyio.lowlevel.checkpoint()
        return command.reply(7, body=bytes(command.body)[::-1], remark="asked")

    async with RemotingClient() as client:
        client.register(CLIENT_CODE, answer)
        response = await client.request(address, Command(ASK_BACK, body=b"abc"))
    assert (response.code, bytes(response.body), response.remark) == (7, b"cba", "asked")


async def test_errors_of_a_client_handler_are_answered(address: str) -> None:
    async def refuse(connection: Connection, command: Command) -> Command:
        raise RequestError(16, "no permission")

    async def crash(connection: Connection, command: Command) -> Command:
        raise LookupError("a defect")

    async with RemotingClient() as client:
        assert (await client.request(address, Command(ASK_BACK))).code == 3
        client.register(CLIENT_CODE, refuse)
        assert (await client.request(address, Command(ASK_BACK))).code == 16
        client.register(CLIENT_CODE, crash)
        assert (await client.request(address, Command(ASK_BACK))).code == 1
        assert (await client.request(address, Command(ECHO))).code == 0


async def test_a_one_way_request_of_the_server_reaches_the_handler(address: str) -> None:
    noticed = anyio.Event()
    seen: list[Command] = []

    async def notice(connection: Connection, command: Command) -> None:
        seen.append(command)
        noticed.set()

    async with open_connection(address, handlers={CLIENT_CODE: notice}) as connection:
        await connection.request(Command(NOTIFY))
        with anyio.fail_after(10):
            await noticed.wait()
    assert bytes(seen[0].body) == b"notice"
    assert seen[0].is_oneway


async def test_a_refused_port_is_named_and_tried_again_by_the_next_request(transport: str) -> None:
    prefix = "" if transport == "tcp" else "ws://"
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
    address = f"{prefix}127.0.0.1:{port}"
    async with RemotingClient() as client:
        for _ in range(2):
            with pytest.raises(ConnectError, match="Connection refused") as caught:
                await client.request(address, Command(ECHO))
            assert caught.value.address == address


async def test_an_address_that_is_none_is_a_connect_error() -> None:
    async with RemotingClient() as client:
        with pytest.raises(ConnectError, match="wss"):
            await client.request("wss://example.org:1", Command(ECHO))


async def test_a_lost_connection_is_made_anew_and_told(address: str, thread_server: ThreadServer) -> None:
    told: list[Connection] = []
    async with RemotingClient(on_close=told.append) as client:
        first = await client.connection(address)
        with pytest.raises(ConnectionLostError):
            await client.request(address, Command(DROP))
        await first.wait_closed()
        assert (await client.request(address, Command(ECHO))).code == 0
        second = await client.connection(address)
        assert second is not first
        assert told == [first]
    assert told == [first, second]
    assert len(thread_server.desk.opened) == 2


async def test_a_cancelled_caller_does_not_end_the_attempt_for_the_others(address: str) -> None:
    async with RemotingClient() as client:
        connections: list[Connection] = []

        async def get() -> None:
            connections.append(await client.connection(address))

        async with anyio.create_task_group() as others:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await client.connection(address)
            others.start_soon(get)
            others.start_soon(get)
        assert len(connections) == 2
        assert connections[0] is connections[1]


async def test_after_its_end_a_client_says_so(address: str) -> None:
    async with RemotingClient() as client:
        await client.request(address, Command(ECHO))
    with pytest.raises(ConnectError, match="closed"):
        await client.request(address, Command(ECHO))


@pytest.mark.parametrize("again", [False, True])
async def test_a_lasting_client_serves_until_its_cancelled_block_has_ended(address: str, again: bool) -> None:
    with anyio.CancelScope() as scope:
        async with RemotingClient(lasting=True) as client:
            connection = await client.connection(address)
            scope.cancel()
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    if again:
                        client.close_connection(address)
                    answer = await client.request(address, Command(ECHO, body=b"bye"))
                    assert (bytes(answer.body), client.connected(address) is connection) == (b"bye", not again)
    assert connection.closed
    assert client.open_addresses() == []


@pytest.mark.parametrize("turns", range(4))
async def test_a_lasting_client_that_still_connects_ends_at_once(turns: int) -> None:
    async def connect(client: RemotingClient, address: str) -> None:
        with pytest.raises(ConnectError, match="closed"):
            await client.connection(address)

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        address = f"ws://127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}"
        with anyio.fail_after(60):
            async with (
                anyio.create_task_group() as group,
                RemotingClient(lasting=True, connect_timeout_seconds=3600) as client,
            ):
                group.start_soon(connect, client, address)
                await anyio.lowlevel.checkpoint()
                for _ in range(turns):
                    await anyio.lowlevel.checkpoint()


async def test_a_server_that_never_answers_the_handshake_is_given_up() -> None:
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        address = f"ws://127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}"
        async with RemotingClient(connect_timeout_seconds=0.05) as client:
            with pytest.raises(ConnectError, match=r"within 0\.05 s"):
                await client.connection(address)
            with pytest.raises(ConnectError, match=r"within 0\.01 s"):
                await client.request(address, Command(ECHO), timeout_seconds=0.01)
