"""What every producer and consumer has: its name, its name servers, and who it is to brokers."""

from __future__ import annotations

import os
from collections.abc import Sequence

from trio_rmq.errors import ClientError
from trio_rmq.randomness import rng

DEFAULT_HOST = b"\x7f\x00\x00\x01"


def name_server_addresses(given: str | Sequence[str] | None) -> list[str]:
    """The name servers to use: those given (`a;b` or a sequence), else the environment's NAMESRV_ADDR."""
    if given is None:
        given = os.environ.get("NAMESRV_ADDR", "")
    parts = given.split(";") if isinstance(given, str) else list(given)
    addresses = [part.strip() for part in parts if part.strip()]
    if not addresses:
        raise ClientError("no name server is given: pass name_servers='host:9876' or set NAMESRV_ADDR")
    return addresses


def new_client_id() -> str:
    """A client id that no other client has: address, process, and a random part, as `ip@instance`."""
    return f"127.0.0.1@{os.getpid()}#{rng().getrandbits(48):012x}"


def process_id() -> int:
    """This process's number, a part of unique message ids."""
    return os.getpid()
