"""Clients of every kind at a name server and a broker that take TLS only, over TCP remoting and WebSocket."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from tests.cli.processes import free_ports, running, trio_rmq
from tests.client.test_doc_examples import run
from tests.client.test_producer import known_queues
from trio_rmq.admin.client import AdminClient
from trio_rmq.client import LitePullConsumer, Message, Producer, SendStatus, blocking
from trio_rmq.errors import SendError


@dataclass
class Secured:
    """A standalone server that takes TLS only; its broker registered at its name server by TLS."""

    name_server: str
    ca_file: Path

    @property
    def trusting(self) -> ssl.SSLContext:
        """A context that trusts its authority."""
        return ssl.create_default_context(cafile=str(self.ca_file))


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    scratch = tmp_path_factory.mktemp("secured")
    authority = trustme.CA()
    leaf = authority.issue_cert("127.0.0.1")
    leaf.private_key_pem.write_to_path(str(scratch / "key.pem"))
    (scratch / "cert.pem").write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
    authority.cert_pem.write_to_path(str(scratch / "ca.pem"))
    port, namesrv_port = free_ports(2)
    words = [
        "standalone", "--store", str(scratch / "s"), "--port", str(port), "--namesrv-port", str(namesrv_port),
        "tlsServerMode=enforcing", "tlsServerCertPath=cert.pem", "tlsServerKeyPath=key.pem",
        "useTLS=true", "tlsClientAuthServer=true", "tlsClientTrustCertPath=ca.pem",
    ]  # fmt: skip
    with running(scratch, *words):
        yield Secured(f"127.0.0.1:{namesrv_port}", scratch / "ca.pem")


@pytest.mark.anyio
@pytest.mark.parametrize("prefix", ["", "wss://"], ids=["tcp", "websocket"])
async def test_async_clients(secured: Secured, prefix: str, topic: str) -> None:
    names, trusting = prefix + secured.name_server, secured.trusting
    async with Producer(name_servers=names, ssl_context=trusting) as producer:
        assert (await producer.send(Message(topic, b"x"))).status is SendStatus.SEND_OK
        queues = await known_queues(producer, topic)
    async with LitePullConsumer(topic, name_servers=names, ssl_context=trusting) as consumer:
        await consumer.assign(queues)
        assert [message.body for message in await consumer.poll()] == [b"x"]
    async with AdminClient(name_servers=names, ssl_context=trusting) as admin:
        assert list(await admin.masters()) == ["broker-a"]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_blocking_clients(secured: Secured, topic: str, backend: str) -> None:
    portal = blocking.BlockingPortalProvider(backend)
    with blocking.Producer(name_servers=secured.name_server, ssl_context=secured.trusting, portal=portal) as producer:
        assert producer.send(Message(topic, b"x")).status is SendStatus.SEND_OK


@pytest.mark.anyio
async def test_without_tls_or_trust_the_error_names_the_server(secured: Secured, topic: str) -> None:
    for settings, sentence in ((False, "ended"), (True, "not trusted")):
        async with Producer(name_servers=secured.name_server, use_tls=settings) as producer:
            with pytest.raises(SendError, match=sentence) as caught:
                await producer.send(Message(topic, b"x"))
            assert secured.name_server in str(caught.value)


@pytest.mark.parametrize("prefix", ["", "wss://"], ids=["tcp", "websocket"])
def test_the_command_line(secured: Secured, topic: str, prefix: str) -> None:
    def said(*words: str) -> str:
        done = trio_rmq("--ca", str(secured.ca_file), *words, "-n", prefix + secured.name_server)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode()

    assert "is at broker-a" in said("topic", "create", topic, "--queues", "1")
    said("send", topic, "one")
    assert said("receive", topic, "--until-end", "--group", topic) == "one\n"
    assert topic in said("group", "list")
    wrong = trio_rmq("--tls", "topic", "list", "-n", prefix + secured.name_server)
    assert (wrong.returncode, b"is not trusted" in wrong.stderr) == (1, True)
    missing = trio_rmq("--ca", "/nowhere", "topic", "list", "-n", secured.name_server)
    assert (missing.returncode, b"the authorities in /nowhere cannot be used" in missing.stderr) == (2, True)


def test_the_program_of_the_page(secured: Secured, topic: str) -> None:
    assert trio_rmq(
        "--ca", str(secured.ca_file), "topic", "create", topic, "-n", secured.name_server
    ).returncode == 0  # fmt: skip
    lines = run("tls_produce.py", secured.name_server, topic, str(secured.ca_file))
    assert lines == ["SEND_OK", "['over TLS']"]
