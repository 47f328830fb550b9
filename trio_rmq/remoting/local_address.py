"""Which address of this machine to tell others, and a free port: questions to the operating system's network.

Asked through `trio.socket`, so that a simulated network answers them in a simulation.
"""

from __future__ import annotations

import trio

from trio_rmq.errors import ConfigError

LOOPBACK = "127.0.0.1"
WILDCARDS = frozenset({"0.0.0.0", "::", ""})  # noqa: S104 - compared, not bound
_ELSEWHERE = ("192.0.2.1", 9)
"""An address kept for documentation (RFC 5737): routed like any other, and nothing is sent to it."""


async def outward_address() -> str:
    """The IPv4 address that this machine's connections to others come from; loopback when it has no way out."""
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as probe:
        try:
            await probe.connect(_ELSEWHERE)
            name: tuple[str, int] = probe.getsockname()
        except OSError:
            return LOOPBACK
    return LOOPBACK if name[0] in WILDCARDS else name[0]


async def resolve(host: str, key: str) -> str:
    """The numeric address of `host`; ConfigError names the configuration `key` when it has none."""
    try:
        found = await trio.socket.getaddrinfo(host, None, type=trio.socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"{key}={host} does not resolve ({error}): use an address or a name that does") from None
    numeric = sorted(found, key=lambda entry: entry[0] != trio.socket.AF_INET)
    return str(numeric[0][4][0])


async def free_port(host: str) -> int:
    """A port that nobody listens on now."""
    family = trio.socket.AF_INET6 if ":" in host else trio.socket.AF_INET
    with trio.socket.socket(family, trio.socket.SOCK_STREAM) as probe:
        await probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
