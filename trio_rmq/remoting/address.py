"""How addresses are written, on both halves of a connection.

A server listens on `host:port`; a client connects to `host:port` (TCP remoting) or `ws://host:port[/path]` (CBOR over
WebSocket), `wss://` with TLS below.  An IPv6 host stands in brackets.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from os import strerror

from trio_rmq.errors import ConfigError

PORT_MAX = 65_535


@dataclass(frozen=True, slots=True)
class Address:
    """One parsed address; `path` is None for TCP remoting; `tls` when the address itself asks for it."""

    host: str
    port: int
    path: str | None = None
    tls: bool = False


def parse_address(text: str) -> Address:
    """`text` as an Address; ConfigError when it is neither `host:port` nor `ws[s]://host:port[/path]`."""
    rest, path, tls = text.strip(), None, False
    scheme, separator, after = rest.partition("://")
    if separator:
        if scheme.lower() not in ("ws", "wss"):
            raise ConfigError(
                f"address {text!r}: the scheme {scheme!r} is not served here; use host:port, ws:// or wss://"
            )
        tls = scheme.lower() == "wss"
        rest, slash, tail = after.partition("/")
        path = slash + tail or "/"
    host, colon, port_text = rest.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ConfigError(f"address {text!r}: write an IPv6 host in brackets, [{host}]:{port_text}")
    if not colon or not host or not (port_text.isascii() and port_text.isdigit()) or int(port_text) > PORT_MAX:
        raise ConfigError(f"address {text!r} is not host:port or ws://host:port")
    return Address(host, int(port_text), path, tls)


def address_scheme(address: str) -> str:
    """`ws://` or `wss://` of an address that has it, else nothing: what to put before addresses met through it."""
    scheme, separator, _ = address.strip().partition("://")
    return scheme.lower() + separator if separator else ""


def format_address(host: str, port: int) -> str:
    """`host:port`, an IPv6 host in brackets, an IPv4 address that travels as IPv6 (::ffff:a.b.c.d) as plain IPv4."""
    bare = plain_host(host)
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


def plain_host(host: str) -> str:
    """A numeric host without its scope and with a mapped IPv4 address unwrapped."""
    if ":" not in host:
        return host
    bare = host.partition("%")[0]
    address = ip_address(bare)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped) if mapped is not None else bare


def system_reason(error: BaseException) -> str:
    """The system's own words for a socket error, from under the causes and groups that libraries wrap around it."""
    inner = error if isinstance(error, BaseExceptionGroup) else error.__cause__
    if isinstance(inner, BaseExceptionGroup):
        return "; ".join(dict.fromkeys(system_reason(one) for one in inner.exceptions))
    if isinstance(inner, OSError):
        return system_reason(inner)
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return strerror(error.errno)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror  # name resolution has numbers of its own, below zero
    return str(error)
