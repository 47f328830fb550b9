"""TLS on a listener's port: the certificates, read again when their files change, and a socket that speaks TLS.

A handshake begins with one byte that no other transport begins with, so the same port serves all.  `TlsSocket` stands
in the place of a plain socket; what is above it does not know.  The files are looked at when a handshake begins - a
stat each - so a new certificate is served to the next connection, and an idle server does nothing.  Files that cannot
be used (a key that is copied a moment after its certificate) leave the old ones in place and are said once.

Bounds: a handshake has the listener's `handshake_seconds`; at most TLS_HANDSHAKES_MAX are under way at a time.
"""

from __future__ import annotations

import logging
import os
import ssl
import tempfile

import trio

from trio_rmq import limits
from trio_rmq.clock import wall_ms
from trio_rmq.config import RemotingConfig
from trio_rmq.errors import ConfigError
from trio_rmq.remoting.tls_context import MINIMUM_VERSION, server_context

HANDSHAKE_BYTE = 0x16
READ_BYTES = 64 * 1024
WRITE_BYTES = 256 * 1024
"""Most plain bytes of one write: how far a peer has read is seen between two."""

logger = logging.getLogger("trio_rmq.remoting")

Stamp = tuple[tuple[int, int, int], ...]
"""What changes when a file is replaced or written: its number, size and time, for each file."""


class ServerTls:
    """What one server knows of TLS; shared by its listeners.

    Making one reads the files: ConfigError when they cannot be used.
    """

    def __init__(self, config: RemotingConfig) -> None:
        self.mode = config.tls_server_mode
        self._config = config
        self._context: ssl.SSLContext | None = None
        self._stamp: Stamp = ()
        self._handshakes = 0
        self._has_files = bool(config.tls_server_cert_path)
        if self.mode != "disabled" and self._has_files:
            self._stamp = self._look()
            self._context = server_context(config)

    @property
    def takes_tls(self) -> bool:
        """Whether TLS connections are taken."""
        return self.mode != "disabled" and (self._has_files or self._config.tls_test_mode_enable)

    @property
    def takes_plain(self) -> bool:
        """Whether connections without TLS are taken."""
        return self.mode != "enforcing"

    def _look(self) -> Stamp:
        config = self._config
        found = []
        for path in (config.tls_server_cert_path, config.tls_server_key_path, config.tls_server_trust_cert_path):
            if path:
                try:
                    state = os.stat(path)
                except OSError:
                    found.append((0, 0, 0))
                else:
                    found.append((state.st_ino, state.st_size, state.st_mtime_ns))
        return tuple(found)

    def context(self) -> ssl.SSLContext:
        """The context for the next handshake, of the files as they are now; ConfigError without a usable one."""
        if not self._has_files:
            if self._context is None:
                self._context = self_signed_context()
            return self._context
        stamp = self._look()
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._context = server_context(self._config)
            except ConfigError as error:
                logger.error("TLS goes on with the certificate it has: %s", error)
            else:
                logger.info("TLS certificate %s read again", self._config.tls_server_cert_path)
        assert self._context is not None  # noqa: S101 - made with the first stamp
        return self._context

    async def shake_hands(self, socket: trio.socket.SocketType, first: bytes) -> TlsSocket:
        """The connection as a TLS one, its `first` bytes being read already.

        Whoever calls bounds the time.  ConfigError when there is no certificate, or too many shake hands;
        trio.BrokenResourceError when the peer's handshake fails.
        """
        if self._handshakes >= limits.TLS_HANDSHAKES_MAX:
            raise ConfigError(f"{self._handshakes} TLS handshakes are under way, which is the limit")
        self._handshakes += 1
        try:
            stream = trio.SSLStream(_Raw(socket, first), self.context(), server_side=True, https_compatible=True)
            await stream.do_handshake()
        finally:
            self._handshakes -= 1
        return TlsSocket(socket, stream)


class _Raw(trio.abc.Stream):
    """A socket as the stream that trio's TLS reads and writes; `first` comes before what is still to be read."""

    def __init__(self, socket: trio.socket.SocketType, first: bytes) -> None:
        self._socket = socket
        self._first = first

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._first:
            data, self._first = self._first, b""
            await trio.lowlevel.checkpoint()
            return data
        try:
            return await self._socket.recv(max_bytes or READ_BYTES)
        except OSError as error:
            raise trio.BrokenResourceError(str(error)) from error

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        try:
            with memoryview(data) as view:
                position = 0
                while position < len(view):
                    position += await self._socket.send(view[position:])
        except OSError as error:
            raise trio.BrokenResourceError(str(error)) from error

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        self._socket.close()
        await trio.lowlevel.checkpoint()


class TlsSocket:
    """A TLS connection with a socket's methods, as far as a session uses them."""

    def __init__(self, socket: trio.socket.SocketType, stream: trio.SSLStream[_Raw]) -> None:
        self._socket = socket
        self._stream = stream

    async def recv(self, size_bytes: int) -> bytes:
        """At most so many plain bytes, none at the end; trio.BrokenResourceError when TLS or the connection breaks."""
        return bytes(await self._stream.receive_some(size_bytes))

    async def send(self, data: bytes | bytearray | memoryview) -> int:
        """Send the beginning of `data`, at most WRITE_BYTES, and return how much it was; errors as of `recv`."""
        piece = data if len(data) <= WRITE_BYTES else memoryview(data)[:WRITE_BYTES]
        await self._stream.send_all(piece)
        return len(piece)

    def getpeername(self) -> tuple[str, int]:
        """As of the socket."""
        name: tuple[str, int] = self._socket.getpeername()
        return name

    def getsockname(self) -> tuple[str, int]:
        """As of the socket."""
        name: tuple[str, int] = self._socket.getsockname()
        return name

    def close(self) -> None:
        """Close the socket at once; the peer sees an end without TLS's farewell, which remoting does not need."""
        self._socket.close()


def self_signed_context() -> ssl.SSLContext:
    """A context with a certificate of its own making, for RocketMQ's test mode; ConfigError without `cryptography`."""
    try:
        from cryptography import x509  # only test mode needs it; a server with certificates does not
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError:
        raise ConfigError(
            "TLS in test mode makes its certificate with the package cryptography, which is not installed: install "
            "trio-rmq[tls], or set tlsTestModeEnable=false, tlsServerKeyPath and tlsServerCertPath"
        ) from None
    from datetime import UTC, datetime, timedelta

    now = datetime.fromtimestamp(wall_ms() / 1000, UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "trio-rmq test mode")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=3650))
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = MINIMUM_VERSION
    with tempfile.NamedTemporaryFile() as file:  # ssl reads files only; this one is readable by us alone, for a moment
        file.write(pem)
        file.flush()
        context.load_cert_chain(file.name)
    return context
