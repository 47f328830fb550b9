"""Which address of this machine to tell others, and a port of its own: questions to the operating system's network.

Asked through `trio.socket`, so that a simulated network answers them in a simulation.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

import trio

from trio_rmq.errors import ConfigError, ListenError

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


class ReservedPort:
    """A port to listen on later.  One that the system chose is nobody else's until `release`, or the block's end.

    So no other process can take it meanwhile, as could be with a port that was only found to be free.
    """

    def __init__(self, port: int, held: trio.socket.SocketType | None = None) -> None:
        self.port = port
        self._held = held

    def release(self) -> None:
        """Let somebody listen there.  Once is enough."""
        if self._held is not None:
            self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


async def reserve_port(host: str, port: int) -> ReservedPort:
    """`port`, or for 0 a free one of `host`, a numeric address: to be known before anybody may connect to it.

    ListenError when `host` is no address of this machine.
    """
    if port:
        return ReservedPort(port)
    family = trio.socket.AF_INET6 if ":" in host else trio.socket.AF_INET
    held = trio.socket.socket(family, trio.socket.SOCK_STREAM)
    try:
        await held.bind((host, 0))
    except OSError as error:
        held.close()
        raise ListenError(f"cannot listen on {host}: {error.strerror or error}", address=host) from error
    except BaseException:
        held.close()
        raise
    return ReservedPort(held.getsockname()[1], held)
