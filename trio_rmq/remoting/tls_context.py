"""What a TLS connection is made with: contexts of the standard library's `ssl`, made from RocketMQ's settings.

`ssl` only computes here: bytes travel over trio's and anyio's streams.  A client verifies the server and its name
unless it is told otherwise.  Source: RocketMQ TlsHelper, TlsSystemConfig.
"""

from __future__ import annotations

import ssl

from trio_rmq.config import RemotingConfig
from trio_rmq.errors import ConfigError

TlsContext = ssl.SSLContext
"""What a user gives as `ssl_context`."""
MINIMUM_VERSION = ssl.TLSVersion.TLSv1_2


def verifying_context(ssl_context: ssl.SSLContext | None, *, use_tls: bool) -> ssl.SSLContext | None:
    """A client's context: the one given; with `use_tls` else one that trusts the system's authorities; None: no TLS."""
    if ssl_context is None and use_tls:
        return ssl.create_default_context()
    return ssl_context


def trusting_context(ca_path: str) -> ssl.SSLContext:
    """A client's context that trusts the authorities in one file; ConfigError when it cannot be used."""
    try:
        return ssl.create_default_context(cafile=ca_path)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"the authorities in {ca_path} cannot be used: {error}") from None


def client_context(config: RemotingConfig) -> ssl.SSLContext | None:
    """The context of a server's own connections; None when they are not TLS (`useTLS`).

    With tlsClientAuthServer=false whoever answers is trusted, as RocketMQ does; otherwise the authorities in
    tlsClientTrustCertPath, or the system's, are.  The name is never compared: brokers and name servers
    tell one another numeric addresses.  ConfigError names the file that cannot be used.
    """
    if not config.use_tls:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = MINIMUM_VERSION
    context.check_hostname = False
    if not config.tls_client_auth_server:
        context.verify_mode = ssl.CERT_NONE
    else:
        _trust(context, config.tls_client_trust_cert_path, "tlsClientTrustCertPath", ssl.Purpose.SERVER_AUTH)
    if config.tls_client_cert_path:
        load_chain(
            context,
            config.tls_client_cert_path,
            config.tls_client_key_path,
            config.tls_client_key_password,
            "tlsClient",
        )
    return context


def server_context(config: RemotingConfig) -> ssl.SSLContext:
    """A listener's context from its files; ConfigError names the one that cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = MINIMUM_VERSION
    load_chain(
        context, config.tls_server_cert_path, config.tls_server_key_path, config.tls_server_key_password, "tlsServer"
    )
    if config.tls_server_auth_client:
        _trust(context, config.tls_server_trust_cert_path, "tlsServerTrustCertPath", ssl.Purpose.CLIENT_AUTH)
        required = config.tls_server_need_client_auth == "require"
        asked = config.tls_server_need_client_auth != "none"
        context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL if asked else ssl.CERT_NONE
    return context


def load_chain(context: ssl.SSLContext, cert_path: str, key_path: str, password: str, keys: str) -> None:
    """Give `context` its own certificate; ConfigError when the files cannot be read or do not belong together."""
    try:
        # Without a password the callback keeps OpenSSL from asking for one at the terminal.
        context.load_cert_chain(cert_path, key_path, password or (lambda: b""))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{keys}CertPath={cert_path} and {keys}KeyPath={key_path} cannot be used: {error}") from None


def _trust(context: ssl.SSLContext, path: str, key: str, purpose: ssl.Purpose) -> None:
    if not path:
        context.load_default_certs(purpose)
        return
    try:
        context.load_verify_locations(path)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{key}={path} cannot be used: {error}") from None
