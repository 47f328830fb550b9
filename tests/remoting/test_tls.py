"""TLS beside plain connections on one port: modes, both transports, new certificates, and peers that misbehave."""

from __future__ import annotations

import os
import ssl
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
import trustme

from tests.remoting.conftest import ECHO, LONG, Desk
from trio_rmq.config import RemotingConfig, load_namesrv_settings
from trio_rmq.errors import ConfigError, ConnectError
from trio_rmq.remoting.client import RemotingClient
from trio_rmq.remoting.listener import serve_remoting
from trio_rmq.remoting.settings import RemotingSettings
from trio_rmq.remoting.tls import ServerTls
from trio_rmq.remoting.tls_context import client_context
from trio_rmq.wire.command import Command


@dataclass
class Authority:
    """A certificate authority and the server's files in `folder`."""

    ca: trustme.CA
    folder: Path

    def issue(self) -> None:
        """A new certificate for 127.0.0.1, in the place of the old one."""
        leaf = self.ca.issue_cert("127.0.0.1")
        leaf.private_key_pem.write_to_path(str(self.folder / "key.pem"))
        (self.folder / "cert.pem").write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))

    def config(self, **changes: object) -> RemotingConfig:
        """Settings that use them."""
        values = {
            "tls_server_key_path": str(self.folder / "key.pem"),
            "tls_server_cert_path": str(self.folder / "cert.pem"),
            **changes,
        }
        return RemotingConfig(**values)  # type: ignore[arg-type]  # the values are those of the fields

    def trusting(self) -> ssl.SSLContext:
        """A client's context that trusts this authority."""
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        return context


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    made = Authority(trustme.CA(), tmp_path)
    made.issue()
    return made


async def start(
    nursery: trio.Nursery, desk: Desk, config: RemotingConfig, settings: RemotingSettings | None = None
) -> str:
    async def serve(*, task_status: trio.TaskStatus[list[str]]) -> None:
        await serve_remoting(
            ["127.0.0.1:0"],
            desk.table(),
            tls=ServerTls(config),
            settings=settings or RemotingSettings(),
            on_close=desk.on_close,
            task_status=task_status,
        )

    addresses: list[str] = await nursery.start(serve)
    return addresses[0]


async def echo(address: str, context: ssl.SSLContext | None, body: bytes = b"hello") -> bytes:
    async with RemotingClient(ssl_context=context) as client:
        return bytes((await client.request(address, Command(ECHO, body=body))).body)


@pytest.mark.parametrize("scheme", ["", "wss://"])
@pytest.mark.trio
async def test_both_transports_over_tls(scheme: str, nursery: trio.Nursery, desk: Desk, authority: Authority) -> None:
    address = scheme + await start(nursery, desk, authority.config())
    async with RemotingClient(ssl_context=authority.trusting()) as client:
        answer = await client.request(address, Command(ECHO, body=b"x" * 1_000_000))
        assert bytes(answer.body) == b"x" * 1_000_000
        assert answer.remark == ("websocket" if scheme else "tcp")
        long = await client.request(address, Command(LONG, body=b"y"), 10.0)
        assert bytes(long.body) == b"y" * 4 * 1024 * 1024


@pytest.mark.parametrize(("mode", "tls", "plain"), [
    ("disabled", False, True), ("permissive", True, True), ("enforcing", True, False),
])  # fmt: skip
@pytest.mark.trio
async def test_the_three_modes(
    mode: str, tls: bool, plain: bool, nursery: trio.Nursery, desk: Desk, authority: Authority
) -> None:
    address = await start(nursery, desk, authority.config(tls_server_mode=mode))
    for context, taken in ((authority.trusting(), tls), (None, plain)):
        if taken:
            assert await echo(address, context) == b"hello"
        else:
            with pytest.raises(Exception, match=r"TLS|ended|closed") as caught:
                await echo(address, context)
            assert address in str(caught.value)


@pytest.mark.trio
async def test_test_mode_makes_its_own_certificate(nursery: trio.Nursery, desk: Desk) -> None:
    address = await start(nursery, desk, RemotingConfig())
    assert await echo(address, client_context(RemotingConfig(use_tls=True))) == b"hello"
    with pytest.raises(ConnectError, match="not trusted"):
        await echo(address, ssl.create_default_context())


@pytest.mark.trio
async def test_a_new_certificate_is_served_without_a_restart(
    nursery: trio.Nursery, desk: Desk, authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    address = await start(nursery, desk, authority.config())
    assert await echo(address, authority.trusting()) == b"hello"
    (tmp_path / "cert.pem").write_bytes(b"half of one")
    assert await echo(address, authority.trusting()) == b"hello"
    assert "goes on with the certificate it has" in caplog.text
    other = Authority(trustme.CA(), tmp_path)
    other.issue()
    os.utime(tmp_path / "cert.pem", (1, 1))
    assert await echo(address, other.trusting()) == b"hello"
    with pytest.raises(ConnectError, match="not trusted"):
        await echo(address, authority.trusting())


@pytest.mark.trio
async def test_clients_show_certificates(nursery: trio.Nursery, desk: Desk, authority: Authority) -> None:
    authority.ca.cert_pem.write_to_path(str(authority.folder / "ca.pem"))
    trust = str(authority.folder / "ca.pem")
    address = await start(
        nursery, desk,
        authority.config(
            tls_server_auth_client=True, tls_server_need_client_auth="require", tls_server_trust_cert_path=trust
        ),
    )  # fmt: skip
    with pytest.raises(Exception, match=r"ended|TLS"):
        await echo(address, authority.trusting())
    shown = client_context(
        RemotingConfig(
            use_tls=True, tls_client_auth_server=True, tls_client_trust_cert_path=trust,
            tls_client_cert_path=str(authority.folder / "cert.pem"),
            tls_client_key_path=str(authority.folder / "key.pem"),
        )
    )  # fmt: skip
    assert await echo(address, shown) == b"hello"


@pytest.mark.trio
async def test_a_handshake_has_a_deadline(
    nursery: trio.Nursery, desk: Desk, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    address = await start(nursery, desk, authority.config(), RemotingSettings(handshake_seconds=0.05))
    host, _, port = address.rpartition(":")
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        await stream.send_all(b"\x16\x03\x01")
        with trio.fail_after(5):
            assert await stream.receive_some() == b""
    assert "no TLS handshake within 0.05 s" in caplog.text


@pytest.mark.parametrize("data", [b"\x16\x03\x01\x00\x05hello", b"\x16" * 70_000])
@pytest.mark.trio
async def test_bytes_that_are_no_handshake_cost_their_connection_only(
    data: bytes, nursery: trio.Nursery, desk: Desk, authority: Authority
) -> None:
    address = await start(nursery, desk, authority.config())
    host, _, port = address.rpartition(":")
    with trio.fail_after(5):
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            with suppress(trio.BrokenResourceError):
                await stream.send_all(data)
                while await stream.receive_some():
                    pass
    assert await echo(address, authority.trusting()) == b"hello"


@pytest.mark.trio
async def test_handshakes_are_bounded(
    nursery: trio.Nursery, desk: Desk, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_rmq.limits.TLS_HANDSHAKES_MAX", 0)
    address = await start(nursery, desk, authority.config())
    with pytest.raises(ConnectError, match="no TLS"):
        await echo(address, authority.trusting())


def test_settings_come_from_rocketmqs_file(tmp_path: Path) -> None:
    file = tmp_path / "tls.properties"
    file.write_text("tls.server.mode=enforcing\ntls.server.certPath=a\ntls.server.keyPath=b\n")
    remoting = load_namesrv_settings(None, [f"tlsConfigFile={file}", "tls.server.keyPath=c"]).remoting
    assert (remoting.tls_server_mode, remoting.tls_server_cert_path, remoting.tls_server_key_path) == (
        "enforcing", "a", "c",
    )  # fmt: skip


@pytest.mark.parametrize("setting", [
    "tlsServerCertPath=a", "tlsClientKeyPath=a", "tlsServerNeedClientAuth=require", "tls.config.file=/nowhere",
])  # fmt: skip
def test_settings_that_cannot_work_stop_the_start(setting: str) -> None:
    with pytest.raises(ConfigError, match="tls"):
        load_namesrv_settings(None, [setting])


def test_files_that_cannot_be_used_stop_the_start(tmp_path: Path) -> None:
    config = RemotingConfig(tls_server_cert_path=str(tmp_path / "no"), tls_server_key_path=str(tmp_path / "no"))
    with pytest.raises(ConfigError, match="tlsServerCertPath"):
        ServerTls(config)
